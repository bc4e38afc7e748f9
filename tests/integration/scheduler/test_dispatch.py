"""Builds from queue to result, with a real Nix."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from fc_operator.model.jobs import JobMeta
from fc_operator.operations import builds as build_operations
from fc_operator.results import archive
from fc_operator.settings import BuildSettings, QueueSettings

pytestmark = pytest.mark.nix


async def until(question, *, within_s=60):
    """Wait for another process or service: ask until the answer is true."""
    async with asyncio.timeout(within_s):
        while not (answer := await question()):
            await asyncio.sleep(0.02)
        return answer


async def test_builds_succeed_and_fail_and_leave_what_they_say(
    nix_engine, nix, make_dispatch, settled
):
    good = nix.drv(
        """echo building; mkdir -p $out/nix-support; echo data > $out/file.txt
        echo "file txt $out/file.txt" > $out/nix-support/hydra-build-products
        echo 'size 12.5 KiB' > $out/nix-support/hydra-metrics
        echo demo-1 > $out/nix-support/hydra-release-name""",
        name="good",
    )
    bad = nix.drv("echo oh no; exit 3", name="bad")
    after = nix.drv("echo $dep > $out", name="after", attrs=f"dep = (import {bad}).outPath;")
    top = nix.drv("cat $dep/file.txt > $out", name="top", attrs=f"dep = (import {good}).outPath;")
    rows = [
        nix_engine.row(n, d)
        for n, d in [("good", good), ("bad", bad), ("after", after), ("top", top)]
    ]
    fence = await nix_engine.evaluate(await nix_engine.jobset(), rows)
    async with make_dispatch():
        statuses = await settled(fence)
    assert statuses == {
        "good": "succeeded",
        "top": "succeeded",
        "bad": "failed",
        "after": "dependency_failed",
    }
    builds = await nix_engine.builds(fence)
    steps = await nix_engine.steps()
    assert builds["after"]["root_cause_step_id"] == steps["bad"]["id"]
    assert builds["good"]["release_name"] == "demo-1"
    assert builds["good"]["build_output_path"] == str(rows[0].outputs["out"])
    (product,) = await nix_engine.sql(
        "SELECT * FROM build_products WHERE build_id = $1", builds["good"]["id"]
    )
    assert (product["type"], product["subtype"], product["file_size"]) == ("file", "txt", 5)
    assert product["sha256_hash"]
    (metric,) = await nix_engine.sql("SELECT * FROM build_metrics")
    assert (metric["metric_name"], metric["metric_value"], metric["unit"]) == ("size", 12.5, "KiB")
    history = await nix_engine.sql("SELECT * FROM build_steps ORDER BY drv_path")
    assert {(h["drv_path"], h["status"], h["exit_code"]) for h in history} == {
        (good, "succeeded", 0),
        (top, "succeeded", 0),
        (bad, "failed", 3),
    }
    assert all(h["completed_at"] >= h["started_at"] for h in history)
    log = await nix_engine.sql(
        "SELECT data FROM log_chunks WHERE step_id = $1 ORDER BY start_offset", steps["bad"]["id"]
    )
    assert b"".join(row["data"] for row in log) == b"oh no\n"
    sizes = await nix_engine.sql("SELECT nar_size, nar_hash FROM step_outputs WHERE nar_size > 0")
    assert len(sizes) == 2
    (cached,) = await nix_engine.sql("SELECT * FROM failed_paths_cache")
    assert (cached["drv_path"], cached["failure_status"]) == (bad, "failed")
    (evaluation,) = await nix_engine.sql("SELECT * FROM evaluations")
    assert evaluation["build_counts"] == {"succeeded": 2, "failed": 1, "dependency_failed": 1}
    assert await nix_engine.one("SELECT count(*) FROM leases") == 0
    assert (
        await nix_engine.one("SELECT count(*) FROM tasks WHERE kind='steps' AND state <> 'ended'")
        == 0
    )
    assert await nix_engine.one("SELECT sum(seconds) FROM jobset_usage") > 0


async def test_c04_every_status_that_this_machine_can_give(
    nix_engine, nix, make_dispatch, make_maintenance, settled
):
    drvs = {
        "succeeded": nix.drv("echo > $out", name="good"),
        "failed": nix.drv("exit 1", name="bad"),
        "timeout": nix.drv("while :; do echo .; sleep 0.1; done", name="slow"),
        "log_limit_exceeded": nix.drv(
            "while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done", name="loud"
        ),
        "cancelled": nix.drv("echo up; sleep 300", name="cancelled"),
        "aborted": nix.drv("echo > $out", name="gone"),
        "unsupported_system": nix.drv(
            "true", name="odd", attrs='requiredSystemFeatures = ["zork"];'
        ),
        "failed_with_output": nix.drv(
            "mkdir -p $out/nix-support; touch $out/nix-support/failed", name="half"
        ),
        "nar_size_limit_exceeded": nix.drv("head -c 500000 /dev/zero > $out", name="large"),
        "non_deterministic": nix.drv("head -c 20 /dev/urandom > $out", name="random"),
        "cached_failure": nix.drv("exit 1", name="again"),
    }
    drvs["dependency_failed"] = nix.drv(
        "cat $dep > $out", name="after", attrs=f"dep = (import {drvs['failed']}).outPath;"
    )
    builds = BuildSettings(
        local_slots=3, retry_base_s=0.05, log_bytes=50_000, nar_bytes=100_000, unsupported_after_s=0
    )
    again = [nix_engine.row("cached_failure", drvs["cached_failure"])]
    first = await nix_engine.evaluate(await nix_engine.jobset("first"), again)
    async with make_dispatch(builds=builds), make_maintenance(builds=builds):
        assert await settled(first) == {"cached_failure": "failed"}
    rows = [
        nix_engine.row(name, drv, meta=JobMeta(timeout_s=1) if name == "timeout" else JobMeta())
        for name, drv in drvs.items()
    ]
    fence = await nix_engine.evaluate(await nix_engine.jobset("second"), rows)
    # While nobody builds: Nix refuses to delete what it is at work on.
    Path(drvs["aborted"]).unlink()  # noqa: ASYNC240 - a test may block
    nix.run("nix-store", "--delete", drvs["aborted"])
    async with make_dispatch(builds=builds), make_maintenance(builds=builds):
        found = await nix_engine.builds(fence)

        async def runs(name):
            return (await nix_engine.statuses(fence))[name] == "running"

        await until(lambda: runs("cancelled"))
        cancelled = await build_operations.cancel(
            nix_engine.database, [found["cancelled"]["id"]], "ada"
        )
        assert cancelled.builds
        assert (await settled(fence))["non_deterministic"] == "succeeded"
        # What is valid is built again and compared when it is restarted.
        await build_operations.restart(
            nix_engine.database, [found["non_deterministic"]["id"]], "ada"
        )
        statuses = await settled(fence)
    assert statuses == {name: name for name in drvs}
    assert await nix_engine.invariants() == []
    found = await nix_engine.builds(fence)
    assert {name: found[name]["status_reason"] for name in drvs} == {
        "succeeded": "Built",
        "failed": "BuilderFailed",
        "timeout": "Timeout",
        "log_limit_exceeded": "LogLimit",
        "cancelled": "Cancelled",
        "aborted": "DerivationMissing",
        "unsupported_system": "UnsupportedSystem",
        "failed_with_output": "FailedFile",
        "nar_size_limit_exceeded": "NarLimit",
        "non_deterministic": "OutputDiffers",
        "cached_failure": "CachedFailure",
        "dependency_failed": "DependencyFailed",
    }


async def test_h06_logs_are_archived_and_each_attempt_keeps_its_own(  # noqa: PLR0917
    nix_engine, nix, make_dispatch, make_maintenance, settled, objects
):
    drv = nix.drv("echo one; exit 1", name="bad")
    fence = await nix_engine.evaluate(await nix_engine.jobset(), [nix_engine.row("bad", drv)])
    async with make_dispatch(), make_maintenance():
        await settled(fence)
        build = (await nix_engine.builds(fence))["bad"]
        await build_operations.restart(nix_engine.database, [build["id"]], "ada")
        await settled(fence)
        await until(
            lambda: nix_engine.one("SELECT count(*) = 2 FROM attempts WHERE log_key IS NOT NULL")
        )
    assert await nix_engine.one("SELECT count(*) FROM log_chunks") == 0
    for attempt in await nix_engine.sql("SELECT * FROM attempts"):
        text = b"".join([part async for part in archive.read_range(objects, attempt["log_key"], 0)])
        assert (text, attempt["log_lines"], attempt["log_bytes"]) == (b"one\n", 1, 4)
    build = (await nix_engine.builds(fence))["bad"]
    assert build["log_path"] == archive.key_of(build["step_id"], 2)


async def test_a_builder_that_appears_takes_back_what_was_given_up(
    nix_engine, nix, make_dispatch, make_maintenance, settled
):
    drv = nix.drv("echo > $out", name="odd", attrs='requiredSystemFeatures = ["zork"];')
    top = nix.drv("cat $dep > $out", name="top", attrs=f"dep = (import {drv}).outPath;")
    rows = [nix_engine.row("odd", drv), nix_engine.row("top", top)]
    fence = await nix_engine.evaluate(await nix_engine.jobset(), rows)
    builds = BuildSettings(local_slots=1, unsupported_after_s=0)
    async with make_maintenance(builds=builds):
        async with make_dispatch(builds=builds):
            assert await settled(fence) == {
                "odd": "unsupported_system",
                "top": "dependency_failed",
            }
        able = BuildSettings(local_slots=1, unsupported_after_s=60, local_features=("zork",))
        async with make_dispatch(builds=able, name="able"):
            await until(lambda: nix_engine.one("SELECT bool_and(status = 'succeeded') FROM builds"))
    assert await nix_engine.invariants() == []


async def test_a_stop_gives_running_steps_back_at_once_and_free_of_charge(
    nix_engine, nix, make_dispatch, settled
):
    drv = nix.drv("echo up; [ -e $mark ] || sleep 300; echo > $out", attrs='mark = "/nonexistent";')
    fence = await nix_engine.evaluate(await nix_engine.jobset(), [nix_engine.row("a", drv)])
    async with make_dispatch() as service:
        await until(lambda: nix_engine.one("SELECT count(*) = 1 FROM log_chunks"))
        started_s = time.monotonic()
        await service.stop()
        assert time.monotonic() - started_s < 5
    (step,) = (await nix_engine.steps()).values()
    assert (step["status"], step["infra_failures"], step["free_losses"]) == ("pending", 0, 0)
    assert await nix_engine.statuses(fence) == {"a": "pending"}
    assert await nix_engine.one("SELECT count(*) FROM service_heartbeats") == 0
    assert await nix_engine.invariants() == []


async def test_q03_a_holder_whose_lease_was_taken_stops_and_writes_nothing(
    nix_engine, nix, make_dispatch
):
    drv = nix.drv("echo up; sleep 300", name="long")
    await nix_engine.evaluate(await nix_engine.jobset(), [nix_engine.row("long", drv)])
    async with make_dispatch() as service:
        await until(lambda: nix_engine.one("SELECT count(*) = 1 FROM log_chunks"))
        # As if it had been silent for too long, and somebody else had taken the step.
        await nix_engine.sql("DELETE FROM leases")
        await nix_engine.sql("UPDATE steps SET attempt = attempt + 1")

        async def stopped():
            return not service.running

        await until(stopped)
    (attempt,) = await nix_engine.sql("SELECT * FROM attempts")
    assert attempt["ended_at"] is None, "the end of the old attempt was refused"


async def test_cancel_reaches_the_process_within_a_second(nix_engine, nix, make_dispatch, settled):
    drv = nix.drv("echo up; sleep 300", name="long")
    fence = await nix_engine.evaluate(await nix_engine.jobset(), [nix_engine.row("long", drv)])
    async with make_dispatch(queue=QueueSettings(poll_s=30, heartbeat_s=10)) as service:
        await until(lambda: nix_engine.one("SELECT count(*) = 1 FROM log_chunks"))
        (build,) = (await nix_engine.builds(fence)).values()
        started_s = time.monotonic()
        await build_operations.cancel(nix_engine.database, [build["id"]], "ada")

        async def ended():
            return not service.running

        await until(ended)
        assert time.monotonic() - started_s < 3
        await until(lambda: nix_engine.one("SELECT status = 'cancelled' FROM steps"))


async def test_h07_a_chain_is_built_without_pauses(nix_engine, nix, make_dispatch, settled):
    drv, rows = None, []
    for n in range(20):
        attrs = f"dep = (import {drv}).outPath;" if drv else ""
        drv = nix.drv("echo > $out", name=f"chain{n}", attrs=attrs)
    rows = [nix_engine.row("top", drv)]
    fence = await nix_engine.evaluate(await nix_engine.jobset(), rows)
    started_s = time.monotonic()
    async with make_dispatch(queue=QueueSettings(poll_s=60)):
        assert await settled(fence) == {"top": "succeeded"}
    assert time.monotonic() - started_s < 15, "no poll was waited for"
    assert await nix_engine.one("SELECT count(*) FROM build_steps") == 20, "all in its history"


async def test_what_was_found_valid_can_be_restarted_and_compared(
    nix_engine, nix, make_dispatch, settled
):
    drv = nix.drv("head -c 20 /dev/urandom > $out", name="random")
    nix.run("nix-store", "--realise", drv)
    fence = await nix_engine.evaluate(await nix_engine.jobset(), [nix_engine.row("random", drv)])
    (build,) = (await nix_engine.builds(fence)).values()
    assert (build["status"], build["cached"], build["step_id"]) == ("succeeded", True, None)
    await build_operations.restart(nix_engine.database, [build["id"]], "ada")
    async with make_dispatch():
        assert await settled(fence) == {"random": "non_deterministic"}
    (build,) = (await nix_engine.builds(fence)).values()
    assert build["step_id"]
    assert not build["cached"]
    assert await nix_engine.invariants() == []
