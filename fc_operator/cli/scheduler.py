"""``fc scheduler``: one part of `fc up` by itself, on a database that others share."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from fc_operator.cli import exits, process_options

_EXAMPLES = """\
\b
Examples:
  FC_DATABASE_URL=postgresql://fc@db/fc fc scheduler --config ./manifests

The schema must be there: run `fc migrate` once per release.
"""


@click.command(short_help="Run the loops that evaluate and build.", epilog=_EXAMPLES)
@click.option("--config", metavar="DIR|URL", help="Where the manifests are (FC_CONFIG_SOURCE).")
@process_options.settings_options
def command(**options: Any) -> int:
    """Run the loops that evaluate and build.

    Config repositories, evaluations, dispatch and maintenance. Every duty is claimed by lease, so
    several may run.
    """
    from fc_operator.app import processes
    from fc_operator.app.scheduler import Scheduler

    more = {"config.source": options.pop("config")}
    program = Scheduler(process_options.load(options, more))
    asyncio.run(processes.run_until_stopped(program))
    return exits.DONE
