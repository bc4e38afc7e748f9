"""`fc migrate` beside a PostgreSQL that starts at the same time."""

import asyncio

import pytest

from fc_operator.app import migrate
from fc_operator.errors import UnavailableError
from fc_operator.settings import DatabaseSettings, Settings
from fc_operator.store.embedded import EmbeddedPostgres


async def test_it_waits_for_a_database_that_starts_later(tmp_path):
    server = EmbeddedPostgres(tmp_path)
    # Not its own database, which it makes only once it answers; this one is there at once.
    url = server.url.replace("/fc?", "/postgres?")
    settings = Settings(database=DatabaseSettings(url=url))
    waiting = asyncio.create_task(migrate.run(settings, wait_s=60))
    await server.start()
    try:
        _, after = await waiting
        assert after.current
        assert await migrate.look(settings) == after
    finally:
        await server.stop()


async def test_it_does_not_wait_for_ever(tmp_path):
    nowhere = f"postgresql://fc@/fc?host={tmp_path}"
    settings = Settings(database=DatabaseSettings(url=nowhere))
    with pytest.raises(UnavailableError):
        await asyncio.wait_for(migrate.run(settings, wait_s=1), timeout=30)
