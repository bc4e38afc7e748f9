"""Steps: derivations to build, one row each, and how their ends travel through the graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from fc_operator.model.ids import BuildId, EvaluationId, JobsetId, StepId, TaskId
from fc_operator.model.outcomes import OutputInfo
from fc_operator.model.statuses import BuildStatus
from fc_operator.store.claims import Lease
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("steps")


async def fail_dependents(
    connection: Connection, step_ids: Collection[StepId]
) -> list[tuple[BuildId, EvaluationId]]:
    """All that needs the failed steps fails too; the builds that ended by it."""
    return [
        (BuildId(row["id"]), EvaluationId(row["evaluation_id"]))
        async for row in _sql.fail_dependents(connection, step_ids=sorted(step_ids))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldStep:
    """A step whose attempt is still the one that its holder thinks."""

    id: StepId
    attempt: int
    task_id: TaskId
    infra_failures: int
    free_losses: int
    check_mode: bool
    jobset_id: JobsetId | None
    cancel_requested: bool
    is_expired: bool
    held_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnd:
    """A final status."""

    step_id: StepId
    status: BuildStatus
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRetry:
    """Back to the queue."""

    step_id: StepId
    delay_s: float
    infra_failures: int
    free_losses: int
    reason: str
    message: str


async def lock_around(
    connection: Connection, step_ids: Collection[StepId], failing: Collection[StepId]
) -> None:
    """Lock ending steps, what needs them, and all that the failing ones will take along."""
    await _sql.lock_around(connection, step_ids=list(step_ids), failing_ids=list(failing))


async def list_held(connection: Connection, leases: Sequence[Lease]) -> list[HeldStep]:
    """Those of ``leases`` that hold; the others went to somebody else."""
    return [
        HeldStep(
            id=StepId(row["id"]),
            attempt=row["attempt"],
            task_id=TaskId(row["task_id"]),
            infra_failures=row["infra_failures"],
            free_losses=row["free_losses"],
            check_mode=row["check_mode"],
            jobset_id=row["jobset_id"],
            cancel_requested=row["cancel_requested"],
            is_expired=row["is_expired"],
            held_s=row["held_s"],
        )
        async for row in _sql.list_held(
            connection,
            step_ids=[lease.step_id for lease in leases],
            attempts=[lease.attempt for lease in leases],
            task_ids=[lease.task_id for lease in leases],
        )
    ]


async def release(connection: Connection, held: Collection[HeldStep]) -> None:
    """Delete the leases, and end the tasks that were all for them."""
    await _sql.delete_leases(connection, step_ids=[step.id for step in held])
    await _sql.end_tasks(connection, task_ids=sorted({step.task_id for step in held}))


async def end(connection: Connection, ends: Sequence[StepEnd]) -> None:
    """Write final statuses."""
    await _sql.end_steps(
        connection,
        step_ids=[end.step_id for end in ends],
        statuses=[end.status.value for end in ends],
        reasons=[end.reason for end in ends],
        messages=[_clean(end.message) for end in ends],
    )


async def retry(connection: Connection, retries: Sequence[StepRetry]) -> set[EvaluationId]:
    """Queue steps again, or let them wait first; evaluations whose builds show it."""
    return {
        EvaluationId(row["evaluation_id"])
        async for row in _sql.retry_steps(
            connection,
            step_ids=[r.step_id for r in retries],
            delays_s=[r.delay_s for r in retries],
            infra_failures=[r.infra_failures for r in retries],
            free_losses=[r.free_losses for r in retries],
            reasons=[r.reason for r in retries],
            messages=[_clean(r.message) for r in retries],
        )
    }


async def queue_due(connection: Connection) -> list[StepId]:
    """Queue the steps whose backoff is over."""
    return [StepId(row["step_id"]) async for row in _sql.queue_due(connection)]


async def unblock(connection: Connection, step_ids: Collection[StepId]) -> list[StepId]:
    """Steps have ended well; those that can be claimed now because of it."""
    return [
        StepId(row["step_id"]) async for row in _sql.unblock(connection, step_ids=list(step_ids))
    ]


async def set_outputs(connection: Connection, outputs: Iterable[tuple[StepId, OutputInfo]]) -> None:
    """Write what steps made."""
    rows = list(outputs)
    await _sql.set_outputs(
        connection,
        step_ids=[step_id for step_id, _ in rows],
        names=[output.name for _, output in rows],
        paths=[output.path for _, output in rows],
        nar_hashes=[output.nar_hash for _, output in rows],
        nar_sizes=[output.nar_size_bytes for _, output in rows],
    )


async def remember_failures(
    connection: Connection, step_ids: Collection[StepId], ttl_s: float
) -> None:
    """Keep real failures in the failure cache for a while."""
    await _sql.remember_failures(connection, step_ids=list(step_ids), ttl_s=ttl_s)


async def add_usage(connection: Connection, seconds: Sequence[tuple[JobsetId, float]]) -> None:
    """Charge jobsets for what their steps ran."""
    await _sql.add_usage(
        connection,
        jobset_ids=[jobset_id for jobset_id, _ in seconds],
        seconds=[spent for _, spent in seconds],
    )


def _clean(text: str) -> str:
    # PostgreSQL's text holds no null bytes.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
