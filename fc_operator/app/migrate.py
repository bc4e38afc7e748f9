"""Brings a database's schema up, for `fc migrate`."""

from __future__ import annotations

import asyncio

from fc_operator.app import wiring
from fc_operator.errors import UnavailableError
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.settings import Settings
from fc_operator.store import migrations
from fc_operator.store.migrations import SchemaState

_BACKOFF = Backoff(base_s=0.5, cap_s=5.0)
_log = logs.get_logger()


async def run(settings: Settings, *, wait_s: float = 0.0) -> tuple[SchemaState, SchemaState]:
    """The states before and after.

    PostgreSQL has ``wait_s`` to answer: where both start at once it may be the slower one.

    Raises:
        SettingsError: no database is set.
        SchemaVersionError: the database is newer than this program.
        UnavailableError: PostgreSQL does not answer.
    """
    url = wiring.database_url(settings)
    loop = asyncio.get_running_loop()
    end, tries = loop.time() + wait_s, 0
    while True:
        try:
            return await migrations.migrate(url)
        except UnavailableError as error:
            tries += 1
            delay_s = _BACKOFF.delay_s(tries)
            if loop.time() + delay_s > end:
                raise
            _log.info("app.waits_for_database", reason=error.message)
            await asyncio.sleep(delay_s)


async def look(settings: Settings) -> SchemaState:
    """The state as it is; raises as ``run`` does."""
    return await migrations.state(wiring.database_url(settings))
