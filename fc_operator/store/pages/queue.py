"""Reads what runs and what waits, for people."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict, cast
from uuid import UUID

from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_queries = load("pages/queue")


class QueuedRow(TypedDict):
    """A build that runs or waits."""

    id: UUID
    number: int
    project: str
    jobset: str
    evaluation: int
    job_name: str
    system: str | None
    status: str
    priority: int
    bumped_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    step_id: int | None
    waits_for: str
    """Running, Dependencies, Backoff or Builder; ``/builds/N/why`` says more."""
    blockers: int | None
    not_before: datetime | None
    runnable_at: datetime | None
    runs_on: str | None


class ClassRow(TypedDict):
    """Steps that need the same system and features."""

    system: str
    features: list[str]
    ready: int
    running: int
    oldest_runnable_at: datetime | None


class Counts(TypedDict):
    """What waits and runs in all."""

    pending_builds: int
    running_builds: int
    pending_evaluations: int
    running_evaluations: int
    steps_in_backoff: int


async def list_running(
    connection: Connection, reader: Reader, *, before: int, page_size: int
) -> list[QueuedRow]:
    """Builds that run, newest first."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_running(
            connection,
            all_projects=reader.all_projects,
            projects=reader.projects,
            before=before,
            page_size=page_size,
        )
    ]
    return rows


async def list_pending(
    connection: Connection, reader: Reader, *, after: int, page_size: int
) -> list[QueuedRow]:
    """Builds that wait, oldest first."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_pending(
            connection,
            all_projects=reader.all_projects,
            projects=reader.projects,
            after=after,
            page_size=page_size,
        )
    ]
    return rows


async def list_classes(connection: Connection) -> list[ClassRow]:
    """Ready and running steps by system and features."""
    rows: list[Any] = [dict(row) async for row in _queries.list_classes(connection)]
    return rows


async def fetch_counts(connection: Connection) -> Counts:
    """What waits and runs in all."""
    return cast("Counts", dict(await _queries.fetch_counts(connection)))
