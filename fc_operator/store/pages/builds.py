"""Reads ``builds`` for people.

Each list walks one index in the order of its page, so that the millionth row costs what the first
does; which list serves which filters is decided in ``list_builds``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NewType, TypedDict, cast
from uuid import UUID

import orjson

from fc_operator.errors import NotFoundError
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.pages import refs
from fc_operator.store.queries import load

_queries = load("pages/builds")
NUMBER_MAX = 2**63 - 1


JsonRow = NewType("JsonRow", str)
"""A ``BuildRow`` as JSON, made by PostgreSQL."""


class BuildRow(TypedDict):
    """A build in a list."""

    id: UUID
    number: int
    project: str
    jobset: str
    evaluation: int
    job_name: str
    nix_name: str
    system: str | None
    status: str
    status_reason: str
    cached: bool
    is_new: bool
    is_aggregate: bool
    priority: int
    keep: bool
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


class RootCause(TypedDict):
    """The step that failed first, and so made this build fail."""

    step_id: int
    name: str
    drv_path: str
    status: str
    attempt: int
    error_message: str | None


class Build(BuildRow):
    """A build alone."""

    jobset_id: UUID
    project_id: UUID
    evaluation_id: UUID
    commit_hash: str
    attr_path: list[str]
    drv_path: str
    description: str
    homepage: str
    license: str
    maintainers: str
    is_channel: bool
    error_message: str | None
    build_output_path: str | None
    outputs: dict[str, str | None] | None
    constituents: list[str] | None
    release_name: str | None
    warnings: list[str]
    signed: bool
    log_path: str | None
    retry_count: int
    timeout_s: int | None
    max_silent_s: int | None
    bumped_at: datetime | None
    kept_by: str | None
    kept_at: datetime | None
    builder: str | None
    step_id: int | None
    attempt: int | None
    executor: str | None
    peak_memory_bytes: int | None
    cpu_ms: int | None
    log_bytes: int | None
    log_lines: int | None
    root_cause: RootCause | None


class FoundBuild(TypedDict):
    """As much of a build as a change or a sub-list needs."""

    id: UUID
    number: int
    job_name: str
    status: str
    step_id: int | None
    project_id: UUID


class BuildStepRow(TypedDict):
    """One attempt at the build's own step."""

    step_number: int
    command: str
    drv_path: str | None
    step_id: int | None
    attempt: int | None
    status: str | None
    exit_code: int | None
    error: str | None
    started_at: datetime
    completed_at: datetime | None
    executor: str | None
    builder: str | None
    reason: str | None
    signal: int | None
    phases: list[dict[str, Any]] | None
    peak_memory_bytes: int | None
    cpu_ms: int | None
    log_bytes: int | None
    log_lines: int | None


class ProductRow(TypedDict):
    """Something to download."""

    nr: int
    type: str
    subtype: str
    name: str
    path: str
    default_path: str
    output: str
    is_directory: bool
    size_bytes: int | None
    sha256: str | None
    content_type: str | None


class MetricRow(TypedDict):
    """A figure that the job wrote itself."""

    name: str
    value: float
    unit: str
    collected_at: datetime


class Summary(TypedDict):
    """Our own figures about a build."""

    duration_seconds: float | None
    output_size_bytes: float | None
    peak_memory_bytes: float | None
    nar_size_bytes: float | None


class OutputRow(TypedDict):
    """One output of the build's step."""

    name: str
    path: str | None
    nar_hash: str | None
    nar_size_bytes: int | None


class RelatedRow(TypedDict):
    """Another build of the same evaluation."""

    id: UUID
    number: int
    job_name: str
    system: str | None
    status: str
    status_reason: str


class BuildStats(TypedDict):
    """All builds, counted."""

    total_builds: int
    completed_builds: int
    failed_builds: int
    running_builds: int
    pending_builds: int
    avg_duration_seconds: float | None


async def list_builds(
    connection: Connection,
    reader: Reader,
    *,
    job: str | None = None,
    statuses: Sequence[str] | None = None,
    system: str | None = None,
    project: UUID | None = None,
    jobset: UUID | None = None,
    before: int | None,
    page_size: int,
) -> list[JsonRow]:
    """Builds by number, newest first; ``project`` and ``jobset`` only together with ``job``."""
    seen = {
        "all_projects": reader.all_projects,
        "projects": reader.projects,
        "before": NUMBER_MAX if before is None else before,
        "page_size": page_size,
    }
    if job is not None:
        rows = _queries.list_of_job(
            connection,
            job=job,
            statuses=statuses,
            system=system,
            project=project,
            jobset=jobset,
            **seen,
        )
    elif statuses is not None:
        rows = _queries.list_of_statuses(connection, statuses=statuses, system=system, **seen)
    elif system is not None:
        rows = _queries.list_of_system(connection, system=system, **seen)
    else:
        rows = _queries.list_newest(connection, **seen)
    return await _texts(rows)


async def list_of_evaluation(
    connection: Connection,
    evaluation_id: UUID,
    *,
    statuses: Sequence[str] | None = None,
    system: str | None = None,
    job: str | None = None,
    after: str | None,
    page_size: int,
) -> list[JsonRow]:
    """Builds of one evaluation by job name."""
    return await _texts(
        _queries.list_of_evaluation(
            connection,
            evaluation_id=evaluation_id,
            statuses=statuses,
            system=system,
            job=job,
            after_job=after or "",
            page_size=page_size,
        )
    )


