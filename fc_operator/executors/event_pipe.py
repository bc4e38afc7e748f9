"""Events on their way from the steps of a batch to its one reader, bounded by bytes of log."""

from __future__ import annotations

import asyncio

from fc_operator.model.ids import StepId
from fc_operator.model.tasks import LogChunk, StepEvent

_WAITING_BYTES_MAX = 4 * 1024 * 1024
CHUNK_BYTES = 64 * 1024
CHUNK_AGE_S = 0.1


class EventPipe:
    """Many writers, one reader. Writers of logs wait in ``room`` while the reader is behind."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[StepEvent] = asyncio.Queue()
        self._waiting_bytes = 0
        self._has_room = asyncio.Event()
        self._has_room.set()

    def put(self, event: StepEvent) -> None:
        """Append; never waits, so that ends are never lost."""
        if isinstance(event, LogChunk):
            self._waiting_bytes += len(event.data)
            if self._waiting_bytes > _WAITING_BYTES_MAX:
                self._has_room.clear()
        self._events.put_nowait(event)

    async def get(self) -> StepEvent:
        """The next event."""
        event = await self._events.get()
        if isinstance(event, LogChunk):
            self._waiting_bytes -= len(event.data)
            if self._waiting_bytes <= _WAITING_BYTES_MAX:
                self._has_room.set()
        return event

    def open_wide(self) -> None:
        """Nobody reads any more: let writers go on to their end."""
        self._waiting_bytes = -(1 << 62)
        self._has_room.set()

    async def room(self) -> None:
        """Wait until the reader has caught up."""
        await self._has_room.wait()


class StepLog:
    """One step's log: lines in, chunks of 64 KiB or 100 ms out, cut off at a limit."""

    def __init__(self, pipe: EventPipe, step_id: StepId, attempt: int, bytes_max: int) -> None:
        self._pipe = pipe
        self._step_id, self._attempt = step_id, attempt
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._sent = 0
        self.lines = 0

    @property
    def size_bytes(self) -> int:
        """All that was accepted so far."""
        return self._sent + self._waiting

    def write(self, line: str) -> bool:
        """Append a line; False when the limit has cut it off."""
        data = line.encode("utf-8", "replace") + b"\n"
        fits = not self._bytes_max or self.size_bytes + len(data) <= self._bytes_max
        if not fits:
            data = data[: max(0, self._bytes_max - self.size_bytes)]
        if data:
            self.lines += 1
            self._parts.append(data)
            self._waiting += len(data)
        if self._waiting >= CHUNK_BYTES:
            self.flush()
        elif self._timer is None and self._waiting:
            self._timer = asyncio.get_running_loop().call_later(CHUNK_AGE_S, self.flush)
        return fits

    def flush(self) -> None:
        """Send what waits, in pieces of at most ``CHUNK_BYTES``."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = b"".join(self._parts)
        self._parts.clear()
        self._waiting = 0
        for start in range(0, len(data), CHUNK_BYTES):
            piece = data[start : start + CHUNK_BYTES]
            self._pipe.put(
                LogChunk(
                    step_id=self._step_id, attempt=self._attempt, offset=self._sent, data=piece
                )
            )
            self._sent += len(piece)
