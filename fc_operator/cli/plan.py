"""``fc plan``: what applying manifests would change."""

from __future__ import annotations

from typing import Any

import click

from fc_operator.cli import connections, exits, manifest_files, outputs, reports
from fc_operator.errors import InvalidError

_EXAMPLES = """\
\b
Examples:
  fc plan config/                 what `fc apply config/` would do
  fc plan --prune config/         also what it would delete
  fc plan -o json config/ | jq .counts

\b
Exit codes: 0 nothing would change, 2 something would, 1 there are problems.
"""


@click.command(short_help="Show what applying manifests would change.", epilog=_EXAMPLES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option("--prune", is_flag=True,
              help="Take these for all that you ever applied: others would go.")  # fmt: skip
@click.option("--all", "everything", is_flag=True, help="Show unchanged objects too.")
@outputs.output_option
@connections.server_options
def command(paths: tuple[str, ...], output: str, *, prune: bool, everything: bool) -> int:
    """Show what applying manifests would change. Nothing is written.

    The server compares with what is in force and says what would be created, changed, deleted and
    refused.
    """
    report = send("plan", paths, prune=prune)
    reports.show(report, done=False, output=output, everything=everything)
    if not report["ok"]:
        return exits.ERROR
    return exits.CHANGES if report["changes"] else exits.DONE


def send(verb: str, paths: tuple[str, ...], **switches: bool) -> dict[str, Any]:
    """Post manifests to the server; its report, with the paths as they were written here."""
    files = manifest_files.read(paths)
    names = manifest_files.names_of(files)
    body = {
        "manifests": {names[path]: _text(path, data) for path, data in files.items()},
        **{name: value for name, value in switches.items() if value},
    }
    report: dict[str, Any] = connections.call(
        lambda client: client.send("POST", f"/manifests/{verb}", body)
    )
    written = {name: path for path, name in names.items()}
    for each in (*report["objects"], *report["problems"]):
        each["path"] = written.get(each["path"], each["path"])
    return report


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidError(f"{path}:{line}: this is not UTF-8", hint="save it as UTF-8") from error
