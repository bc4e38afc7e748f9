"""The first API key of an installation, made in its database by whoever may reach that.

Every later key is made over HTTP with a key of the role ``admin``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import datetime

from fc_operator.app.state import StateDirectory
from fc_operator.errors import HumanNeededError
from fc_operator.model.statuses import Role
from fc_operator.operations import keys
from fc_operator.operations.keys import CreatedKey
from fc_operator.settings import Settings
from fc_operator.store import migrations
from fc_operator.store.database import Database
from fc_operator.store.embedded import EmbeddedPostgres


async def create(
    settings: Settings, name: str, role: Role, *, expires_at: datetime | None = None
) -> CreatedKey:
    """Make a key; its text is in the answer and nowhere else.

    Raises:
        HumanNeededError: there is no database, or it can't be used.
        SchemaVersionError: its schema is not this program's.
        InvalidError: the name can't be used.
    """
    async with _database_url(settings) as url:
        migrations.require(await migrations.state(url))
        database = await Database.open(url, size=2, name="fc key")
        try:
            return await keys.create(database, name, role, expires_at=expires_at)
        finally:
            await database.close()


@contextlib.asynccontextmanager
async def _database_url(settings: Settings) -> AsyncIterator[str]:
    """The named database; else that of the ``fc up`` that runs; else its own, started meanwhile."""
    if settings.database.url:
        yield settings.database.url
        return
    state = StateDirectory(settings.state.dir)
    server = EmbeddedPostgres(state.path)
    if not (server.data_dir / "PG_VERSION").is_file():
        raise HumanNeededError(
            f"no FC Operator has run on {state.path} yet",
            hint="start `fc up` first, name its directory by --state, or set FC_DATABASE_URL",
        )
    try:
        state.acquire()
    except HumanNeededError:
        if not any(server.socket_dir.glob(".s.PGSQL.*")):
            raise
        yield server.url
        return
    try:
        await server.start()
        try:
            yield server.url
        finally:
            await server.stop()
    finally:
        state.release()
