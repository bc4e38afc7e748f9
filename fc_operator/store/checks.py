"""Looks at the sources of jobsets: which are due, who has them, what came of it.

A claim is a lease on the jobset's row. What a claim decides is written in one transaction in which
the claim still holds; a claim that was lost comes back when its lease ends.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from fc_operator.model.desired import InputSpec
from fc_operator.model.evaluations import ResolvedInput
from fc_operator.model.ids import (
    BuildId,
    CommitId,
    DrvPath,
    EvaluationId,
    JobsetId,
    Owner,
    ProjectId,
    StorePath,
)
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("checks")


@dataclass(frozen=True, slots=True, kw_only=True)
class DueJobset:
    """A claimed jobset, as it is declared."""

    id: JobsetId
    project_id: ProjectId
    project: str
    name: str
    namespace: str
    repository_url: str
    credentials_secret: str | None
    branch: str | None
    expression: str
    is_flake: bool
    systems: tuple[str, ...]
    allow_import_from_derivation: bool
    state: str
    check_interval_s: int
    reason: str
    """declared, interval, webhook, request or input."""
    requested_commit: CommitId | None
    requested_force: bool
    failures: int
    """Looks in a row that failed."""
    only_build_latest: bool
    inputs: tuple[InputSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LastEvaluation:
    """The newest evaluation of a jobset."""

    id: EvaluationId
    status: EvaluationStatus
    reason: str
    error_kind: str | None
    key: str | None
    commit: CommitId


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldClaim:
    """What may have changed since the claim."""

    must_wait: bool
    """one_at_a_time, and the last evaluation has not ended with all its builds."""
    is_stopped: bool
    is_unchanged: bool
    """Nobody woke the jobset since the claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInput:
    """The build that an input of type build means."""

    id: BuildId
    drv_path: DrvPath
    name: str
    """The derivation's, with version."""
    store_path: StorePath | None


async def next_due_in_s(connection: Connection) -> float | None:
    """Seconds until the next look at a source is due; None when none is."""
    seconds: float | None = await _sql.next_due_in_s(connection)
    return seconds


async def claim_due(
    connection: Connection, owner: Owner, *, lease_s: float, most: int
) -> list[DueJobset]:
    """Claim up to ``most`` due jobsets, requests first."""
    rows = [
        row async for row in _sql.claim_due(connection, owner=owner, lease_s=lease_s, most=most)
    ]
    inputs: dict[UUID, list[InputSpec]] = {row["id"]: [] for row in rows}
    if rows:
        async for row in _sql.list_inputs(connection, jobset_ids=list(inputs)):
            inputs[row["jobset_id"]].append(
                InputSpec(name=row["name"], type=row["input_type"], value=row["value"])
            )
    return [
        DueJobset(
            id=JobsetId(row["id"]),
            project_id=ProjectId(row["project_id"]),
            project=row["project"],
            name=row["name"],
            namespace=row["namespace"],
            repository_url=row["repository_url"],
            credentials_secret=row["credentials_secret"],
            branch=row["branch"],
            expression=row["nix_expression"],
            is_flake=row["flake_mode"],
            systems=tuple(row["systems"]),
            allow_import_from_derivation=row["allow_import_from_derivation"],
            state=row["state"],
            check_interval_s=row["check_interval"],
            reason=row["check_reason"],
            requested_commit=row["requested_commit"],
            requested_force=row["requested_force"],
            failures=row["check_failures"],
            only_build_latest=row["only_build_latest"],
            inputs=tuple(inputs[row["id"]]),
        )
        for row in rows
    ]


async def fetch_build_input(
    connection: Connection, project_id: ProjectId, *, project: str, jobset: str, job: str
) -> BuildInput | None:
    """The newest good build of a job that a jobset of ``project_id`` may use."""
    row = await _sql.fetch_build_input(
        connection, project_id=project_id, project=project, jobset=jobset, job=job
    )
    if row is None:
        return None
    return BuildInput(
        id=BuildId(row["id"]),
        drv_path=DrvPath(row["drv_path"]),
        name=row["nix_name"],
        store_path=row["store_path"],
    )


async def hold_claim(connection: Connection, jobset_id: JobsetId, owner: Owner) -> HeldClaim | None:
    """Lock a claimed jobset until commit; None when the claim went to somebody else."""
    row = await _sql.hold_claim(connection, jobset_id=jobset_id, owner=owner)
    if row is None:
        return None
    return HeldClaim(
        must_wait=row["must_wait"],
        is_stopped=row["is_stopped"],
        is_unchanged=row["is_unchanged"],
    )


async def fetch_last(connection: Connection, jobset_id: JobsetId) -> LastEvaluation | None:
    """The newest evaluation of a jobset, pull requests aside."""
    row = await _sql.fetch_last(connection, jobset_id=jobset_id)
    if row is None:
        return None
    return LastEvaluation(
        id=EvaluationId(row["id"]),
        status=EvaluationStatus(row["status"]),
        reason=row["status_reason"],
        error_kind=row["error_kind"],
        key=row["inputs_hash"],
        commit=CommitId(row["commit_hash"]),
    )


