"""``fc doctor``: each prerequisite, found or missing, and the command that gets it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import click

from fc_operator.cli import exits, outputs, process_options

_EXAMPLES = """\
\b
Examples:
  fc doctor
  fc doctor -o json | jq '.[] | select(.state == "missing")'

\b
Exit codes: 0 nothing is missing, 1 something is.
"""
_MARKS = {"found": ("found", "green"), "missing": ("missing", "red"), "optional": ("-", "yellow")}


@click.command(
    short_help="Look for what this machine needs and say how to get it.", epilog=_EXAMPLES
)
@process_options.settings_options
@outputs.output_option
def command(output: str, **options: Any) -> int:
    """Look for what this machine needs and say how to get it.

    It looks at programs, at what they say when they run, and builds something tiny to see whether
    Nix and its sandbox work; it changes nothing.
    """
    from fc_operator.app import diagnosis
    from fc_operator.kit import logs

    settings = process_options.load(options)
    logs.configure(level="error")
    findings = asyncio.run(diagnosis.diagnose(settings, os.environ))
    if output != "table":
        shown = ("name", "state", "detail", "cure")
        outputs.print_data(output, [{key: str(getattr(f, key)) for key in shown} for f in findings])
    else:
        widest = max(len(finding.name) for finding in findings)
        for finding in findings:
            mark, colour = _MARKS[finding.state]
            click.echo(
                f"{click.style(mark.ljust(8), fg=colour)}{finding.name.ljust(widest)}  "
                f"{outputs.printable(finding.detail)}"
            )
            if finding.cure:
                click.echo(f"{' ' * (widest + 10)}→ {finding.cure}")
    missing = any(finding.state is diagnosis.State.MISSING for finding in findings)
    return exits.ERROR if missing else exits.DONE
