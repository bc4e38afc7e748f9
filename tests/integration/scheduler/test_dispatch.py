"""Builds from queue to result, with a real Nix."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.nix


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
