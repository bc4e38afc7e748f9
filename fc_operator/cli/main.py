"""The ``fc`` command: its subcommands by name, loaded when asked for, and how it ends.

Every subcommand is a module ``fc_operator.cli.<name>`` with an object ``command``. The table below
holds their one-line help too, so that ``fc --help`` loads none of them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from fc_operator.cli import exits
from fc_operator.errors import FcError

COMMANDS: Final[dict[str, dict[str, str]]] = {
    "Run": {
        "demo": "Run the demo: build config/demo and check every outcome.",
        "up": "Run everything on this machine.",
        "server": "Run the HTTP service.",
        "scheduler": "Run the loops that evaluate and build.",
        "operator": "Bring a cluster's objects of our kinds into force.",
        "agent": "Evaluate or build inside a pod.",
        "migrate": "Bring the database's schema up to date.",
        "doctor": "Look for what this machine needs and say how to get it.",
    },
    "Declare": {
        "validate": "Check manifests without a server.",
        "plan": "Show what applying manifests would change.",
        "apply": "Bring the server to what manifests declare.",
        "sync": "Sync a config repository now.",
        "schema": "Print the JSON Schema of manifests, for editors.",
    },
    "Look": {
        "get": "Show projects, jobsets, evaluations, builds, the queue and more.",
        "logs": "Print a build's log; -f follows it.",
    },
    "Act": {
        "evaluate": "Evaluate a jobset now.",
        "cancel": "Cancel builds or whole evaluations.",
        "restart": "Build again what has ended.",
        "bump": "Move builds or evaluations to the front of the queue.",
        "keep": "Keep a build's outputs from garbage collection.",
    },
    "Manage": {
        "key": "Create, list and revoke API keys.",
        "builder": "Look at a declared builder; pin its host key.",
        "cache": "Show the binary cache; make signing keys.",
        "completion": "Print a shell's completion script.",
    },
}

_EPILOG: Final = """\
\b
First steps:
  fc demo                          see it work
  fc up --config ./my-manifests    stay up on a folder or a git URL
  fc get                           what is there, and how it goes

\b
Exit codes:
  0    done
  1    an error: wrong usage, refused, or the server can't be reached
  2    `fc plan`: there are changes
  3    what was waited for ended badly (fc logs -f, fc evaluate --wait)
  130  interrupted

\b
Verbs speak HTTP to the server at --url (FC_URL, else http://127.0.0.1:8080);
writes need a key: --key, FC_API_KEY, or the file ~/.config/fc/key.
"""


class _Commands(click.Group):
    """Subcommands by the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if not any(cmd_name in section for section in COMMANDS.values()):
            return None
        module = importlib.import_module(f"fc_operator.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if not close:
                raise
            raise click.UsageError(f"{error} Did you mean {close[0]!r}?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        widest = max(len(name) for section in COMMANDS.values() for name in section)
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(
                    [(name.ljust(widest), text) for name, text in section.items()], col_spacing=2
                )


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.version_option(package_name="fc-operator", prog_name="fc")
@click.option("--url", metavar="URL", help="The server (FC_URL).")
@click.option("--key", metavar="KEY", help="The API key; better in FC_API_KEY.")
@click.pass_context
def cli(ctx: click.Context, url: str | None, key: str | None) -> None:
    """A Nix CI that is run by declaration.

    Projects, jobsets and builders are YAML manifests; FC Operator brings itself to what they say,
    evaluates each jobset when its source changes, and builds every job once.
    """
    ctx.obj = {"url": url, "key": key}
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; errors become one line, a hint and an exit code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        code = cli.main(args=arguments, prog_name="fc", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as asked:
        asked.show()
        return exits.DONE
    except click.ClickException as error:
        error.show()
        return exits.ERROR
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return exits.INTERRUPTED
    except FcError as error:
        click.secho(f"error: {error.message}", fg="red", err=True)
        if error.hint:
            click.echo(f"hint:  {error.hint}", err=True)
        return exits.ERROR
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.DONE
    return code if isinstance(code, int) else exits.DONE
