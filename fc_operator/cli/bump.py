"""``fc bump``: to the front of the queue."""

from __future__ import annotations

import click

from fc_operator.cli import changes
from fc_operator.cli.references import HELP

_EXAMPLES = f"""\
{HELP}
\b
Examples:
  fc bump 12                one build and all that it still needs
  fc bump evaluation/7      every build of an evaluation
"""


@click.command(short_help="Move builds or evaluations to the front of the queue.", epilog=_EXAMPLES)
@changes.targets
def command(references: tuple[str, ...], output: str) -> int:
    """Move builds or evaluations to the front of the queue.

    What they still need is moved with them; what was bumped last goes first.
    """
    requests = {"build": ("POST", "bump"), "evaluation": ("POST", "bump")}
    return changes.change(references, requests, "bumped", output=output)
