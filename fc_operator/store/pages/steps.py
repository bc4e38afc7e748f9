"""Reads ``steps`` and ``attempts`` for people.

A step is shared by projects. A reader sees it through a build of a project that they see: one that
it is for, or one that caused an attempt at it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict, cast

from fc_operator.errors import NotFoundError
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.pages import refs
from fc_operator.store.queries import load

_queries = load("pages/steps")


class Step(TypedDict):
    """One derivation that must be, or was, built."""

    id: int
    drv_path: str
    name: str
    system: str
    features: list[str]
    status: str
    status_reason: str
    error_message: str | None
    attempt: int
    blockers: int
    priority: int
    infra_failures: int
    not_before: datetime | None
    created_at: datetime
    runnable_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    root_cause: int | None


class AttemptRow(TypedDict):
    """One try at a step."""

    attempt: int
    executor: str
    builder: str
    status: str | None
    reason: str
    message: str | None
    exit_code: int | None
    signal: int | None
    claimed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    phases: list[dict[str, Any]]
    peak_memory_bytes: int | None
    cpu_ms: int | None
    log_bytes: int
    log_lines: int
    build: int | None


async def fetch(connection: Connection, reader: Reader, word: str) -> Step:
    """The step with this id.

    Raises:
        NotFoundError: there is none, or the reader sees no build of it.
    """
    row = await _queries.fetch(
        connection,
        id=refs.parse(word).number,
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    if row is None:
        raise NotFoundError(f"no step {word}")
    return cast("Step", dict(row))


async def list_attempts(
    connection: Connection, step_id: int, *, after: int, page_size: int
) -> list[AttemptRow]:
    """Tries at a step, oldest first."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_attempts(
            connection, id=step_id, after=after, page_size=page_size
        )
    ]
    return rows
