"""What only the executor of this machine can get wrong: processes that outlive theirs."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from fc_operator.errors import PrerequisiteError
from fc_operator.executors.protocol import StepRef, StopReason
from fc_operator.model.outcomes import Retry
from fc_operator.model.statuses import BuildStatus
from fc_operator.model.tasks import LogChunk, StepEnded

pytestmark = pytest.mark.nix

_spec = importlib.util.spec_from_file_location(
    "executors_conftest",
    Path(__file__).parents[2] / "conformance" / "executors" / "conftest.py",
)
_shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shared)
nix, make_local = _shared.nix, _shared.make_local


def sleepers(mark):
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", mark]]


def own_nix():
    return [p for p in psutil.Process().children() if p.name().startswith("nix")]


async def test_q04_nix_killed_by_somebody_is_infrastructure_and_nothing_is_left(nix, make_local):
    mark = f"5{os.getpid()}.1"
    order = nix.order(nix.drv(f"echo up; setsid sleep {mark} & sleep {mark}"))
    async with aclosing(make_local().start([order])) as stream:
        async for event in stream:
            if isinstance(event, LogChunk):
                own_nix()[0].send_signal(signal.SIGKILL)
            end = event
    assert (end.outcome.status, end.outcome.retry) == (BuildStatus.ABORTED, Retry.INFRASTRUCTURE)
    assert sleepers(mark) == []


_LIFE = """
import asyncio, json, sys
from pathlib import Path
from uuid import uuid4
from fc_operator.executors.local import LocalExecutor
from fc_operator.model.outcomes import Harvest
from fc_operator.model.tasks import LogChunk, StepOrder
from fc_operator.settings import BuildSettings, NixSettings
env, folder, drv = json.loads(sys.argv[1])
async def main():
    executor = LocalExecutor(nix=NixSettings(sandbox="None"), builds=BuildSettings(),
        dir=Path(folder), harvest=lambda o: Harvest(), env=env)
    order = StepOrder(step_id=1, attempt=1, task_id=uuid4(), drv_path=drv, name="x", system="s")
    async for event in executor.start([order]):
        if isinstance(event, LogChunk):
            print("up", flush=True)
asyncio.run(main())
"""


async def test_q04_after_kill_nine_of_ourselves_the_next_life_ends_what_is_left(
    nix, make_local, tmp_path
):
    mark = f"5{os.getpid()}.2"
    # As our own user Nix does not reach what left its builder's session.
    (nix.dir / "conf-own").mkdir(exist_ok=True)
    (nix.dir / "conf-own/nix.conf").write_text("sandbox = false\nbuild-users-group =\n")
    env = nix.env | {"NIX_CONF_DIR": str(nix.dir / "conf-own")}
    drv = nix.drv(f"echo up; setsid sleep {mark} & sleep {mark}")
    life = subprocess.Popen(  # noqa: ASYNC220 - it has to outlive a kill
        [sys.executable, "-c", _LIFE, json.dumps([env, str(tmp_path / "executor"), drv])],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    with life:
        assert await asyncio.to_thread(lambda: "up\n" in iter(life.stdout.readline, ""))
        assert sleepers(mark)
        life.kill()
    assert await make_local(env=env).adopt() == ()
    assert sleepers(mark) == []
    assert list((tmp_path / "executor/running").iterdir()) == []


async def test_builds_of_our_own_user_leave_nothing_behind_either(nix, make_local):
    mark = f"5{os.getpid()}.3"
    (nix.dir / "conf-own").mkdir(exist_ok=True)
    (nix.dir / "conf-own/nix.conf").write_text("sandbox = false\nbuild-users-group =\n")
    executor = make_local(env=nix.env | {"NIX_CONF_DIR": str(nix.dir / "conf-own")})
    order = nix.order(nix.drv(f"echo up; setsid sleep {mark} & sleep {mark}"))
    async with aclosing(executor.start([order])) as stream:
        async for event in stream:
            if isinstance(event, LogChunk):
                await executor.cancel(
                    StepRef(step_id=order.step_id, attempt=1), StopReason.CANCELLED
                )
    assert sleepers(mark) == []


async def test_a_cancelled_consumer_leaves_nothing_behind(nix, make_local):
    mark = f"5{os.getpid()}.4"
    executor = make_local()
    order = nix.order(nix.drv(f"echo up; setsid sleep {mark} & sleep {mark}"))
    is_up = asyncio.Event()

    async def consume():
        async with aclosing(executor.start([order])) as stream:
            async for event in stream:
                if isinstance(event, LogChunk):
                    is_up.set()

    consumer = asyncio.create_task(consume())
    await is_up.wait()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()  # as asyncio.run does at its end
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert sleepers(mark) == []


async def test_a_step_that_waits_for_a_slot_can_be_cancelled(nix, make_local):
    executor = make_local(slots=1)
    long, waiting = (nix.order(nix.drv("echo up; sleep 300")) for _ in range(2))
    ends = []
    async with aclosing(executor.start([long, waiting])) as stream:
        async for event in stream:
            if isinstance(event, LogChunk):
                for order in (waiting, long):
                    ref = StepRef(step_id=order.step_id, attempt=1)
                    assert await executor.cancel(ref, StopReason.CANCELLED)
            if isinstance(event, StepEnded):
                ends.append((event.step_id, event.outcome.status))
    assert ends == [(o.step_id, BuildStatus.CANCELLED) for o in (waiting, long)]


async def test_c06_the_probe_says_which_sandbox_is_in_force(nix, make_local):
    assert (await make_local(sandbox="None").probe()).in_force == "None"
    found = await make_local(sandbox="Auto").probe()
    if found.in_force == "None":
        assert found.why
        with pytest.raises(PrerequisiteError, match="sandbox"):
            await make_local(sandbox="Nix").probe()
        return
    executor = make_local(sandbox="Nix")
    assert (await executor.capacity()).sandbox == "Nix"
    order = nix.order(nix.drv("echo built > $out"))
    events = [event async for event in executor.start([order])]
    assert events[-1].outcome.status is BuildStatus.SUCCEEDED


async def test_without_nix_steps_end_as_infrastructure_and_nothing_is_offered(nix, make_local):
    executor = make_local(env=nix.env | {"PATH": "/nonexistent"})
    assert (await executor.capacity()).slots_free == 0
    events = [event async for event in executor.start([nix.order(nix.drv("true"))])]
    assert events[-1].outcome.reason == "SpawnFailed"
    assert events[-1].outcome.retry is Retry.INFRASTRUCTURE
