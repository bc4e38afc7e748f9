"""Declared builders: executors that come and go with their rows, and how each of them stands.

A builder gets work once it has been looked at and found well. A fault of the way to it, or of
itself, puts it aside for 60, 180, 540, then 1,620 s with jitter; the columns of its row say so to
every scheduler. After that somebody looks at it again, and only then is it sent anything. A builder
that is disabled, drained or gone gets nothing new; what runs there may end.
"""

from __future__ import annotations

import asyncio
import secrets as randomness
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fc_operator.clients.nix import Nix
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import FcError, UnavailableError
from fc_operator.executors.protocol import Executor
from fc_operator.executors.realisation import HarvestOutputs
from fc_operator.executors.ssh import Declared, Finding, SshExecutor, verdict_of
from fc_operator.kit import logs
from fc_operator.kit.services import LoopService
from fc_operator.model.ids import BuilderId
from fc_operator.queue import retries
from fc_operator.settings import BuildSettings, NixSettings, QueueSettings
from fc_operator.store import listener, remote_builders
from fc_operator.store.database import Database
from fc_operator.store.listener import Listener
from fc_operator.store.remote_builders import Standing

_log = logs.get_logger()
_RUNGS = 4
_TEST_S = 300


@dataclass(slots=True)
class Builder:
    """A builder of ours."""

    row: Standing
    remote: SshExecutor
    executor: Executor
    """``remote``, or what stands around it."""
    is_well: bool = False
    """It was looked at since it came, or since its last fault."""
    looking: asyncio.Task[None] | None = None
    is_gone: bool = False
    faults: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def id(self) -> BuilderId:
        """Of its row."""
        return self.row.id

    @property
    def problem(self) -> str:
        """Why it gets nothing now, for people; empty when it may."""
        row = self.row
        if self.is_gone:
            return "it is being removed"
        if not row.enabled:
            return "it is disabled"
        if row.drain:
            return "it is being drained"
        if row.backoff_s:
            return row.last_error or "it failed, and is tried again later"
        if not self.is_well:
            return row.last_error or "it has not been looked at yet"
        return ""


