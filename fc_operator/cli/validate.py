"""``fc validate``: manifests checked on this machine, all problems at once."""

from __future__ import annotations

import click

from fc_operator.cli import exits, manifest_files, outputs

_EXAMPLES = """\
\b
Examples:
  fc validate config/                 every manifest below a folder
  fc validate project.yaml -          a file and standard input
  fc validate -o json config/ | jq    problems for a program

\b
Exit codes: 0 all are valid, 1 there are problems.
"""


@click.command(short_help="Check manifests without a server.", epilog=_EXAMPLES)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@outputs.output_option
def command(paths: tuple[str, ...], output: str) -> int:
    """Check manifests without a server.

    Unknown fields, wrong types, broken rules, names given twice and references to nothing are all
    reported at once, each with its file, its line, and what would be right.
    """
    from fc_operator.spec import manifests

    files = manifest_files.read(paths)
    parsed = manifests.link([manifests.parse_file(path, data) for path, data in files.items()])
    if output != "table":
        problems = [problem.as_dict() for problem in parsed.problems]
        outputs.print_data(output, {"objects": len(parsed.declarations), "problems": problems})
    else:
        for problem in parsed.problems:
            click.secho(str(problem), fg="red", err=True)
        objects = counted(len(parsed.declarations), "object")
        if parsed.problems:
            click.echo(f"{counted(len(parsed.problems), 'problem')}; {objects} could be read")
        else:
            click.echo(f"{objects} in {counted(len(files), 'file')}: valid")
    return exits.ERROR if parsed.problems else exits.DONE


def counted(number: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
