"""Single items in, batches out: once there are 500 or after 250 ms, as many as came meanwhile.

Larger ones cost less each, and the first should come soon: whoever is slow gets larger ones.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from fc_operator.evaluator.protocol import EvaluationBatch
from fc_operator.model.jobs import JobError, JobRow

SIZE = 500
SIZE_MAX = 2000
WAIT_S = 0.25


class _Buffer:
    """What came and was not taken yet; the producer waits while it holds the largest batch."""

    def __init__(self) -> None:
        self.items: list[JobRow | JobError] = []
        self.ended = False
        self.changed = asyncio.Event()
        self.full = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()

    async def fill(self, source: AsyncIterator[JobRow | JobError]) -> None:
        try:
            async for item in source:
                self.items.append(item)
                self.changed.set()
                if len(self.items) >= SIZE:
                    self.full.set()
                    if len(self.items) >= SIZE_MAX:
                        self.room.clear()
                await self.room.wait()
        finally:
            self.ended = True
            self.changed.set()
            self.full.set()

    def take(self) -> EvaluationBatch:
        taken, self.items = self.items[:SIZE_MAX], self.items[SIZE_MAX:]
        self.room.set()
        if not self.ended and len(self.items) < SIZE:
            self.full.clear()
            if not self.items:
                self.changed.clear()
        return EvaluationBatch(
            rows=tuple(item for item in taken if isinstance(item, JobRow)),
            errors=tuple(item for item in taken if isinstance(item, JobError)),
        )


async def batched(
    source: AsyncGenerator[JobRow | JobError, None],
) -> AsyncGenerator[EvaluationBatch, None]:
    """Batches of ``source``; what it raises comes after the last batch of what it gave before."""
    buffer = _Buffer()
    producer = asyncio.create_task(buffer.fill(source))
    try:
        while not (buffer.ended and not buffer.items):
            await buffer.changed.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):
                    await buffer.full.wait()
            while buffer.items:
                yield buffer.take()
                if not buffer.full.is_set():
                    break
        await producer
    finally:
        producer.cancel()
        await asyncio.gather(producer, return_exceptions=True)
        await source.aclose()
