"""Claims with a long backlog, and many claimers at once."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from pathlib import Path

import pytest

from fc_operator.model.ids import Owner, TaskId, new_uuid
from fc_operator.queue import claims, waits
from fc_operator.queue.offers import Offer
from fc_operator.settings import QueueSettings
from fc_operator.store import claims as store


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_engine = load("engine_conftest", Path(__file__).parents[1] / "operations" / "conftest.py")
engine, worker = _engine.engine, _engine.worker


async def test_c15_blocked_rows_never_stand_before_a_runnable_one(engine, worker):
    """100,000 steps that came first and wait for something are not even looked at."""
    jobset = await engine.jobset()
    await engine.evaluate(jobset, [engine.told("seed"), engine.told("last")])
    await engine.sql("DELETE FROM ready_steps USING steps WHERE id = step_id AND name = 'seed'")
    await engine.sql(
        "INSERT INTO steps (id, drv_path, name, class_id, blockers, jobset_id, priority)"
        " SELECT -n, 'blocked-' || n, 'blocked', class_id, 1, jobset_id, 1000"
        " FROM steps, generate_series(1, 100000) n WHERE name = 'seed'"
    )
    await engine.sql("ANALYZE steps")
    await worker.claim(0)  # the pool and its statements are warm
    started_s = time.perf_counter()
    assert await worker.claim(1) == ["last"]
    # 50 ms on an idle machine; a scan of the backlog would take far longer than this.
    assert time.perf_counter() - started_s < 0.25
    plan = await engine.sql(
        "EXPLAIN (FORMAT TEXT) SELECT r.step_id FROM ready_steps r JOIN steps s ON s.id = r.step_id"
        " WHERE r.class_id = 1 AND r.jobset_id = $1 AND s.status = 'pending'"
        " ORDER BY r.bump DESC, r.priority DESC, r.step_id LIMIT 1"
        " FOR UPDATE OF r SKIP LOCKED FOR NO KEY UPDATE OF s SKIP LOCKED",
        jobset,
    )
    assert not any("Seq Scan on steps" in row[0] for row in plan)


async def test_q01_many_claimers_never_take_a_step_twice(engine):
    for name in ("one", "two"):
        rows = [engine.told(f"{name}{n}") for n in range(300)]
        await engine.evaluate(await engine.jobset(name), rows)
    offer = Offer(systems=("x86_64-linux",))

    async def work(n):
        taken = []
        while True:
            got = await claims.claim(
                engine.database,
                offer,
                3,
                owner=Owner(f"w{n}"),
                executor="test",
                settings=QueueSettings(),
            )
            if not got:
                return taken
            taken += [step.id for step in got]

    taken = [id_ for ids in await asyncio.gather(*map(work, range(16))) for id_ in ids]
    assert len(taken) == len(set(taken)) == 600
    assert await engine.one("SELECT count(*) FROM leases") == 600
    assert await engine.one("SELECT max(attempt) FROM steps") == 1
    assert await engine.invariants() == []


async def test_a_class_is_only_claimed_by_who_can_build_it(engine, worker):
    rows = [
        engine.told("plain"),
        engine.told("kvm", features=("kvm",)),
        engine.told("zork", features=("zork",)),
        engine.told("arm", system="aarch64-linux"),
        engine.told("fetch", system="builtin"),
    ]
    await engine.evaluate(await engine.jobset(), rows)
    assert await worker.claim() == ["fetch", "kvm", "plain"]
    picky = Offer(systems=("x86_64-linux",), features=("kvm",), mandatory=("zork",))
    worker.offer = picky
    assert await worker.claim() == ["zork"]


async def test_suspended_jobsets_wait(engine, worker):
    jobset = await engine.jobset()
    await engine.evaluate(jobset, [engine.told("a")])
    await engine.sql("UPDATE jobsets SET suspended = true")
    assert await worker.claim() == []
    (step,) = (await engine.steps()).values()
    async with engine.database.session() as connection:
        assert (await waits.why(connection, step["id"])).code == "Suspended"
    await engine.sql("UPDATE jobsets SET suspended = false")
    assert await worker.claim() == ["a"]


async def test_renewal_tells_what_is_still_held_and_what_shall_stop(engine, worker):
    await engine.evaluate(await engine.jobset(), [engine.told("a"), engine.told("b")])
    await worker.claim()
    ids = [worker.held[name].id for name in "ab"]
    await engine.sql("UPDATE leases SET cancel_requested = true WHERE step_id = $1", ids[0])
    async with engine.database.session() as connection:
        held = await store.renew(connection, worker.owner, ids, 1000)
        assert [(h.step_id, h.cancel_requested) for h in held] == [(ids[0], True), (ids[1], False)]
        assert await store.renew(connection, Owner("other"), ids, 1000) == []
    assert await engine.one("SELECT bool_and(expires_at > now() + interval '900 s') FROM leases")
    assert await engine.one(
        "SELECT expires_at > now() + interval '900 s' FROM tasks WHERE kind = 'steps'"
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ("UPDATE steps SET blockers = 0", "NoScheduler"),
        (
            "INSERT INTO service_heartbeats (owner, kind, host, info) VALUES ('o', 'scheduler', 'h', '{\"offers\": []}')",
            "NoScheduler",
        ),
        ("UPDATE jobsets SET deleting_at = now()", "JobsetGone"),
    ],
)
async def test_h01_every_waiting_step_says_why(engine, change, code):
    await engine.evaluate(await engine.jobset(), [engine.told("a"), engine.told("b", "a")])
    await engine.sql(change)
    found = await engine.steps()
    async with engine.database.session() as connection:
        assert (await waits.why(connection, found["a"]["id"])).code == code
        if "blockers" not in change:
            reason = await waits.why(connection, found["b"]["id"])
            assert (reason.code, reason.message) == ("Dependencies", "waits for a (pending)")
        assert await waits.why(connection, -1) is None


async def all_of_them(_, waiting):
    return waiting


async def test_batches_go_to_jobsets_by_their_shares(engine):
    ids = {}
    for name, shares in (("big", 300), ("small", 100)):
        ids[name] = await engine.jobset(name, scheduling_shares=shares)
        await engine.evaluate(ids[name], [engine.told(f"{name}{n}") for n in range(20)])
    turns = await claims.turns(engine.database, all_of_them, 8, QueueSettings())
    given = [jobset_id for _, jobset_id in turns]
    assert (given.count(ids["big"]), given.count(ids["small"])) == (6, 2)


async def test_what_runs_already_counts_when_batches_are_given_out(engine):
    """Else whoever just began, and has used nothing yet, would get all pods."""
    ids = {}
    for name in ("busy", "idle"):
        ids[name] = await engine.jobset(name)
        await engine.evaluate(ids[name], [engine.told(f"{name}{n}") for n in range(20)])

    async def take(name, most):
        class_id = await engine.one("SELECT DISTINCT class_id FROM ready_steps")
        return await batch(engine, (class_id, ids[name]), most)

    assert len(await take("busy", 8)) == 8
    turns = await claims.turns(engine.database, all_of_them, 4, QueueSettings())
    assert [jobset_id for _, jobset_id in turns].count(ids["idle"]) == 4


async def batch(engine, turn, most, intent=None):
    async def nothing(*_):
        return None

    task_id = TaskId(new_uuid())
    return await claims.claim_batch(
        engine.database,
        turn,
        most,
        task_id=task_id,
        owner=Owner(f"pod/{task_id}"),
        executor="pod",
        builder="a pod",
        settings=QueueSettings(),
        intent=intent or nothing,
    )


async def test_many_claimers_of_batches_never_take_a_step_twice(engine):
    jobset = await engine.jobset()
    await engine.evaluate(jobset, [engine.told(f"s{n}") for n in range(200)])
    class_id = await engine.one("SELECT DISTINCT class_id FROM ready_steps")
    batches = await asyncio.gather(*(batch(engine, (class_id, jobset), 8) for _ in range(30)))
    taken = [step.id for steps in batches for step in steps]
    assert len(taken) == len(set(taken)) == 200
    assert await engine.invariants() == []


async def test_a_claim_without_its_intent_is_no_claim(engine):
    jobset = await engine.jobset()
    await engine.evaluate(jobset, [engine.told("a")])
    class_id = await engine.one("SELECT class_id FROM ready_steps")

    async def broken(*_):
        raise ValueError("no room for it")

    with pytest.raises(ValueError, match="no room"):
        await batch(engine, (class_id, jobset), 8, broken)
    assert (await engine.steps())["a"]["status"] == "pending"
    assert await engine.one("SELECT count(*) FROM tasks WHERE kind = 'steps'") == 0
    assert await engine.invariants() == []