async def insert_evaluation(
    connection: Connection,
    evaluation_id: EvaluationId,
    jobset_id: JobsetId,
    *,
    commit: CommitId,
    key: str,
    trigger: str,
    force: bool,
    branch: str | None,
    inputs: Sequence[ResolvedInput],
) -> bool:
    """Make a pending evaluation with its inputs; false when one of its commit is live already."""
    made = await _sql.insert_evaluation(
        connection,
        id=evaluation_id,
        jobset_id=jobset_id,
        commit_hash=commit,
        inputs_hash=key,
        trigger=trigger,
        force=force,
        branch=branch,
    )
    if made is None:
        return False
    if inputs:
        await _sql.insert_inputs(
            connection,
            evaluation_id=evaluation_id,
            names=[each.name for each in inputs],
            types=[each.type for each in inputs],
            given=[each.value for each in inputs],
            revisions=[each.revision for each in inputs],
            store_paths=[each.store_path for each in inputs],
        )
        await _sql.set_revisions(
            connection,
            jobset_id=jobset_id,
            names=[each.name for each in inputs],
            revisions=[each.revision for each in inputs],
        )
    return True


async def supersede(
    connection: Connection, jobset_id: JobsetId, evaluation_id: EvaluationId
) -> list[EvaluationId]:
    """End the older live evaluations of a jobset; those that run are only asked to end."""
    rows = _sql.supersede(connection, jobset_id=jobset_id, evaluation_id=evaluation_id)
    return [EvaluationId(row["id"]) async for row in rows]


async def release(
    connection: Connection,
    jobset_id: JobsetId,
    owner: Owner,
    *,
    delay_s: float | None,
    commit: CommitId | None,
    is_done: bool,
) -> None:
    """End a look that went well; the next is due after ``delay_s``, or never by itself for None.

    ``is_done`` is false where the look has to come again for the same reason.
    """
    await _sql.release(
        connection,
        jobset_id=jobset_id,
        owner=owner,
        delay_s=delay_s,
        commit=commit,
        is_done=is_done,
    )


async def release_failed(
    connection: Connection,
    owner: Owner,
    failures: Mapping[JobsetId, tuple[str, float, int]],
) -> None:
    """End looks that failed: error, seconds until the next try, failures in a row so far."""
    await _sql.release_failed(
        connection,
        owner=owner,
        jobset_ids=list(failures),
        errors=[error.replace("\0", "") for error, _, _ in failures.values()],
        delays_s=[delay_s for _, delay_s, _ in failures.values()],
        failures=[count for _, _, count in failures.values()],
    )


async def give_back(connection: Connection, owner: Owner) -> None:
    """Give up all claims of a process that stops."""
    await _sql.give_back(connection, owner=owner)


async def give_back_some(
    connection: Connection, owner: Owner, jobset_ids: Sequence[JobsetId]
) -> None:
    """Give up some claims whose looks came to nothing."""
    await _sql.give_back_some(connection, owner=owner, jobset_ids=list(jobset_ids))


async def wake(
    connection: Connection, jobset_ids: Sequence[JobsetId], reason: str
) -> list[JobsetId]:
    """Make jobsets due now; those that exist."""
    rows = _sql.wake(connection, jobset_ids=list(jobset_ids), reason=reason)
    return [JobsetId(row["id"]) async for row in rows]


async def wake_dependents(connection: Connection, build_ids: Collection[BuildId]) -> bool:
    """Make jobsets due that have the job of one of these builds as an input; whether there are any.

    They are not woken for what their last evaluation had already.
    """
    return bool([r async for r in _sql.wake_dependents(connection, build_ids=list(build_ids))])


async def wake_dependents_of_found(connection: Connection, evaluation_id: EvaluationId) -> bool:
    """As ``wake_dependents``, for what an evaluation found valid."""
    rows = _sql.list_wanted_found(connection, evaluation_id=evaluation_id)
    found = [BuildId(row["id"]) async for row in rows]
    return await wake_dependents(connection, found) if found else False


async def request(
    connection: Connection, jobset_id: JobsetId, *, commit: CommitId | None, force: bool
) -> None:
    """Note what a person asked for, and make the jobset due now."""
    await _sql.request(connection, jobset_id=jobset_id, commit=commit, force=force)


async def fetch_stopped(connection: Connection, jobset_id: JobsetId) -> tuple[bool, str]:
    """Whether a jobset exists, and why it is not evaluated (empty: it is)."""
    row = await _sql.fetch_stopped(connection, jobset_id=jobset_id)
    return (False, "") if row is None else (True, row["why"] or "")


async def retry_later(connection: Connection, jobset_id: JobsetId, delay_s: float) -> None:
    """Have another look at a source after ``delay_s``, or sooner if one is due anyway."""
    await _sql.retry_later(connection, jobset_id=jobset_id, delay_s=delay_s)
