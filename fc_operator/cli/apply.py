"""``fc apply``: the server is brought to what manifests declare."""

from __future__ import annotations

import click

from fc_operator.cli import connections, exits, outputs, reports
from fc_operator.cli.plan import send

_EXAMPLES = """\
\b
Examples:
  fc apply project.yaml           one file
  fc apply config/                every manifest below a folder
  cat *.yaml | fc apply -         from standard input
  fc apply --prune config/        and delete what was applied before but is gone

\b
Exit codes: 0 everything is in force, 1 something is not; what is valid is
in force all the same.
"""


@click.command(short_help="Bring the server to what manifests declare.", epilog=_EXAMPLES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--prune", is_flag=True,
              help="Take these manifests for all that you ever applied: others go.")  # fmt: skip
@click.option("--confirm", is_flag=True, help="Delete even more than half of them.")
@click.option("--all", "everything", is_flag=True, help="Show unchanged objects too.")
@outputs.output_option
@connections.server_options
def command(
    paths: tuple[str, ...], output: str, *, prune: bool, confirm: bool, everything: bool
) -> int:
    """Bring the server to what manifests declare.

    An object that a config repository declares is refused: it has an owner already. Where a
    manifest has problems they are shown, and the others come into force.
    """
    if confirm and not prune:
        raise click.UsageError("--confirm is about --prune")
    report = send("apply", paths, prune=prune, confirm=confirm)
    reports.show(report, done=True, output=output, everything=everything)
    return exits.DONE if report["ok"] else exits.ERROR
