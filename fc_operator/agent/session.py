"""One opened phase of a task from its first heartbeat to the moment the agent may leave.

The agent lives by its lease: it counts from before it asked, on its own clock, and stops its work a
margin before the lease would end, so that a step never runs twice at once however long the server
is away. What the server says by then is obeyed: cancel this, cancel all, or 410: gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from fc_operator.clients.task_protocol import TaskClient
from fc_operator.errors import LeaseLostError
from fc_operator.kit import logs
from fc_operator.model.ids import StepId
from fc_operator.model.work import HeartbeatAnswer, Opened

_log = logs.get_logger()
_LEAVE_S = 5.0
"""Of the time that a stop may take, what is kept for the last words and for the exit."""
_MARGIN_S_MAX = 5.0


class Ending(StrEnum):
    """Why an agent leaves."""

    DONE = "Done"
    """All is done and told."""
    GONE = "Gone"
    """The server says that the task is over; whatever we had is nobody's any more."""
    LOST = "Lost"
    """The lease could not be renewed in time; the same, as far as we can know."""
    STOPPED = "Stopped"
    """Told to stop (SIGTERM); what was not done goes back."""


class Duty(Protocol):
    """What an agent does in a phase."""

    async def run(self) -> None:
        """Do it and tell it; returns when the agent may leave. Cancelled, it leaves no process.

        Raises:
            LeaseLostError: the server says that the task is over.
        """
        ...

    def running(self) -> Sequence[tuple[StepId, int]]:
        """(step, attempt) of every order that has not ended."""
        ...

    async def obey(self, answer: HeartbeatAnswer) -> None:
        """Cancel what a heartbeat's answer names."""
        ...

    async def stop(self) -> None:
        """SIGTERM: begin to end; ``run`` returns soon after, with its last words told."""
        ...


class Session:
    """Keeps the lease of one phase while a duty runs."""

    def __init__(self, client: TaskClient, opened: Opened, *, asked_s: float) -> None:
        """``asked_s``: the monotonic time from before the phase was opened."""
        self._client = client
        self._opened = opened
        self._trusted_until_s = 0.0
        self._trust(asked_s, opened.lease_s)

    async def run(self, duty: Duty, stopping: asyncio.Event) -> Ending:
        """Run ``duty`` to its end, or to ours; ``stopping`` is set when the pod has to go.

        Raises:
            FcError: what ``duty`` raised, other than that the task is over.
        """
        work = asyncio.create_task(duty.run(), name="agent-duty")
        beats = asyncio.create_task(self._keep(duty), name="agent-heartbeats")
        asked = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({work, beats, asked}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return _ending_of(work, Ending.DONE)
            if beats.done():
                return _ending_of(beats, Ending.LOST)
            return await self._stopped(duty, work, beats)
        finally:
            for task in (work, beats, asked):
                task.cancel()
            await asyncio.gather(work, beats, asked, return_exceptions=True)

    async def _stopped(
        self, duty: Duty, work: asyncio.Task[None], beats: asyncio.Task[None]
    ) -> Ending:
        grace_s = max(1.0, self._opened.work.stop_grace_s - _LEAVE_S)
        _log.info("agent.stopping", grace_s=grace_s)
        stop = asyncio.create_task(duty.stop())
        try:
            await asyncio.wait({work, beats}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return _ending_of(work, Ending.STOPPED)
            if beats.done():
                return _ending_of(beats, Ending.LOST)
            _log.warning("agent.stop_took_too_long", grace_s=grace_s)
            return Ending.STOPPED
        finally:
            stop.cancel()
            await asyncio.gather(stop, return_exceptions=True)

    def _trust(self, asked_s: float, lease_s: float) -> None:
        margin_s = min(_MARGIN_S_MAX, lease_s / 6)
        self._trusted_until_s = asked_s + lease_s - margin_s

    async def _keep(self, duty: Duty) -> None:
        """Renew every beat; returns when the lease can't be trusted any more."""
        while True:
            asked_s = time.monotonic()
            beat = asyncio.create_task(self._client.heartbeat(duty.running()))
            try:
                await asyncio.wait({beat}, timeout=self._trusted_until_s - asked_s)
                if not beat.done():
                    _log.warning("agent.lease_lost")
                    return
                answer = beat.result()
            finally:
                beat.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await beat
            # From before the question: a slow answer must not stretch the trust. The client may
            # have asked several times, and the last of them is what was answered.
            self._trust(asked_s, answer.lease_s)
            if answer.cancel or answer.cancel_task:
                _log.info("agent.cancel_asked", task=answer.cancel_task, reason=answer.reason)
                await duty.obey(answer)
            await asyncio.sleep(max(0.05, asked_s + self._opened.heartbeat_s - time.monotonic()))


def _ending_of(task: asyncio.Task[None], ending: Ending) -> Ending:
    """``ending``, or that the task is over.

    Raises:
        FcError: what else ended ``task``.
    """
    try:
        task.result()
    except LeaseLostError as error:
        _log.info("agent.task_is_over", said=error.message)
        return Ending.GONE
    return ending
