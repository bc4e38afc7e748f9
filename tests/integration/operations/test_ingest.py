"""From rows to builds, steps and edges."""

from __future__ import annotations

import pytest

from fc_operator.errors import LeaseLostError
from fc_operator.model.evaluations import EvaluationEnd
from fc_operator.model.jobs import JobError
from fc_operator.model.statuses import EvaluationStatus


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