async def list_of_jobsets(
    connection: Connection,
    *,
    project: UUID,
    jobset: UUID | None = None,
    statuses: Sequence[str] | None = None,
    system: str | None = None,
    after: tuple[int, str] | None,
    page_size: int,
) -> list[JsonRow]:
    """Builds of a project or jobset: newest evaluation first, in it by job name."""
    before_evaluation, after_job = after or (NUMBER_MAX, "")
    return await _texts(
        _queries.list_of_jobsets(
            connection,
            project=project,
            jobset=jobset,
            statuses=statuses,
            system=system,
            before_evaluation=before_evaluation,
            after_job=after_job,
            page_size=page_size,
        )
    )


async def fetch(connection: Connection, reader: Reader, word: str) -> Build:
    """The build with this number or id.

    Raises:
        NotFoundError: there is none, or the reader may not see it.
    """
    ref = refs.parse(word)
    row: Any = await _queries.fetch(
        connection,
        number=ref.number,
        id=ref.id,
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    return cast("Build", _found(row, word))


async def find(connection: Connection, reader: Reader, word: str) -> FoundBuild:
    """As ``fetch``, but only what a change or a sub-list needs."""
    ref = refs.parse(word)
    row: Any = await _queries.find(
        connection,
        number=ref.number,
        id=ref.id,
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    return cast("FoundBuild", _found(row, word))


async def list_steps(
    connection: Connection, build_id: UUID, *, after: int, page_size: int
) -> list[BuildStepRow]:
    """Attempts at the build's own step, oldest first."""
    return await _dicts(
        _queries.list_steps(connection, build_id=build_id, after_number=after, page_size=page_size)
    )


async def list_products(connection: Connection, build_id: UUID) -> list[ProductRow]:
    """What the build offers for download."""
    return await _dicts(_queries.list_products(connection, build_id=build_id))


async def fetch_product(connection: Connection, build_id: UUID, nr: int) -> ProductRow | None:
    """One product."""
    row = await _queries.fetch_product(connection, build_id=build_id, nr=nr)
    found: Any = None if row is None else dict(row)
    return found  # type: ignore[no-any-return]


async def list_metrics(connection: Connection, build_id: UUID) -> list[MetricRow]:
    """The job's own metrics by name."""
    return await _dicts(_queries.list_metrics(connection, build_id=build_id))


async def fetch_summary(connection: Connection, build_id: UUID) -> Summary:
    """Our own figures about a build that exists."""
    return cast("Summary", dict(await _queries.fetch_summary(connection, build_id=build_id)))


async def list_outputs(connection: Connection, build_id: UUID) -> list[OutputRow]:
    """Outputs of the build's step by name."""
    return await _dicts(_queries.list_outputs(connection, build_id=build_id))


async def list_dependencies(
    connection: Connection, build_id: UUID, *, after: str | None, page_size: int
) -> list[RelatedRow]:
    """Jobs of the same evaluation that this build needs."""
    return await _dicts(
        _queries.list_dependencies(
            connection, build_id=build_id, after_job=after or "", page_size=page_size
        )
    )


async def list_dependents(
    connection: Connection, build_id: UUID, *, after: str | None, page_size: int
) -> list[RelatedRow]:
    """Jobs of the same evaluation that need this build."""
    return await _dicts(
        _queries.list_dependents(
            connection, build_id=build_id, after_job=after or "", page_size=page_size
        )
    )


async def list_constituents(
    connection: Connection, build_id: UUID, *, after: str | None, page_size: int
) -> list[RelatedRow]:
    """What an aggregate is made of."""
    return await _dicts(
        _queries.list_constituents(
            connection, build_id=build_id, after_job=after or "", page_size=page_size
        )
    )


async def fetch_stats(connection: Connection) -> BuildStats:
    """All builds, counted."""
    return cast("BuildStats", dict(await _queries.fetch_stats(connection)))


async def fetch_latest(
    connection: Connection,
    reader: Reader,
    *,
    project: str,
    jobset: str,
    job: str,
    system: str | None = None,
) -> int | None:
    """The number of a job's newest success."""
    row = await _queries.fetch_latest(
        connection,
        project=project,
        jobset=jobset,
        job=job,
        system=system,
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    return None if row is None else row["number"]


async def fetch_latest_finished(
    connection: Connection, reader: Reader, *, project: str, jobset: str, job: str
) -> int | None:
    """The number of a job's newest success in an evaluation whose builds have all ended."""
    row = await _queries.fetch_latest_finished(
        connection,
        project=project,
        jobset=jobset,
        job=job,
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    return None if row is None else row["number"]


async def fetch_newest_ended(
    connection: Connection, reader: Reader, *, project: str, jobset: str, job: str
) -> tuple[int, str] | None:
    """Number and status of a job's newest build that has ended."""
    row = await _queries.fetch_newest_ended(
        connection,
        project=project,
        jobset=jobset,
        job=job,
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    return None if row is None else (row["number"], row["status"])


def read(row: JsonRow) -> BuildRow:
    """A row of a list, for who needs more than its text."""
    return cast("BuildRow", orjson.loads(row))


async def _texts(rows: Any) -> list[JsonRow]:
    return [row["row"] async for row in rows]


async def _dicts(rows: Any) -> list[Any]:
    return [dict(row) async for row in rows]


def _found(row: Any, word: str) -> Any:
    if row is None:
        raise NotFoundError(f"no build {word}")
    return dict(row)
