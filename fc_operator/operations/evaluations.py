"""What people and forges do to evaluations: ask for one, wake jobsets, cancel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fc_operator.errors import ConflictError, InvalidError, NotFoundError
from fc_operator.model.ids import CommitId, EvaluationId, JobsetId
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.store import audit, checks, evaluations, listener
from fc_operator.store.database import Connection, Database, notify
from fc_operator.triggers import inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """What was asked for; the evaluation itself appears once the source was looked at."""

    jobset_id: JobsetId
    commit: CommitId | None
    force: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """What became of the wish to cancel."""

    evaluation_id: EvaluationId
    status: EvaluationStatus
    """CANCELLED when it is over already; RUNNING while its process is being ended."""


async def request(
    database: Database,
    jobset_id: JobsetId,
    *,
    commit: str | None = None,
    force: bool = False,
    actor: str,
) -> Requested:
    """Evaluate a jobset now; also arms a one_shot again, and does not wait for a one_at_a_time.

    ``commit`` is a whole commit id, None the tip of the branch. ``force`` evaluates although
    nothing changed.

    Raises:
        NotFoundError: there is no such jobset.
        ConflictError: it is disabled, suspended or being deleted.
        InvalidError: ``commit`` is no commit id.
    """
    if commit is not None and not inputs.is_commit(commit):
        raise InvalidError(
            f"{commit[:128]!r} is not a commit id", hint="give all 40 or 64 hex digits, lower case"
        )
    wanted = None if commit is None else CommitId(commit)

    async def change(connection: Connection) -> None:
        exists, why_not = await checks.fetch_stopped(connection, jobset_id)
        if not exists:
            raise NotFoundError("there is no such jobset")
        if why_not:
            raise ConflictError(f"the jobset is not evaluated: {why_not}")
        await checks.request(connection, jobset_id, commit=wanted, force=force)
        await audit.insert(
            connection,
            actor=actor,
            action="evaluate",
            object=f"jobsets/{jobset_id}",
            details={"commit": wanted, "force": force},
        )
        await notify(connection, listener.JOBSETS)

    await database.run(change)
    return Requested(jobset_id=jobset_id, commit=wanted, force=force)


async def wake(
    database: Database, jobset_ids: Sequence[JobsetId], reason: str = "webhook"
) -> list[JobsetId]:
    """Look at the sources of jobsets now; returns those that exist."""

    async def change(connection: Connection) -> list[JobsetId]:
        woken = await checks.wake(connection, sorted(jobset_ids), reason)
        if woken:
            await notify(connection, listener.JOBSETS)
        return woken

    return await database.run(change)


async def cancel(database: Database, evaluation_id: EvaluationId, actor: str) -> Cancelled:
    """End an evaluation: at once if it waits, else its process is killed within a second.

    Builds that it made already are not touched; ``operations.builds`` does that.

    Raises:
        NotFoundError: there is no such evaluation.
        ConflictError: it has ended.
    """

    async def change(connection: Connection) -> EvaluationStatus:
        status = await evaluations.fetch_status(connection, evaluation_id)
        if status is None:
            raise NotFoundError("there is no such evaluation")
        if status is EvaluationStatus.PENDING:
            await evaluations.cancel_pending(connection, evaluation_id)
        elif status is EvaluationStatus.RUNNING:
            await evaluations.cancel_running(connection, evaluation_id)
        else:
            raise ConflictError(f"the evaluation has ended: {status.value}")
        await audit.insert(
            connection,
            actor=actor,
            action="cancel",
            object=f"evaluations/{evaluation_id}",
            details={},
        )
        await notify(connection, listener.EVALUATIONS)
        await notify(connection, listener.BUILDS, str(evaluation_id))
        return EvaluationStatus.CANCELLED if status is EvaluationStatus.PENDING else status

    status = await database.run(change)
    return Cancelled(evaluation_id=evaluation_id, status=status)
