"""``fc keep``: a build's outputs stay."""

from __future__ import annotations

import click

from fc_operator.cli import changes

_EXAMPLES = """\
\b
REF is the number of a build, or project/jobset/job for the newest build of a job.

\b
Examples:
  fc keep 12
  fc keep demo/main/tarball
  fc keep 12 --off          let it go as any other
"""


@click.command(short_help="Keep a build's outputs from garbage collection.", epilog=_EXAMPLES)
@click.option("--off", is_flag=True, help="Stop keeping it.")
@changes.targets
def command(references: tuple[str, ...], output: str, *, off: bool) -> int:
    """Keep a build's outputs from garbage collection, until it is told otherwise."""
    requests = {"build": ("PUT", f"keep/{'false' if off else 'true'}")}
    return changes.change(references, requests, "no longer keeping" if off else "keeping",
                          output=output)  # fmt: skip
