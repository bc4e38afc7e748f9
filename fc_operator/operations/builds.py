"""What people do to builds: cancel, restart, bump, keep. A transaction each, with an audit row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass

from fc_operator.clients.nix import read_derivations
from fc_operator.errors import ConflictError, NotFoundError
from fc_operator.model.ids import BuildId, DrvPath, EvaluationId, StepId
from fc_operator.model.jobs import Derivation
from fc_operator.model.statuses import LIVE, TERMINAL, BuildStatus
from fc_operator.store import audit, builds, ingest, listener, steps
from fc_operator.store.builds import BuildState, ChangedBuild
from fc_operator.store.database import Connection, Database, notify


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What an operation has changed."""

    builds: tuple[BuildId, ...] = ()
    """Those that were asked for and did change; the others were in that state already."""
    also: tuple[BuildId, ...] = ()
    """Others that changed with them."""


async def cancel(
    database: Database,
    build_ids: Collection[BuildId],
    actor: str,
    *,
    reason: str = "Cancelled",
    message: str = "",
) -> Changed:
    """End live builds at once. Their steps stop too, unless another live build wants them.

    Raises:
        NotFoundError: one of them does not exist.
    """

    async def change(connection: Connection) -> Changed:
        await _existing(connection, build_ids)
        cancelled = await cancel_in(
            connection,
            build_ids,
            reason=reason,
            message=message or f"cancelled by {actor}",
        )
        await _audit(connection, actor, "build.cancel", cancelled)
        return Changed(builds=tuple(build.id for build in cancelled))

    return await database.run(change)


async def cancel_in(
    connection: Connection, build_ids: Collection[BuildId], *, reason: str, message: str
) -> list[ChangedBuild]:
    """``cancel`` inside a transaction; the builds that it ended."""
    asked = await builds.list_by_id(connection, build_ids)
    await steps.lock(connection, {b.step_id for b in asked if b.step_id is not None})
    cancelled = await builds.cancel(connection, build_ids, reason=reason, message=message)
    if not cancelled:
        return []
    frontier = {build.step_id for build in cancelled if build.step_id is not None}
    await _drop_unwanted(connection, frontier, reason=reason, message=message)
    await _announce(connection, {build.evaluation_id for build in cancelled}, settle=True)
    return cancelled


async def fail_dependents(
    connection: Connection, step_ids: Collection[StepId]
) -> set[EvaluationId]:
    """All that needs the failed steps fails too; evaluations of builds that ended by it.

    What those waited for besides and nobody else wants is not built any more, as in Hydra; what
    runs already may end. A restart of the failure takes it all back.
    """
    fallout = await steps.fail_dependents(connection, step_ids)
    await drop_forsaken(connection, fallout.forsaken)
    return fallout.evaluations


async def drop_forsaken(connection: Connection, step_ids: Collection[StepId]) -> None:
    """Waiting steps of which what needed them has failed end, unless somebody else wants them."""
    await _drop_unwanted(
        connection, step_ids, reason="Unwanted", message="what needed it has failed", stops=False
    )


async def _drop_unwanted(
    connection: Connection,
    frontier: Collection[StepId],
    *,
    reason: str,
    message: str,
    stops: bool = True,
) -> None:
    """Walk down from steps that somebody wants no more, as far as nobody else does; ``stops`` also
    what runs already.
    """
    stopped: list[StepId] = []
    while frontier:
        # Locked by a statement of its own: the next one then sees who came to want them meanwhile.
        await steps.lock(connection, frontier)
        unwanted = await steps.list_unwanted(connection, frontier)
        running = [id_ for id_, status in unwanted if status is BuildStatus.RUNNING]
        if stops:
            stopped += await steps.request_cancel(connection, running)
        waiting = [id_ for id_, status in unwanted if status is BuildStatus.PENDING]
        frontier = await steps.cancel(connection, waiting, reason=reason, message=message)
    if stopped:
        await notify(connection, listener.CANCELS)


async def cancel_evaluation_builds(
    database: Database, evaluation_id: EvaluationId, actor: str
) -> Changed:
    """Cancel all live builds of an evaluation."""
    async with database.session() as connection:
        live = await builds.list_of_evaluation(connection, evaluation_id, LIVE)
    return await cancel(database, live, actor)


async def restart(database: Database, build_ids: Collection[BuildId], actor: str) -> Changed:
    """Run ended builds again, whatever they ended as.

    What failed because of them comes back too; what they failed because of is tried again. A build
    whose outputs are valid is built once more and compared, which is how ``non_deterministic``
    is found. Old attempts keep their logs.

    Raises:
        NotFoundError: one of them does not exist.
        ConflictError: one was found valid without a step, and its derivation is gone.
    """
    async with database.session() as connection:
        asked = await _existing(connection, build_ids)
    found = await asyncio.to_thread(
        read_derivations, [build.drv_path for build in asked if build.step_id is None]
    )

    async def change(connection: Connection) -> Changed:
        return await _restart(connection, build_ids, found, actor)

    return await database.run(change)


