"""``fc up``: everything on this machine, until it is stopped."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from fc_operator.cli import exits, process_options

_EXAMPLES = """\
\b
Examples:
  fc up --config ./my-manifests                        a folder, watched
  fc up --config https://git.example.org/team/ci.git   a git repository, fetched
  fc up                                                only what `fc apply` sends
  fc up --cache                                        and a binary cache of what it builds

\b
Then, in another terminal:
  fc get                          what is there, and how it goes
  fc key create me --role admin   the first key, for whatever changes something

Ctrl-C stops within seconds; what was building is built again at the next start.
"""


@click.command(short_help="Run everything on this machine.", epilog=_EXAMPLES)
@click.option("--config", metavar="DIR|URL", help="Where the manifests are (FC_CONFIG_SOURCE).")
@click.option("--branch", metavar="NAME", help="Branch of a git source.")
@click.option("--path", metavar="FOLDER", help="Folder inside the source.")
@click.option("--host", metavar="ADDRESS", help="Address to listen on (127.0.0.1).")
@click.option("--port", type=int, help="Port to listen on (8080); 0 takes a free one.")
@click.option("--cache", is_flag=True, help="Serve a binary cache at /cache, and use it.")
@process_options.settings_options
def command(**options: Any) -> int:
    """Run everything on this machine, with a PostgreSQL of its own unless a URL is given.

    One process: the HTTP service, the sync of manifests, evaluations and builds. All it keeps lies
    in the state directory, which one `fc up` at a time owns.
    """
    from fc_operator.app import processes
    from fc_operator.app.up import Up

    more = {
        "config.source": options.pop("config"),
        "config.branch": options.pop("branch"),
        "config.path": options.pop("path"),
        "web.host": options.pop("host"),
        "web.port": options.pop("port"),
        "cache.enabled": "Always" if options.pop("cache") else None,
    }
    settings = process_options.load(options, more)
    up = Up(settings)

    def say() -> None:
        click.echo(f"FC Operator is up: {up.url}")
        if settings.config.source:
            click.echo(f"manifests from {settings.config.source}; state in {settings.state.dir}")
        if settings.cache.enabled == "Always":
            click.echo(f"binary cache: {up.url}/cache; `fc cache` shows its key")

    asyncio.run(processes.run_until_stopped(up, started=say))
    return exits.DONE
