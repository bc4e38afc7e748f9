"""``fc restart``: what has ended is built again."""

from __future__ import annotations

import click

from fc_operator.cli import changes
from fc_operator.cli.references import HELP

_EXAMPLES = f"""\
{HELP}
\b
Examples:
  fc restart 12                        one build, and what failed because of it
  fc restart demo/main                 all failed builds of the newest evaluation
  fc restart evaluation/7 --aborted    only what infrastructure or a user ended
"""


@click.command(short_help="Build again what has ended.", epilog=_EXAMPLES)
@click.option("--aborted", is_flag=True,
              help="Of evaluations only aborted, cancelled and unsupported builds.")  # fmt: skip
@changes.targets
def command(references: tuple[str, ...], output: str, *, aborted: bool) -> int:
    """Build again what has ended.

    Of an evaluation everything that did not succeed is built again. Logs of earlier attempts stay.
    """
    verb = "restart-aborted" if aborted else "restart-failed"
    requests = {"build": ("POST", "restart"), "evaluation": ("POST", verb)}
    return changes.change(references, requests, "restarted", output=output)
