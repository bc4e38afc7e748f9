"""Writes batches of jobs, steps and edges: COPY where rows are new, set-wise where they may not be.

Lock order, here as everywhere: tasks, steps by id, builds by id, evaluations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import (
    BuildId,
    ClassId,
    DrvPath,
    EvaluationId,
    JobsetId,
    StepId,
    StorePath,
)
from fc_operator.model.jobs import JobError, JobMeta, JobRow
from fc_operator.model.statuses import BuildStatus, EvaluationStatus
from fc_operator.store.database import Connection, Record
from fc_operator.store.queries import load

_sql = load("ingest")

StepClass = tuple[str, tuple[str, ...]]
"""System and sorted features."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What an ingest needs to know about its evaluation."""

    jobset_id: JobsetId
    jobset_timeout_s: int | None
    jobset_max_silent_s: int | None
    previous_id: EvaluationId | None
    """The jobset's completed evaluation before this one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewStep:
    """A row of ``steps``."""

    drv_path: DrvPath
    name: str
    class_id: ClassId
    blockers: int
    priority: int
    timeout_s: int | None
    max_silent_s: int | None
    is_fixed_output: bool
    prefer_local: bool
    build_id: BuildId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExistingStep:
    """A locked row of ``steps``."""

    id: StepId
    drv_path: DrvPath
    status: BuildStatus
    outputs_valid: bool
    finished_age_s: float | None
    root_cause_step_id: StepId | None
    root_cause_drv: DrvPath | None
    is_remembered: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBuild:
    """A row of ``builds``."""

    id: BuildId
    evaluation_id: EvaluationId
    job_name: str
    attr_path: tuple[str, ...]
    nix_name: str
    drv_path: DrvPath
    system: str
    status: BuildStatus
    step_id: StepId | None
    root_cause_step_id: StepId | None = None
    priority: int
    description: str
    homepage: str
    license: str
    maintainers: str
    timeout_s: int | None
    max_silent_s: int | None
    is_channel: bool
    is_aggregate: bool
    constituents: list[str] | None
    is_new: bool
    cached: bool = False
    status_reason: str = ""
    build_output_path: str | None = None
    outputs: dict[str, str] | None = None
    release_name: str | None = None
    warnings: tuple[str, ...] = ()


async def fetch_context(connection: Connection, evaluation_id: EvaluationId) -> Context | None:
    """The context, or None when there is no such evaluation."""
    row = await _sql.fetch_context(connection, evaluation_id=evaluation_id)
    if row is None:
        return None
    return Context(
        jobset_id=JobsetId(row["jobset_id"]),
        jobset_timeout_s=row["timeout_s"],
        jobset_max_silent_s=row["max_silent_s"],
        previous_id=row["previous_id"],
    )


async def hold_fence(connection: Connection, fence: EvaluationFence) -> bool:
    """Whether the fence holds; it then holds until commit."""
    found = await _sql.hold_fence(
        connection, evaluation_id=fence.evaluation_id, task_id=fence.task_id
    )
    return found is not None


async def classes(
    connection: Connection, wanted: Collection[StepClass]
) -> dict[StepClass, ClassId]:
    """Ids of the classes, made where they are missing."""
    systems = [system for system, _ in wanted]
    features = [" ".join(features) for _, features in wanted]
    await _sql.add_classes(connection, systems=systems, features=features)
    return {
        (row["system"], tuple(row["features"].split())): ClassId(row["id"])
        async for row in _sql.list_classes(connection, systems=systems, features=features)
    }


async def lock_steps(
    connection: Connection, drv_paths: Collection[DrvPath], *, shown: bool = False
) -> list[ExistingStep]:
    """Those that exist, locked in the order of their ids; ``shown`` also keeps claims away."""
    query = _sql.lock_shown_steps if shown else _sql.lock_needed_steps
    return [
        ExistingStep(
            id=StepId(row["id"]),
            drv_path=DrvPath(row["drv_path"]),
            status=BuildStatus(row["status"]),
            outputs_valid=row["outputs_valid"],
            finished_age_s=row["finished_age_s"],
            root_cause_step_id=row["root_cause_step_id"],
            root_cause_drv=row["root_cause_drv"],
            is_remembered=row["is_remembered"],
        )
        async for row in query(connection, drv_paths=list(drv_paths))
    ]


async def list_cancelled_steps(
    connection: Connection, drv_paths: Collection[DrvPath]
) -> set[DrvPath]:
    """Those of some steps that ended as cancelled."""
    rows = _sql.list_cancelled_steps(connection, drv_paths=list(drv_paths))
    return {DrvPath(row["drv_path"]) async for row in rows}


async def insert_steps(
    connection: Connection, steps: Sequence[NewStep], jobset_id: JobsetId
) -> dict[DrvPath, tuple[StepId, BuildStatus]]:
    """Id and status of those that were new; the others exist by now."""
    await _sql.prepare_stage(connection)
    await connection.copy_records_to_table(
        "stage_steps",
        columns=[
            *("drv_path", "name", "class_id", "blockers", "priority", "timeout_s"),
            *("max_silent_s", "is_fixed_output", "prefer_local", "build_id"),
        ],
        records=[
            (
                *(s.drv_path, s.name, s.class_id, s.blockers, s.priority, s.timeout_s),
                *(s.max_silent_s, s.is_fixed_output, s.prefer_local, s.build_id),
            )
            for s in steps
        ],
    )
    return {
        DrvPath(row["drv_path"]): (StepId(row["id"]), BuildStatus(row["status"]))
        async for row in _sql.insert_steps(connection, jobset_id=jobset_id)
    }


async def copy_edges(connection: Connection, edges: Sequence[tuple[StepId, StepId]]) -> None:
    """Edges of steps that have none yet: (step, needed step)."""
    await connection.copy_records_to_table(
        "step_edges", columns=["step_id", "needs_step_id"], records=edges
    )


async def copy_outputs(
    connection: Connection, outputs: Sequence[tuple[StepId, str, StorePath | None]]
) -> None:
    """Outputs of steps that have none yet."""
    await connection.copy_records_to_table(
        "step_outputs", columns=["step_id", "name", "path"], records=outputs
    )


async def copy_ready(
    connection: Connection, ready: Sequence[tuple[StepId, ClassId, JobsetId, int]]
) -> None:
    """Steps that can be claimed: (step, class, jobset, priority)."""
    await connection.copy_records_to_table(
        "ready_steps", columns=["step_id", "class_id", "jobset_id", "priority"], records=ready
    )


async def revive_steps(
    connection: Connection,
    steps: Iterable[tuple[StepId, int, int]],
    jobset_id: JobsetId,
) -> None:
    """Ended steps are pending again, without edges: (step, blockers, priority)."""
    rows = sorted(steps)
    ids = [step_id for step_id, _, _ in rows]
    await _sql.revive_steps(
        connection,
        step_ids=ids,
        blockers=[blockers for _, blockers, _ in rows],
        priorities=[priority for _, _, priority in rows],
        jobset_id=jobset_id,
    )
    await _sql.delete_edges(connection, step_ids=ids)


async def set_blockers(connection: Connection, blockers: dict[StepId, int]) -> None:
    """Set the blockers of new steps again."""
    await _sql.set_blockers(connection, step_ids=list(blockers), blockers=list(blockers.values()))


async def list_known_jobs(
    connection: Connection, evaluation_id: EvaluationId, job_names: Sequence[str]
) -> dict[str, BuildId]:
    """Jobs of this evaluation that are written already."""
    return {
        row["job_name"]: BuildId(row["id"])
        async for row in _sql.list_known_jobs(
            connection, evaluation_id=evaluation_id, job_names=job_names
        )
    }


async def list_unchanged(
    connection: Connection, evaluation_id: EvaluationId, jobs: Sequence[tuple[str, DrvPath]]
) -> set[str]:
    """Names of ``jobs`` that had the same derivation in that evaluation."""
    return {
        row["job_name"]
        async for row in _sql.list_unchanged(
            connection,
            evaluation_id=evaluation_id,
            job_names=[name for name, _ in jobs],
            drv_paths=[drv for _, drv in jobs],
        )
    }


_BUILD_COLUMNS = [
    *("id", "evaluation_id", "job_name", "attr_path", "nix_name", "drv_path", "system", "status"),
    *("step_id", "root_cause_step_id", "priority", "description", "homepage", "license"),
    *("maintainers", "timeout_s", "max_silent_s", "is_channel", "is_aggregate", "constituents"),
    *("is_new", "cached", "status_reason", "build_output_path", "outputs", "release_name"),
    *("warnings",),
]
_TIMED_BUILD_COLUMNS = [*_BUILD_COLUMNS, "completed_at"]


async def copy_builds(connection: Connection, builds: Sequence[NewBuild]) -> None:
    """Builds of jobs that are not written yet; what has ended already ended now."""
    live = [_build_record(build) for build in builds if _is_live(build)]
    ended = [build for build in builds if not _is_live(build)]
    if live:
        await connection.copy_records_to_table("builds", columns=_BUILD_COLUMNS, records=live)
    if ended:
        now = await _sql.fetch_now(connection)
        await connection.copy_records_to_table(
            "builds",
            columns=_TIMED_BUILD_COLUMNS,
            records=[(*_build_record(build), now) for build in ended],
        )


def _is_live(build: NewBuild) -> bool:
    return build.status in {BuildStatus.PENDING, BuildStatus.RUNNING}


def _build_record(build: NewBuild) -> tuple[Any, ...]:
    return tuple(getattr(build, name) for name in _BUILD_COLUMNS)


async def raise_steps(
    connection: Connection,
    steps: Iterable[tuple[StepId, int, int | None, int | None]],
    *,
    timeout_s: int,
    max_silent_s: int,
    jobset_id: JobsetId,
) -> int:
    """Give shared steps what one more wants: (step, priority, timeout, silence); how many moved."""
    rows = sorted(steps, key=lambda row: row[0])
    moved = [
        row["id"]
        async for row in _sql.raise_steps(
            connection,
            step_ids=[row[0] for row in rows],
            priorities=[row[1] for row in rows],
            timeouts_s=[row[2] for row in rows],
            max_silents_s=[row[3] for row in rows],
            timeout_s=timeout_s,
            max_silent_s=max_silent_s,
            jobset_id=jobset_id,
        )
    ]
    if moved:
        await _sql.raise_ready(connection, step_ids=moved)
    return len(moved)


async def add_errors(
    connection: Connection, evaluation_id: EvaluationId, errors: Sequence[tuple[JobError, str]]
) -> int:
    """Write errors with the names of their jobs; how many were new."""
    rows: list[Record] = [
        row
        async for row in _sql.add_errors(
            connection,
            evaluation_id=evaluation_id,
            nrs=list(range(1, len(errors) + 1)),
            attr_paths=[orjson.dumps(error.attr_path).decode() for error, _ in errors],
            job_names=[name for _, name in errors],
            messages=[error.message.replace("\0", "") for error, _ in errors],
        )
    ]
    return len(rows)


async def count_batch(
    connection: Connection, evaluation_id: UUID, *, jobs: int, jobs_new: int, errors: int
) -> None:
    """Add to the evaluation's progress."""
    await _sql.count_batch(
        connection, evaluation_id=evaluation_id, jobs=jobs, jobs_new=jobs_new, errors=errors
    )


