"""Brings a database's schema up, for `fc migrate`."""

from __future__ import annotations

from fc_operator.app import wiring
from fc_operator.settings import Settings
from fc_operator.store import migrations
from fc_operator.store.migrations import SchemaState


async def run(settings: Settings) -> tuple[SchemaState, SchemaState]:
    """The states before and after.

    Raises:
        SettingsError: no database is set.
        SchemaVersionError: the database is newer than this program.
        UnavailableError: PostgreSQL does not answer.
    """
    return await migrations.migrate(wiring.database_url(settings))


async def look(settings: Settings) -> SchemaState:
    """The state as it is; raises as ``run`` does."""
    return await migrations.state(wiring.database_url(settings))
