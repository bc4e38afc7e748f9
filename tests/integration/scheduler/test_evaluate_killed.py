"""Kill -9 of a scheduler at generated points: before and after every commit and every process start.

A process of its own runs both services and kills itself at its n-th point; afterwards healthy
services have to bring the same evaluation to the same end, whatever n was.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
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

STRIDE = 9
FIRST = range(1, STRIDE + 1) if os.environ.get("FC_TEST_ALL_POINTS") else (1,)
"""Every ninth point by default, all of them when asked for."""

pytestmark = [pytest.mark.nix, pytest.mark.slow]

_LIFE = """
import asyncio, contextlib, itertools, json, os, signal, sys
from pathlib import Path
from fc_operator.clients.git import Git
from fc_operator.clients.nix import Nix
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.evaluator import roots
from fc_operator.evaluator.find import Evaluators
from fc_operator.kit import processes
from fc_operator.operations.ingest import Ingest
from fc_operator.scheduler.evaluate import CheckService, EvaluationService
from fc_operator.settings import *
from fc_operator.store.database import Database
from fc_operator.store.listener import Listener
given = json.loads(sys.argv[1])
counter = itertools.count(1)
armed = asyncio.Event()

def point():
    if armed.is_set() and next(counter) == given["at"]:
        os.kill(os.getpid(), signal.SIGKILL)

plain_transaction, plain_start = Database.transaction, processes.start

@contextlib.asynccontextmanager
async def transaction(self):
    async with plain_transaction(self) as connection:
        yield connection
        point()
    point()

async def start(*args, **more):
    point()
    process = await plain_start(*args, **more)
    point()
    return process

Database.transaction, processes.start = transaction, start

async def main():
    database = await Database.open(given["url"], size=4)
    listener = Listener(database)
    await listener.start()
    await listener.connected.wait()
    nix = NixSettings(store_dir=given["store_dir"])
    folder, env = Path(given["folder"]), given["env"]
    git = Git(GitSettings(allowed_schemes=("http",), allowed_hosts=(given["host"],)), folder / "mirrors")
    parts = dict(database=database, listener=listener, git=git,
        secrets=DirectorySecrets(folder / "secrets"), nix=nix, evaluation=EvaluationSettings(),
        evaluators=Evaluators(nix=nix, evaluation=EvaluationSettings(), env=env, home=folder / "home"),
        queue=QueueSettings(lease_s=1.5, heartbeat_s=0.3, margin_s=0.3, poll_s=0.3))
    work = EvaluationService(**parts, ingest=Ingest(database, Nix(nix, env), BuildSettings(),
            roots_dir=roots.default_dir(env)),
        work_dir=folder / "work-of-the-dead", env=env, home=folder / "home")
    checks = CheckService(**parts)
    await work.start()
    await checks.start()
    await asyncio.sleep(0.2)  # what services do when they find nothing is no point
    armed.set()
    print("armed", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""


async def _live_and_die(world, at: int) -> bool:
    """Whether the process died at its point before all was done."""
    given = {
        "at": at,
        "url": world.database.url,
        "store_dir": str(world.nix.store_dir),
        "folder": str(world.folder),
        "host": world.host.listed,
        "env": world.nix.env,
    }
    life = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _LIFE, json.dumps(given)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=world.nix.env,
    )
    assert (await life.stdout.readline()).strip() == b"armed"
    jobset = await world.jobset(f"killed-{at}")
    async with world.database.transaction() as connection:
        await connection.execute("NOTIFY fc_jobsets")
    death = asyncio.create_task(life.wait())
    done = asyncio.create_task(world.ended(jobset))
    await asyncio.wait({death, done}, return_when=asyncio.FIRST_COMPLETED)
    died = death.done()
    if not died:
        life.kill()
    await death
    done.cancel()
    await asyncio.gather(done, return_exceptions=True)
    assert life.returncode == -signal.SIGKILL
    return died


async def _heal(world, at: int) -> None:
    jobset = await world.one("SELECT id FROM jobsets WHERE name = $1", f"killed-{at}")
    # As if the three minutes of a look's lease had passed.
    await world.sql(
        "UPDATE jobsets SET check_lease_until = now(), next_check_at = now() "
        "WHERE check_lease_owner IS NOT NULL"
    )
    (evaluation,) = await world.ended(jobset)
    assert (evaluation["status"], evaluation["jobs"], evaluation["errors"]) == ("completed", 3, 1)
    assert evaluation["attempt"] <= 2
    builds = await world.sql(
        "SELECT job_name FROM builds WHERE evaluation_id = $1 ORDER BY job_name", evaluation["id"]
    )
    assert [b["job_name"] for b in builds] == ["a", "b", "c"]
    errors = await world.sql(
        "SELECT message FROM evaluation_errors WHERE evaluation_id = $1", evaluation["id"]
    )
    assert [e["message"] for e in errors] == ["no"]
    assert await world.one("SELECT count(*) FROM tasks WHERE state = 'live'") == 0


@pytest.mark.parametrize("first", FIRST)
async def test_q04_killed_at_any_point_an_evaluation_comes_to_the_same_end(world, first):
    points = range(first, 300, STRIDE)
    survived = 0
    for at in points:
        # Another commit each time, so that no evaluation is taken over from the one before.
        world.release(f'{{ a = drv "a{at}"; b = drv "b"; c = drv "c{at}"; bad = throw "no"; }}')
        died = await _live_and_die(world, at)
        await world.start()
        await _heal(world, at)
        await world.stop()
        survived += not died
        if not died:
            break
    assert survived == 1, "there were more points than we went through"