async def _restart(
    connection: Connection,
    build_ids: Collection[BuildId],
    found: dict[DrvPath, Derivation],
    actor: str,
) -> Changed:
    asked = [b for b in await _existing(connection, build_ids) if b.status not in LIVE]
    step_ids = [b.step_id or await _give_step(connection, b, found) for b in asked]
    locked = await steps.lock_restart(connection, step_ids)
    ended = [step for step in locked if step.status not in LIVE]
    check = [step.id for step in ended if step.outputs_valid and step.id in set(step_ids)]
    again = [step.id for step in ended if not step.outputs_valid]
    # Somebody may have been stopping one of them.
    await steps.withdraw_cancel(connection, step_ids)
    started = await steps.restart(connection, again, check)
    changed = await builds.restart(connection, [build.id for build in asked])
    also = await builds.take_back_dependents(connection, again)
    await builds.show_running(connection, [build.id for build in changed])
    touched = {build.evaluation_id for build in (*changed, *also)}
    await builds.reopen_evaluations(connection, touched)
    # What comes back may need something else that has failed: it fails again, by that.
    failing = await steps.count_blockers(connection, started)
    if failing:
        touched |= await fail_dependents(connection, failing)
    await _announce(connection, touched, settle=True)
    if started:
        await notify(connection, listener.STEPS)
    await _audit(connection, actor, "build.restart", changed)
    return Changed(
        builds=tuple(build.id for build in changed), also=tuple(build.id for build in also)
    )


async def _give_step(
    connection: Connection, build: BuildState, found: dict[DrvPath, Derivation]
) -> StepId:
    """A step for a build that was found valid when it was evaluated."""
    derivation = found.get(build.drv_path)
    if derivation is None:
        raise ConflictError(
            f"{build.drv_path} is gone, so build {build.id} can't be run again",
            hint="evaluate its jobset again",
        )
    await ingest.classes(connection, [(derivation.system, derivation.required_features)])
    step_id = await steps.add_check_step(
        connection, derivation, jobset_id=build.jobset_id, build_id=build.id
    )
    await builds.set_step(connection, build.id, step_id)
    return step_id


async def restart_failed(database: Database, evaluation_id: EvaluationId, actor: str) -> Changed:
    """Restart every build of an evaluation that ended in another way than well."""
    return await _restart_of(database, evaluation_id, TERMINAL - {BuildStatus.SUCCEEDED}, actor)


async def restart_aborted(database: Database, evaluation_id: EvaluationId, actor: str) -> Changed:
    """Restart the builds of an evaluation that ended through no fault of theirs."""
    statuses = {BuildStatus.ABORTED, BuildStatus.CANCELLED, BuildStatus.UNSUPPORTED_SYSTEM}
    return await _restart_of(database, evaluation_id, statuses, actor)


async def _restart_of(
    database: Database,
    evaluation_id: EvaluationId,
    statuses: Collection[BuildStatus],
    actor: str,
) -> Changed:
    async with database.session() as connection:
        ended = await builds.list_of_evaluation(connection, evaluation_id, statuses)
    return await restart(database, ended, actor)


async def bump(database: Database, build_ids: Collection[BuildId], actor: str) -> Changed:
    """Let live builds, and all that they wait for, go before everything else.

    Raises:
        NotFoundError: one of them does not exist.
    """

    async def change(connection: Connection) -> Changed:
        asked = await _existing(connection, build_ids)
        # Steps before builds, as everywhere.
        step_ids = [b.step_id for b in asked if b.status in LIVE and b.step_id is not None]
        await steps.bump(connection, step_ids, time.time_ns() // 1000)
        bumped = await builds.bump(connection, build_ids)
        if bumped:
            await notify(connection, listener.STEPS)
            await _announce(connection, {build.evaluation_id for build in bumped})
        await _audit(connection, actor, "build.bump", bumped)
        return Changed(builds=tuple(build.id for build in bumped))

    return await database.run(change)


async def keep(
    database: Database,
    build_id: BuildId,
    keep: bool,  # noqa: FBT001 - it is the new state, not a mode
    actor: str,
) -> Changed:
    """Pin a build, so that nothing of it is ever collected, or let it go.

    Raises:
        NotFoundError: it does not exist.
    """

    async def change(connection: Connection) -> Changed:
        await _existing(connection, [build_id])
        kept = await builds.keep(connection, build_id, keep=keep, actor=actor)
        if kept is None:
            return Changed()
        await _announce(connection, {kept.evaluation_id})
        await _audit(connection, actor, "build.keep" if keep else "build.unkeep", [kept])
        return Changed(builds=(build_id,))

    return await database.run(change)


async def _existing(connection: Connection, build_ids: Collection[BuildId]) -> list[BuildState]:
    found = await builds.list_by_id(connection, build_ids)
    unknown = set(build_ids) - {build.id for build in found}
    if unknown:
        raise NotFoundError(f"no build {min(map(str, unknown))}")
    return found


async def _announce(
    connection: Connection, evaluation_ids: Collection[EvaluationId], *, settle: bool = False
) -> None:
    if settle and await builds.settle(connection, evaluation_ids):
        await notify(connection, listener.JOBSETS)
    if evaluation_ids:
        await notify(connection, listener.BUILDS, ",".join(sorted(map(str, evaluation_ids))))


async def _audit(
    connection: Connection, actor: str, action: str, changed: Collection[ChangedBuild]
) -> None:
    for build in list(changed)[:1]:
        ids = [str(build.id) for build in changed]
        await audit.insert(
            connection,
            actor=actor,
            action=action,
            object=f"builds/{build.id}",
            details={"builds": ids[:1000], "count": len(ids)},
        )
