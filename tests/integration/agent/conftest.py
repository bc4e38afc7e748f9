"""A server to be broken at will, a private Nix store that is emptied between pods, and agents in
this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import itertools
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fc_operator.access import tasks
from fc_operator.app.agent import Agent
from fc_operator.executors.local import own_system
from fc_operator.model.ids import StepId
from fc_operator.model.tasks import StepOrder
from fc_operator.model.work import StepsWork
from fc_operator.settings import AgentSettings
from tests.task_server import TaskServer


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_shared = load(
    "executors_conftest", Path(__file__).parents[2] / "conformance" / "executors" / "conftest.py"
)


class PodNix(_shared.NixHome):
    """A store, and a home, that can be emptied, as each pod's are at first."""

    def forget_all(self) -> None:
        shutil.rmtree(self.dir / "var" / "gcroots" / "fc", ignore_errors=True)
        self.run("nix-store", "--gc")
        # What it remembers of caches: as it was uploaded, without the cache's signature.
        shutil.rmtree(self.dir / ".cache", ignore_errors=True)

    def holds(self, path: str) -> bool:
        argv = ["nix-store", "--check-validity", path]
        return subprocess.run(argv, env=self.env, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def nix(shared_build_users):
    home = PodNix(shared_build_users)
    yield home
    home.close()


@pytest.fixture
async def server(nix):
    server = TaskServer(nix.store_dir)
    await server.up()
    yield server
    await server.down()


_steps = itertools.count(1)


@pytest.fixture
def batch(server, nix):
    """Make ``server`` give out a new task: steps whose derivations are in the cache and nowhere
    else; those of ``also`` too, for later.
    """

    async def make(*drvs: str, also=(), **more) -> tuple[StepOrder, ...]:
        server.phases.clear()
        server.events.clear()
        own = tasks.make(server.task_id)
        server.phases["uploads of the test"] = own.hash
        here = [drv for drv in (*drvs, *also) if nix.holds(drv)]
        if here:
            await upload(nix, server, own.text, ["--derivation", *here])
        nix.forget_all()
        assert not any(nix.holds(drv) for drv in drvs), "the pod's store is empty"
        orders = tuple(
            StepOrder(
                step_id=StepId(next(_steps)),
                attempt=1,
                task_id=server.task_id,
                drv_path=drv,
                name="sample",
                system=own_system(),
                **more,
            )
            for drv in drvs
        )
        server.work = StepsWork(
            task_id=server.task_id,
            orders=orders,
            slots=2,
            systems=(own_system(),),
            nix=server.nix_work(),
            stop_grace_s=20,
        )
        return orders

    return make


async def upload(nix, server, password: str, words: list[str]) -> None:
    netrc = nix.dir / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login fc password {password}\n")
    argv = ["nix", "copy", "--extra-experimental-features", "nix-command", "--to", server.cache_url]
    process = await asyncio.create_subprocess_exec(
        *argv, "--option", "netrc-file", str(netrc), *words, env=nix.env
    )
    assert await process.wait() == 0


class RunningAgent:
    def __init__(self, task, stopping) -> None:
        self.task, self.stopping = task, stopping

    async def ending(self, timeout_s: float = 120):
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(self.task)


@pytest.fixture
def agent(server, nix, tmp_path):
    """Start agents of ``server``'s task in this process; none outlives its block."""

    @asynccontextmanager
    async def start(phase: str = "work", **more):
        settings = AgentSettings(
            server=server.url,
            task=str(server.task_id),
            token=server.opening.text,
            phase=phase,
            folder=tmp_path / "work",
            **more,
        )
        settings.folder.mkdir(exist_ok=True)
        stopping = asyncio.Event()
        task = asyncio.create_task(Agent(settings, nix.env).run(stopping))
        try:
            yield RunningAgent(task, stopping)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    return start


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
