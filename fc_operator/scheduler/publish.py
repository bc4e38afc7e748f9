"""What this machine builds or has already, on its way into the binary cache.

``PublishingExecutor`` stands around another executor: when it says that a step has ended, the
outputs are in the cache, so that pods and other machines can take them. What can't be brought there
is tried again like any other fault of the infrastructure; the build is valid then, and need not run
twice. ``PublishService`` brings outputs that were valid before anybody built them, and notes which
builds the cache has whole, wherever they were built.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace

from fc_operator.errors import InvalidError, UnavailableError
from fc_operator.executors.classification import Evidence, Fault, classify
from fc_operator.executors.protocol import Capacity, Executor, StepRef, StopReason
from fc_operator.kit import logs
from fc_operator.kit.services import LoopService
from fc_operator.model.ids import BuildId, DrvPath, StepId, StorePath
from fc_operator.model.statuses import OUTPUTS_VALID
from fc_operator.model.tasks import StepEnded, StepEvent, StepOrder
from fc_operator.operations.cache import Publisher
from fc_operator.settings import QueueSettings
from fc_operator.store import cache_paths, listener
from fc_operator.store.cache_paths import UnsignedBuild
from fc_operator.store.database import Database
from fc_operator.store.listener import Listener

_log = logs.get_logger()

_AGE_S = 86_400.0
"""What ended longer ago and is not in the cache is let be."""
_BUILDS_MAX = 200
_GATHER_S = 0.5

Publish = Callable[[StepId, Collection[StorePath]], Awaitable[None]]
"""Brings outputs of a step into the cache; raises our errors where it can't."""


class PublishingExecutor:
    """See the module, and ``executors.protocol`` for what callers may rely on."""

    def __init__(self, inner: Executor, publish: Publish, *, together_max: int = 2) -> None:
        """At most ``together_max`` steps are published at once."""
        self._inner = inner
        self._publish = publish
        self._turns = asyncio.Semaphore(together_max)

    @property
    def name(self) -> str:
        """See ``Executor.name``."""
        return self._inner.name

    async def capacity(self) -> Capacity:
        """See ``Executor.capacity``."""
        return await self._inner.capacity()

    async def cancel(self, ref: StepRef, reason: StopReason) -> bool:
        """See ``Executor.cancel``; what is being published already goes on."""
        return await self._inner.cancel(ref, reason)

    async def adopt(self) -> tuple[StepRef, ...]:
        """See ``Executor.adopt``."""
        return await self._inner.adopt()

    async def start(self, orders: Sequence[StepOrder]) -> AsyncGenerator[StepEvent, None]:
        """See ``Executor.start``."""
        drvs = {order.step_id: order.drv_path for order in orders}
        # One at a time from the inner stream: its pace stays that of our reader.
        waiting: asyncio.Queue[StepEvent | BaseException] = asyncio.Queue(1)
        left = len(orders)
        async with aclosing(self._inner.start(orders)) as events:
            publishing: set[asyncio.Task[None]] = set()
            following = asyncio.create_task(self._follow(events, drvs, waiting, publishing))
            try:
                while left:
                    event = await waiting.get()
                    if isinstance(event, BaseException):
                        raise event
                    left -= isinstance(event, StepEnded)
                    yield event
            finally:
                for task in (following, *publishing):
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task

    async def _follow(
        self,
        events: AsyncGenerator[StepEvent, None],
        drvs: dict[StepId, DrvPath],
        waiting: asyncio.Queue[StepEvent | BaseException],
        publishing: set[asyncio.Task[None]],
    ) -> None:
        try:
            async for event in events:
                if not isinstance(event, StepEnded) or event.outcome.status not in OUTPUTS_VALID:
                    await waiting.put(event)
                    continue
                task = asyncio.create_task(self._end(event, drvs[event.step_id], waiting))
                publishing.add(task)
                task.add_done_callback(publishing.discard)
        except Exception as error:  # noqa: BLE001 - the reader of the stream has to get it
            await waiting.put(error)

    async def _end(
        self,
        ended: StepEnded,
        drv_path: DrvPath,
        waiting: asyncio.Queue[StepEvent | BaseException],
    ) -> None:
        outputs = [output.path for output in ended.outcome.harvest.outputs]
        try:
            async with self._turns:
                await self._publish(ended.step_id, outputs)
        except Exception as error:  # noqa: BLE001 - the contract: every order ends
            _log.warning(
                "scheduler.publish_failed", drv_path=drv_path, error=str(error) or repr(error)
            )
            outcome = classify(
                Evidence(
                    drv_path=drv_path,
                    fault=Fault.STORE_UNREADABLE,
                    detail=f"built, but not brought into the binary cache: {error}",
                )
            )
            ended = replace(ended, outcome=outcome)
        await waiting.put(ended)


class PublishService:
    """Notes builds as signed when the cache has all their outputs; with ``publisher``, brings what
    of them is valid on this machine. Several may run; what one does, another finds done.
    """

    name = "publish"

    def __init__(
        self,
        database: Database,
        listener: Listener,
        *,
        queue: QueueSettings,
        publisher: Publisher | None = None,
    ) -> None:
        self._database = database
        self._listener = listener
        self._queue = queue
        self._publisher = publisher
        self._loop = LoopService(self.name, self._run)
        self._given_up: set[BuildId] = set()
        """Neither here nor there; perhaps another machine brings them."""

    async def start(self) -> None:
        """See ``Service.start``."""
        await self._loop.start()

    async def stop(self) -> None:
        """See ``Service.stop``."""
        await self._loop.stop()

    async def _run(self) -> None:
        with self._listener.subscribe(listener.BUILDS) as wakes:
            while True:
                try:
                    while await self.round() == _BUILDS_MAX:
                        pass
                except UnavailableError as error:
                    _log.warning("scheduler.publish_waits", error=str(error))
                await wakes.wait(self._queue.poll_s)
                # Builds end in swarms; nobody waits for this.
                await asyncio.sleep(_GATHER_S)

    async def round(self) -> int:
        """Look once; how many builds are signed now that were not.

        Raises:
            UnavailableError: the database, the object store or Nix does not answer.
        """
        async with self._database.session() as connection:
            builds = await cache_paths.list_unsigned(
                connection, age_s=_AGE_S, skipped=self._given_up, limit=_BUILDS_MAX
            )
        if not builds:
            return 0
        if self._publisher is not None:
            await self._publish(self._publisher, builds)
        async with self._database.transaction() as connection:
            signed = await cache_paths.mark_signed(connection, [build.id for build in builds])
        if self._publisher is not None:
            self._given_up |= {build.id for build in builds} - signed
        return len(signed)

    async def _publish(self, publisher: Publisher, builds: Sequence[UnsignedBuild]) -> None:
        valid = await publisher.nix.valid({path for build in builds for path in build.paths})
        for build in builds:
            here = [path for path in build.paths if path in valid]
            if not here:
                continue
            try:
                await publisher.publish(here, [build.project_id])
            except InvalidError as error:
                _log.warning("scheduler.publish_failed", build_id=str(build.id), error=str(error))
