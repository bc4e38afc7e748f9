"""``fc cancel``: stops what is queued or running."""

from __future__ import annotations

import click

from fc_operator.cli import changes
from fc_operator.cli.references import HELP

_EXAMPLES = f"""\
{HELP}
\b
Examples:
  fc cancel 12                     one build
  fc cancel demo/main              the newest evaluation of a jobset and its builds
"""


@click.command(short_help="Cancel builds or whole evaluations.", epilog=_EXAMPLES)
@changes.targets
def command(references: tuple[str, ...], output: str) -> int:
    """Cancel builds or whole evaluations.

    An evaluation is cancelled with its builds. What another live build needs too goes on.
    """
    requests = {"build": ("POST", "cancel"), "evaluation": ("POST", "cancel")}
    return changes.change(references, requests, "cancelled", output=output)
