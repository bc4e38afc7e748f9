"""Reads ``jobsets`` for people."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict, cast
from uuid import UUID

from fc_operator.errors import NotFoundError
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.pages import refs
from fc_operator.store.pages.projects import DeclaredBy
from fc_operator.store.queries import load

_queries = load("pages/jobsets")


class LatestEvaluation(TypedDict):
    """The newest evaluation of a jobset, in short."""

    id: str
    number: int
    commit_hash: str
    status: str
    subject: str
    evaluation_time: str
    builds_ended_at: str | None
    builds: dict[str, int] | None


class JobsetRow(TypedDict):
    """A jobset in a list."""

    id: UUID
    number: int
    project: str
    name: str
    description: str
    nix_expression: str
    flake_mode: bool
    branch: str | None
    state: str
    suspended: bool
    check_interval_s: int
    scheduling_shares: int
    deleting_at: datetime | None
    last_checked_at: datetime | None
    next_check_at: datetime | None
    check_reason: str
    last_commit: str | None
    last_error: str | None
    check_failures: int
    created_at: datetime
    updated_at: datetime
    latest_evaluation: LatestEvaluation | None


class Jobset(JobsetRow):
    """A jobset alone."""

    project_id: UUID
    repository_url: str
    keep_evaluations: int
    systems: list[str]
    only_build_latest: bool
    timeout_s: int | None
    max_silent_s: int | None
    evaluation_timeout_s: int | None
    allow_import_from_derivation: bool
    generation: int
    active: bool
    declared_by: DeclaredBy | None


class InputRow(TypedDict):
    """An input as declared, and what it was resolved to last."""

    name: str
    type: str
    value: str
    revision: str | None
    store_path: str | None


class JobRow(TypedDict):
    """A job of the newest completed evaluation."""

    job: str
    build_id: UUID
    build: int
    system: str | None
    status: str
    nix_name: str
    description: str
    is_aggregate: bool
    completed_at: datetime | None
    evaluation: int


class JobErrorText(TypedDict):
    """Why one attribute gave no job."""

    job: str
    attr_path: list[str]
    message: str


class JobsetErrors(TypedDict):
    """What is wrong with a jobset, from its source to single jobs; all null when nothing is."""

    source_error: str | None
    last_checked_at: datetime | None
    check_failures: int
    evaluation_id: UUID | None
    evaluation: int | None
    evaluation_status: str | None
    error_kind: str | None
    status_reason: str | None
    evaluation_error: str | None
    jobs: list[JobErrorText]


async def list_jobsets(
    connection: Connection, project_id: UUID, *, after: str | None, page_size: int
) -> list[JobsetRow]:
    """Jobsets of a project by name."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_jobsets(
            connection, project_id=project_id, after_name=after, page_size=page_size
        )
    ]
    return rows


async def fetch(connection: Connection, reader: Reader, project: str, jobset: str) -> Jobset:
    """The jobset called ``jobset`` of ``project``.

    Raises:
        NotFoundError: there is none, or the reader may not see it.
    """
    of_project, of_jobset = refs.parse(project), refs.parse(jobset)
    row = await _queries.fetch(
        connection,
        project=of_project.name,
        project_number=of_project.number,
        project_id=of_project.id,
        jobset=of_jobset.name,
        number=of_jobset.number,
        id=of_jobset.id,
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    if row is None:
        raise NotFoundError(f"no jobset {project}/{jobset}")
    return cast("Jobset", dict(row))


async def list_inputs(connection: Connection, jobset_id: UUID) -> list[InputRow]:
    """Inputs by name; a manifest bounds how many there are."""
    rows: list[Any] = [
        dict(row) async for row in _queries.list_inputs(connection, jobset_id=jobset_id)
    ]
    return rows


async def list_jobs(
    connection: Connection, jobset_id: UUID, *, after: str | None, page_size: int
) -> list[JobRow]:
    """Jobs of the newest completed evaluation by name."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_jobs(
            connection, jobset_id=jobset_id, after_job=after, page_size=page_size
        )
    ]
    return rows


async def fetch_errors(connection: Connection, jobset_id: UUID) -> JobsetErrors:
    """What is wrong with a jobset that exists."""
    return cast("JobsetErrors", dict(await _queries.fetch_errors(connection, jobset_id=jobset_id)))
