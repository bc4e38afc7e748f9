"""An executor whose outputs are in the binary cache when it says that a step has ended.

It stands around another one, so that what is built on this machine can be taken from the cache by
pods and other machines. What can't be brought there is tried again like any other fault of the
infrastructure; the build itself is valid then, and need not run twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace

from fc_operator.executors.classification import Evidence, Fault, classify
from fc_operator.executors.protocol import Capacity, Executor, StepRef, StopReason
from fc_operator.kit import logs
from fc_operator.model.ids import DrvPath, StepId, StorePath
from fc_operator.model.statuses import OUTPUTS_VALID
from fc_operator.model.tasks import StepEnded, StepEvent, StepOrder

_log = logs.get_logger()

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
            _log.warning("scheduler.publish_failed", drv_path=drv_path, error=str(error) or repr(error))
            outcome = classify(
                Evidence(
                    drv_path=drv_path,
                    fault=Fault.STORE_UNREADABLE,
                    detail=f"built, but not brought into the binary cache: {error}",
                )
            )
            ended = replace(ended, outcome=outcome)
        await waiting.put(ended)