async def end_evaluation(
    connection: Connection, fence: EvaluationFence, end: EvaluationEnd
) -> None:
    """Write how the evaluator ended, end its task, and note the shot of a one_shot jobset."""
    await _sql.end_evaluation(
        connection,
        evaluation_id=fence.evaluation_id,
        task_id=fence.task_id,
        status=end.status.value,
        status_reason=end.reason,
        error_kind=end.error_kind,
        error_message=end.message.replace("\0", ""),
        evaluator=end.evaluator,
        evaluator_version=end.evaluator_version,
        checkout_ms=end.checkout_ms,
        evaluation_ms=end.evaluation_ms,
    )
    await _sql.end_task(connection, task_id=fence.task_id)
    if end.status is EvaluationStatus.COMPLETED:
        await _sql.note_shot(connection, evaluation_id=fence.evaluation_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenJob:
    """A build of the evaluation at hand."""

    id: BuildId
    job_name: str
    drv_path: DrvPath
    is_step: bool
    """It waits for a step that has not ended well."""


async def list_jobs(connection: Connection, evaluation_id: EvaluationId) -> list[WrittenJob]:
    """All jobs of an evaluation."""
    return [
        WrittenJob(
            id=BuildId(row["id"]),
            job_name=row["job_name"],
            drv_path=DrvPath(row["drv_path"]),
            is_step=bool(row["is_step"]),
        )
        async for row in _sql.list_jobs(connection, evaluation_id=evaluation_id)
    ]


async def copy_constituents(
    connection: Connection, pairs: Iterable[tuple[BuildId, BuildId]]
) -> None:
    """Which jobs aggregates are made of: (aggregate, constituent)."""
    await connection.copy_records_to_table(
        "constituents", columns=["build_id", "constituent_build_id"], records=pairs
    )


async def copy_dependencies(
    connection: Connection, pairs: Iterable[tuple[BuildId, BuildId]]
) -> None:
    """Which jobs need which others directly: (build, needed build)."""
    await connection.copy_records_to_table(
        "build_dependencies", columns=["build_id", "dependency_build_id"], records=pairs
    )


async def list_reusable(
    connection: Connection, evaluation_id: EvaluationId, *, after: str, limit: int
) -> list[JobRow]:
    """Jobs of an ended evaluation as its evaluator told them, by name, from ``after`` on."""
    return [
        _job_row(row)
        async for row in _sql.list_reusable(
            connection, evaluation_id=evaluation_id, after=after, limit=limit
        )
    ]


def _job_row(row: Record) -> JobRow:
    words = row["constituents"] or []
    return JobRow(
        attr_path=tuple(row["attr_path"]),
        name=row["nix_name"],
        system=row["system"],
        drv_path=DrvPath(row["drv_path"]),
        outputs={name: path and StorePath(path) for name, path in (row["outputs"] or {}).items()},
        meta=JobMeta(
            description=row["description"],
            homepage=row["homepage"],
            license=row["license"],
            maintainers=row["maintainers"],
            timeout_s=row["timeout_s"],
            max_silent_s=row["max_silent_s"],
            scheduling_priority=row["priority"],
            is_channel=row["is_channel"],
        ),
        is_aggregate=row["is_aggregate"],
        constituents=tuple(DrvPath(word) for word in words if word.startswith("/")),
        named_constituents=tuple(word for word in words if not word.startswith("/")),
    )


async def list_reusable_errors(
    connection: Connection, evaluation_id: EvaluationId
) -> list[JobError]:
    """Errors of an ended evaluation."""
    return [
        JobError(attr_path=tuple(row["attr_path"]), message=row["message"])
        async for row in _sql.list_reusable_errors(connection, evaluation_id=evaluation_id)
    ]


async def note_reuse(
    connection: Connection, evaluation_id: EvaluationId, source_id: EvaluationId
) -> None:
    """Note whose rows an evaluation has taken over."""
    await _sql.note_reuse(connection, evaluation_id=evaluation_id, source_id=source_id)
