"""Reads ``attempts`` and ``log_chunks`` for people: where a log is, and its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fc_operator.model.ids import StepId
from fc_operator.model.statuses import TERMINAL, BuildStatus
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_queries = load("pages/logs")
_CHUNKS = 16
"""Read at once; an executor's chunk has 64 KiB at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """One attempt's log at one moment."""

    status: BuildStatus
    """Of the build, or of the step where it was asked for by itself."""
    status_reason: str
    newest: int
    """The newest attempt of the step; 0 before the first."""
    step_id: StepId | None
    attempt: int | None
    """The attempt that is meant; None where there is none."""
    ended: bool
    size_bytes: int
    """So far."""
    key: str | None
    """Where it is archived."""

    @property
    def is_over(self) -> bool:
        """Whether nothing will follow after this attempt."""
        return self.status in TERMINAL


async def fetch_of_build(
    connection: Connection, build_id: UUID, attempt: int | None
) -> LogState | None:
    """The log of a build; of its newest attempt, or of one of them."""
    row = await _queries.fetch_of_build(connection, build_id=build_id, attempt=attempt)
    return _state(row)


async def fetch_of_step(
    connection: Connection, step_id: StepId, attempt: int | None
) -> LogState | None:
    """The log of a step."""
    row = await _queries.fetch_of_step(connection, step_id=step_id, attempt=attempt)
    return _state(row)


async def list_chunks(
    connection: Connection, step_id: StepId, attempt: int, start: int
) -> list[tuple[int, bytes]]:
    """(offset, bytes) of some chunks, from the one that holds byte ``start``; empty at the end."""
    return [
        (row["start_offset"], row["data"])
        async for row in _queries.list_chunks(
            connection, step_id=step_id, attempt=attempt, start=start, rows=_CHUNKS
        )
    ]


def _state(row: Any) -> LogState | None:
    if row is None:
        return None
    archived = row["log_key"] is not None
    return LogState(
        status=BuildStatus(row["status"]),
        status_reason=row["status_reason"],
        newest=row["newest"] or 0,
        step_id=row["step_id"],
        attempt=row["attempt"],
        ended=bool(row["ended"]),
        size_bytes=row["log_bytes"] if archived else row["chunk_end"],
        key=row["log_key"],
    )