class BuilderService:
    """See the module. ``around`` wraps executors, such as in the one that fills the cache."""

    name = "builders"

    def __init__(
        self,
        database: Database,
        listener: Listener,
        secrets: Secrets,
        *,
        nix: Nix,
        settings: NixSettings,
        builds: BuildSettings,
        queue: QueueSettings,
        dir: Path,  # noqa: A002 - as in the settings
        harvest: HarvestOutputs,
        around: Callable[[Executor], Executor] = lambda executor: executor,
    ) -> None:
        self._database = database
        self._listener = listener
        self._secrets = secrets
        self._nix = nix
        self._settings = settings
        self._queue = queue
        self._dir = dir
        self._harvest = harvest
        self._around = around
        self._ladder = retries.ladder(builds.retry_base_s)
        self._builders: dict[BuilderId, Builder] = {}
        self._leaving: list[Builder] = []
        self._loop = LoopService("builders", self._run)
        self.changed = asyncio.Event()
        """Set when a builder may be sent something that might not have been before."""

    async def start(self) -> None:
        """See ``Service.start``."""
        await self._loop.start()

    async def stop(self) -> None:
        """See ``Service.stop``; to be called when nothing runs on builders any more."""
        await self._loop.stop()
        everyone = [*self._builders.values(), *self._leaving]
        for builder in everyone:
            tasks = [*builder.faults, *([builder.looking] if builder.looking else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(builder.remote.close() for builder in everyone))
        self._builders.clear()
        self._leaving.clear()

    def list(self) -> Sequence[Builder]:
        """All that are declared now, by name."""
        return tuple(self._builders.values())

    async def ordered(self) -> Sequence[Builder]:
        """Those that may be sent something: the fastest first, then those with the least load."""
        able = [builder for builder in self._builders.values() if not builder.problem]
        if len(able) < 2:
            return able
        loads = await asyncio.gather(*(builder.remote.load() for builder in able))
        ranks = {
            builder.id: (load.is_pressed, -builder.row.speed_factor, load.rank)
            for builder, load in zip(able, loads, strict=True)
        }
        return sorted(able, key=lambda builder: ranks[builder.id])

    async def _run(self) -> None:
        with self._listener.subscribe(listener.RESOURCES) as wakes:
            while True:
                await self.refresh()
                soon = [b.row.backoff_s for b in self._builders.values() if b.row.backoff_s]
                await wakes.wait(min([self._queue.poll_s, *(each + 0.05 for each in soon)]))

    async def refresh(self) -> None:
        """Bring executors to what the rows say."""
        async with self._database.session() as connection:
            rows = await remote_builders.list_standing(connection)
        before = {builder.id: builder.problem for builder in self._builders.values()}
        there = {row.id for row in rows}
        for id_ in [id_ for id_ in self._builders if id_ not in there]:
            self._leave(self._builders.pop(id_))
        for row in rows:
            known = self._builders.get(row.id)
            if known is not None and _identity(known.row) != _identity(row):
                self._leave(self._builders.pop(row.id))
                known = None
            if known is None:
                known = self._builders[row.id] = self._make(row)
            known.row = row
            self._look_if_due(known)
            known.remote.problem = known.problem
        for builder in [each for each in self._leaving if each.remote.is_idle]:
            self._leaving.remove(builder)
            await builder.remote.close()
        if before != {builder.id: builder.problem for builder in self._builders.values()}:
            self.changed.set()

    def _leave(self, builder: Builder) -> None:
        builder.is_gone = True
        builder.remote.problem = builder.problem
        if builder.looking is not None:
            builder.looking.cancel()
        self._leaving.append(builder)

    def _make(self, row: Standing) -> Builder:
        async def read_key() -> bytes:
            return await self._secrets.read(
                row.namespace, row.ssh_key_secret, row.ssh_key_secret_key
            )

        def on_fault(message: str) -> None:
            builder = self._builders.get(row.id)
            if builder is not None and builder.remote is remote:
                task = asyncio.create_task(self._failed(builder, message))
                builder.faults.add(task)
                task.add_done_callback(builder.faults.discard)

        remote = SshExecutor(
            Declared(
                name=row.name,
                ssh_uri=row.ssh_uri,
                host_key=row.host_key,
                systems=row.systems,
                max_jobs=row.max_jobs,
                speed_factor=row.speed_factor,
                features=row.supported_features,
                mandatory_features=row.mandatory_features,
            ),
            read_key=read_key,
            nix=self._nix,
            settings=self._settings,
            dir=self._dir / row.name,
            harvest=self._harvest,
            on_fault=on_fault,
        )
        return Builder(row, remote, self._around(remote))

    def _look_if_due(self, builder: Builder) -> None:
        row = builder.row
        if builder.looking is not None and not builder.looking.done():
            return
        asked = row.test_requested_at is not None
        due = not builder.is_well and row.enabled and not row.backoff_s
        if asked or due:
            builder.looking = asyncio.create_task(self._look(builder), name=f"look-{row.name}")

    async def _look(self, builder: Builder) -> None:
        """Try all that a build needs there, and say in the row what came of it."""
        try:
            async with asyncio.timeout(_TEST_S):
                findings = await builder.remote.test(randomness.token_hex(8))
        except (TimeoutError, FcError, OSError) as error:
            words = str(error) or f"no answer within {_TEST_S} s"
            findings = [Finding(check="Connection", ok=False, message=words)]
        verdict = verdict_of(findings)
        told: list[Mapping[str, Any]] = [asdict(finding) for finding in findings]
        try:
            async with self._database.transaction() as connection:
                await remote_builders.tell(connection, builder.id, told)
                if not verdict:
                    await remote_builders.recover(connection, builder.id)
        except UnavailableError as error:
            _log.warning("scheduler.look_not_told", builder=builder.row.name, error=str(error))
            return
        if verdict:
            await self._failed(builder, verdict)
            return
        _log.info("scheduler.builder_well", builder=builder.row.name)
        builder.is_well = True
        builder.row = replace(builder.row, consecutive_failures=0, backoff_s=None, last_error="")
        builder.remote.problem = builder.problem
        self.changed.set()

    async def _failed(self, builder: Builder, message: str) -> None:
        _log.warning("scheduler.builder_failed", builder=builder.row.name, error=message[-500:])
        builder.is_well = False
        first_s = self._ladder.delay_s(1)
        builder.row = replace(builder.row, backoff_s=first_s, last_error=message)
        builder.remote.problem = builder.problem
        delays_s = [self._ladder.delay_s(n) for n in range(1, _RUNGS + 1)]
        try:
            async with self._database.session() as connection:
                await remote_builders.fail(connection, builder.id, message, delays_s)
        except UnavailableError as error:
            _log.warning("scheduler.fault_not_told", builder=builder.row.name, error=str(error))
        await self.refresh()


def _identity(row: Standing) -> Standing:
    """What makes it another executor when it changes."""
    return replace(
        row,
        enabled=True,
        drain=False,
        consecutive_failures=0,
        last_error="",
        backoff_s=None,
        test_requested_at=None,
    )
