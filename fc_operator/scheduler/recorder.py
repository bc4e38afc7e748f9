"""Carries what executors tell into the database: log pieces and ends, in order, in batches.

While one transaction runs, the next batch gathers. While PostgreSQL is away everything is kept,
and whoever brings log pieces waits, so that builds slow down rather than memory filling up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fc_operator.errors import UnavailableError
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.model.ids import StepId
from fc_operator.model.tasks import LogChunk
from fc_operator.operations import steps
from fc_operator.operations.steps import StepResult
from fc_operator.settings import BuildSettings
from fc_operator.store import attempts, listener
from fc_operator.store import logs as log_store
from fc_operator.store.claims import Lease
from fc_operator.store.database import Database, notify

_log = logs.get_logger()
_WAITING_BYTES_MAX = 8 * 1024 * 1024
_BATCH_BYTES_MAX = 4 * 1024 * 1024
_BATCH_ENDS_MAX = 200


class Recorder:
    """One per dispatcher. ``run`` until cancelled; ``flush`` waits until all is written."""

    def __init__(
        self,
        database: Database,
        builds: BuildSettings,
        *,
        on_refused: Callable[[StepId], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._builds = builds
        self._on_refused = on_refused
        self._starts: list[Lease] = []
        self._chunks: list[tuple[Lease, LogChunk]] = []
        self._chunk_bytes = 0
        self._ends: list[StepResult] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._room = asyncio.Event()
        self._room.set()

    def put_start(self, lease: Lease) -> None:
        """The executor has begun."""
        self._starts.append(lease)
        self._stir()

    async def put_chunk(self, lease: Lease, chunk: LogChunk) -> None:
        """A piece of log; waits while too much is waiting already."""
        self._chunks.append((lease, chunk))
        self._chunk_bytes += len(chunk.data)
        if self._chunk_bytes > _WAITING_BYTES_MAX:
            self._room.clear()
        self._stir()
        await self._room.wait()

    def put_end(self, result: StepResult) -> None:
        """The end of an attempt; never waits."""
        self._ends.append(result)
        self._stir()

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def flush(self) -> None:
        """Wait until all that was put is written."""
        await self._idle.wait()

    async def run(self) -> None:
        """Write until cancelled; survives a database that comes and goes."""
        backoff, tries = Backoff(base_s=0.1, cap_s=2.0), 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._write_all()
                tries = 0
            except (UnavailableError, TimeoutError) as error:
                tries += 1
                delay_s = backoff.delay_s(tries)
                _log.warning(
                    "scheduler.results_wait", error=str(error), retry_in_s=round(delay_s, 2)
                )
                await asyncio.sleep(delay_s)
                self._wake.set()

    async def _write_all(self) -> None:
        while self._starts or self._chunks or self._ends:
            await self._write_some()
        self._idle.set()

    async def _write_some(self) -> None:
        # An end follows all pieces that were put before it, so pieces first.
        starts, ends = self._starts[:_BATCH_ENDS_MAX], self._ends[:_BATCH_ENDS_MAX]
        chunks, size = [], 0
        for lease, chunk in self._chunks:
            if size > _BATCH_BYTES_MAX:
                break
            chunks.append((lease, chunk))
            size += len(chunk.data)
        if starts or chunks:
            await self._write_progress(starts, chunks)
            del self._starts[: len(starts)]
            del self._chunks[: len(chunks)]
            self._chunk_bytes -= size
            if self._chunk_bytes <= _WAITING_BYTES_MAX:
                self._room.set()
        if ends and not self._chunks:
            await self._finish(ends)
            del self._ends[: len(ends)]

    async def _finish(self, ends: list[StepResult]) -> None:
        for step_id in await steps.finish_each(self._database, ends, self._builds):
            _log.info("scheduler.late_result_refused", step_id=step_id)
            self._on_refused(step_id)

    async def _write_progress(
        self, starts: list[Lease], chunks: list[tuple[Lease, LogChunk]]
    ) -> None:
        async with self._database.transaction() as connection:
            if starts:
                await attempts.start(connection, starts)
            if chunks:
                written = await log_store.append_chunks(
                    connection, [(lease.task_id, chunk) for lease, chunk in chunks]
                )
                if written:
                    ids = ",".join(str(step_id) for step_id in sorted(written))
                    await notify(connection, listener.LOGS, ids)
