"""What executors tell, on its way to the server: log pieces and events, in order, in batches.

While one request runs, the next batch gathers. While the server is away everything is kept, and
whoever brings log pieces waits, so that builds slow down rather than memory filling up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fc_operator.clients.task_protocol import TaskClient
from fc_operator.errors import InvalidError, LeaseLostError, ProtocolError
from fc_operator.kit import logs
from fc_operator.model.ids import StepId
from fc_operator.model.tasks import LogChunk, StepEnded
from fc_operator.model.work import LOG_BYTES_MAX, NumberedEvent, ReportedEvent

_log = logs.get_logger()
_WAITING_BYTES_MAX = 8 * 1024 * 1024
_BATCH_EVENTS_MAX = 500


@dataclass(slots=True)
class _Log:
    """What waits of one attempt's log: bytes from ``offset`` on."""

    offset: int = 0
    data: bytearray = field(default_factory=bytearray)


class Reporter:
    """One per task. ``run`` until cancelled; ``flush`` waits until all is told.

    ``on_lost`` hears of attempts of which the server takes no log any more: they are not ours.
    """

    def __init__(
        self, client: TaskClient, *, on_lost: Callable[[StepId, int], None] = lambda *_: None
    ) -> None:
        self._client = client
        self._on_lost = on_lost
        self._closed: set[tuple[StepId, int]] = set()
        """Attempts whose log goes nowhere."""
        self._logs: dict[tuple[StepId, int], _Log] = {}
        self._log_bytes = 0
        self._events: list[NumberedEvent] = []
        self._next_seq = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._room = asyncio.Event()
        self._room.set()

    def put(self, event: ReportedEvent) -> None:
        """An event; never waits. The log that its attempt has put before is told before it."""
        self._events.append(NumberedEvent(seq=self._next_seq, event=event))
        self._next_seq += 1
        self._stir()

    async def put_log(self, chunk: LogChunk) -> None:
        """The next piece of an attempt's log; waits while too much is waiting already."""
        key = chunk.step_id, chunk.attempt
        if key in self._closed:
            return
        log = self._logs.setdefault(key, _Log(offset=chunk.offset))
        log.data += chunk.data
        self._log_bytes += len(chunk.data)
        if self._log_bytes > _WAITING_BYTES_MAX:
            self._room.clear()
        self._stir()
        await self._room.wait()

    def open_wide(self) -> None:
        """Whoever waits to put goes on; for an end, where nothing much comes any more."""
        self._log_bytes = -(1 << 62)
        self._room.set()

    async def flush(self) -> None:
        """Wait until all that was put is told."""
        await self._idle.wait()

    async def run(self) -> None:
        """Tell until cancelled.

        Raises:
            FcError: an answer of the server that would come again, such as that the task is over.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._events or any(log.data for log in self._logs.values()):
                # Events first taken, then logs told: what is put meanwhile comes with the next.
                events = self._events[:_BATCH_EVENTS_MAX]
                await self._tell_logs()
                if events:
                    await self._tell_events(events)
            self._idle.set()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def _tell_logs(self) -> None:
        for key, log in list(self._logs.items()):
            try:
                while log.data:
                    await self._tell_log(key, log)
            except (LeaseLostError, InvalidError) as error:
                # Of this attempt only, as far as we know; if the task is over, events or the next
                # heartbeat will say so.
                _log.warning("agent.log_refused", step_id=key[0], attempt=key[1], error=str(error))
                self._closed.add(key)
                self._took(log, len(log.data))
                if isinstance(error, LeaseLostError):
                    self._on_lost(*key)

    async def _tell_log(self, key: tuple[StepId, int], log: _Log) -> None:
        piece = bytes(log.data[:LOG_BYTES_MAX])
        wanted = await self._client.log(*key, log.offset, piece)
        if wanted <= log.offset:
            # It wants what it had acknowledged before, and that is not kept.
            raise ProtocolError(f"the server has lost the log of step {key[0]} from {wanted} on")
        self._took(log, min(wanted - log.offset, len(log.data)))

    def _took(self, log: _Log, size: int) -> None:
        del log.data[:size]
        log.offset += size
        self._log_bytes -= size
        if self._log_bytes <= _WAITING_BYTES_MAX:
            self._room.set()

    async def _tell_events(self, events: list[NumberedEvent]) -> None:
        wanted = await self._client.events(events)
        told = wanted - events[0].seq
        if told <= 0:
            raise ProtocolError(f"the server has lost what it was told from event {wanted} on")
        del self._events[: min(told, len(self._events))]
        for event in (each.event for each in events[:told]):
            if isinstance(event, StepEnded):
                self._logs.pop((event.step_id, event.attempt), None)
