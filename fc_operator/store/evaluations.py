"""Evaluations as work: claimed under a task with a lease, renewed, given back, reaped, cancelled.

Results are written by ``store.ingest``, behind the fence that a claim makes. Lists for people are
``store.pages``'.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from uuid import UUID

from fc_operator.model.evaluations import EvaluationFence, ResolvedInput
from fc_operator.model.ids import (
    BuildId,
    CommitId,
    DrvPath,
    EvaluationId,
    JobsetId,
    Owner,
    StorePath,
    TaskId,
)
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("evaluations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """An evaluation that is ours as long as its task is live."""

    fence: EvaluationFence
    jobset_id: JobsetId
    attempt: int
    """From 1; more than one means that a holder was lost."""
    cancel_requested: bool
    status_reason: str
    """Why it shall end, where that was asked for before anybody held it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What an evaluation is about: its commit, and its jobset as it is declared now."""

    evaluation_id: EvaluationId
    jobset_id: JobsetId
    project: str
    jobset: str
    commit: CommitId
    key: str | None
    force: bool
    trust: str
    expression: str
    is_flake: bool
    systems: tuple[str, ...]
    allow_import_from_derivation: bool
    timeout_s: int | None
    check_interval_s: int
    failures: int
    namespace: str
    repository_url: str
    credentials_secret: str | None
    inputs: tuple[ResolvedInput, ...]


async def claim_next(
    connection: Connection, owner: Owner, task_id: TaskId, *, lease_s: float
) -> Claim | None:
    """Claim the pending evaluation whose turn it is; None when there is none."""
    row = await _sql.claim_next(connection, owner=owner, task_id=task_id, lease_s=lease_s)
    if row is None:
        return None
    return Claim(
        fence=EvaluationFence(evaluation_id=EvaluationId(row["id"]), task_id=task_id),
        jobset_id=JobsetId(row["jobset_id"]),
        attempt=row["attempt"],
        cancel_requested=row["cancel_requested"],
        status_reason=row["status_reason"],
    )


async def fetch_job(connection: Connection, evaluation_id: EvaluationId) -> Job | None:
    """All about a claimed evaluation; None when it is gone."""
    row = await _sql.fetch_job(connection, evaluation_id=evaluation_id)
    if row is None:
        return None
    inputs = [
        ResolvedInput(
            name=each["name"],
            type=each["input_type"],
            value=each["value"],
            revision=each["revision"],
            store_path=each["store_path"],
        )
        async for each in _sql.list_inputs(connection, evaluation_id=evaluation_id)
    ]
    return Job(
        evaluation_id=evaluation_id,
        jobset_id=JobsetId(row["jobset_id"]),
        project=row["project"],
        jobset=row["jobset"],
        commit=CommitId(row["commit_hash"]),
        key=row["inputs_hash"],
        force=row["force"],
        trust=row["trust"],
        expression=row["nix_expression"],
        is_flake=row["flake_mode"],
        systems=tuple(row["systems"]),
        allow_import_from_derivation=row["allow_import_from_derivation"],
        timeout_s=row["evaluation_timeout_s"],
        check_interval_s=row["check_interval"],
        failures=row["check_failures"],
        namespace=row["namespace"],
        repository_url=row["repository_url"],
        credentials_secret=row["credentials_secret"],
        inputs=tuple(inputs),
    )


async def fetch_build_version(
    connection: Connection, build_id: BuildId
) -> tuple[DrvPath, str] | None:
    """Derivation and its name of a build that is an input; None when it is gone."""
    row = await _sql.fetch_build_version(connection, build_id=build_id)
    return None if row is None else (DrvPath(row["drv_path"]), row["nix_name"])


async def describe(
    connection: Connection,
    fence: EvaluationFence,
    *,
    tree: str,
    subject: str,
    author: str,
    key: str,
    evaluator: str,
    evaluator_version: str,
    checkout_ms: int,
) -> bool:
    """Write what the checkout told and who evaluates; false when the fence no longer holds."""
    row = await _sql.describe(
        connection,
        evaluation_id=fence.evaluation_id,
        task_id=fence.task_id,
        tree_hash=tree,
        subject=subject.replace("\0", ""),
        author=author.replace("\0", ""),
        inputs_hash=key,
        evaluator=evaluator,
        evaluator_version=evaluator_version,
        checkout_ms=checkout_ms,
    )
    return row is not None


async def describe_equal(
    connection: Connection,
    fence: EvaluationFence,
    equal: EvaluationId,
    *,
    evaluator: str,
    evaluator_version: str,
) -> bool:
    """Describe an evaluation by an equal one; false when the fence no longer holds."""
    row = await _sql.describe_equal(
        connection,
        evaluation_id=fence.evaluation_id,
        task_id=fence.task_id,
        equal_id=equal,
        evaluator=evaluator,
        evaluator_version=evaluator_version,
    )
    return row is not None


async def set_store_paths(
    connection: Connection, evaluation_id: EvaluationId, paths: Mapping[str, StorePath]
) -> None:
    """Write where the content of inputs lies, by their names."""
    await _sql.set_store_paths(
        connection,
        evaluation_id=evaluation_id,
        names=list(paths),
        store_paths=list(paths.values()),
    )


async def fetch_equal(
    connection: Connection, key: str, evaluation_id: EvaluationId
) -> EvaluationId | None:
    """Another completed evaluation with the same key."""
    row = await _sql.fetch_equal(connection, key=key, evaluation_id=evaluation_id)
    return None if row is None else EvaluationId(row["id"])


async def renew(
    connection: Connection, owner: Owner, task_ids: Collection[TaskId], *, lease_s: float
) -> dict[TaskId, str | None]:
    """Renew leases. Of each that still is ours: why it shall end, or None if it shall go on."""
    return {
        TaskId(row["id"]): (row["status_reason"] or "Cancelled")
        if row["cancel_requested"]
        else None
        async for row in _sql.renew(
            connection, owner=owner, task_ids=list(task_ids), lease_s=lease_s
        )
    }


async def list_cancels(connection: Connection, task_ids: Collection[TaskId]) -> dict[TaskId, str]:
    """Those of our tasks that shall end, and why."""
    rows = _sql.list_cancels(connection, task_ids=list(task_ids))
    return {TaskId(row["id"]): row["status_reason"] or "Cancelled" async for row in rows}


async def give_back(
    connection: Connection, task_id: TaskId, *, is_charged: bool, reason: str = ""
) -> bool:
    """Make an evaluation of ours pending again; ``is_charged`` counts the try against it.

    ``reason`` says why, where that is no matter of course.
    """
    row = await _sql.give_back(connection, task_id=task_id, is_charged=is_charged, reason=reason)
    return row is not None


async def give_back_owned(connection: Connection, owner: Owner) -> list[EvaluationId]:
    """Give back all that a process holds, without counting the tries."""
    return [EvaluationId(row["id"]) async for row in _sql.give_back_owned(connection, owner=owner)]


async def reap_lost(connection: Connection) -> list[tuple[EvaluationId, int]]:
    """Requeue evaluations whose lease ran out, each loss once; with the attempt that was lost."""
    return [(EvaluationId(row["id"]), row["attempt"]) async for row in _sql.reap_lost(connection)]


async def explain_waiting(connection: Connection, reason: str, message: str) -> int:
    """Say on all waiting evaluations why none is started; how many rows said something else."""
    return len(
        [row async for row in _sql.explain_waiting(connection, reason=reason, message=message)]
    )


async def count_pending(connection: Connection) -> int:
    """How many wait."""
    return int(await _sql.count_pending(connection))


async def fetch_status(
    connection: Connection, evaluation_id: EvaluationId
) -> EvaluationStatus | None:
    """The status, locked until commit; None when there is no such evaluation."""
    row = await _sql.fetch_status(connection, evaluation_id=evaluation_id)
    return None if row is None else EvaluationStatus(row["status"])


async def cancel_pending(connection: Connection, evaluation_id: EvaluationId) -> None:
    """End one that never began."""
    await _sql.cancel_pending(connection, evaluation_id=evaluation_id)


async def cancel_running(connection: Connection, evaluation_id: EvaluationId) -> None:
    """Ask the holder of one that runs to end it."""
    await _sql.cancel_running(connection, evaluation_id=evaluation_id)


async def list_rooted(connection: Connection, evaluation_ids: Collection[UUID]) -> set[UUID]:
    """Those of which the derivations have to be kept from the garbage collector."""
    rows = _sql.list_rooted(connection, evaluation_ids=list(evaluation_ids))
    return {row["id"] async for row in rows}
