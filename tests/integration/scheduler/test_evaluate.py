"""Both services of evaluation with real parts: git over HTTP, PostgreSQL, Nix."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).parents[1] / "evaluator" / "conftest.py"
if "evaluator_conftest" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("evaluator_conftest", _PATH)
    sys.modules["evaluator_conftest"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["evaluator_conftest"])
_shared = sys.modules["evaluator_conftest"]
nix, world = _shared.nix, _shared.world

pytestmark = pytest.mark.nix


async def test_a_new_jobset_is_looked_at_evaluated_and_its_jobs_are_builds(world):
    commit = world.release('{ a = drv "a"; b.c = drv "bc"; bad = throw "no"; }')
    jobset = await world.jobset()
    await world.start()
    (evaluation,) = await world.ended(jobset)
    assert (evaluation["status"], evaluation["commit_hash"]) == ("completed", commit)
    assert evaluation["evaluator"] == "walker"
    assert "2.8" in evaluation["evaluator_version"] or evaluation["evaluator_version"]
    assert (evaluation["trigger"], evaluation["subject"]) == ("declared", "change")
    builds = await world.sql("SELECT job_name FROM builds ORDER BY job_name")
    assert [b["job_name"] for b in builds] == ["a", "b.c"]
    (error,) = await world.sql("SELECT * FROM evaluation_errors")
    assert (error["job_name"], error["message"]) == ("bad", "no")
    assert not any((world.folder / "work").iterdir())
