"""``fc completion``: the script that makes a shell complete ``fc``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_EXAMPLES = """\
\b
Examples:
  fc completion bash > ~/.local/share/bash-completion/completions/fc
  fc completion zsh > ~/.zfunc/_fc
  fc completion fish > ~/.config/fish/completions/fc.fish
"""


@click.command(short_help="Print a shell's completion script.", epilog=_EXAMPLES)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a shell's completion script."""
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(ctx.find_root().command, {}, "fc", "_FC_COMPLETE").source())
