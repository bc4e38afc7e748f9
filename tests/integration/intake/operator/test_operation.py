"""`fc operator` as a process among others: its lease, its health, and API servers that go away."""

import asyncio
import time

import pytest

from fc_operator.errors import PrerequisiteError
from fc_operator.intake.operator import watches
from fc_operator.intake.operator.leadership import DUTY, Leadership
from fc_operator.store.database import Database

PROJECT = {"repositoryUrl": "https://git.example.org/team/demo.git"}


def is_held(api, name="demo"):
    object_ = api.objects.get(("projects", "team", name))
    return object_ and object_["metadata"].get("finalizers")


async def test_a_watch_that_tells_nothing_any_more_is_found_out(kube_api, running, reached):
    api = kube_api.KubeApi(kube_api.Faults(swallowed=1.0))
    operator = await running(api, **{"operator.compare_s": "1"})
    await reached(lambda: api.counts["watch"] >= 4, "the watches")
    assert operator._trouble() == ""
    await api.apply("Project", "demo", PROJECT)
    await reached(lambda: is_held(api), "the comparison to find it")
    assert "no watch told of" in await reached(operator._trouble, "the deafness to be found out")
    assert operator.ended == []


async def test_an_event_that_was_lost_once_is_no_deafness(kube_api, running, reached):
    api = kube_api.KubeApi(kube_api.Faults(swallowed=1.0))
    operator = await running(api, **{"operator.compare_s": "1"})
    await reached(lambda: api.counts["watch"] >= 4, "the watches")
    await api.apply("Project", "demo", PROJECT)
    await reached(lambda: api.counts["swallowed"] == 1, "the event to be lost")
    api.faults.on = False
    compared = operator._desk.comparisons
    await reached(lambda: operator._desk.comparisons > compared + 4, "four comparisons")
    assert is_held(api)
    assert operator._trouble() == ""


async def test_an_api_server_that_is_away_for_a_while_costs_nothing(kube_api, running, reached):
    api = kube_api.KubeApi()
    operator = await running(api, **{"operator.compare_s": "60"})
    await reached(lambda: api.counts["watch"] >= 4, "the watches")
    api.faults = kube_api.Faults(answers={503: 1.0})
    await api.apply("Project", "demo", PROJECT)
    refused = api.counts["watch"]
    await api.drop_watches()
    await reached(lambda: api.counts["watch"] > refused + 3, "new watches to be refused")
    api.faults.on = False
    await reached(lambda: is_held(api), "it to be seen")
    assert operator.ended == []
    assert operator._trouble() == ""


async def test_an_address_that_is_taken_is_said_to_a_person(kube_api, running):
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(PrerequisiteError, match=r"set operator\.health_port"):
        await running(kube_api.KubeApi(), **{"operator.health_port": str(port)})
    server.close()
    await server.wait_closed()


def test_kopf_never_gives_an_api_server_up():
    pauses = iter(watches.settings(70).networking.error_backoffs)
    assert sum(next(pauses) for _ in range(1_000)) > 1_800


@pytest.fixture
def lead(database_url):
    """Makes a :class:`Leadership` with its own connections; ``lost`` holds the reasons."""

    def make(owner, lease_s=3.0):
        made = []

        async def opened():
            database = await Database.open(database_url, size=4)
            made.append(database)
            leadership = Leadership(database, owner=owner, lease_s=lease_s, lost=reasons.append)
            leadership.reasons = reasons
            return leadership

        reasons = []
        return opened()

    return make


async def test_one_leads_and_the_next_follows_when_it_stops(lead, database):
    first, second = await lead("one"), await lead("two")
    await first.acquire()
    await first.start()
    waiting = asyncio.ensure_future(second.acquire())
    async with database.session() as connection:
        assert await first.still_held(connection)
        assert not await second.still_held(connection)
    await first.stop()
    async with asyncio.timeout(2):  # it need not wait for the lease to run out
        await waiting
    assert first.reasons == []
    await second.stop()
    for each in (first, second):
        await each._database.close()


async def test_a_lease_that_was_taken_is_missed_within_a_second(lead, database, reached):
    leader = await lead("one")
    await leader.acquire()
    await leader.start()
    thief = await lead("thief")
    await thief.seize(60)
    start = time.monotonic()
    await reached(lambda: leader.reasons, "the loss")
    assert time.monotonic() - start < 1
    assert leader.reasons == ["another operator has the lease"]
    async with database.session() as connection:
        assert not await leader.still_held(connection)
    for each in (leader, thief):
        await each.stop()
        await each._database.close()


async def test_a_lease_that_can_not_be_renewed_is_given_up_before_its_end(lead, database, reached):
    leader = await lead("one", lease_s=3.0)
    await leader.acquire()
    start = time.monotonic()
    await leader.start()
    async with database.transaction() as connection:
        # Whoever renews it waits for us, as if the database were away.
        await connection.execute("SELECT FROM duty_leases WHERE name = $1 FOR UPDATE", DUTY)
        await reached(lambda: leader.reasons, "the loss")
        assert time.monotonic() - start < 4.5
    assert leader.reasons == ["the lease could not be renewed in time"]
    await leader.stop()
    await leader._database.close()
