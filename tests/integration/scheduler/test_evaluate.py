"""Both services of evaluation with real parts: git over HTTP, PostgreSQL, Nix."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shutil
import stat
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import psutil
import pytest

from fc_operator.clients.nix import Nix
from fc_operator.errors import ConflictError, InvalidError, LeaseLostError, NotFoundError
from fc_operator.evaluator import roots
from fc_operator.model.evaluations import EvaluationEnd
from fc_operator.model.ids import Owner, TaskId, new_uuid
from fc_operator.model.jobs import JobError, JobRow
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.operations import evaluations as operations
from fc_operator.operations.ingest import Ingest
from fc_operator.settings import BuildSettings
from fc_operator.store import evaluations

_PATH = Path(__file__).parents[1] / "evaluator" / "conftest.py"
if "evaluator_conftest" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("evaluator_conftest", _PATH)
    sys.modules["evaluator_conftest"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["evaluator_conftest"])
_shared = sys.modules["evaluator_conftest"]
nix, world, DRV = _shared.nix, _shared.world, _shared.DRV

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


# What makes an evaluation due ------------------------------------------------------------------


async def quiet(world, jobset):
    """Until nothing is due and nothing is looked at."""

    async def done():
        return await world.one(
            "SELECT (next_check_at IS NULL OR next_check_at > now() + interval '10 s') "
            "AND check_lease_owner IS NULL FROM jobsets WHERE id = $1",
            jobset,
        )

    await world.until(done)


async def wake(world, jobset, reason="webhook"):
    assert await operations.wake(world.database, [jobset], reason) == [jobset]
    await quiet(world, jobset)


async def statuses(world, jobset):
    return [
        (e["trigger"], e["status"], e["status_reason"]) for e in await world.evaluations_of(jobset)
    ]


async def test_s08_checkouts_are_for_nobody_else(world):
    """Nor after a start, which empties their folder: builds may run without a sandbox."""
    service = world.evaluations()
    await world.start(service)
    assert stat.S_IMODE(service._work_dir.stat().st_mode) == 0o700


async def test_a_look_that_finds_nothing_new_makes_no_evaluation(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset()
    await world.start()
    await world.ended(jobset)
    for reason in ("interval", "webhook", "declared", "request"):
        await wake(world, jobset, reason)
    assert len(await world.evaluations_of(jobset)) == 1
    row = (await world.sql("SELECT * FROM jobsets WHERE id = $1", jobset))[0]
    assert (row["check_reason"], row["last_error"], row["check_failures"]) == ("interval", None, 0)
    assert row["last_checked_at"]


async def test_a_new_commit_is_evaluated_and_names_its_trigger(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset()
    await world.start()
    await world.ended(jobset)
    second = world.release('{ a = drv "a2"; }')
    await wake(world, jobset)
    rows = await world.ended(jobset, 2)
    assert [e["trigger"] for e in rows] == ["declared", "webhook"]
    assert rows[1]["commit_hash"] == second
    assert await world.one("SELECT last_commit FROM jobsets WHERE id = $1", jobset) == second


async def test_c10_a_changed_declaration_is_evaluated_at_the_same_commit(world):
    world.release('{ a = drv "a"; }', **{"other.nix": "{ }"})
    jobset = await world.jobset()
    await world.start()
    await world.ended(jobset)
    await world.sql("UPDATE jobsets SET nix_expression = 'other.nix' WHERE id = $1", jobset)
    await wake(world, jobset, "declared")
    rows = await world.ended(jobset, 2)
    assert rows[0]["commit_hash"] == rows[1]["commit_hash"]
    assert (rows[1]["jobs"], rows[1]["trigger"]) == (0, "declared")


async def test_a_changed_input_is_evaluated_and_recorded(world):
    dep = world.host.make("dep")
    first = dep.commit({"name.nix": '"one"'})
    world.repository.commit(
        {
            "release.nix": f'{{ dep, text, ... }}: {{ a = ({DRV}) (import (dep + "/name.nix") + text); }}'
        }
    )
    jobset = await world.jobset(
        inputs=[("dep", "git", f"{dep.url} main"), ("text", "string", "-x")], check_interval=1
    )
    await world.start()
    await world.ended(jobset)
    second = dep.commit({"name.nix": '"two"'})
    rows = await world.ended(jobset, 2)  # the poll finds it
    assert [e["trigger"] for e in rows] == ["declared", "input"]
    names = await world.sql(
        "SELECT nix_name FROM builds b JOIN evaluations e ON e.id = b.evaluation_id ORDER BY e.number"
    )
    assert [r["nix_name"] for r in names] == ["one-x", "two-x"]
    recorded = await world.sql(
        "SELECT e.number, i.* FROM evaluation_inputs i JOIN evaluations e ON e.id = i.evaluation_id "
        "WHERE i.name = 'dep' ORDER BY e.number"
    )
    assert [r["revision"] for r in recorded] == [first, second]
    assert all(r["store_path"].startswith(str(world.nix.store_dir)) for r in recorded)
    assert await world.one("SELECT revision FROM jobset_inputs WHERE name = 'dep'") == second


async def test_git_errors_are_shown_and_tried_again_later_and_later(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset(branch="nope")
    await world.start(world.checks())

    async def failed(times):
        async def done():
            row = (await world.sql("SELECT * FROM jobsets WHERE id = $1", jobset))[0]
            return row if row["check_failures"] == times else None

        return await world.until(done)

    row = await failed(1)
    assert "no branch nope" in row["last_error"]
    assert "it has main" in row["last_error"]
    for times in (2, 3):
        # As if the time had passed.
        await world.sql("UPDATE jobsets SET next_check_at = now() WHERE id = $1", jobset)
        row = await failed(times)
    wait = await world.one("SELECT extract(epoch FROM next_check_at - now()) FROM jobsets")
    assert 50 < wait < 75
    assert await world.evaluations_of(jobset) == []
    world.repository.git("branch", "nope")
    await world.start(world.evaluations())
    await wake(world, jobset)
    await world.ended(jobset)
    assert await world.one("SELECT last_error FROM jobsets") is None


async def test_one_question_per_repository_however_many_jobsets(world):
    world.release('{ a = drv "a"; }')
    jobsets = [await world.jobset(f"j{n}") for n in range(12)]
    before = len(world.host.requests)
    await world.start(world.checks())
    for jobset in jobsets:
        await world.until(lambda j=jobset: world.evaluations_of(j))
    asked = [path for _, path, _ in world.host.requests[before:] if "info/refs" in path]
    assert len(asked) == 1


async def test_c16_of_fifty_racing_triggers_one_evaluation_comes(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset(state="one_at_a_time", due=False)
    first, second = world.checks(), world.checks()
    await world.start(first, second)
    await asyncio.gather(*(operations.wake(world.database, [jobset], "webhook") for _ in range(50)))
    await world.until(lambda: world.evaluations_of(jobset))
    # A trigger that came during the look stays due; nobody may claim it while that evaluation lives.
    idle = "SELECT check_lease_owner IS NULL FROM jobsets WHERE id = $1"
    await world.until(lambda: world.one(idle, jobset))
    assert len(await world.evaluations_of(jobset)) == 1


async def test_one_at_a_time_waits_for_builds_but_not_for_a_person(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset(state="one_at_a_time")
    await world.start()
    await world.ended(jobset)
    assert await world.one("SELECT builds_ended_at FROM evaluations") is None
    newest = [world.release(f'{{ a = drv "a{n}"; }}') for n in (2, 3)][-1]
    await operations.wake(world.database, [jobset], "webhook")
    await asyncio.sleep(1.2)  # nothing may happen, which has no event
    assert len(await world.evaluations_of(jobset)) == 1
    await operations.request(world.database, jobset, actor="test")
    rows = await world.ended(jobset, 2)
    assert (rows[1]["trigger"], rows[1]["commit_hash"]) == ("request", newest)
    last = world.release('{ a = drv "a4"; }')
    await operations.wake(world.database, [jobset], "webhook")
    await world.sql("UPDATE evaluations SET builds_ended_at = now()")
    rows = await world.ended(jobset, 3)
    assert (rows[2]["trigger"], rows[2]["commit_hash"]) == ("webhook", last)


async def test_one_shot_fires_once_per_generation_and_on_request(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset(state="one_shot")
    await world.start()
    await world.ended(jobset)
    await world.until(lambda: world.one("SELECT shot_generation = generation FROM jobsets"))
    assert await world.one("SELECT next_check_at FROM jobsets") is None
    world.release('{ a = drv "a2"; }')
    await operations.wake(world.database, [jobset], "webhook")
    await asyncio.sleep(1.2)
    assert len(await world.evaluations_of(jobset)) == 1
    await world.sql(
        "UPDATE jobsets SET generation = generation + 1, next_check_at = now(), check_reason = 'declared'"
    )
    await world.ended(jobset, 2)
    await operations.request(world.database, jobset, actor="test", force=True)
    assert (await world.ended(jobset, 3))[2]["trigger"] == "request"


async def test_a_request_may_name_a_commit_and_force(world):
    old = world.release('{ a = drv "a"; }')
    world.release('{ a = drv "a2"; }')
    jobset = await world.jobset()
    await world.start()
    await world.ended(jobset)
    await operations.request(world.database, jobset, commit=old, actor="key:ci")
    rows = await world.ended(jobset, 2)
    assert (rows[1]["commit_hash"], rows[1]["force"]) == (old, False)
    await operations.request(world.database, jobset, commit=old, force=True, actor="key:ci")
    rows = await world.ended(jobset, 3)
    assert (rows[2]["commit_hash"], rows[2]["force"], rows[2]["reused_from"]) == (old, True, None)
    (entry, _) = await world.sql("SELECT * FROM audit_log ORDER BY at")
    assert (entry["actor"], entry["action"], entry["object"]) == (
        "key:ci",
        "evaluate",
        f"jobsets/{jobset}",
    )
    with pytest.raises(InvalidError):
        await operations.request(world.database, jobset, commit="main", actor="x")
    with pytest.raises(NotFoundError):
        await operations.request(world.database, UUID(int=0), actor="x")
    await world.sql("UPDATE jobsets SET state = 'disabled'")
    with pytest.raises(ConflictError, match="disabled"):
        await operations.request(world.database, jobset, actor="x")


async def test_c14_a_jobset_made_with_its_wake_up_lost_is_found_by_the_poll(world):
    world.release('{ a = drv "a"; }')
    await world.start(world.checks())
    began = time.monotonic()
    jobset = await world.jobset()  # by plain SQL: nobody notifies
    await world.until(lambda: world.evaluations_of(jobset))
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "column",
    ["state = 'disabled'", "suspended = true", "deleting_at = now()"],
)
async def test_stopped_jobsets_are_never_looked_at(world, column):
    world.release('{ a = drv "a"; }')
    await world.jobset()
    await world.sql(f"UPDATE jobsets SET {column}")
    await world.start(world.checks())
    await asyncio.sleep(0.8)
    assert await world.one("SELECT count(*) FROM evaluations") == 0
    assert await world.one("SELECT last_checked_at FROM jobsets") is None


@pytest.mark.parametrize(
    "stop",
    [
        "UPDATE jobsets SET state = 'disabled'",
        "UPDATE jobsets SET suspended = true",
        "UPDATE projects SET suspended = true",
        "UPDATE jobsets SET deleting_at = now()",
        "UPDATE projects SET deleting_at = now()",
    ],
)
async def test_what_waits_for_a_stopped_jobset_is_not_evaluated_but_can_be_ended(world, stop):
    jobset = await world.jobset()
    waiting, ending = [
        await world.one(
            "INSERT INTO evaluations (jobset_id, commit_hash, cancel_requested, status)"
            " VALUES ($1, $2, $3, 'pending') RETURNING id",
            jobset,
            digit * 40,
            digit == "b",
        )
        for digit in "ab"
    ]
    await world.sql(stop)

    async def claim():
        async with world.database.transaction() as connection:
            found = await evaluations.claim_next(
                connection, Owner("me"), TaskId(new_uuid()), lease_s=60
            )
        return found and found.fence.evaluation_id

    assert [await claim(), await claim()] == [ending, None]
    await world.sql("UPDATE jobsets SET state = 'enabled', suspended = false, deleting_at = NULL")
    await world.sql("UPDATE projects SET suspended = false, deleting_at = NULL")
    assert await claim() == waiting


async def test_h24_a_build_input_waits_with_a_reason_and_then_gets_the_newest_success(world):
    world.release(
        '{ lib = drv "lib-1.2"; }',
        **{"user.nix": f'{{ lib, ... }}: {{ a = ({DRV}) ("a-" + lib.version); }}'},
    )
    jobset = await world.jobset("libs")
    user = await world.jobset(
        "user", nix_expression="user.nix", inputs=[("lib", "build", "libs:lib")]
    )
    await world.start()
    await world.ended(jobset)

    async def waits():
        return await world.one("SELECT last_error FROM jobsets WHERE id = $1", user)

    assert "demo:libs:lib has no successful build yet" in await world.until(waits)
    assert await world.one("SELECT check_failures FROM jobsets WHERE id = $1", user) == 0
    drv = await world.one("SELECT drv_path FROM builds")
    out = await asyncio.to_thread(world.nix.run, "nix-store", "--realise", drv)
    await world.sql(
        "UPDATE builds SET status = 'succeeded', build_output_path = $1, outputs = jsonb_build_object('out', $1::text)",
        out,
    )
    await wake(world, user, "input")
    (evaluation,) = await world.ended(user)
    assert (evaluation["status"], evaluation["trigger"]) == ("completed", "input")
    assert (
        await world.one("SELECT nix_name FROM builds WHERE evaluation_id = $1", evaluation["id"])
        == "a-1.2"
    )


async def test_a_build_input_reads_no_private_project(world):
    world.release('{ lib = drv "lib"; }')
    jobset = await world.jobset("libs", project="secret")
    user = await world.jobset("user", inputs=[("lib", "build", "secret:libs:lib")])
    await world.start()
    await world.ended(jobset)
    await world.sql("UPDATE builds SET status = 'succeeded', outputs = '{\"out\": \"/x\"}'")
    await world.sql("UPDATE projects SET visibility = 'private' WHERE name = 'secret'")
    await wake(world, user)
    assert "no successful build" in await world.one(
        "SELECT last_error FROM jobsets WHERE id = $1", user
    )


async def test_path_inputs_lie_in_the_checkout_or_below_allowed_folders(world, tmp_path):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "name.nix").write_text('"from-machine"')
    world.evaluation = replace(world.evaluation, allowed_paths=(str(allowed),))
    world.repository.commit(
        {
            "release.nix": f"""{{ inside, outside, ... }}: {{
              a = ({DRV}) (import (inside + "/name.nix")); b = ({DRV}) (import (outside + "/name.nix")); }}""",
            "sub/name.nix": '"from-checkout"',
        }
    )
    jobset = await world.jobset(
        inputs=[("inside", "path", "sub"), ("outside", "path", str(allowed))]
    )
    await world.start()
    (evaluation,) = await world.ended(jobset)
    assert evaluation["status"] == "completed", evaluation
    names = await world.sql("SELECT nix_name FROM builds ORDER BY job_name")
    assert [r["nix_name"] for r in names] == ["from-checkout", "from-machine"]
    bad = await world.jobset("bad", inputs=[("p", "path", "/etc")])
    await quiet(world, bad)
    assert "outside of the allowed folders" in await world.one(
        "SELECT last_error FROM jobsets WHERE id = $1", bad
    )


# Equal keys, ends and limits -------------------------------------------------------------------


async def test_an_equal_key_takes_the_jobs_over_without_a_process(world):
    world.release('{ a = drv "a"; bad = throw "no"; }')
    first = await world.jobset("one")
    await world.start()
    (original,) = await world.ended(first)
    _shared.script(world.folder / "bin" / "nix-instantiate", "#!/bin/sh\nexit 97\n")
    second = await world.jobset("two")
    (evaluation,) = await world.ended(second)
    assert (evaluation["status"], evaluation["status_reason"]) == ("completed", "Reused")
    assert evaluation["reused_from"] == original["id"]
    assert evaluation["inputs_hash"] == original["inputs_hash"]
    assert (evaluation["subject"], evaluation["tree_hash"]) == (
        original["subject"],
        original["tree_hash"],
    )
    builds = await world.sql(
        "SELECT job_name FROM builds WHERE evaluation_id = $1", evaluation["id"]
    )
    assert [b["job_name"] for b in builds] == ["a"]
    assert evaluation["errors"] == 1


async def test_an_equal_evaluation_whose_derivations_were_collected_is_not_reused(world):
    world.release('{ a = drv "a-collected"; }')
    first = await world.jobset("one")
    await world.start()
    (original,) = await world.ended(first)
    drv = await world.one("SELECT drv_path FROM builds")
    roots.drop(roots.default_dir(world.env) / str(original["id"]))
    _shared.collect_garbage(world.nix)
    second = await world.jobset("two")
    (evaluation,) = await world.ended(second)
    assert (evaluation["status"], evaluation["reused_from"]) == ("completed", None)
    assert await asyncio.to_thread(Path(drv).exists)


async def test_h20_derivations_are_roots_as_long_as_their_evaluation_is_kept(world):
    world.release('{ a = drv "a-kept"; }')
    jobset = await world.jobset()
    service = world.evaluations()
    await world.start(world.checks(), service)
    (evaluation,) = await world.ended(jobset)
    drv = Path(await world.one("SELECT drv_path FROM builds"))
    _shared.collect_garbage(world.nix)
    assert await asyncio.to_thread(drv.exists)
    await service._sweep_roots()
    folder = roots.default_dir(world.env) / str(evaluation["id"])
    assert folder.is_dir()
    await world.sql("UPDATE builds SET status = 'cancelled'")
    await world.sql("UPDATE evaluations SET builds_ended_at = now() - interval '2 days'")
    await world.sql("UPDATE jobsets SET keep_nr = 0")
    await service._sweep_roots()
    assert not folder.exists()


async def test_an_expression_that_does_not_evaluate_fails_with_what_nix_said(world):
    world.release("{ a = ; }")
    jobset = await world.jobset()
    await world.start()
    (evaluation,) = await world.ended(jobset)
    assert (evaluation["status"], evaluation["error_kind"]) == ("failed", "evaluation")
    assert evaluation["status_reason"] == "EvaluationFailed"
    assert "syntax error" in evaluation["error_message"]
    assert "release.nix" in evaluation["error_message"]
    assert evaluation["finished_at"]
    await wake(world, jobset, "interval")
    assert len(await world.evaluations_of(jobset)) == 1


async def test_h03_limits_end_an_evaluation_with_their_name(world):
    slow = "builtins.foldl' (a: b: builtins.seq a (builtins.length (builtins.genList (x: x) 99999))) 0 (builtins.genList (x: x) 100000)"
    world.release(f'{{ a = drv "a"; b = drv (toString ({slow})); }}')
    jobset = await world.jobset(evaluation_timeout_s=1)
    await world.start()
    (evaluation,) = await world.ended(jobset)
    assert (evaluation["status"], evaluation["error_kind"]) == ("timed_out", "limit")
    assert evaluation["status_reason"] == "TimeLimit"
    assert "busy with b" in evaluation["error_message"]
    # What came before the limit is there.
    assert evaluation["jobs"] == 1


async def test_a_flake_of_a_git_host_is_evaluated_purely_with_its_revision(world):
    commit = world.repository.commit(
        {
            "flake.nix": f"""{{ outputs = {{ self }}: {{ hydraJobs.a = ({DRV})
              "a-${{self.rev}}-${{self.lastModifiedDate}}"; }}; }}"""
        }
    )
    jobset = await world.jobset(flake_mode=True, nix_expression=".#hydraJobs")
    await world.start()
    (evaluation,) = await world.ended(jobset)
    assert evaluation["status"] == "completed", evaluation["error_message"]
    name = await world.one("SELECT nix_name FROM builds")
    at = datetime.fromtimestamp(int(world.repository.git("log", "-1", "--format=%ct")), UTC)
    assert name == f"a-{commit}-{at:%Y%m%d%H%M%S}"


# Side by side, cancelled, superseded -----------------------------------------------------------

SLOW = (
    "builtins.foldl' (a: b: builtins.seq a (builtins.length (builtins.genList (x: x) 99999))) 0 "
    "(builtins.genList (x: x) 100000)"
)


async def running(world, jobset, jobs=1):
    """The evaluation of a jobset once it runs and has streamed its first jobs."""

    async def done():
        rows = await world.evaluations_of(jobset)
        return next((r for r in rows if r["status"] == "running" and r["jobs"] >= jobs), None)

    return await world.until(done)


async def slow_jobset(world, name="slow", **columns):
    world.repository.commit(
        {"slow.nix": f'{{ ... }}: {{ a = ({DRV}) "a"; z = ({DRV}) (toString ({SLOW})); }}'}
    )
    return await world.jobset(name, nix_expression="slow.nix", **columns)


async def test_cve_class_flake_lock_of_a_folder_of_this_machine(world, tmp_path):
    """Nix would copy it into the store, and say its hash where that was guessed wrong."""
    (tmp_path / "secret").mkdir()
    place = {"type": "git", "url": "https://e.org/x.git"}
    path = {"type": "path", "path": f"{tmp_path}/secret", "narHash": f"sha256-{'A' * 43}="}
    nodes = {
        "root": {"inputs": {"x": "x"}},
        "x": {"flake": False, "original": place, "locked": path},
    }
    world.repository.commit(
        {
            "flake.nix": """{ inputs.x = { url = "git+https://e.org/x.git"; flake = false; };
              outputs = { self, x }: { hydraJobs.a = builtins.readDir x; }; }""",
            "flake.lock": json.dumps({"version": 7, "root": "root", "nodes": nodes}),
        }
    )
    jobset = await world.jobset(flake_mode=True, nix_expression="hydraJobs")
    await world.start()
    (evaluation,) = await world.ended(jobset)
    assert (evaluation["status"], evaluation["status_reason"]) == ("failed", "InputInvalid")
    assert evaluation["error_message"] == (
        "flake.lock: the input x: it is a folder of the machine that locked it"
    )


async def test_c06_a_slow_jobset_delays_none_and_its_first_builds_can_begin(world):
    world.release('{ a = drv "fast"; }')
    slow = await slow_jobset(world)
    await world.start()
    await running(world, slow)
    assert await world.one("SELECT count(*) FROM ready_steps") == 1
    fast = await world.jobset("fast")
    await world.ended(fast)
    (evaluation,) = await world.evaluations_of(slow)
    assert evaluation["status"] == "running"


async def test_a_project_with_many_evaluations_leaves_room_for_others(world):
    world.release('{ a = drv "a"; }')
    world.evaluation = replace(world.evaluation, max_parallel=1)
    await world.start(world.checks())
    many = [await world.jobset(f"j{n}", project="greedy") for n in range(3)]
    for jobset in many:
        await world.until(lambda j=jobset: world.evaluations_of(j))
    other = await world.jobset("only", project="modest")
    await world.until(lambda: world.evaluations_of(other))
    await world.sql("UPDATE evaluations SET status = 'running' WHERE jobset_id = $1", many[0])
    async with world.database.transaction() as connection:
        claim = await evaluations.claim_next(connection, "me", new_uuid(), lease_s=5)
    assert claim.jobset_id == other


async def test_cancelling_a_running_evaluation_kills_its_processes_at_once(world):
    slow = await slow_jobset(world)
    await world.start()
    row = await running(world, slow)
    began = time.monotonic()
    answer = await operations.cancel(world.database, row["id"], "key:ci")
    assert answer.status == "running"
    (evaluation,) = await world.ended(slow)
    assert time.monotonic() - began < 2
    assert (evaluation["status"], evaluation["status_reason"]) == ("cancelled", "Cancelled")
    assert below_us("nix-instantiate") == []
    assert not any((world.folder / "work").iterdir())
    with pytest.raises(ConflictError, match="has ended"):
        await operations.cancel(world.database, row["id"], "key:ci")
    await wake(world, slow, "interval")
    assert len(await world.evaluations_of(slow)) == 1


async def test_cancelling_a_waiting_evaluation_ends_it_at_once(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset()
    await world.start(world.checks())
    (row,) = await world.until(lambda: world.evaluations_of(jobset))
    answer = await operations.cancel(world.database, row["id"], "key:ci")
    assert answer.status == "cancelled"
    assert await statuses(world, jobset) == [("declared", "cancelled", "Cancelled")]
    assert await world.one("SELECT builds_ended_at IS NOT NULL FROM evaluations")


async def test_only_build_latest_supersedes_older_evaluations(world):
    slow = await slow_jobset(world, only_build_latest=True)
    await world.start()
    await running(world, slow)
    world.repository.commit({"slow.nix": f'{{ ... }}: {{ a = ({DRV}) "a"; }}'})
    await operations.wake(world.database, [slow])
    await world.ended(slow, 2)
    assert [s for _, *s in await statuses(world, slow)] == [
        ["cancelled", "Superseded"],
        ["completed", ""],
    ]


async def test_an_evaluation_of_an_outdated_declaration_makes_way_at_the_same_commit(world):
    slow = await slow_jobset(world)
    world.release('{ a = drv "a"; }')
    await world.start()
    await running(world, slow)
    await world.sql("UPDATE jobsets SET nix_expression = 'release.nix'")
    await operations.wake(world.database, [slow], "declared")
    await world.ended(slow, 2)
    assert [s for _, *s in await statuses(world, slow)] == [
        ["cancelled", "Superseded"],
        ["completed", ""],
    ]


# Bad days --------------------------------------------------------------------------------------


async def test_a_stopped_scheduler_gives_its_work_back_and_counts_no_try(world):
    slow = await slow_jobset(world)
    await world.start()
    await running(world, slow)
    began = time.monotonic()
    await world.stop()
    assert time.monotonic() - began < 5
    (evaluation,) = await world.evaluations_of(slow)
    assert (evaluation["status"], evaluation["attempt"]) == ("pending", 0)
    assert await world.one("SELECT count(*) FROM tasks WHERE state = 'live'") == 0
    assert below_us("nix-instantiate") == []
    world.repository.commit({"slow.nix": f'{{ ... }}: {{ a = ({DRV}) "a"; }}'})
    await world.sql("UPDATE jobsets SET nix_expression = 'slow.nix'")
    await world.start()
    await running(world, slow)
    assert await world.one("SELECT count(*) FROM builds") == 1


async def test_a_lost_holder_is_replaced_and_nothing_is_counted_twice(world):
    world.release('{ a = drv "a"; b = drv "b"; bad = throw "no"; }')
    jobset = await world.jobset()
    await world.start(world.checks())
    await world.until(lambda: world.evaluations_of(jobset))
    # A holder that claimed, streamed half of its rows and died.
    task_id = new_uuid()
    async with world.database.transaction() as connection:
        claim = await evaluations.claim_next(connection, "dead", task_id, lease_s=0.0)
    ingest = Ingest(
        world.database,
        Nix(world.nix_settings, world.nix.env),
        BuildSettings(),
        roots_dir=roots.default_dir(world.nix.env),
    )
    drv = await asyncio.to_thread(world.nix.run, "nix-instantiate", "-E", f'({DRV}) "a"')
    row = JobRow(
        attr_path=("a",), name="a", system="x86_64-linux", drv_path=drv.splitlines()[-1], outputs={}
    )
    await ingest.add(claim.fence, [row], [JobError(attr_path=("bad",), message="half a text")])
    await world.start(world.evaluations())
    (evaluation,) = await world.ended(jobset)
    assert (evaluation["status"], evaluation["attempt"]) == ("completed", 2)
    assert (evaluation["jobs"], evaluation["errors"]) == (2, 1)
    assert await world.one("SELECT count(*) FROM builds") == 2
    assert [r["message"] for r in await world.sql("SELECT * FROM evaluation_errors")] == ["no"]
    # The old holder comes back too late.
    with pytest.raises(LeaseLostError):
        await ingest.add(claim.fence, [row], [])
    with pytest.raises(LeaseLostError):
        await ingest.finish(claim.fence, EvaluationEnd(status=EvaluationStatus.FAILED))
    assert [r["state"] for r in await world.sql("SELECT state FROM tasks ORDER BY created_at")] == [
        "lost",
        "ended",
    ]


async def test_q14_an_evaluation_that_kills_its_holders_ends_after_three(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset()
    await world.start(world.checks())
    await world.until(lambda: world.evaluations_of(jobset))
    for _ in range(3):
        async with world.database.transaction() as connection:
            assert await evaluations.claim_next(connection, "dead", new_uuid(), lease_s=0.0)
        async with world.database.transaction() as connection:
            assert len(await evaluations.reap_lost(connection)) == 1
    await world.start(world.evaluations())
    (evaluation,) = await world.ended(jobset)
    assert (evaluation["status"], evaluation["error_kind"]) == ("failed", "internal")
    assert evaluation["status_reason"] == "Quarantined"


async def test_q02_a_holder_that_lost_its_lease_stops_and_writes_nothing(world):
    slow = await slow_jobset(world)
    await world.start()
    row = await running(world, slow)
    # Somebody else took it over while we were not looking.
    await world.sql("UPDATE tasks SET state = 'lost'")
    await world.sql(
        "UPDATE evaluations SET status = 'pending', task_id = NULL, cancel_requested = true"
    )

    async def gone():
        return not below_us("nix-instantiate")

    await world.until(gone)
    (evaluation,) = await world.ended(slow)
    assert evaluation["id"] == row["id"]
    assert evaluation["status"] == "cancelled"


async def test_postgresql_gone_for_a_while_costs_nothing_but_time(world, postgres):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset()
    await world.start()
    await world.ended(jobset)
    world.release(
        '{ a = drv "a"; } // builtins.listToAttrs (builtins.genList (n: { name = "j${toString n}"; '
        'value = drv "j${toString n}"; }) 1500)'
    )
    await operations.wake(world.database, [jobset])
    for _ in range(15):
        await asyncio.sleep(0.1)
        await asyncio.to_thread(
            postgres.call,
            postgres._admin(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 't_%'"
            ),
        )
    rows = await world.ended(jobset, 2)
    assert (rows[1]["status"], rows[1]["jobs"]) == ("completed", 1501)
    assert (
        await world.one("SELECT count(*) FROM builds WHERE evaluation_id = $1", rows[1]["id"])
        == 1501
    )


async def test_without_nix_what_waits_says_so_and_goes_on_when_it_is_there(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset(due=False)
    path = world.env["PATH"]
    await world.start(world.checks())
    await operations.wake(world.database, [jobset])
    await world.until(lambda: world.evaluations_of(jobset))
    world.env["PATH"] = str(world.folder / "bin")
    await world.start(world.evaluations())

    async def explained():
        rows = await world.evaluations_of(jobset)
        return rows[0] if rows[0]["status_reason"] else None

    row = await world.until(explained)
    assert (row["status"], row["status_reason"]) == ("pending", "PrerequisiteMissing")
    assert "nix-instantiate is not on PATH" in row["error_message"]
    # A look needs the evaluator's version too, and says the same.
    await world.start(world.checks())
    (world.folder / "bin").mkdir()
    for name in ("nix-instantiate", "nix-store", "nix-hash", "git", "sh"):
        (world.folder / "bin" / name).symlink_to(shutil.which(name, path=path))
    (evaluation,) = await world.ended(jobset)
    assert (evaluation["status"], evaluation["error_message"]) == ("completed", None)


async def test_a_git_host_that_is_gone_at_the_checkout_is_tried_again(world):
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset()
    await world.start(world.checks())
    await world.until(lambda: world.evaluations_of(jobset))
    world.host.status = 503
    await world.start(world.evaluations())
    (evaluation,) = await world.ended(jobset)
    assert (evaluation["status"], evaluation["error_kind"]) == ("failed", "fetch")
    assert evaluation["status_reason"] == "CheckoutFailed"
    assert evaluation["error_message"]
    world.host.status = 0
    await wake(world, jobset, "interval")
    rows = await world.ended(jobset, 2)
    assert rows[1]["status"] == "completed"


def below_us(name):
    return [p for p in psutil.Process().children(recursive=True) if p.name() == name]


async def test_a_look_that_is_due_does_not_wait_for_the_next_poll(world):
    """An interval shorter than ``queue.poll_s`` is kept: the loop sleeps until something is due."""
    world.queue = replace(world.queue, poll_s=60)
    world.release('{ a = drv "a"; }')
    jobset = await world.jobset(check_interval=1)
    await world.start(world.checks())
    looked = "SELECT last_checked_at FROM jobsets WHERE id = $1"

    async def first():
        return await world.one(looked, jobset)

    first_at = await world.until(first)

    async def again():
        return await world.one(looked, jobset) != first_at

    await world.until(again, seconds=10)
