"""The duty of a build pod: run the steps of its task, and tell how they go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

from fc_operator.agent.reports import Reporter
from fc_operator.clients.task_protocol import TaskClient
from fc_operator.executors.protocol import Executor, StepRef, StopReason
from fc_operator.kit import logs
from fc_operator.model.ids import StepId
from fc_operator.model.tasks import LogChunk, PhaseChanged, StepEnded
from fc_operator.model.work import HeartbeatAnswer, Remaining, StepsEnd, StepsWork

_log = logs.get_logger()
_PHASES_MAX = 200
"""Of one attempt that are told; what names more is no build that people look at."""


class StepsDuty:
    """See ``session.Duty``. ``executor`` takes care of inputs and outputs."""

    def __init__(self, client: TaskClient, work: StepsWork, executor: Executor) -> None:
        self._client = client
        self._work = work
        self._executor = executor
        self._reporter = Reporter(client, on_lost=self._lose)
        self._cancelling: set[asyncio.Task[bool]] = set()
        self._running = {
            StepRef(step_id=order.step_id, attempt=order.attempt) for order in work.orders
        }
        self._phases: dict[StepRef, int] = {}
        self._stopping = False

    def running(self) -> Sequence[tuple[StepId, int]]:
        """See ``Duty.running``."""
        return [(ref.step_id, ref.attempt) for ref in self._running]

    async def obey(self, answer: HeartbeatAnswer) -> None:
        """See ``Duty.obey``."""
        named = {StepRef(step_id=step, attempt=attempt) for step, attempt in answer.cancel}
        for ref in self._running & (named if not answer.cancel_task else self._running):
            await self._executor.cancel(ref, StopReason.CANCELLED)

    async def stop(self) -> None:
        """See ``Duty.stop``. What is built already is still uploaded, as far as there is time."""
        self._stopping = True
        # What waits for the server must not keep the builds from being ended.
        self._reporter.open_wide()
        for ref in tuple(self._running):
            await self._executor.cancel(ref, StopReason.SHUTDOWN)

    def _lose(self, step_id: StepId, attempt: int) -> None:
        ref = StepRef(step_id=step_id, attempt=attempt)
        task = asyncio.create_task(self._executor.cancel(ref, StopReason.LEASE_LOST))
        self._cancelling.add(task)
        task.add_done_callback(self._cancelling.discard)

    async def run(self) -> None:
        """See ``Duty.run``."""
        telling = asyncio.create_task(self._reporter.run(), name="agent-reports")
        doing = asyncio.create_task(self._do(), name="agent-steps")
        try:
            await asyncio.wait({telling, doing}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()  # it ends by an error only
            doing.result()
        finally:
            for task in (telling, doing):
                task.cancel()
            await asyncio.gather(telling, doing, return_exceptions=True)

    async def _do(self) -> None:
        async with aclosing(self._executor.start(self._work.orders)) as events:
            async for event in events:
                ref = StepRef(step_id=event.step_id, attempt=event.attempt)
                match event:
                    case LogChunk():
                        await self._reporter.put_log(event)
                        continue
                    case PhaseChanged():
                        self._phases[ref] = self._phases.get(ref, 0) + 1
                        if self._phases[ref] > _PHASES_MAX:
                            continue
                    case StepEnded(outcome=outcome):
                        _log.info(
                            "agent.step_ended",
                            step_id=event.step_id,
                            attempt=event.attempt,
                            status=outcome.status.value,
                            reason=outcome.reason,
                        )
                        self._running.discard(ref)
                self._reporter.put(event)
        await self._reporter.flush()
        remaining = Remaining.REQUEUE if self._stopping else Remaining.NONE
        await self._client.end(StepsEnd(remaining=remaining))
