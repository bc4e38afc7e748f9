"""Steps: derivations to build, one row each, and how their ends travel through the graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from fc_operator.model.ids import BuildId, EvaluationId, JobsetId, StepId, TaskId
from fc_operator.model.jobs import Derivation
from fc_operator.model.outcomes import OutputInfo
from fc_operator.model.statuses import BuildStatus
from fc_operator.store.claims import Lease
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallout:
    """What came of failures."""

    evaluations: set[EvaluationId]
    """Some of their builds ended by it."""
    forsaken: set[StepId]
    """What the failed dependents waited for besides."""


async def fail_dependents(connection: Connection, step_ids: Collection[StepId]) -> Fallout:
    """All that needs the failed steps fails too."""
    fallout = Fallout(evaluations=set(), forsaken=set())
    async for row in _sql.fail_dependents(connection, step_ids=sorted(step_ids)):
        if row["needs_step_id"] is None:
            fallout.evaluations.add(EvaluationId(row["evaluation_id"]))
        else:
            fallout.forsaken.add(StepId(row["needs_step_id"]))
    return fallout


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
    is_wanted: bool
    """A live build or step waits for it."""
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


async def lock(connection: Connection, step_ids: Collection[StepId]) -> None:
    """Lock steps in the one order of all."""
    await _sql.lock(connection, step_ids=list(step_ids))


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
            is_wanted=row["is_wanted"],
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


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedStep:
    """An ended or live step that a restart is about."""

    id: StepId
    status: BuildStatus
    outputs_valid: bool


async def list_unwanted(
    connection: Connection, step_ids: Collection[StepId]
) -> list[tuple[StepId, BuildStatus]]:
    """Live steps among these that no live build wants, locked."""
    return [
        (StepId(row["id"]), BuildStatus(row["status"]))
        async for row in _sql.list_unwanted(connection, step_ids=list(step_ids))
    ]


async def cancel(
    connection: Connection, step_ids: Collection[StepId], *, reason: str, message: str
) -> set[StepId]:
    """End waiting steps; the steps that they needed, which may be unwanted too by now."""
    return {
        StepId(row["needs_step_id"])
        async for row in _sql.cancel_steps(
            connection, step_ids=list(step_ids), reason=reason, message=message
        )
    }


async def request_cancel(connection: Connection, step_ids: Collection[StepId]) -> list[StepId]:
    """Ask the holders of running steps to stop them."""
    return [
        StepId(row["step_id"])
        async for row in _sql.request_cancel(connection, step_ids=list(step_ids))
    ]


async def withdraw_cancel(connection: Connection, step_ids: Collection[StepId]) -> None:
    """Let running steps go on."""
    await _sql.withdraw_cancel(connection, step_ids=list(step_ids))


async def lock_restart(connection: Connection, step_ids: Collection[StepId]) -> list[LockedStep]:
    """Everything that a restart of these concerns, locked."""
    return [
        LockedStep(
            id=StepId(row["id"]),
            status=BuildStatus(row["status"]),
            outputs_valid=row["outputs_valid"],
        )
        async for row in _sql.lock_restart(connection, step_ids=list(step_ids))
    ]


async def restart(
    connection: Connection, step_ids: Collection[StepId], check: Collection[StepId]
) -> list[StepId]:
    """Ended steps are pending again, ``check`` ones to be compared; failures are forgotten."""
    return [
        StepId(row["id"])
        async for row in _sql.restart_steps(
            connection, step_ids=list(step_ids), check_ids=list(check)
        )
    ]


async def count_blockers(connection: Connection, step_ids: Collection[StepId]) -> list[StepId]:
    """Count blockers afresh and queue what has none; failed steps that are still needed."""
    return [
        StepId(row["id"]) async for row in _sql.count_blockers(connection, step_ids=list(step_ids))
    ]


async def add_check_step(
    connection: Connection,
    derivation: Derivation,
    *,
    jobset_id: JobsetId,
    build_id: BuildId,
) -> StepId:
    """A step, ended well, for a derivation of which the class exists."""
    return StepId(
        await _sql.add_check_step(
            connection,
            drv_path=derivation.drv_path,
            name=derivation.name,
            system=derivation.system,
            features=list(derivation.required_features),
            jobset_id=jobset_id,
            build_id=build_id,
        )
    )


async def bump(connection: Connection, step_ids: Collection[StepId], bump: int) -> list[StepId]:
    """Move steps and all that they wait for to the front; ``bump`` is microseconds since 1970."""
    return [
        StepId(row["id"])
        async for row in _sql.bump_steps(connection, step_ids=list(step_ids), bump=bump)
    ]


async def unqueue(connection: Connection, step_ids: Collection[StepId]) -> list[StepId]:
    """Take waiting steps out of the queue; those that were in it."""
    return [
        StepId(row["step_id"]) async for row in _sql.unqueue(connection, step_ids=list(step_ids))
    ]


def _clean(text: str) -> str:
    # PostgreSQL's text holds no null bytes.
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
