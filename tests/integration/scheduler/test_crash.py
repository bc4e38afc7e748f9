"""Kill -9 before and after every effect of a dispatcher; the next life goes on where it was.

The points are generated: a first life counts its effects (each commit, each start of a process, each
object written), then one life after the other is killed at one of them. A second life, which knows
of the first only what it left on disk and in the database, brings everything to its end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import pytest

pytestmark = pytest.mark.nix

_LIFE = """
import asyncio, contextlib, json, os, signal, sys
from functools import partial
from pathlib import Path
from fc_operator.clients.objects import ObjectStore
from fc_operator.executors.local import LocalExecutor
from fc_operator.kit import logs, processes
from fc_operator.results import support
from fc_operator.scheduler.dispatch import DispatchService
from fc_operator.scheduler.maintain import MaintenanceService
from fc_operator.settings import BuildSettings, NixSettings, QueueSettings
from fc_operator.store import database as databases
from fc_operator.store.listener import Listener

url, env, folder, crash_at = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
points = 0

def point(name):
    global points
    if points == crash_at:
        os.kill(os.getpid(), signal.SIGKILL)
    points += 1

original_run = databases.Database.run

async def run(self, change, **more):
    async def counted(connection):
        result = await change(connection)
        point("before commit")
        return result
    result = await original_run(self, counted, **more)
    point("after commit")
    return result

databases.Database.run = run
original_start = processes.start

async def start(argv, **more):
    point("before start")
    process = await original_start(argv, **more)
    point("after start")
    return process

processes.start = start
original_put = ObjectStore.put_stream

async def put(self, *more):
    point("before write")
    result = await original_put(self, *more)
    point("after write")
    return result

ObjectStore.put_stream = put

async def main():
    logs.configure(level="error")
    database = await databases.Database.open(url, size=4)
    listener = Listener(database)
    builds = BuildSettings(local_slots=2, retry_base_s=0.05)
    queue = QueueSettings(poll_s=0.2, heartbeat_s=0.5, lease_s=3, margin_s=1)
    executor = LocalExecutor(
        nix=NixSettings(sandbox="None", store_dir=env["NIX_STORE_DIR"]), builds=builds,
        dir=folder / "executor", harvest=partial(support.harvest, store_dir=env["NIX_STORE_DIR"]),
        env=env)
    dispatch = DispatchService(
        database, listener, [executor], queue=queue, builds=builds, owner_file=folder / "owner")
    maintenance = MaintenanceService(
        database, ObjectStore.open(folder / "objects"), queue=queue, builds=builds)
    services = [listener, dispatch, maintenance]
    for service in services:
        await service.start()
    async with asyncio.timeout(60):
        while True:
            async with database.session() as connection:
                if await connection.fetchval(
                    "SELECT bool_and(builds_ended_at IS NOT NULL) AND NOT EXISTS (SELECT FROM"
                    " attempts WHERE log_bytes > 0 AND log_key IS NULL) FROM evaluations"):
                    break
            await asyncio.sleep(0.05)
    for service in reversed(services):
        await service.stop()
    await database.close()
    print(points)

asyncio.run(main())
"""


async def life(url, nix, folder, crash_at=-1):
    """One process from its start to its end; its exit code and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _LIFE, url, json.dumps(nix.env), str(folder), str(crash_at)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    out, err = await asyncio.wait_for(process.communicate(), 90)
    return process.returncode, out.decode().strip(), err.decode()


async def prepare(engine, nix):
    good = nix.drv("mkdir $out; echo one", name="good")
    top = nix.drv(
        "echo two; cat $dep > /dev/null || echo $dep > $out",
        name="top",
        attrs=f"dep = (import {good}).outPath;",
    )
    bad = nix.drv("echo three; exit 1", name="bad")
    after = nix.drv("cat $dep > $out", name="after", attrs=f"dep = (import {bad}).outPath;")
    drvs = {"good": good, "top": top, "bad": bad, "after": after}
    await engine.sql("TRUNCATE projects, steps, tasks, failed_paths_cache CASCADE")
    rows = [engine.row(name, drv) for name, drv in drvs.items()]
    return await engine.evaluate(await engine.jobset(), rows)


async def check(engine, fence):
    assert await engine.statuses(fence) == {
        "good": "succeeded",
        "top": "succeeded",
        "bad": "failed",
        "after": "dependency_failed",
    }
    assert await engine.invariants() == []
    (evaluation,) = await engine.sql("SELECT build_counts FROM evaluations")
    assert evaluation["build_counts"] == {"succeeded": 2, "failed": 1, "dependency_failed": 1}
    ends = await engine.sql(
        "SELECT step_id FROM attempts WHERE status IN ('succeeded', 'failed')"
        " GROUP BY step_id HAVING count(*) <> 1"
    )
    assert ends == [], "each step has one end"
    assert await engine.one("SELECT max(infra_failures) FROM steps") == 0, "nothing was charged"
    assert await engine.one("SELECT count(*) FROM attempts WHERE ended_at IS NULL") == 0
    products = await engine.sql(
        "SELECT build_id FROM build_products GROUP BY 1 HAVING count(*) > 1"
    )
    assert products == []


async def crash_at(point, engine, url, nix, folder):
    fence = await prepare(engine, nix)
    code, _, err = await life(url, nix, folder, point)
    assert code in {-signal.SIGKILL, 0}, err
    code, _, err = await life(url, nix, folder)
    assert code == 0, err
    await check(engine, fence)


async def points_of_one_life(engine, url, nix, folder):
    fence = await prepare(engine, nix)
    code, out, err = await life(url, nix, folder)
    assert code == 0, err
    await check(engine, fence)
    return int(out)


async def test_q04_killed_at_some_effects_nothing_is_lost_or_doubled(
    nix_engine, database_url, nix, tmp_path
):
    count = await points_of_one_life(nix_engine, database_url, nix, tmp_path)
    assert count > 15
    for point in range(3, count, max(1, count // 5)):
        await crash_at(point, nix_engine, database_url, nix, tmp_path)


@pytest.mark.slow
async def test_q04_killed_at_every_effect_nothing_is_lost_or_doubled(
    nix_engine, database_url, nix, tmp_path
):
    count = await points_of_one_life(nix_engine, database_url, nix, tmp_path)
    for point in range(count):
        await crash_at(point, nix_engine, database_url, nix, tmp_path)


async def test_q06_sessions_that_die_all_the_time_cost_nothing_but_time(
    nix_engine, nix, make_dispatch, postgres
):
    drvs = [nix.drv(f"echo {n}; sleep 0.1; echo {n} > $out", name=f"j{n}") for n in range(20)]
    fence = await nix_engine.evaluate(
        await nix_engine.jobset(), [nix_engine.row(f"j{n}", drv) for n, drv in enumerate(drvs)]
    )
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 't_%'"
    async with make_dispatch():
        for _ in range(12):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(postgres.call, postgres._admin(cut))
        async with asyncio.timeout(60):
            while set((await nix_engine.statuses(fence)).values()) != {"succeeded"}:
                await asyncio.sleep(0.1)
    assert await nix_engine.invariants() == []
    assert await nix_engine.one("SELECT max(infra_failures) FROM steps") == 0
    ended = "SELECT count(*) FROM attempts WHERE status = 'succeeded'"
    assert await nix_engine.one(ended) == 20
