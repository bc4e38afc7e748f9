"""Claims and leases: who runs which step, until when."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from fc_operator.model.ids import (
    BuilderId,
    ClassId,
    DrvPath,
    EvaluationId,
    JobsetId,
    Owner,
    StepId,
    StorePath,
    TaskId,
)
from fc_operator.store.database import Connection, Record
from fc_operator.store.queries import load

_sql = load("claims")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The ready steps of one class and jobset, by the first of them."""

    class_id: ClassId
    jobset_id: JobsetId
    bump: int
    priority: int
    system: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a jobset had of the builders lately."""

    jobset_id: JobsetId
    shares: int
    used_s: float
    running: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedStep:
    """A step that is ours now, under (id, attempt, task_id)."""

    id: StepId
    attempt: int
    task_id: TaskId
    drv_path: DrvPath
    name: str
    system: str
    features: tuple[str, ...]
    outputs: dict[str, StorePath | None]
    timeout_s: int | None
    max_silent_s: int | None
    check_mode: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One running attempt."""

    step_id: StepId
    attempt: int
    task_id: TaskId


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLease:
    """A lease of ours as the database knows it."""

    step_id: StepId
    attempt: int
    cancel_requested: bool


async def list_waiting(connection: Connection) -> list[Waiting]:
    """All pairs of class and jobset that have ready steps."""
    return [
        Waiting(
            class_id=ClassId(row["class_id"]),
            jobset_id=JobsetId(row["jobset_id"]),
            bump=row["bump"],
            priority=row["priority"],
            system=row["system"],
            features=tuple(row["features"]),
        )
        async for row in _sql.list_waiting(connection)
    ]


async def list_usage(
    connection: Connection, jobset_ids: Collection[JobsetId], window_s: float
) -> list[Usage]:
    """Of those that may run: suspended and deleted jobsets are left out."""
    return [
        Usage(
            jobset_id=JobsetId(row["id"]),
            shares=row["shares"],
            used_s=row["used_s"],
            running=row["running"],
        )
        async for row in _sql.list_usage(connection, jobset_ids=list(jobset_ids), window_s=window_s)
    ]


async def claim(
    connection: Connection,
    quotas: Sequence[tuple[ClassId, JobsetId, int]],
    *,
    task_id: TaskId,
    owner: Owner,
    executor: str,
    lease_s: float,
    builder: str | None = None,
    builder_id: BuilderId | None = None,
) -> tuple[list[ClaimedStep], set[EvaluationId]]:
    """Claim up to the quotas; the steps, and the evaluations whose builds run now.

    ``builder`` is how people know where they run, by default the executor; ``builder_id`` is given
    where it is a declared one.
    """
    steps: list[ClaimedStep] = []
    evaluations: set[EvaluationId] = set()
    async for row in _sql.claim(
        connection,
        task_id=task_id,
        owner=owner,
        executor=executor,
        builder=executor if builder is None else builder,
        builder_id=builder_id,
        lease_s=lease_s,
        class_ids=[class_id for class_id, _, _ in quotas],
        jobset_ids=[jobset_id for _, jobset_id, _ in quotas],
        counts=[count for _, _, count in quotas],
    ):
        evaluations.update(row["evaluation_ids"])
        steps.append(
            ClaimedStep(
                id=StepId(row["id"]),
                attempt=row["attempt"],
                task_id=task_id,
                drv_path=DrvPath(row["drv_path"]),
                name=row["name"],
                system=row["system"],
                features=tuple(row["features"]),
                outputs=row["outputs"] or {},
                timeout_s=row["timeout_s"],
                max_silent_s=row["max_silent_s"],
                check_mode=row["check_mode"],
            )
        )
    return steps, evaluations


async def renew(
    connection: Connection, owner: Owner, step_ids: Collection[StepId], lease_s: float
) -> list[HeldLease]:
    """Renew the leases of some steps; those that are still ours. The rest is lost."""
    return [
        HeldLease(
            step_id=StepId(row["step_id"]),
            attempt=row["attempt"],
            cancel_requested=row["cancel_requested"],
        )
        async for row in _sql.renew(
            connection, owner=owner, step_ids=list(step_ids), lease_s=lease_s
        )
    ]


async def list_cancelled(connection: Connection, owner: Owner) -> list[tuple[StepId, int]]:
    """Running (step, attempt) of ``owner`` that shall stop."""
    return [
        (StepId(row["step_id"]), row["attempt"])
        async for row in _sql.list_cancelled(connection, owner=owner)
    ]


def _lease(row: Any) -> Lease:
    return Lease(
        step_id=StepId(row["step_id"]), attempt=row["attempt"], task_id=TaskId(row["task_id"])
    )


async def list_expired(connection: Connection, limit: int) -> list[Lease]:
    """Leases that were not renewed in time, at most ``limit``."""
    return [_lease(row) async for row in _sql.list_expired(connection, limit=limit)]


async def list_of_owners(connection: Connection, owners: Sequence[Owner]) -> list[Lease]:
    """Leases of processes that are gone for certain."""
    return [_lease(row) async for row in _sql.list_of_owners(connection, owners=owners)]


async def beat(
    connection: Connection, owner: Owner, *, kind: str, host: str, info: dict[str, Any]
) -> None:
    """Say that this process lives and what it offers."""
    await _sql.beat(connection, owner=owner, kind=kind, host=host, info=info)


async def end_beat(connection: Connection, owner: Owner) -> None:
    """Say that it has ended."""
    await _sql.end_beat(connection, owner=owner)


async def fetch_situation(connection: Connection, step_id: StepId) -> Record | None:
    """What stands in the way of a step: a row of the query of that name."""
    row: Record | None = await _sql.fetch_situation(connection, step_id=step_id)
    return row


async def list_blockers(
    connection: Connection, step_id: StepId, limit: int = 5
) -> list[tuple[str, str]]:
    """(name, status) of some steps that a step waits for."""
    return [
        (row["name"], row["status"])
        async for row in _sql.list_blockers(connection, step_id=step_id, limit=limit)
    ]
