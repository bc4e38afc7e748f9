"""The chores of maintenance, one by one, on a real PostgreSQL."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from fc_operator.clients.objects import ObjectStore
from fc_operator.scheduler.maintain import MaintenanceService
from fc_operator.settings import BuildSettings, QueueSettings


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_engine = load("engine_conftest", Path(__file__).parents[1] / "operations" / "conftest.py")
engine, worker = _engine.engine, _engine.worker


@pytest.fixture
def service(engine, tmp_path):
    """Not started: tests call its chores."""
    return MaintenanceService(
        engine.database,
        ObjectStore.open(tmp_path / "objects"),
        queue=QueueSettings(),
        builds=BuildSettings(unsupported_after_s=0),
    )


async def beat(engine, *systems):
    await engine.sql(
        "INSERT INTO service_heartbeats (owner, kind, host, info) VALUES ('s', 'scheduler', 'h',"
        " jsonb_build_object('offers', jsonb_build_array(jsonb_build_object('name', 'local',"
        " 'slots', 1, 'free', 1, 'systems', $1::text[], 'features', '[]'::jsonb,"
        " 'mandatory', '[]'::jsonb))))",
        list(systems),
    )


async def test_c01_only_leases_that_ran_out_come_back_and_only_once(engine, worker, service):
    await engine.evaluate(await engine.jobset(), [engine.told("a"), engine.told("b")])
    await worker.claim()
    await engine.sql(
        "UPDATE attempts SET claimed_at = now() - interval '20 min', started_at = now() - interval '20 min'"
    )
    assert await service.requeue_lost() == 0, "age says nothing"
    await engine.sql(
        "UPDATE leases SET expires_at = now() - interval '1 s' WHERE step_id = $1",
        worker.held["a"].id,
    )
    assert await service.requeue_lost() == 1
    assert await service.requeue_lost() == 0
    assert {n: s["status"] for n, s in (await engine.steps()).items()} == {
        "a": "pending",
        "b": "running",
    }
    assert await engine.invariants() == []


async def test_nobody_building_at_all_makes_nothing_unsupported(engine, service):
    await engine.evaluate(await engine.jobset(), [engine.told("arm", system="aarch64-linux")])
    assert await service.give_up_unsupported() == 0
    await beat(engine, "x86_64-linux")
    assert await service.give_up_unsupported() == 1
    assert await engine.one("SELECT status FROM builds") == "unsupported_system"


async def test_a_declared_builder_is_waited_for(engine, service):
    await engine.evaluate(await engine.jobset(), [engine.told("arm", system="aarch64-linux")])
    await beat(engine, "x86_64-linux")
    await engine.sql(
        "INSERT INTO remote_builders (name, ssh_uri, systems) VALUES ('big', 'ssh://big', '{aarch64-linux}')"
    )
    assert await service.give_up_unsupported() == 0
    await engine.sql("UPDATE remote_builders SET enabled = false")
    assert await service.give_up_unsupported() == 1
    await engine.sql("UPDATE remote_builders SET enabled = true")
    assert await service.take_back_supported() == 1
    assert await engine.one("SELECT status FROM builds") == "pending"
    assert await engine.invariants() == []


async def test_steps_of_a_deleted_jobset_go_to_who_wants_them_or_end(engine, worker, service):
    one, two = await engine.jobset("one"), await engine.jobset("two")
    await engine.evaluate(one, [engine.told("shared"), engine.told("own")])
    await engine.evaluate(two, [engine.told("top", "shared"), engine.told("shared")])
    await engine.sql("DELETE FROM jobsets WHERE id = $1", one)
    assert await worker.claim() == []
    assert await service.refile_orphans() == 2
    assert (await engine.steps())["own"]["status"] == "cancelled"
    assert await worker.run_all() == ["shared", "top"]
    assert await engine.invariants() == []


async def test_one_process_has_the_duty(engine, service, tmp_path):
    other = MaintenanceService(
        engine.database,
        ObjectStore.open(tmp_path / "objects"),
        queue=QueueSettings(),
        builds=BuildSettings(),
    )
    assert await service._has_duty()
    assert await service._has_duty()
    assert not await other._has_duty()
    await service.stop()
    assert await other._has_duty()
    assert await engine.one("SELECT epoch FROM duty_leases") >= 1


async def test_old_rows_go_in_bounded_steps(engine, service):
    await engine.sql(
        "INSERT INTO tasks (kind, owner, state, ended_at, expires_at)"
        " SELECT 'steps', 'x', 'ended', now() - interval '2 days', now() FROM generate_series(1, 600)"
    )
    await engine.sql(
        "INSERT INTO tasks (kind, owner, state, ended_at, expires_at) VALUES ('steps', 'x', 'ended', now(), now())"
    )
    await engine.sql(
        "INSERT INTO failed_paths_cache (drv_path, failure_status, expires_at) VALUES"
        " ('old', 'failed', now() - interval '1 s'), ('new', 'failed', now() + interval '1 h')"
    )
    await service.prune()
    assert await engine.one("SELECT count(*) FROM tasks") == 101
    await service.prune()
    assert await engine.one("SELECT count(*) FROM tasks") == 1
    assert await engine.one("SELECT drv_path FROM failed_paths_cache") == "new"


async def test_h06_a_store_that_is_down_keeps_the_log_and_the_outcome(engine, worker, tmp_path):
    from fc_operator.model.ids import StepId
    from fc_operator.model.tasks import LogChunk
    from fc_operator.store import logs

    folder = tmp_path / "objects"
    service = MaintenanceService(
        engine.database, ObjectStore.open(folder), queue=QueueSettings(), builds=BuildSettings()
    )
    fence = await engine.evaluate(await engine.jobset(), [engine.told("a")])
    await worker.claim()
    held = worker.held["a"]
    chunk = LogChunk(step_id=StepId(held.id), attempt=1, offset=0, data=b"words\n")
    async with engine.database.transaction() as connection:
        await logs.append_chunks(connection, [(held.task_id, chunk)])
    await worker.end("a")
    await engine.sql("UPDATE attempts SET log_bytes = 6")
    folder.rmdir()
    folder.write_text("in the way")
    await service.round()
    assert await engine.statuses(fence) == {"a": "succeeded"}
    assert await engine.one("SELECT count(*) FROM log_chunks") == 1
    folder.unlink()
    folder.mkdir()
    assert await service.archive_logs() == 1
    assert await engine.one("SELECT count(*) FROM log_chunks") == 0
