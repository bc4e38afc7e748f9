"""``fc completion``: the script that makes a shell complete ``fc``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_EXAMPLES = """\
\b
Examples:
  eval "$(env fc completion bash)"      in ~/.bashrc
  eval "$(env fc completion zsh)"       in ~/.zshrc, after compinit
  fc completion fish > ~/.config/fish/completions/fc.fish

bash and zsh have an `fc` of their own (an editor of the history) that goes before every program.
These scripts switch it off; without them, `env fc` or the whole path is ours.
"""
_OURS = {
    "bash": "# Else `fc` is the shell's own, which edits the history.\nenable -n fc\n",
    "zsh": "# Else `fc` is the shell's own, which edits the history.\ndisable fc\n",
}
"""What makes `fc` this program."""


@click.command(short_help="Print a shell's completion script.", epilog=_EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script, which also makes `fc` this program there."""
    made = get_completion_class(shell)
    assert made is not None
    source = made(ctx.find_root().command, {}, "fc", "_FC_COMPLETE").source()
    click.echo(_OURS.get(shell, "") + source)
