"""A batch of steps on one executor: their order, its slots, their ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any

from fc_operator.executors.classification import Evidence, Fault, Verdict, classify
from fc_operator.executors.event_pipe import EventPipe
from fc_operator.executors.protocol import StepRef, StopReason
from fc_operator.executors.realisation import Realisation
from fc_operator.kit import logs
from fc_operator.model.ids import DrvPath
from fc_operator.model.outcomes import Outcome, Retry
from fc_operator.model.statuses import OUTPUTS_VALID
from fc_operator.model.tasks import StepEnded, StepEvent, StepOrder

_log = logs.get_logger()

_STOPS = {
    StopReason.CANCELLED: Verdict.CANCELLED,
    StopReason.LEASE_LOST: Verdict.LEASE_LOST,
    StopReason.SHUTDOWN: Verdict.SHUTDOWN,
}

Make = Callable[[StepOrder, EventPipe], Realisation]
"""Prepares one attempt; reads its .drv."""
Perform = Callable[[Realisation], Awaitable[Outcome]]
"""Carries it out once it has a slot."""


class Batches:
    """Runs batches by the rules of ``protocol``; ``perform`` does the work of one step.

    ``slots`` is how many run at once; it may be changed at any time.
    """

    def __init__(self, slots: int, *, make: Make, perform: Perform) -> None:
        self.slots = slots
        self._make = make
        self._perform = perform
        self._turn = asyncio.Condition()
        self._runs: dict[StepRef, Realisation] = {}
        self.busy = 0
        """Steps that have a slot."""

    @property
    def running(self) -> bool:
        """Whether any step is here, with a slot or without."""
        return bool(self._runs)

    def cancel(self, ref: StepRef, reason: StopReason) -> bool:
        """See ``Executor.cancel``."""
        run = self._runs.get(ref)
        if run is None:
            return False
        run.stop(_STOPS[reason])
        return True

    async def start(self, orders: Sequence[StepOrder]) -> AsyncGenerator[StepEvent, None]:
        """See ``Executor.start``."""
        pipe = EventPipe()
        # Nix would build a needed step of the batch itself, and twice: their order is ours.
        runs = [self._make(order, pipe) for order in orders]
        ends: dict[DrvPath, asyncio.Future[Outcome]] = {
            order.drv_path: asyncio.get_running_loop().create_future() for order in orders
        }
        tasks = []
        for run in runs:
            needs = {
                drv_path: end
                for drv_path, end in ends.items()
                if drv_path != run.order.drv_path and run.facts.needs(drv_path)
            }
            self._runs[_ref(run.order)] = run
            tasks.append(asyncio.create_task(self._run_step(run, pipe, needs, ends)))
        left = len(orders)
        try:
            while left:
                event = await pipe.get()
                left -= isinstance(event, StepEnded)
                yield event
        finally:
            pipe.open_wide()
            for run in runs:
                run.stop(Verdict.SHUTDOWN)
            await asyncio.gather(*tasks)

    async def _run_step(
        self,
        run: Realisation,
        pipe: EventPipe,
        needs: Mapping[DrvPath, asyncio.Future[Outcome]],
        ends: Mapping[DrvPath, asyncio.Future[Outcome]],
    ) -> None:
        order = run.order
        try:
            outcome = await self._outcome(run, needs)
        except Exception as error:  # noqa: BLE001 - the contract: every order ends, whatever happens
            _log.exception("executors.step_broke", drv_path=order.drv_path)
            outcome = classify(
                Evidence(
                    drv_path=order.drv_path,
                    fault=Fault.SPAWN_FAILED,
                    detail=f"our own error: {error!r}",
                )
            )
        self._runs.pop(_ref(order), None)
        if not ends[order.drv_path].done():
            ends[order.drv_path].set_result(outcome)
        duration_s = time.monotonic() - run.started_s if run.started_s is not None else 0.0
        pipe.put(
            StepEnded(
                step_id=order.step_id,
                attempt=order.attempt,
                outcome=outcome,
                log_bytes=run.log.size_bytes,
                log_lines=run.log.lines,
                duration_ms=int(duration_s * 1000),
            )
        )

    async def _outcome(
        self, run: Realisation, needs: Mapping[DrvPath, asyncio.Future[Outcome]]
    ) -> Outcome:
        for drv_path, end in needs.items():
            await first(run.stopping, end)
            if run.verdict is None and end.result().status not in OUTPUTS_VALID:
                final = end.result().retry is Retry.NEVER
                run.stop(
                    Verdict.DEPENDENCY_FAILED if final else Verdict.DEPENDENCY_RETRIES,
                    detail=f"{drv_path}, which it needs, ended as {end.result().status.value}",
                )
        slot = asyncio.ensure_future(self._acquire())
        try:
            await first(run.stopping, slot)
        finally:
            if not slot.done():
                slot.cancel()
                await asyncio.wait({slot})
        is_ours = not slot.cancelled()
        try:
            if run.verdict is not None or not is_ours:
                return classify(
                    Evidence(drv_path=run.order.drv_path, verdict=run.verdict, detail=run.detail)
                )
            return await self._perform(run)
        finally:
            if is_ours:
                await self._release()

    async def _acquire(self) -> None:
        async with self._turn:
            await self._turn.wait_for(lambda: self.busy < self.slots)
            self.busy += 1

    async def _release(self) -> None:
        self.busy -= 1
        async with self._turn:
            self._turn.notify_all()


def _ref(order: StepOrder) -> StepRef:
    return StepRef(step_id=order.step_id, attempt=order.attempt)


async def first(stopping: asyncio.Event, other: asyncio.Future[Any]) -> None:
    """Wait for either."""
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({stop, other}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
