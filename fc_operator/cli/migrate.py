"""``fc migrate``: the schema of a database that `fc up` does not bring itself."""

from __future__ import annotations

import asyncio

import click

from fc_operator.cli import exits, process_options

_EXAMPLES = """\
\b
Examples:
  FC_DATABASE_URL=postgresql://fc@db/fc fc migrate
  fc migrate --wait 60     where PostgreSQL starts at the same time
  fc migrate --check       say whether there is something to do, change nothing

\b
Exit codes: 0 the schema is as this program needs it, 1 it is not.
"""


@click.command(short_help="Bring the database's schema up to date.", epilog=_EXAMPLES)
@click.option("--check", is_flag=True, help="Only look.")
@click.option("--wait", "wait_s", type=click.FloatRange(min=0), default=0, metavar="SECONDS",
              help="How long PostgreSQL may take to answer.")  # fmt: skip
@process_options.settings_options
def command(*, check: bool, wait_s: float, **options: object) -> int:
    """Bring the database's schema up to date.

    Two at once wait for each other. A schema that is newer than this program is refused.
    """
    from fc_operator.app import migrate

    settings = process_options.load(options)
    if check:
        found = asyncio.run(migrate.look(settings))
        click.echo(f"schema {found.present or 'none'}, needed {found.wanted}")
        return exits.DONE if found.current else exits.ERROR
    before, after = asyncio.run(migrate.run(settings, wait_s=wait_s))
    if before.current:
        click.echo(f"schema {after.present}: nothing to do")
    else:
        click.echo(f"schema {before.present or 'none'} -> {after.present}")
    return exits.DONE
