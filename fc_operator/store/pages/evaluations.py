"""Reads ``evaluations`` for people."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypedDict, cast
from uuid import UUID

from fc_operator.errors import NotFoundError
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.pages import refs
from fc_operator.store.queries import load

_queries = load("pages/evaluations")
NUMBER_MAX = 2**63 - 1


class EvaluationRow(TypedDict):
    """An evaluation in a list; ``builds`` says how many have which status."""

    id: UUID
    number: int
    project: str
    jobset: str
    commit_hash: str
    branch: str | None
    subject: str
    author: str
    status: str
    status_reason: str
    error_kind: str | None
    trigger: str
    evaluation_time: datetime
    started_at: datetime | None
    finished_at: datetime | None
    builds_ended_at: datetime | None
    jobs: int
    jobs_new: int
    errors: int
    builds: dict[str, int] | None


class Evaluation(EvaluationRow):
    """An evaluation alone."""

    jobset_id: UUID
    project_id: UUID
    error_message: str | None
    trust: str
    force: bool
    tree_hash: str | None
    inputs_hash: str | None
    evaluator: str | None
    evaluator_version: str | None
    checkout_ms: int | None
    evaluation_ms: int | None
    attempt: int
    cancel_requested: bool
    reused_from: int | None
    pr_number: int | None
    pr_head_branch: str | None
    pr_base_branch: str | None
    pr_action: str | None
    previous: int | None


class EvaluationErrorRow(TypedDict):
    """An attribute that gave no job."""

    nr: int
    job: str
    attr_path: list[str]
    message: str


class ResolvedInputRow(TypedDict):
    """What an input was resolved to."""

    name: str
    type: str
    value: str
    revision: str | None
    store_path: str | None


class ChangeRow(TypedDict):
    """How a job's build differs between two evaluations."""

    job: str
    system: str | None
    old_build: int | None
    old_status: str | None
    new_build: int | None
    new_status: str | None
    change: str
    rebuilt: bool


async def list_evaluations(
    connection: Connection,
    reader: Reader,
    *,
    project: UUID | None = None,
    jobset: UUID | None = None,
    statuses: Sequence[str] | None = None,
    commit: str | None = None,
    before: int | None,
    page_size: int,
) -> list[EvaluationRow]:
    """Evaluations, newest first; a ``project`` or ``jobset`` is one that the reader sees."""
    narrowed: dict[str, Any] = {
        "statuses": statuses,
        "before": NUMBER_MAX if before is None else before,
        "page_size": page_size,
    }
    seen = {"all_projects": reader.all_projects, "projects": reader.projects}
    if commit is not None:
        found = _queries.list_of_commit(
            connection, commit_hash=commit, project=project, jobset=jobset, **seen, **narrowed
        )
    elif jobset is not None:
        found = _queries.list_of_jobset(connection, jobset=jobset, **narrowed)
    elif project is not None:
        found = _queries.list_of_project(connection, project=project, **narrowed)
    else:
        found = _queries.list_newest(connection, **seen, **narrowed)
    rows: list[Any] = [dict(row) async for row in found]
    return rows


async def fetch(connection: Connection, reader: Reader, word: str) -> Evaluation:
    """The evaluation with this number or id.

    Raises:
        NotFoundError: there is none, or the reader may not see it.
    """
    ref = refs.parse(word)
    row = await _queries.fetch(
        connection,
        number=ref.number,
        id=ref.id,
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    if row is None:
        raise NotFoundError(f"no evaluation {word}")
    return cast("Evaluation", dict(row))


async def list_errors(
    connection: Connection, evaluation_id: UUID, *, after: int, page_size: int
) -> list[EvaluationErrorRow]:
    """Attributes that gave no job, in the evaluator's order."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_errors(
            connection, evaluation_id=evaluation_id, after_nr=after, page_size=page_size
        )
    ]
    return rows


async def list_inputs(connection: Connection, evaluation_id: UUID) -> list[ResolvedInputRow]:
    """What each input was resolved to."""
    rows: list[Any] = [
        dict(row) async for row in _queries.list_inputs(connection, evaluation_id=evaluation_id)
    ]
    return rows


async def compare(
    connection: Connection, old_id: UUID, new_id: UUID, *, after: str | None, page_size: int
) -> list[ChangeRow]:
    """Jobs of either evaluation by name, and how they changed."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.compare(
            connection, old_id=old_id, new_id=new_id, after_job=after, page_size=page_size
        )
    ]
    return rows


async def count_changes(connection: Connection, old_id: UUID, new_id: UUID) -> dict[str, int]:
    """How many jobs changed how."""
    return {
        row["change"]: row["jobs"]
        async for row in _queries.count_changes(connection, old_id=old_id, new_id=new_id)
    }


async def find_other(
    connection: Connection,
    *,
    project: str,
    jobset: str,
    before_number: int | None = None,
    before_time: datetime | None = None,
) -> int | None:
    """The number of a jobset's newest completed evaluation before a number or a moment."""
    row = await _queries.find_other(
        connection,
        project=project,
        jobset=jobset,
        before_number=before_number,
        before_time=before_time,
    )
    return None if row is None else row["number"]
