"""Logs while they are written: pieces in order, each under its attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from fc_operator.model.ids import StepId, TaskId
from fc_operator.model.tasks import LogChunk
from fc_operator.store.database import Connection, Database
from fc_operator.store.queries import load

_sql = load("logs")
_PIECES = 64
"""Read at once: 4 MiB at most."""


async def append_chunks(
    connection: Connection, chunks: Sequence[tuple[TaskId, LogChunk]]
) -> set[StepId]:
    """Write pieces of attempts that are held by their task; the steps that got some."""
    return {
        StepId(row["step_id"])
        async for row in _sql.append_chunks(
            connection,
            step_ids=[chunk.step_id for _, chunk in chunks],
            attempts=[chunk.attempt for _, chunk in chunks],
            task_ids=[task_id for task_id, _ in chunks],
            offsets=[chunk.offset for _, chunk in chunks],
            chunks=[chunk.data for _, chunk in chunks],
        )
    }


async def list_chunks(
    connection: Connection, step_id: StepId, attempt: int, *, start: int = 0, limit: int = _PIECES
) -> list[tuple[int, bytes]]:
    """Pieces (offset, bytes) from the one that holds byte ``start`` on."""
    return [
        (row["start_offset"], row["data"])
        async for row in _sql.list_chunks(
            connection, step_id=step_id, attempt=attempt, start=start, limit=limit
        )
    ]


async def read(database: Database, step_id: StepId, attempt: int) -> AsyncIterator[bytes]:
    """A whole log in constant memory, without holding a session in between."""
    at = 0
    while True:
        async with database.session() as connection:
            pieces = await list_chunks(connection, step_id, attempt, start=at)
        for offset, data in pieces:
            if offset + len(data) > at:
                yield data[at - offset :]
                at = offset + len(data)
        if len(pieces) < _PIECES:
            return


async def list_unarchived(connection: Connection, limit: int) -> list[tuple[StepId, int]]:
    """(step, attempt) of ended logs that are still in pieces."""
    return [
        (StepId(row["step_id"]), row["attempt"])
        async for row in _sql.list_unarchived(connection, limit=limit)
    ]


async def note_archived(
    connection: Connection, step_id: StepId, attempt: int, *, key: str, lines: int
) -> None:
    """The log lies under ``key`` now; its pieces go."""
    await _sql.note_archived(
        connection, step_id=step_id, attempt=attempt, log_key=key, log_lines=lines
    )
    await _sql.delete_chunks(connection, step_id=step_id, attempt=attempt)
