"""``fc server``: one part of `fc up` by itself, on a database that others share."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from fc_operator.cli import exits, process_options

_EXAMPLES = """\
\b
Examples:
  FC_DATABASE_URL=postgresql://fc@db/fc fc server --set web.host=0.0.0.0

The schema must be there: run `fc migrate` once per release.
"""


@click.command(short_help="Run the HTTP service.", epilog=_EXAMPLES)
@process_options.settings_options
def command(**options: Any) -> int:
    """Run the HTTP service.

    API, pages, hooks and logs. Stateless: run as many as you like beside each other.
    """
    import uvloop

    from fc_operator.app import processes
    from fc_operator.app.server import Server

    program = Server(process_options.load(options))

    def say() -> None:
        click.echo(f"serving {program.url}")

    # Only here: uvloop can't start processes as another user, and the server starts none.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(processes.run_until_stopped(program, started=say))
    return exits.DONE
