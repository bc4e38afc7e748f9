"""From rows to builds, steps and edges."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fc_operator.errors import LeaseLostError, NotFoundError, UnavailableError
from fc_operator.evaluator import roots
from fc_operator.model.evaluations import EvaluationEnd
from fc_operator.model.jobs import JobError, JobMeta
from fc_operator.model.statuses import BuildStatus, EvaluationStatus
from fc_operator.operations import builds


def are_there(rows):
    return [Path(row.outputs["out"]).exists() for row in rows]


async def test_rows_become_builds_steps_and_edges(engine):
    jobset = await engine.jobset()
    rows = [engine.told("a"), engine.told("b", "a"), engine.told("c", "a", "b")]
    fence = await engine.evaluate(jobset, rows, [JobError(attr_path=("x", "y"), message="boom")])
    assert await engine.statuses(fence) == {"a": "pending", "b": "pending", "c": "pending"}
    steps = await engine.steps()
    assert {name: step["blockers"] for name, step in steps.items()} == {"a": 0, "b": 1, "c": 2}
    assert await engine.one("SELECT count(*) FROM step_edges") == 3
    assert [r["step_id"] for r in await engine.sql("SELECT * FROM ready_steps")] == [
        steps["a"]["id"]
    ]
    (evaluation,) = await engine.sql("SELECT * FROM evaluations")
    assert (evaluation["status"], evaluation["jobs"], evaluation["errors"]) == ("completed", 3, 1)
    assert evaluation["builds_ended_at"] is None
    (error,) = await engine.sql("SELECT * FROM evaluation_errors")
    assert (error["attr_path"], error["job_name"], error["message"]) == (["x", "y"], "x.y", "boom")


async def test_the_same_batch_again_changes_nothing(engine):
    fence = await engine.evaluation(await engine.jobset())
    rows, errors = [engine.told("a"), engine.told("b", "a")], [JobError(attr_path=(), message="m")]
    for _ in range(2):
        await engine.ingest.add(fence, rows, errors)
    engine.ingest._sessions.clear()
    await engine.ingest.add(fence, rows, errors)
    (evaluation,) = await engine.sql("SELECT jobs, errors FROM evaluations")
    assert tuple(evaluation) == (2, 1)
    assert await engine.one("SELECT count(*) FROM ready_steps") == 1


async def test_a_lost_fence_writes_nothing(engine):
    fence = await engine.evaluation(await engine.jobset())
    await engine.sql("UPDATE tasks SET state = 'lost'")
    with pytest.raises(LeaseLostError):
        await engine.ingest.add(fence, [engine.told("a")], [])
    with pytest.raises(LeaseLostError):
        await engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
    assert await engine.one("SELECT count(*) FROM builds") == 0


async def test_batches_are_written_while_the_next_is_planned(engine):
    fence = await engine.evaluation(await engine.jobset())
    rows = [
        engine.told("a"),
        engine.told("b", "a"),
        engine.told("c", "b"),
        engine.told("d", "a", "c"),
    ]
    for row in rows:
        await engine.ingest.put(fence, [row], [])
    await engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
    steps = await engine.steps()
    assert {n: step["blockers"] for n, step in steps.items()} == {"a": 0, "b": 1, "c": 1, "d": 2}
    assert await engine.one("SELECT jobs FROM evaluations") == 4


async def test_a_write_that_failed_is_told_and_done_with_the_next_call(engine, monkeypatch):
    fence = await engine.evaluation(await engine.jobset())
    run, failures = engine.database.run, [UnavailableError("the link broke")] * 2

    async def broken(change):
        if failures:
            raise failures.pop()
        return await run(change)

    monkeypatch.setattr(engine.database, "run", broken)
    await engine.ingest.put(fence, [engine.told("a")], [])
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await engine.ingest.put(fence, [engine.told("b", "a")], [])
    await engine.ingest.put(fence, [engine.told("b", "a")], [])
    await engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
    assert await engine.statuses(fence) == {"a": "pending", "b": "pending"}
    assert await engine.one("SELECT count(*) FROM step_edges") == 1


async def test_a_lost_fence_is_told_with_the_next_batch(engine):
    fence = await engine.evaluation(await engine.jobset())
    await engine.sql("UPDATE tasks SET state = 'lost'")
    await engine.ingest.put(fence, [engine.told("a")], [])
    with pytest.raises(LeaseLostError):
        await engine.ingest.put(fence, [engine.told("b")], [])
    assert await engine.one("SELECT count(*) FROM builds") == 0


async def test_who_is_done_leaves_no_write_behind(engine):
    fence = await engine.evaluation(await engine.jobset())
    await engine.ingest.put(fence, [engine.told("a")], [])
    await engine.ingest.forget(fence)
    assert [t for t in asyncio.all_tasks() if "Ingest._write" in repr(t)] == []
    assert await engine.one("SELECT count(*) FROM builds") == 0


async def test_steps_are_shared_across_jobsets_and_jobs(engine):
    first = await engine.evaluate(await engine.jobset("one"), [engine.told("a")])
    second = await engine.evaluate(
        await engine.jobset("two"), [engine.told("a"), engine.told("b", "a")]
    )
    assert await engine.one("SELECT count(*) FROM steps") == 2
    ids = {b["a"]["step_id"] for b in [await engine.builds(first), await engine.builds(second)]}
    assert len(ids) == 1


@pytest.mark.nix
async def test_only_what_must_be_built_is_a_step(nix_engine, nix):
    leaf = nix.drv(
        "mkdir -p $out/nix-support; echo 'n 3 x' > $out/nix-support/hydra-metrics", name="leaf"
    )
    nix.run("nix-store", "--realise", leaf)
    mid = nix.drv("echo $dep > $out", name="mid", attrs=f"dep = (import {leaf}).outPath;")
    top = nix.drv("echo $dep > $out", name="top", attrs=f"dep = (import {mid}).outPath;")
    rows = [nix_engine.row("leaf", leaf), nix_engine.row("top", top)]
    fence = await nix_engine.evaluate(await nix_engine.jobset(), rows)
    steps = await nix_engine.steps()
    assert {name: step["blockers"] for name, step in steps.items()} == {"mid": 0, "top": 1}
    builds = await nix_engine.builds(fence)
    leaf_build = builds["leaf"]
    assert (leaf_build["status"], leaf_build["cached"], leaf_build["step_id"]) == (
        "succeeded",
        True,
        None,
    )
    assert leaf_build["build_output_path"] == str(rows[0].outputs["out"])
    (metric,) = await nix_engine.sql("SELECT * FROM build_metrics")
    assert (metric["build_id"], metric["metric_value"]) == (leaf_build["id"], 3.0)
    (product,) = await nix_engine.sql("SELECT * FROM build_products")
    assert (product["type"], product["name"]) == ("nix-build", "leaf")
    assert steps["mid"]["build_id"] == builds["top"]["id"]


@pytest.mark.nix
async def test_what_is_valid_already_is_not_collected_while_its_build_says_succeeded(
    nix_engine, nix
):
    """The dry run of a batch sees it valid; from then on nobody would build it again."""
    here = [nix.drv(f"echo {n} > $out", name=f"here-{n}") for n in range(2)]
    nix.run("nix-store", "--realise", *here)
    rows = [nix_engine.row(f"job{n}", drv) for n, drv in enumerate(here)]
    fence = await nix_engine.evaluation(await nix_engine.jobset())
    for row in rows:  # a batch each
        await nix_engine.ingest.add(fence, [row], [])
    nix.run("nix-store", "--gc")
    assert set((await nix_engine.statuses(fence)).values()) == {"succeeded"}
    assert are_there(rows) == [True, True]
    roots.drop(roots.default_dir(nix.env) / str(fence.evaluation_id))
    nix.run("nix-store", "--gc")
    assert are_there(rows) == [False, False]


@pytest.mark.nix
async def test_a_derivation_that_is_gone_fails_its_job_alone(nix_engine, nix):
    good = nix.drv("echo > $out", name="good")
    gone = nix_engine.row("gone", good)
    gone = type(gone)(
        **{f: getattr(gone, f) for f in gone.__slots__}
        | {"drv_path": f"{nix.store_dir}/{'a' * 32}-gone.drv"}
    )
    fence = await nix_engine.evaluate(
        await nix_engine.jobset(), [gone, nix_engine.row("good", good)]
    )
    assert await nix_engine.statuses(fence) == {"good": "pending"}
    (error,) = await nix_engine.sql("SELECT * FROM evaluation_errors")
    assert error["job_name"] == "gone"
    assert "is gone" in error["message"]


async def test_h24_a_missing_constituent_fails_its_aggregate_alone(engine):
    aggregate = {"is_aggregate": True}
    rows = [
        engine.told("a"),
        engine.told("tests.one"),
        engine.told("tests.two"),
        engine.told("all", named_constituents=("tests.*", "a"), **aggregate),
        engine.told("bad", named_constituents=("a", "nope"), **aggregate),
        engine.told("bad2", named_constituents=("none.*",), **aggregate),
        engine.told("ring1", named_constituents=("ring2",), **aggregate),
        engine.told("ring2", named_constituents=("ring1",), **aggregate),
        engine.told("over", named_constituents=("all",), **aggregate),
    ]
    fence = await engine.evaluate(await engine.jobset(), rows)
    assert set(await engine.builds(fence)) == {"a", "tests.one", "tests.two", "all", "over"}
    errors = {
        e["job_name"]: e["message"] for e in await engine.sql("SELECT * FROM evaluation_errors")
    }
    assert errors == {
        "bad": "constituent 'nope': there is no such job",
        "bad2": "constituent 'none.*': matches no job",
        "ring1": "dependency cycle: ring1 <-> ring2",
        "ring2": "dependency cycle: ring1 <-> ring2",
    }


async def test_c16_an_aggregate_is_built_when_its_constituents_are(engine, worker):
    rows = [
        engine.told("a"),
        engine.told("b"),
        engine.told("all", is_aggregate=True, named_constituents=("?",)),
    ]
    fence = await engine.evaluate(await engine.jobset(), rows)
    builds = await engine.builds(fence)
    pairs = await engine.sql("SELECT * FROM constituents")
    assert {(p["build_id"], p["constituent_build_id"]) for p in pairs} == {
        (builds["all"]["id"], builds[name]["id"]) for name in "ab"
    }
    assert await worker.claim() == ["a", "b"]
    await worker.end("a")
    assert await worker.claim() == []
    await worker.end("b")
    assert await worker.claim() == ["all"]
    await worker.end("all")
    assert set((await engine.statuses(fence)).values()) == {"succeeded"}
    assert await engine.invariants() == []


async def test_an_aggregate_fails_with_its_constituent(engine, worker):
    rows = [engine.told("a"), engine.told("all", is_aggregate=True, named_constituents=("a",))]
    fence = await engine.evaluate(await engine.jobset(), rows)
    await worker.claim()
    await worker.end("a", status=BuildStatus.FAILED)
    assert await engine.statuses(fence) == {"a": "failed", "all": "dependency_failed"}


async def test_dependencies_between_jobs_of_one_evaluation(engine):
    other = await engine.jobset("other")
    await engine.evaluate(other, [engine.told("a")])
    rows = [engine.told("b", "a"), engine.told("a"), engine.told("c", "b", "x"), engine.told("x")]
    fence = await engine.evaluation(await engine.jobset())
    for row in rows[1::2] + rows[::2]:
        await engine.ingest.add(fence, [row], [])
    await engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
    names = {build["id"]: name for name, build in (await engine.builds(fence)).items()}
    pairs = await engine.sql("SELECT * FROM build_dependencies")
    assert sorted((names[p["build_id"]], names[p["dependency_build_id"]]) for p in pairs) == [
        ("b", "a"),
        ("c", "b"),
        ("c", "x"),
    ]


async def test_only_changed_jobs_are_new(engine):
    jobset = await engine.jobset()
    await engine.evaluate(jobset, [engine.told("a"), engine.told("b")])
    fence = await engine.evaluate(jobset, [engine.told("a"), engine.told("c")])
    assert {n: b["is_new"] for n, b in (await engine.builds(fence)).items()} == {
        "a": False,
        "c": True,
    }
    assert await engine.one("SELECT jobs_new FROM evaluations ORDER BY number DESC LIMIT 1") == 1


async def test_a_one_shot_fires_once_per_generation(engine):
    jobset = await engine.jobset(state="one_shot", generation=3, next_check_at=None)
    await engine.evaluate(jobset, [])
    assert await engine.one("SELECT shot_generation FROM jobsets") == 3
    assert await engine.one("SELECT count(*) FROM active_jobsets") == 0


async def test_a_failed_evaluation_says_why_and_settles(engine):
    fence = await engine.evaluation(await engine.jobset())
    await engine.ingest.finish(
        fence,
        EvaluationEnd(
            status=EvaluationStatus.FAILED,
            reason="CheckoutFailed",
            error_kind="fetch",
            message="no such branch",
        ),
    )
    (row,) = await engine.sql("SELECT * FROM evaluations")
    assert (row["status"], row["status_reason"], row["error_kind"], row["error_message"]) == (
        "failed",
        "CheckoutFailed",
        "fetch",
        "no such branch",
    )
    assert row["builds_ended_at"]


async def test_only_the_latest_is_built_where_it_is_wished(engine, worker):
    jobset = await engine.jobset(only_build_latest=True)
    old = await engine.evaluate(jobset, [engine.told("a"), engine.told("b")], branch="main")
    other = await engine.evaluate(jobset, [engine.told("a")], branch="side")
    new = await engine.evaluate(jobset, [engine.told("b"), engine.told("c")], branch="main")
    assert await engine.statuses(old) == {"a": "cancelled", "b": "cancelled"}
    assert await engine.statuses(other) == {"a": "pending"}, "another stream wants it"
    assert await engine.statuses(new) == {"b": "pending", "c": "pending"}
    assert sorted(await worker.run_all()) == ["a", "b", "c"]
    assert await engine.invariants() == []


async def test_channels_move_to_good_evaluations_and_never_back(engine, worker):
    jobset = await engine.jobset()
    await engine.sql(
        "INSERT INTO channels (project_id, name, jobset_id) SELECT project_id, 'stable', id FROM jobsets"
    )
    first = await engine.evaluate(jobset, [engine.told("a")])
    second = await engine.evaluate(jobset, [engine.told("b")])
    bad = await engine.evaluate(jobset, [engine.told("c")])
    current = "SELECT current_evaluation_id FROM channels"
    await worker.claim()
    await worker.end("c", status=BuildStatus.FAILED)
    assert await engine.one(current) is None
    await worker.end("b")
    assert await engine.one(current) == second.evaluation_id
    await worker.end("a")
    assert await engine.one(current) == second.evaluation_id, "not back to the first"
    assert await engine.one(
        "SELECT builds_ended_at FROM evaluations WHERE id = $1", first.evaluation_id
    )
    assert await engine.one(
        "SELECT build_counts FROM evaluations WHERE id = $1", bad.evaluation_id
    ) == {"failed": 1}


async def test_h11_a_remembered_failure_is_found_and_expires(engine, worker):
    rows = [engine.told("a"), engine.told("b", "a"), engine.told("slow")]
    await engine.evaluate(await engine.jobset("one"), rows)
    await worker.claim()
    await worker.end("a", status=BuildStatus.FAILED)
    await worker.end("slow", status=BuildStatus.TIMEOUT)
    second = await engine.evaluate(await engine.jobset("two"), rows)
    assert await engine.statuses(second) == {
        "a": "cached_failure",
        "b": "dependency_failed",
        "slow": "pending",
    }, "only real failures are remembered"
    builds = await engine.builds(second)
    assert builds["b"]["root_cause_step_id"] == builds["a"]["step_id"]
    assert builds["a"]["completed_at"]
    await engine.sql("UPDATE failed_paths_cache SET expires_at = now() - interval '1 s'")
    third = await engine.evaluate(await engine.jobset("three"), rows)
    assert await engine.statuses(third) == {"a": "pending", "b": "pending", "slow": "pending"}
    assert (await engine.statuses(second))["a"] == "cached_failure", "what was said stays said"
    assert await engine.invariants() == []
    await worker.run_all()
    assert set((await engine.statuses(third)).values()) == {"succeeded"}


async def test_c22_a_failure_without_its_step_is_still_remembered(engine):
    await engine.sql(
        "INSERT INTO failed_paths_cache (drv_path, failure_status) VALUES ($1, 'failed')",
        engine.told("a").drv_path,
    )
    fence = await engine.evaluate(
        await engine.jobset(), [engine.told("a"), engine.told("b", "a"), engine.told("c", "b")]
    )
    assert await engine.statuses(fence) == {
        "a": "cached_failure",
        "b": "dependency_failed",
        "c": "dependency_failed",
    }
    assert await engine.one("SELECT builds_ended_at IS NOT NULL FROM evaluations")
    assert await engine.invariants() == []


@pytest.mark.nix
async def test_h11_what_was_cancelled_while_its_evaluation_streams_is_built_for_later_jobs(
    nix_engine, nix
):
    deep = nix.drv("echo > $out", name="deep")
    dep = nix.drv("echo $d > $out", name="dep", attrs=f"d = (import {deep}).outPath;")
    top, other = (
        nix.drv("echo $d > $out", name=name, attrs=f"d = (import {dep}).outPath;")
        for name in ("top", "other")
    )
    fence = await nix_engine.evaluation(await nix_engine.jobset())
    await nix_engine.ingest.add(fence, [nix_engine.row("top", top)], [])
    (first,) = (await nix_engine.builds(fence)).values()
    await builds.cancel(nix_engine.database, [first["id"]], "me")
    await nix_engine.ingest.add(
        fence, [nix_engine.row("dep", dep), nix_engine.row("other", other)], []
    )
    assert await nix_engine.statuses(fence) == {
        "top": "cancelled",
        "dep": "pending",
        "other": "pending",
    }
    steps = {name: (s["status"], s["blockers"]) for name, s in (await nix_engine.steps()).items()}
    assert steps == {
        "top": ("cancelled", 1),
        "deep": ("pending", 0),
        "dep": ("pending", 1),
        "other": ("pending", 1),
    }
    assert await nix_engine.invariants() == []


async def test_two_evaluations_ingest_the_same_graph_at_once(engine):
    rows = [engine.told(f"j{n}", *(f"j{m}" for m in range(max(0, n - 3), n))) for n in range(300)]
    fences = [await engine.evaluation(await engine.jobset(f"s{k}")) for k in range(4)]

    async def feed(fence):
        for at in range(0, 300, 50):
            await engine.ingest.add(fence, rows[at : at + 50], [])
        await engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))

    await asyncio.gather(*map(feed, fences))
    assert await engine.one("SELECT count(*) FROM steps") == 300
    assert await engine.one("SELECT count(*) FROM builds") == 1200
    assert await engine.invariants() == []


@pytest.mark.nix
async def test_an_equal_evaluation_takes_the_rows_over(nix_engine, nix):
    jobset = await nix_engine.jobset()
    a = nix.drv("echo > $out", name="a")
    b = nix.drv("echo $dep > $out", name="b", attrs=f"dep = (import {a}).outPath;")
    errors = [JobError(attr_path=("x",), message="boom")]
    rows = [
        nix_engine.row("a", a),
        nix_engine.row("b", b, meta=JobMeta(description="about", scheduling_priority=7)),
        nix_engine.row(
            "all", nix.drv("echo > $out", name="all"), is_aggregate=True, named_constituents=("b",)
        ),
    ]
    first = await nix_engine.evaluate(jobset, rows, errors)
    fence = await nix_engine.evaluation(jobset)
    await nix_engine.ingest.reuse(fence, first.evaluation_id)
    await nix_engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
    one, two = await nix_engine.builds(first), await nix_engine.builds(fence)
    same = ("step_id", "drv_path", "description", "priority", "attr_path", "constituents", "status")
    assert {n: [x[k] for k in same] for n, x in one.items()} == {
        n: [x[k] for k in same] for n, x in two.items()
    }
    (row,) = await nix_engine.sql("SELECT * FROM evaluations WHERE id = $1", fence.evaluation_id)
    assert (row["reused_from"], row["jobs"], row["errors"]) == (first.evaluation_id, 3, 1)
    assert await nix_engine.one("SELECT count(*) FROM build_dependencies") == 2
    assert await nix_engine.one("SELECT count(*) FROM constituents") == 2
    Path(b).unlink()  # noqa: ASYNC240 - a test may block
    with pytest.raises(NotFoundError):
        await nix_engine.ingest.reuse(await nix_engine.evaluation(jobset), first.evaluation_id)


async def test_h12_a_shared_step_is_filed_under_the_jobset_that_had_least(engine):
    first, second = await engine.jobset("one"), await engine.jobset("two", scheduling_shares=300)
    await engine.evaluate(first, [engine.told("a")])
    await engine.sql(
        "INSERT INTO jobset_usage VALUES ($1, now(), 100), ($2, now(), 150)", first, second
    )
    await engine.evaluate(
        second, [engine.told("a", meta=JobMeta(scheduling_priority=400, timeout_s=90_000))]
    )
    (step,) = (await engine.steps()).values()
    assert (step["jobset_id"], step["priority"], step["timeout_s"]) == (second, 400, 90_000)
    (ready,) = await engine.sql("SELECT jobset_id, priority FROM ready_steps")
    assert tuple(ready) == (second, 400)
    await engine.evaluate(first, [engine.told("a")])
    assert (await engine.steps())["a"]["jobset_id"] == second, "it still had less"


@pytest.mark.nix
async def test_h11_a_batch_that_was_planned_on_what_was_cancelled_since_is_planned_again(
    nix_engine, nix
):
    base = nix.drv("echo > $out", name="base")
    first, second, third = (
        nix.drv("echo $d > $out", name=name, attrs=f"d = (import {base}).outPath;")
        for name in ("first", "second", "third")
    )
    fence = await nix_engine.evaluation(await nix_engine.jobset())
    await nix_engine.ingest.add(fence, [nix_engine.row("first", first)], [])
    (build,) = (await nix_engine.builds(fence)).values()
    await builds.cancel(nix_engine.database, [build["id"]], "me")
    await nix_engine.ingest.put(fence, [nix_engine.row("second", second)], [])
    await nix_engine.ingest.put(fence, [nix_engine.row("third", third)], [])
    await nix_engine.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
    assert await nix_engine.statuses(fence) == {
        "first": "cancelled",
        "second": "pending",
        "third": "pending",
    }
    assert {n: (s["status"], s["blockers"]) for n, s in (await nix_engine.steps()).items()} == {
        "base": ("pending", 0),
        "first": ("cancelled", 1),
        "second": ("pending", 1),
        "third": ("pending", 1),
    }
    assert await nix_engine.invariants() == []
