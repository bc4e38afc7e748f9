"""``maxJobs`` of a builder over all that claim for it."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path

import pytest

from fc_operator.model.desired import DesiredBuilder, SecretRef
from fc_operator.model.ids import Owner
from fc_operator.queue import claims
from fc_operator.queue.offers import Offer
from fc_operator.settings import QueueSettings
from fc_operator.store import remote_builders


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


engine = load("engine_conftest", Path(__file__).parents[1] / "operations" / "conftest.py").engine


@pytest.fixture
async def builder(engine):
    """A declared builder that takes three steps."""
    wanted = DesiredBuilder(
        name="second",
        ssh_uri="ssh://nix@second.example",
        systems=("x86_64-linux",),
        public_host_key="ssh-ed25519 AAAA",
        ssh_key=SecretRef(name="x", key="identity"),
        max_jobs=3,
    )
    async with engine.database.transaction() as connection:
        ids = await remote_builders.upsert(connection, [wanted], {"second": "default"})
    return claims.Builder(id=ids["second"], name="second")


@pytest.fixture
def claim(engine, builder):
    async def claim(free: int, owner: str = "one"):
        return await claims.claim(
            engine.database,
            Offer(systems=("x86_64-linux",)),
            free,
            owner=Owner(owner),
            executor="ssh",
            settings=QueueSettings(),
            builder=builder,
        )

    return claim


async def test_c05_sixty_four_claimers_never_have_more_than_the_builder_takes(engine, claim):
    await engine.evaluate(await engine.jobset(), [engine.told(f"job{n}") for n in range(40)])
    taken = await asyncio.gather(*(claim(2, f"owner{n}") for n in range(64)))
    assert sum(map(len, taken)) == 3
    assert await engine.one("SELECT count(*) FROM leases") == 3
    assert await claim(3) == []


async def test_what_ends_makes_room_again(engine, claim, builder):
    await engine.evaluate(await engine.jobset(), [engine.told(f"job{n}") for n in range(9)])
    assert len(await claim(9)) == 3
    await engine.sql("DELETE FROM leases WHERE step_id = (SELECT min(step_id) FROM leases)")
    assert len(await claim(9)) == 1
    rows = await engine.sql("SELECT DISTINCT builder_id FROM builds WHERE status = 'running'")
    assert [row[0] for row in rows] == [builder.id]


@pytest.mark.parametrize(
    "state",
    [
        "enabled = false",
        "drain = true",
        "deleting_at = now()",
        "disabled_until = now() + interval '1 minute'",
    ],
)
async def test_who_stands_aside_gets_nothing(engine, claim, state):
    await engine.evaluate(await engine.jobset(), [engine.told("job")])
    await engine.sql(f"UPDATE remote_builders SET {state}")
    assert await claim(1) == []


async def test_failures_climb_the_ladder_to_its_fourth_rung_and_no_further(engine, builder):
    delays_s = [60, 180, 540, 1620]
    for n in range(1, 7):
        async with engine.database.session() as connection:
            await remote_builders.fail(connection, builder.id, f"fault {n}", delays_s)
            # Somebody else noticed the same fault.
            await remote_builders.fail(connection, builder.id, "the same", delays_s)
        (row,) = await engine.sql(
            "SELECT consecutive_failures, last_error,"
            " extract(epoch FROM disabled_until - last_failure) AS wait_s FROM remote_builders"
        )
        assert tuple(row) == (n, f"fault {n}", delays_s[min(n, 4) - 1])
        await engine.sql("UPDATE remote_builders SET disabled_until = now()")
    async with engine.database.session() as connection:
        await remote_builders.recover(connection, builder.id)
        (standing,) = await remote_builders.list_standing(connection)
    assert (standing.consecutive_failures, standing.last_error) == (0, "")
