import asyncio

import pytest

from fc_operator.store import database as databases
from fc_operator.store.listener import STEPS, Listener


@pytest.fixture
async def listener(database):
    listener = Listener(database)
    await listener.start()
    async with asyncio.timeout(5):
        await listener.connected.wait()
    yield listener
    await listener.stop()


async def drain(subscription):
    while await subscription.wait(0.05) is not None:
        pass


async def test_a_notification_wakes_its_subscribers_with_its_payload(database, listener):
    with listener.subscribe(STEPS) as subscription:
        await drain(subscription)
        async with database.transaction() as connection:
            await databases.notify(connection, STEPS, "7")
        assert await subscription.wait(5) == {"7"}
        assert await subscription.wait(0.01) is None


async def test_q09_a_killed_listener_comes_back_and_wakes_everybody(database, listener):
    with listener.subscribe(STEPS) as subscription:
        await drain(subscription)
        async with database.session() as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'fc-listener' AND datname = current_database()"
            )
        assert await subscription.wait(2) == {""}
        async with asyncio.timeout(5):
            await listener.connected.wait()
        async with database.transaction() as connection:
            await databases.notify(connection, STEPS, "8")
        assert "8" in await subscription.wait(5)


@pytest.mark.parametrize("length", [0, 100, 7_000, 7_001, 8_000, 100_000])
async def test_q10_h22_a_payload_of_any_length_never_aborts_the_transaction(
    database, listener, length
):
    with listener.subscribe(STEPS) as subscription:
        await drain(subscription)
        async with database.transaction() as connection:
            await databases.notify(connection, STEPS, "x" * length)
        assert await subscription.wait(5) == {"x" * length if length <= 7_000 else ""}


async def test_a_lost_session_is_one_clear_error(database):
    from fc_operator.errors import UnavailableError

    with pytest.raises(UnavailableError, match="PostgreSQL is not available"):
        async with database.session() as connection:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    async with database.session() as connection:
        assert await connection.fetchval("SELECT 1") == 1


async def test_json_goes_in_and_out_as_values(database):
    async with database.session() as connection:
        value = {"a": [1, None, "ü"]}
        assert await connection.fetchval("SELECT $1::jsonb", value) == value


async def test_without_listening_nobody_is_woken_and_waits_end_by_themselves(database):
    listener = Listener(database, listen=False)
    await listener.start()
    with listener.subscribe(STEPS) as wakes:
        async with database.transaction() as connection:
            await databases.notify(connection, STEPS)
        assert await wakes.wait(0.1) is None
    assert not listener.connected.is_set()
    await listener.stop()
