"""The ends of attempts: one transaction from the fence to the announcement.

Fence, result, dependents' blockers, what can be claimed now, builds with products and metrics,
failures travelling on, history, failure cache, shares, evaluations: all or nothing, in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fc_operator.errors import UnavailableError
from fc_operator.kit import logs
from fc_operator.model.ids import BuildId, EvaluationId, StepId
from fc_operator.model.outcomes import Outcome, Retry
from fc_operator.model.statuses import BLOCKING, LIVE, OUTPUTS_VALID, REMEMBERED, BuildStatus
from fc_operator.model.tasks import StepEnded
from fc_operator.operations import builds as build_operations
from fc_operator.queue import retries
from fc_operator.queue.retries import Decision
from fc_operator.settings import BuildSettings
from fc_operator.store import attempts, builds, checks, listener, steps
from fc_operator.store.claims import Lease
from fc_operator.store.database import Connection, Database, notify
from fc_operator.store.steps import HeldStep

_log = logs.get_logger()
_UNWRITABLE = "ResultUnwritable"
_NOT_BUILT = frozenset({"AlreadyValid", "Substituted"})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What an executor told about an attempt, under its fence."""

    lease: Lease
    ended: StepEnded
    phases: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What became of a batch of results."""

    accepted: frozenset[StepId]
    refused: frozenset[StepId]
    """Their attempts went to somebody else; nothing of them was written."""
    ready: tuple[StepId, ...] = ()
    """Steps that can be claimed now."""


async def finish(
    database: Database, results: Sequence[StepResult], settings: BuildSettings
) -> Finished:
    """Write the ends of attempts; results of attempts that are no longer held are refused.

    Raises:
        UnavailableError: nothing is known to be written; give the same results again. What had
            been written after all is refused then.
    """
    failing = [r.lease.step_id for r in results if r.ended.outcome.status in BLOCKING]

    async def change(connection: Connection) -> Finished:
        await steps.lock_around(connection, [r.lease.step_id for r in results], failing)
        held = {step.id: step for step in await steps.list_held(connection, _leases(results))}
        accepted = [r for r in results if r.lease.step_id in held]
        ready: list[StepId] = []
        if accepted:
            decisions = {
                r.lease.step_id: _decide(r, held[r.lease.step_id], settings) for r in accepted
            }
            await attempts.end(connection, [_attempt_end(r) for r in accepted])
            ready = await _write(
                connection,
                held,
                decisions,
                {r.lease.step_id: r for r in accepted},
                settings,
            )
        return Finished(
            accepted=frozenset(held),
            refused=frozenset(r.lease.step_id for r in results) - held.keys(),
            ready=tuple(ready),
        )

    return await database.run(change)


async def finish_each(
    database: Database, results: Sequence[StepResult], settings: BuildSettings
) -> frozenset[StepId]:
    """As ``finish``, but one bad result never stops the others: what can't be written ends as our
    own failure, and if not even that can, its lease runs out and it comes back.

    The steps whose results were refused, since their attempts went to somebody else.

    Raises:
        UnavailableError: nothing is known to be written; give the same results again.
        TimeoutError: as above.
    """
    try:
        return (await finish(database, results, settings)).refused
    except (UnavailableError, TimeoutError):
        raise
    except Exception:  # noqa: BLE001 - one bad result never stops the others
        if len(results) > 1:
            refused: frozenset[StepId] = frozenset()
            for result in results:
                refused |= await finish_each(database, [result], settings)
            return refused
        (result,) = results
        _log.exception("operations.result_unwritable", step_id=result.lease.step_id)
        if result.ended.outcome.reason == _UNWRITABLE:
            return frozenset()
        return await finish_each(database, [_unwritable(result)], settings)


def _unwritable(result: StepResult) -> StepResult:
    """The same end without what it left behind."""
    outcome = Outcome(
        status=BuildStatus.ABORTED,
        retry=Retry.INFRASTRUCTURE,
        reason=_UNWRITABLE,
        message="its result could not be written; see our log",
    )
    return replace(result, ended=replace(result.ended, outcome=outcome), phases=())


async def requeue(database: Database, leases: Sequence[Lease], *, certain: bool = False) -> int:
    """Give back steps whose holder vanished; each comes back once, and too many losses end it.

    ``certain`` says that the holder is known to be gone; otherwise only leases that have run out
    count, for one may have been renewed since it was listed.
    """
    return await _requeue(database, leases, certain=certain, is_counted=True)


async def give_back(database: Database, leases: Sequence[Lease]) -> int:
    """Give back steps that their holder has stopped itself and in order: no loss is counted."""
    return await _requeue(database, leases, certain=True, is_counted=False)


async def _requeue(
    database: Database, leases: Sequence[Lease], *, certain: bool, is_counted: bool
) -> int:
    settings = BuildSettings()

    async def change(connection: Connection) -> int:
        ids = [lease.step_id for lease in leases]
        await steps.lock_around(connection, ids, ids)
        held = {
            step.id: step
            for step in await steps.list_held(connection, leases)
            if certain or step.is_expired
        }
        if held:
            decisions = {
                step.id: retries.decide_lost(
                    infra_failures=step.infra_failures,
                    free_losses=step.free_losses,
                    cancel_requested=step.cancel_requested,
                    is_wanted=step.is_wanted,
                    is_counted=is_counted,
                )
                for step in held.values()
            }
            await attempts.lose(connection, [(step.id, step.attempt) for step in held.values()])
            await _write(connection, held, decisions, {}, settings)
        return len(held)

    return await database.run(change)


async def give_up(
    database: Database,
    step_ids: Sequence[StepId],
    *,
    status: BuildStatus,
    reason: str,
    message: str,
) -> list[StepId]:
    """End steps that wait in the queue and will never run; those that did end.

    Their dependents fail with them.
    """

    async def change(connection: Connection) -> list[StepId]:
        await steps.lock_around(connection, step_ids, step_ids)
        taken = await steps.unqueue(connection, step_ids)
        if not taken:
            return []
        await attempts.lock_builds(connection, taken)
        await steps.end(
            connection,
            [
                steps.StepEnd(step_id=id_, status=status, reason=reason, message=message)
                for id_ in taken
            ],
        )
        ended = await builds.end(
            connection,
            [
                builds.BuildEnd(step_id=id_, status=status, reason=reason, message=message)
                for id_ in taken
            ],
        )
        touched = {e for _, e, _ in ended}
        touched |= await build_operations.fail_dependents(connection, taken)
        if await builds.settle(connection, touched):
            await notify(connection, listener.JOBSETS)
        if touched:
            await notify(connection, listener.BUILDS, ",".join(sorted(map(str, touched))))
        return taken

    return await database.run(change)


async def take_back(database: Database, step_ids: Sequence[StepId]) -> list[BuildId]:
    """Steps that ended through no fault of theirs run again, and what failed with them."""

    async def change(connection: Connection) -> list[BuildId]:
        locked = await steps.lock_restart(connection, step_ids)
        again = [step.id for step in locked if step.status not in LIVE and not step.outputs_valid]
        started = await steps.restart(connection, again, [])
        back = await builds.restart_of_steps(connection, started)
        touched = {build.evaluation_id for build in back}
        await builds.reopen_evaluations(connection, touched)
        failing = await steps.count_blockers(connection, started)
        if failing:
            touched |= await build_operations.fail_dependents(connection, failing)
            if await builds.settle(connection, touched):
                await notify(connection, listener.JOBSETS)
        if touched:
            await notify(connection, listener.BUILDS, ",".join(sorted(map(str, touched))))
        await notify(connection, listener.STEPS)
        return [build.id for build in back]

    return await database.run(change)


def _leases(results: Sequence[StepResult]) -> list[Lease]:
    return [result.lease for result in results]


def _decide(result: StepResult, held: HeldStep, settings: BuildSettings) -> Decision:
    return retries.decide(
        result.ended.outcome,
        infra_failures=held.infra_failures,
        free_losses=held.free_losses,
        max_retries=settings.max_retries,
        backoff=retries.ladder(settings.retry_base_s),
        cancel_requested=held.cancel_requested,
        is_wanted=held.is_wanted,
    )


def _attempt_end(result: StepResult) -> attempts.AttemptEnd:
    return attempts.AttemptEnd(
        step_id=result.lease.step_id,
        attempt=result.lease.attempt,
        outcome=result.ended.outcome,
        log_bytes=result.ended.log_bytes,
        log_lines=result.ended.log_lines,
        phases=result.phases,
    )


async def _write(
    connection: Connection,
    held: dict[StepId, HeldStep],
    decisions: dict[StepId, Decision],
    results: dict[StepId, StepResult],
    settings: BuildSettings,
) -> list[StepId]:
    """Everything that follows from ``decisions``; the steps that can be claimed by it."""
    ends = {id_: d for id_, d in decisions.items() if d.status is not BuildStatus.PENDING}
    again = {id_: d for id_, d in decisions.items() if d.status is BuildStatus.PENDING}
    await steps.release(connection, held.values())
    await attempts.lock_builds(connection, list(held))
    touched: set[EvaluationId] = set()
    ready: list[StepId] = []
    if again:
        touched |= await steps.retry(
            connection,
            [
                steps.StepRetry(
                    step_id=id_,
                    delay_s=d.delay_s,
                    infra_failures=d.infra_failures,
                    free_losses=d.free_losses,
                    reason=d.reason,
                    message=d.message,
                )
                for id_, d in again.items()
            ],
        )
    if ends:
        ended, ready = await _end(connection, held, ends, results, settings)
        touched |= ended
    await attempts.add_build_steps(connection, [(s.id, s.attempt) for s in held.values()])
    await steps.add_usage(
        connection, [(s.jobset_id, s.held_s) for s in held.values() if s.jobset_id is not None]
    )
    settled = await builds.settle(connection, touched) if ends else []
    if touched:
        await notify(connection, listener.BUILDS, ",".join(sorted(map(str, touched))))
    if settled:
        # A one_at_a_time jobset may have waited for this.
        await notify(connection, listener.JOBSETS)
    if ready or any(d.delay_s == 0 for d in again.values()):
        await notify(connection, listener.STEPS)
    return [*ready, *(id_ for id_, d in again.items() if d.delay_s == 0)]


async def _end(
    connection: Connection,
    held: dict[StepId, HeldStep],
    ends: dict[StepId, Decision],
    results: dict[StepId, StepResult],
    settings: BuildSettings,
) -> tuple[set[EvaluationId], list[StepId]]:
    """Final statuses: evaluations whose builds ended by them, and steps that they made ready."""
    harvests = {
        id_: results[id_].ended.outcome.harvest
        for id_, d in ends.items()
        if d.status in OUTPUTS_VALID and id_ in results
    }
    await steps.end(
        connection,
        [
            steps.StepEnd(step_id=id_, status=d.status, reason=d.reason, message=d.message)
            for id_, d in ends.items()
        ],
    )
    outputs = [(id_, output) for id_, h in harvests.items() for output in h.outputs]
    if outputs:
        await steps.set_outputs(connection, outputs)
    ended = await builds.end(
        connection,
        [
            builds.BuildEnd(
                step_id=id_,
                status=d.status,
                reason=d.reason,
                message=d.message,
                harvest=harvests.get(id_),
                cached=d.reason in _NOT_BUILT,
            )
            for id_, d in ends.items()
        ],
    )
    touched = {evaluation_id for _, evaluation_id, _ in ended}
    good = [b for b, _, id_ in ended if ends[id_].status is BuildStatus.SUCCEEDED]
    if good and await checks.wake_dependents(connection, good):
        await notify(connection, listener.JOBSETS)
    # What was only checked blocked nobody and fails nobody.
    counted = {id_: d for id_, d in ends.items() if not held[id_].check_mode}
    well = [id_ for id_, d in counted.items() if d.status in OUTPUTS_VALID]
    ready = await steps.unblock(connection, well) if well else []
    badly = [id_ for id_, d in counted.items() if d.status in BLOCKING]
    if badly:
        touched |= await build_operations.fail_dependents(connection, badly)
        remembered = [id_ for id_ in badly if ends[id_].status in REMEMBERED]
        if remembered:
            await steps.remember_failures(connection, remembered, settings.failure_ttl_s)
    return touched, ready
