"""The first key: made in the database of whatever runs here, or has run."""

import pytest

from fc_operator.access import keys as forms
from fc_operator.app import keys
from fc_operator.app.state import StateDirectory
from fc_operator.errors import HumanNeededError, SchemaVersionError
from fc_operator.model.statuses import Role
from fc_operator.settings import DatabaseSettings, Settings, StateSettings
from fc_operator.store import api_keys, migrations
from fc_operator.store.database import Database
from fc_operator.store.embedded import EmbeddedPostgres


async def is_live(url, text):
    database = await Database.open(url, size=2)
    try:
        async with database.session() as connection:
            return await api_keys.fetch_live(connection, forms.hash_key(text)) is not None
    finally:
        await database.close()


async def test_in_a_database_that_is_named(database_url):
    settings = Settings(database=DatabaseSettings(url=database_url))
    made = await keys.create(settings, "me", Role.ADMIN)
    assert made.role is Role.ADMIN
    assert await is_live(database_url, made.key)


async def test_a_schema_that_is_not_ours_is_refused(empty_database_url):
    settings = Settings(database=DatabaseSettings(url=empty_database_url))
    with pytest.raises(SchemaVersionError):
        await keys.create(settings, "me", Role.ADMIN)


async def test_nothing_is_created_where_nothing_has_run(tmp_path):
    settings = Settings(state=StateSettings(dir=tmp_path / "state"))
    with pytest.raises(HumanNeededError, match="no FC Operator has run"):
        await keys.create(settings, "me", Role.ADMIN)
    assert not (tmp_path / "state").exists()


async def test_in_the_database_of_a_state_directory_running_and_stopped(tmp_path):
    settings = Settings(state=StateSettings(dir=tmp_path / "state"))
    state = StateDirectory(settings.state.dir).acquire()
    server = EmbeddedPostgres(state.path)
    await server.start()
    try:
        await migrations.migrate(server.url)
        # As while `fc up` runs: it has the lock, we use its server.
        running = await keys.create(settings, "running", Role.READ_ONLY)
        assert await is_live(server.url, running.key)
    finally:
        await server.stop()
        state.release()
    stopped = await keys.create(settings, "stopped", Role.READ_ONLY)
    # Ours was stopped again, and the lock given back.
    state.acquire()
    await server.start()
    try:
        assert await is_live(server.url, stopped.key)
    finally:
        await server.stop()
        state.release()
