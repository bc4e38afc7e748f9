"""A running dispatcher on a real Nix and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from fc_operator.clients.objects import ObjectStore
from fc_operator.executors.local import LocalExecutor
from fc_operator.results import support
from fc_operator.scheduler.dispatch import DispatchService
from fc_operator.scheduler.maintain import MaintenanceService
from fc_operator.settings import BuildSettings, NixSettings, QueueSettings
from fc_operator.store.listener import Listener


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_engine = load("engine_conftest", Path(__file__).parents[1] / "operations" / "conftest.py")
nix, nix_engine, engine = _engine.nix, _engine.nix_engine, _engine.engine


async def until(question, *, within_s=60):
    """Wait for another process or service: ask until the answer is true."""
    async with asyncio.timeout(within_s):
        while not (answer := await question()):
            await asyncio.sleep(0.02)
        return answer


@pytest.fixture
def make_dispatch(nix_engine, nix, tmp_path):
    """A dispatcher of its own, started and stopped around a block."""

    @asynccontextmanager
    async def make(*, executors=None, name="executor", **more):
        builds = more.pop("builds", BuildSettings(local_slots=2, retry_base_s=0.05))
        queue = more.pop("queue", QueueSettings(poll_s=1.0, heartbeat_s=1.0))
        listener = Listener(nix_engine.database)
        await listener.start()
        executors = executors or [
            LocalExecutor(
                nix=NixSettings(sandbox="None", store_dir=str(nix.store_dir)),
                builds=builds,
                dir=tmp_path / name,
                harvest=partial(support.harvest, store_dir=nix.store_dir),
                env=nix.env,
            )
        ]
        service = DispatchService(
            nix_engine.database, listener, executors, queue=queue, builds=builds, **more
        )
        await service.start()
        try:
            yield service
        finally:
            await service.stop()
            await listener.stop()

    return make


@pytest.fixture
def settled(nix_engine):
    """Wait until no build of an evaluation is live; statuses by job."""

    async def settled(fence, within_s=60):
        async def ask():
            return await nix_engine.one(
                "SELECT builds_ended_at IS NOT NULL FROM evaluations WHERE id = $1",
                fence.evaluation_id,
            )

        await until(ask, within_s=within_s)
        return await nix_engine.statuses(fence)

    return settled


@pytest.fixture
def objects(tmp_path):
    return ObjectStore.open(tmp_path / "objects")


@pytest.fixture
def make_maintenance(nix_engine, objects):
    """Maintenance, started and stopped around a block."""

    @asynccontextmanager
    async def make(**more):
        builds = more.pop("builds", BuildSettings(retry_base_s=0.05))
        queue = more.pop("queue", QueueSettings(poll_s=0.2, heartbeat_s=1.0))
        service = MaintenanceService(
            nix_engine.database, objects, queue=queue, builds=builds, **more
        )
        await service.start()
        try:
            yield service
        finally:
            await service.stop()

    return make
