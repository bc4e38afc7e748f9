"""What people do to builds, and what the ends of steps do to each other."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fc_operator.errors import NotFoundError
from fc_operator.model.evaluations import EvaluationEnd
from fc_operator.model.ids import new_uuid
from fc_operator.model.jobs import JobMeta
from fc_operator.model.outcomes import Product, Retry
from fc_operator.model.statuses import BuildStatus, EvaluationStatus
from fc_operator.operations import builds, steps
from fc_operator.queue import waits

HOUR = timedelta(hours=1)


async def ids(engine, fence, *names):
    found = await engine.builds(fence)
    return [found[name]["id"] for name in names]


async def test_cancel_ends_a_build_and_what_nobody_else_wants(engine, worker):
    rows = [
        engine.told("a", "lib", "own"),
        engine.told("b", "lib"),
        engine.told("lib"),
        engine.told("own"),
    ]
    fence = await engine.evaluate(await engine.jobset(), rows)
    await engine.sql("DELETE FROM builds WHERE job_name IN ('lib', 'own')")
    changed = await builds.cancel(engine.database, await ids(engine, fence, "a"), "ada")
    assert len(changed.builds) == 1
    assert {n: s["status"] for n, s in (await engine.steps()).items()} == {
        "a": "cancelled",
        "own": "cancelled",
        "lib": "pending",
        "b": "pending",
    }
    assert await engine.invariants() == []
    assert await worker.run_all() == ["lib", "b"]
    (build,) = [b for n, b in (await engine.builds(fence)).items() if n == "a"]
    assert (build["status"], build["error_message"]) == ("cancelled", "cancelled by ada")
    (audit,) = await engine.sql("SELECT * FROM audit_log")
    assert (audit["actor"], audit["action"]) == ("ada", "build.cancel")
    assert await engine.one("SELECT builds_ended_at IS NOT NULL FROM evaluations")
    again = await builds.cancel(engine.database, [build["id"]], "ada")
    assert again.builds == ()
    with pytest.raises(NotFoundError):
        await builds.cancel(engine.database, [new_uuid()], "ada")


async def test_h11_cancelled_in_one_jobset_is_built_in_the_other(engine, worker):
    first = await engine.evaluate(await engine.jobset("one"), [engine.told("a")])
    second = await engine.evaluate(await engine.jobset("two"), [engine.told("a")])
    await worker.claim()
    await builds.cancel(engine.database, await ids(engine, first, "a"), "ada")
    assert await engine.one("SELECT cancel_requested FROM leases") is False
    await worker.end("a")
    assert await engine.statuses(first) == {"a": "cancelled"}
    assert await engine.statuses(second) == {"a": "succeeded"}


async def test_a_running_step_that_nobody_wants_is_asked_to_stop(engine, worker):
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a")])
    await worker.claim()
    await builds.cancel(engine.database, await ids(engine, fence, "a"), "ada")
    assert await engine.one("SELECT cancel_requested FROM leases") is True
    await worker.end("a", status=BuildStatus.ABORTED, retry=Retry.FREE)
    assert (await engine.steps())["a"]["status"] == "cancelled"
    assert await engine.invariants() == []


async def test_wanted_again_while_it_is_being_stopped_it_starts_again(engine, worker):
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a")])
    await worker.claim()
    await builds.cancel(engine.database, await ids(engine, fence, "a"), "ada")
    other = await engine.evaluate(await engine.jobset("two"), [engine.told("a")])
    await worker.end("a", status=BuildStatus.CANCELLED)
    assert await engine.statuses(other) == {"a": "pending"}
    await worker.run_all()
    assert await engine.statuses(other) == {"a": "succeeded"}
    assert await engine.statuses(fence) == {"a": "cancelled"}


ENDS = [
    BuildStatus.FAILED,
    BuildStatus.TIMEOUT,
    BuildStatus.ABORTED,
    BuildStatus.CANCELLED,
    BuildStatus.LOG_LIMIT_EXCEEDED,
    BuildStatus.NAR_SIZE_LIMIT_EXCEEDED,
    BuildStatus.UNSUPPORTED_SYSTEM,
    BuildStatus.DEPENDENCY_FAILED,
    BuildStatus.SUCCEEDED,
    BuildStatus.FAILED_WITH_OUTPUT,
    BuildStatus.NON_DETERMINISTIC,
]


@pytest.mark.parametrize("status", ENDS)
async def test_c21_every_end_can_be_restarted_and_heals_its_dependents(engine, worker, status):
    rows = [engine.told("a"), engine.told("b", "a"), engine.told("c", "b")]
    fence = await engine.evaluate(await engine.jobset(), rows)
    await worker.claim()
    if status is BuildStatus.CANCELLED:
        await engine.sql(
            "UPDATE builds SET status = 'cancelled', completed_at = now() WHERE job_name = 'a'"
        )
        await engine.sql("UPDATE steps SET blockers = 0 WHERE name = 'none'")
    await worker.end("a", status=status)
    if status is BuildStatus.CANCELLED:
        assert (await engine.steps())["a"]["status"] == "pending", "b wants it"
        return
    valid = status in {
        BuildStatus.SUCCEEDED,
        BuildStatus.FAILED_WITH_OUTPUT,
        BuildStatus.NON_DETERMINISTIC,
    }
    found = await engine.statuses(fence)
    assert found["a"] == status.value
    assert found["c"] == ("pending" if valid else "dependency_failed")
    changed = await builds.restart(engine.database, await ids(engine, fence, "a"), "ada")
    assert len(changed.builds) == 1
    assert len(changed.also) == (0 if valid else 2)
    assert set((await engine.statuses(fence)).values()) == {"pending"}
    assert (await engine.steps())["a"]["check_mode"] is valid
    assert await engine.one("SELECT count(*) FROM failed_paths_cache") == 0
    assert await engine.invariants() == []
    await worker.run_all()
    assert set((await engine.statuses(fence)).values()) == {"succeeded"}
    assert await engine.invariants() == []
    assert (
        await engine.one(
            "SELECT count(*) FROM attempts a JOIN steps s ON s.id = a.step_id WHERE s.name = 'a'"
        )
        == 2
    )


async def test_a_restart_of_a_dependent_tries_its_cause_again(engine, worker):
    rows = [engine.told("a"), engine.told("b", "a"), engine.told("c", "b")]
    fence = await engine.evaluate(await engine.jobset(), rows)
    await worker.run_all(lambda name: BuildStatus.FAILED if name == "a" else BuildStatus.SUCCEEDED)
    await builds.restart(engine.database, await ids(engine, fence, "c"), "ada")
    assert {n: s["status"] for n, s in (await engine.steps()).items()} == dict.fromkeys(
        "abc", "pending"
    )
    assert (await engine.statuses(fence))["c"] == "pending"
    await worker.run_all()
    assert (await engine.statuses(fence))["c"] == "succeeded"
    assert await engine.invariants() == []


async def test_what_fails_for_two_reasons_stays_failed_for_the_other(engine, worker):
    rows = [engine.told("a"), engine.told("x"), engine.told("b", "a", "x")]
    fence = await engine.evaluate(await engine.jobset(), rows)
    await worker.claim()
    await worker.end("a", "x", status=BuildStatus.FAILED)
    await builds.restart(engine.database, await ids(engine, fence, "a"), "ada")
    found = await engine.builds(fence)
    assert {n: b["status"] for n, b in found.items()} == {
        "a": "pending",
        "x": "failed",
        "b": "dependency_failed",
    }
    assert found["b"]["root_cause_step_id"] == (await engine.steps())["x"]["id"]
    assert await engine.invariants() == []
    await builds.restart_failed(engine.database, fence.evaluation_id, "ada")
    await worker.run_all()
    assert set((await engine.statuses(fence)).values()) == {"succeeded"}


async def test_a_check_that_comes_to_nothing_fails_nobody(engine, worker):
    rows = [engine.told("a"), engine.told("b", "a")]
    fence = await engine.evaluate(await engine.jobset(), rows)
    await worker.claim()
    await worker.end("a")
    await builds.restart(engine.database, await ids(engine, fence, "a"), "ada")
    assert await worker.claim() == ["a", "b"], "b goes on meanwhile"
    await worker.end("a", status=BuildStatus.TIMEOUT)
    await worker.end("b")
    assert await engine.statuses(fence) == {"a": "timeout", "b": "succeeded"}
    assert await engine.invariants() == []


async def test_products_of_the_last_run_replace_those_of_the_one_before(engine, worker):
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a")])
    for name in ("one", "two"):
        await worker.claim()
        product = Product(nr=1, type="file", subtype="txt", name=name, path=f"/nix/store/{name}")
        await worker.end("a", products=(product,))
        assert [r["name"] for r in await engine.sql("SELECT name FROM build_products")] == [name]
        await builds.restart(engine.database, await ids(engine, fence, "a"), "ada")


async def test_bump_goes_before_shares_and_priorities_with_all_that_it_needs(engine, worker):
    rows = [engine.told(f"x{n}") for n in range(5)] + [
        engine.told("late", "lib"),
        engine.told("lib"),
    ]
    fence = await engine.evaluate(await engine.jobset(), rows)
    await builds.bump(engine.database, await ids(engine, fence, "late"), "ada")
    assert await worker.claim(1) == ["lib"]
    await worker.end("lib")
    assert await worker.claim(1) == ["late"]


async def test_keep_says_who_pinned_it(engine):
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a")])
    (build_id,) = await ids(engine, fence, "a")
    assert (await builds.keep(engine.database, build_id, True, "ada")).builds == (build_id,)
    assert (await builds.keep(engine.database, build_id, True, "bob")).builds == ()
    (row,) = await engine.sql("SELECT keep, kept_by, kept_at FROM builds")
    assert (row["keep"], row["kept_by"]) == (True, "ada")
    await builds.keep(engine.database, build_id, False, "ada")
    assert tuple((await engine.sql("SELECT keep, kept_by, kept_at FROM builds"))[0]) == (
        False,
        None,
        None,
    )


async def test_h01_infrastructure_is_tried_again_with_backoff_and_then_aborts(engine, worker):
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a"), engine.told("b", "a")])
    for failures in range(1, 4):
        assert await worker.claim() == ["a"]
        await worker.end(
            "a", status=BuildStatus.ABORTED, retry=Retry.INFRASTRUCTURE, reason="DiskFull"
        )
        step = (await engine.steps())["a"]
        assert (step["status"], step["infra_failures"]) == ("pending", failures)
        async with engine.database.session() as connection:
            reason = await waits.why(connection, step["id"])
        assert (reason.code, "DiskFull" in reason.message) == ("Backoff", True)
        assert await worker.claim() == []
        assert await engine.invariants() == []
        await engine.sql("UPDATE steps SET not_before = now() - interval '1 s' WHERE name = 'a'")
        async with engine.database.transaction() as connection:
            await steps.steps.queue_due(connection)
    await worker.claim()
    await worker.end("a", status=BuildStatus.ABORTED, retry=Retry.INFRASTRUCTURE, reason="DiskFull")
    assert await engine.statuses(fence) == {"a": "aborted", "b": "dependency_failed"}
    assert await engine.one("SELECT count(*) FROM failed_paths_cache") == 0, "c22: never remembered"
    assert await engine.one("SELECT count(*) FROM build_steps") == 4


async def test_q02_a_late_result_is_refused(engine, worker):
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a")])
    await worker.claim()
    late = worker.result(worker.held["a"], BuildStatus.FAILED)
    await engine.sql("UPDATE leases SET expires_at = now() - interval '1 s'")
    assert await steps.requeue(engine.database, [late.lease]) == 1
    assert await steps.requeue(engine.database, [late.lease]) == 0, "once"
    assert (await engine.steps())["a"]["free_losses"] == 1
    await worker.claim()
    finished = await steps.finish(engine.database, [late], worker.builds)
    assert (finished.accepted, finished.refused) == (frozenset(), {late.lease.step_id})
    await worker.end("a")
    finished = await steps.finish(engine.database, [late], worker.builds)
    assert not finished.accepted
    assert await engine.statuses(fence) == {"a": "succeeded"}
    lost = await engine.sql("SELECT status, reason FROM attempts ORDER BY attempt")
    assert [tuple(row) for row in lost] == [("lost", "LeaseLost"), ("succeeded", "Test")]
    assert await engine.invariants() == []


async def test_q14_a_step_that_kills_its_holders_is_put_aside(engine, worker):
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a")])
    for _ in range(3):
        await worker.claim()
        lease = worker.result(worker.held["a"], BuildStatus.FAILED).lease
        await engine.sql("UPDATE leases SET expires_at = now() - interval '1 s'")
        await steps.requeue(engine.database, [lease])
    (build,) = (await engine.builds(fence)).values()
    assert (build["status"], build["status_reason"]) == ("aborted", "Quarantined")


async def test_q14_stops_in_order_never_put_a_step_aside(engine, worker):
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a")])
    for _ in range(5):
        assert await worker.claim() == ["a"]
        lease = worker.result(worker.held["a"], BuildStatus.FAILED).lease
        assert await steps.give_back(engine.database, [lease]) == 1
    assert await engine.statuses(fence) == {"a": "pending"}
    assert await engine.one("SELECT free_losses FROM steps") == 0
    assert await engine.invariants() == []


@pytest.fixture
async def forked(engine, worker):
    """`top` needs `bad` and others, some of which nobody else wants; two are being built."""
    first = JobMeta(scheduling_priority=200)
    fence = await engine.evaluate(
        await engine.jobset(),
        [
            engine.told("deep"),
            engine.told("waits", "deep"),
            engine.told("runs", meta=first),
            engine.told("bad", meta=first),
            engine.told("shared"),
            engine.told("top", "waits", "runs", "bad", "shared"),
        ],
    )
    await builds.cancel(engine.database, await ids(engine, fence, "deep", "waits", "runs"), "me")
    assert await worker.claim(2) == ["bad", "runs"]
    return fence


async def step_statuses(engine):
    return {name: step["status"] for name, step in (await engine.steps()).items()}


async def test_what_only_a_failed_build_waited_for_is_dropped_and_what_runs_may_end(
    engine, worker, forked
):
    await worker.end("bad", status=BuildStatus.FAILED)
    assert await step_statuses(engine) == {
        "bad": "failed",
        "top": "dependency_failed",
        "waits": "cancelled",
        "deep": "cancelled",
        "runs": "running",
        "shared": "pending",
    }
    assert (await engine.steps())["waits"]["status_reason"] == "Unwanted"
    assert await engine.invariants() == []
    assert await worker.end("runs") == ["runs"]
    assert await worker.claim() == ["shared"]


@pytest.mark.parametrize("name", ["bad", "top"])
async def test_a_restart_takes_back_what_was_dropped(engine, worker, forked, name):
    await worker.end("bad", status=BuildStatus.FAILED)
    await worker.end("runs")
    await builds.restart(engine.database, await ids(engine, forked, name), "me")
    assert await engine.invariants() == []
    assert await worker.claim() == ["bad", "deep", "shared"]
    await worker.end("bad", "deep", "shared")
    await worker.run_all()
    assert (await engine.builds(forked))["top"]["status"] == "succeeded"


async def test_what_is_forsaken_is_not_tried_again(engine, worker, forked):
    await worker.end("bad", status=BuildStatus.FAILED)
    await worker.end("runs", status=BuildStatus.ABORTED, retry=Retry.INFRASTRUCTURE)
    step = (await engine.steps())["runs"]
    assert (step["status"], step["status_reason"]) == ("cancelled", "Unwanted")


async def test_what_a_remembered_failure_forsakes_is_dropped_at_the_end_of_an_evaluation(
    engine, worker, forked
):
    await worker.end("bad", status=BuildStatus.FAILED)
    await worker.end("runs")
    second = await engine.jobset("second")
    fence = await engine.evaluation(second)
    rows = [engine.told("deep"), engine.told("waits", "deep"), engine.told("bad")]
    await engine.ingest.add(fence, [*rows, engine.told("top", "waits", "bad")], [])
    await builds.cancel(engine.database, await ids(engine, fence, "deep", "waits"), "me")
    await engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
    assert (await engine.statuses(fence))["top"] == "dependency_failed"
    assert await engine.invariants() == []


async def test_h11_who_comes_to_want_a_step_while_it_is_being_dropped_gets_it(engine, worker):
    """The check for whom else wants it must see what was written before it got the lock."""
    fence = await engine.evaluate(
        await engine.jobset(),
        [engine.told("low"), engine.told("mid", "low"), engine.told("top", "mid")],
    )
    low, mid, top = await ids(engine, fence, "low", "mid", "top")
    await builds.cancel(engine.database, [low, mid], "me")
    async with engine.database.transaction() as ingesting:
        await ingesting.fetch("SELECT FROM steps WHERE name = 'low' FOR KEY SHARE")
        cancelling = asyncio.create_task(builds.cancel(engine.database, [top], "me"))
        await waiting_for_locks(engine)
        await ingesting.execute(
            "INSERT INTO builds (evaluation_id, job_name, drv_path, system, status, step_id)"
            " SELECT $1, 'late', drv_path, 'x', 'pending', id FROM steps WHERE name = 'low'",
            fence.evaluation_id,
        )
    await cancelling
    assert await step_statuses(engine) == {"low": "pending", "mid": "cancelled", "top": "cancelled"}


async def test_what_is_taken_back_and_fails_again_ends_its_evaluation_again(engine, worker):
    rows = [engine.told("odd", system="odd"), engine.told("bad"), engine.told("top", "odd", "bad")]
    fence = await engine.evaluate(await engine.jobset(), rows)
    await worker.claim()
    await worker.end("bad", status=BuildStatus.FAILED)
    odd = (await engine.steps())["odd"]["id"]
    unsupported = {"status": BuildStatus.UNSUPPORTED_SYSTEM, "reason": "x", "message": "x"}
    await steps.give_up(engine.database, [odd], **unsupported)
    await builds.cancel(engine.database, await ids(engine, fence, "odd"), "me")
    await steps.take_back(engine.database, [odd])
    await builds.cancel(engine.database, await ids(engine, fence, "odd"), "me")
    assert (await engine.statuses(fence))["top"] == "dependency_failed"
    assert await engine.invariants() == []


async def test_s08_nulls_in_what_an_executor_says_are_left_out(engine, worker):
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a")])
    await worker.claim()
    result = worker.result(worker.held["a"], BuildStatus.FAILED, message="m\0m")
    finished = await steps.finish(
        engine.database, [replace(result, phases=(("p\0p", 1),))], worker.builds
    )
    assert len(finished.accepted) == 1
    assert (await engine.builds(fence))["a"]["error_message"].replace("\ufffd", "") == "mm"
    assert "pp" in str(await engine.one("SELECT phases FROM attempts"))


async def waiting_for_locks(engine):
    """Until another session waits for a lock."""
    async with asyncio.timeout(10):
        while not await engine.one(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            await asyncio.sleep(0.01)


async def test_c02_failures_travel_through_ten_thousand_nodes(engine, worker):
    rng = random.Random(7)
    rows = [
        engine.told(f"n{n}", *{f"n{rng.randrange(max(0, n - 50), n)}" for _ in range(3) if n})
        for n in range(10_000)
    ]
    fence = await engine.evaluation(await engine.jobset())
    for at in range(0, len(rows), 2000):
        await engine.ingest.add(fence, rows[at : at + 2000], [])
    await engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
    needs = {row.name: [drv.rsplit("-", 1)[-1][:-4] for drv in row.input_drvs] for row in rows}
    bad = {f"n{rng.randrange(10_000)}" for _ in range(3)} | {"n9000"}
    worker.queue = type(worker.queue)(batch=10_000)
    # Ends go in batches, as the recorder sends them.
    while names := await worker.claim(10_000):
        for status, some in (
            (BuildStatus.SUCCEEDED, [n for n in names if n not in bad]),
            (BuildStatus.FAILED, [n for n in names if n in bad]),
        ):
            if some:
                await worker.end(*some, status=status)
    expected = {}
    for name, inputs in needs.items():
        below = {expected[n] for n in inputs}
        expected[name] = (
            "dependency_failed"
            if below - {"succeeded"}
            else "failed"
            if name in bad
            else "succeeded"
        )
    assert await engine.statuses(fence) == expected
    assert await engine.invariants() == []
    failed = await engine.one("SELECT count(*) FROM builds WHERE status <> 'succeeded'")
    await builds.restart_failed(engine.database, fence.evaluation_id, "ada")
    assert await engine.one("SELECT count(*) FROM builds WHERE status = 'pending'") == failed
    assert await engine.invariants() == []


async def test_h12_shares_are_kept(engine, worker):
    for name, shares in (("big", 300), ("small", 100)):
        jobset = await engine.jobset(name, scheduling_shares=shares)
        await engine.evaluate(jobset, [engine.told(f"{name}{n}") for n in range(400)])
    worker.queue = type(worker.queue)(batch=1)
    counts = {"b": 0, "s": 0}
    for _ in range(200):
        (name,) = await worker.claim(1)
        counts[name[0]] += 1
        # Each step takes a minute on the database's clock.
        await engine.sql(
            "UPDATE attempts SET claimed_at = claimed_at - interval '60 s' WHERE ended_at IS NULL"
        )
        await worker.end(name)
    assert counts["b"] == pytest.approx(150, abs=8)


async def test_h04_ingest_ends_restarts_and_cancels_at_once_never_deadlock(engine, engine_types):
    _, worker_type = engine_types
    rng = random.Random(4)
    rows = [
        engine.told(f"j{n}", *{f"j{rng.randrange(max(0, n - 30), n)}" for _ in range(3) if n})
        for n in range(400)
    ]
    fences = [await engine.evaluation(await engine.jobset(f"s{k}")) for k in range(4)]
    ended = asyncio.Event()

    async def feed(fence):
        for at in range(0, 400, 50):
            await engine.ingest.add(fence, rows[at : at + 50], [])
        await engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))

    async def work(number):
        worker = worker_type(engine, owner=f"w{number}", retry_base_s=0)
        mine = random.Random(number)
        while True:
            names = await worker.claim(10)
            if names:
                status = mine.choice([BuildStatus.SUCCEEDED] * 9 + [BuildStatus.FAILED])
                await worker.end(*names, status=status)
            elif ended.is_set():
                return
            else:
                await asyncio.sleep(0.01)

    async def meddle():
        for _ in range(40):
            found = await engine.sql("SELECT id FROM builds ORDER BY random() LIMIT 5")
            ids = [row["id"] for row in found]
            action = rng.choice([builds.restart, builds.cancel, builds.bump])
            await action(engine.database, ids, "ada")
            await asyncio.sleep(0.02)

    workers = [asyncio.create_task(work(n)) for n in range(3)]
    await asyncio.gather(*map(feed, fences), meddle())
    ended.set()
    await asyncio.gather(*workers)
    assert await engine.invariants() == []
    live = "SELECT count(*) FROM builds WHERE status IN ('pending', 'running')"
    assert await engine.one(live) == 0


@pytest.fixture
async def consumer(engine):
    """A jobset of another project that has a job of ours as an input, and looks each hour."""
    libs = await engine.jobset("libs", state="one_at_a_time")
    user = await engine.jobset(
        "user", project="other", check_reason="interval", next_check_at=datetime.now(UTC) + HOUR
    )
    await engine.sql(
        "INSERT INTO jobset_inputs (jobset_id, name, input_type, value)"
        " VALUES ($1, 'lib', 'build', 'demo:libs:lib')",
        user,
    )
    return libs, user


async def reasons(engine, jobset_id):
    return await engine.sql(
        "SELECT check_reason FROM jobsets WHERE id = $1 AND next_check_at <= now()", jobset_id
    )


async def test_a_success_wakes_who_has_it_as_an_input_once_per_output(engine, worker, consumer):
    libs, user = consumer
    await engine.evaluate(libs, [engine.told("lib"), engine.told("bad")])
    await worker.claim()
    await worker.end("bad", status=BuildStatus.FAILED)
    assert await reasons(engine, user) == []
    await worker.end("lib")
    assert await reasons(engine, user) == [("input",)]
    assert await reasons(engine, libs) != [("input",)]
    # Its evaluation had that output: the same again is nothing new.
    fence = await engine.evaluate(user, [])
    await engine.sql(
        "INSERT INTO evaluation_inputs (evaluation_id, name, input_type, value, store_path)"
        " SELECT $1, 'lib', 'build', '', coalesce(outputs ->> 'out', build_output_path)"
        " FROM builds WHERE job_name = 'lib'",
        fence.evaluation_id,
    )
    await engine.sql(
        "UPDATE jobsets SET next_check_at = now() + interval '1 h', check_reason = 'interval'"
    )
    (build,) = await engine.sql("SELECT id FROM builds WHERE job_name = 'lib'")
    await builds.restart(engine.database, [build["id"]], "me")
    await worker.claim()
    await worker.end("lib")
    assert await reasons(engine, user) == []


async def test_what_was_found_valid_wakes_who_has_it_as_an_input(engine, consumer):
    libs, user = consumer
    await engine.evaluate(libs, [replace(engine.told("lib"), cache_status="cached")])
    assert await reasons(engine, user) == [("input",)]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE projects SET visibility = 'private' WHERE name = 'demo'",
        "UPDATE jobset_inputs SET value = 'libs:lib'",
        "UPDATE jobsets SET next_check_at = NULL",
        "UPDATE jobsets SET deleting_at = now() WHERE name = 'user'",
    ],
)
async def test_a_success_wakes_nobody_who_may_not_see_or_look(engine, worker, consumer, change):
    libs, user = consumer
    await engine.sql(change)
    await engine.evaluate(libs, [engine.told("lib")])
    await worker.claim()
    await worker.end("lib")
    assert await reasons(engine, user) == []
