"""One claimed evaluation to its end; who holds the lease, and where it runs, is not known here.

A ``Stream`` evaluates: on this machine (``evaluation_local``) or in a pod (``evaluation_pods``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from fc_operator.errors import LeaseLostError, NotFoundError, PrerequisiteError, UnavailableError
from fc_operator.evaluator import endings, key
from fc_operator.evaluator.requests import Versions
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import EvaluationId
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.operations.ingest import Ingest
from fc_operator.settings import NixSettings
from fc_operator.store import evaluations, tasks
from fc_operator.store.database import Database
from fc_operator.store.evaluations import Claim, Job
from fc_operator.triggers import decisions

_log = logs.get_logger()
T = TypeVar("T")

ATTEMPTS_MAX = 3
"""Losses of a holder after which an evaluation fails: it may be what kills its holders."""
"""Reasons of evaluations that reached a limit of ours."""
_PATIENCE = Backoff(base_s=0.1, factor=2, cap_s=2)


class InterruptedRun(Exception):  # noqa: N818 - it is no error: the evaluation is taken up again
    """Where it ran is gone; no end is known, and it has to be evaluated again.

    ``is_charged`` counts the try, since what does so again and again is put aside.
    """

    def __init__(self, reason: str, message: str, *, is_charged: bool) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.is_charged = is_charged


@dataclass(slots=True)
class Account:
    """What is noted of a run while it goes, and written with its end, whatever that is."""

    key: str = ""
    evaluator: str = ""
    version: str = ""
    checkout_ms: int = 0
    began_s: float | None = None
    """When the evaluator began, by our own clock."""
    told_ms: int | None = None
    """How long it took, where somebody else measured it."""

    @property
    def evaluation_ms(self) -> int:
        """How long the evaluator took, or takes by now."""
        if self.told_ms is not None:
            return self.told_ms
        return 0 if self.began_s is None else ms_since(self.began_s)


class Stream(Protocol):
    """Where an evaluation runs: from a claim to rows in the database and an end."""

    async def versions(self) -> Versions:
        """Who would evaluate; part of the key.

        Raises:
            PrerequisiteError: nothing can be evaluated now.
        """
        ...

    async def keep_equal(self, equal: EvaluationId, own: EvaluationId) -> bool:
        """Keep what an equal evaluation made for this one too; false where it is gone."""
        ...

    async def evaluate(self, claim: Claim, job: Job, account: Account) -> EvaluationEnd:
        """Evaluate: put all rows into the database, and say how it ended.

        Raises:
            LeaseLostError: it went to somebody else.
            InterruptedRun: where it ran is gone.
            PrerequisiteError: it can't be evaluated here now.
        """
        ...

    async def leave(self, fence: EvaluationFence, *, is_ended: bool) -> None:
        """Clean up behind a claim that is over, whatever its end was; raises nothing.

        ``is_ended`` says that it was evaluated to its end.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run needs; the same for all of a process."""

    database: Database
    ingest: Ingest
    stream: Stream
    nix: NixSettings


def key_of(job: Job, versions: Versions, *, store_dir: str) -> str:
    """The key of what is evaluated now, which may be newer than what made it due."""
    return key.key_of(
        key.Deciding(
            commit=job.commit,
            expression=job.expression,
            is_flake=job.is_flake,
            inputs=job.inputs,
            systems=job.systems,
            allow_import_from_derivation=job.allow_import_from_derivation,
            trust=job.trust,
            versions=versions,
            store_dir=store_dir,
        )
    )


class Run:
    """Evaluates one claim. Cancelling the task of ``run`` stops it, wherever it runs."""

    def __init__(self, parts: Parts, claim: Claim) -> None:
        self._parts = parts
        self._claim = claim
        self._account = Account()
        self._is_ended = False
        self.end: EvaluationEnd | None = None
        """How it ended, once that is written."""
        self.check_interval_s = 0
        """Of its jobset."""

    @property
    def _fence(self) -> EvaluationFence:
        return self._claim.fence

    async def run(self) -> None:
        """Evaluate and write the end.

        Raises:
            LeaseLostError: it went to somebody else; nothing was written.
            InterruptedRun: where it ran is gone; nothing was written.
            PrerequisiteError: it can't be evaluated here now; nothing was written.
            CancelledError: the caller writes the end, see ``end_cancelled``.
        """
        await self.finish(await self._ended())

    async def finish(self, end: EvaluationEnd) -> None:
        """Write how it ended; again and again while PostgreSQL does not answer."""
        account = self._account
        whole = replace(
            end,
            evaluator=account.evaluator,
            evaluator_version=account.version,
            checkout_ms=account.checkout_ms,
            evaluation_ms=account.evaluation_ms,
        )
        await insist(partial(self._parts.ingest.finish, self._fence, whole))
        self.end = whole
        _log.info(
            "scheduler.evaluation_ended",
            evaluation=str(self._fence.evaluation_id),
            status=whole.status.value,
            reason=whole.reason,
            error=whole.message[:500],
            evaluator=whole.evaluator,
            evaluation_ms=whole.evaluation_ms,
        )

    async def end_cancelled(self, reason: str) -> None:
        """Write that it was cancelled, after ``run`` was."""
        message = (
            "a newer evaluation of its jobset took its place" if reason == "Superseded" else ""
        )
        await self.finish(
            EvaluationEnd(status=EvaluationStatus.CANCELLED, reason=reason, message=message)
        )

    async def leave(self) -> None:
        """Clean up, once the claim is over; raises nothing."""
        await self._parts.stream.leave(self._fence, is_ended=self._is_ended)

    async def _ended(self) -> EvaluationEnd:
        if self._claim.cancel_requested:
            return EvaluationEnd(
                status=EvaluationStatus.CANCELLED, reason=self._claim.status_reason or "Cancelled"
            )
        if self._claim.attempt > ATTEMPTS_MAX:
            return endings.failed("internal", decisions.QUARANTINED, await insist(self._why_lost))
        try:
            return await self._evaluated()
        except (LeaseLostError, InterruptedRun, PrerequisiteError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - every evaluation has an end that can be seen
            _log.exception("scheduler.evaluation_broke", evaluation=str(self._fence.evaluation_id))
            return endings.failed("internal", "Internal", f"our own error: {error!r}")

    async def _why_lost(self) -> str:
        async with self._parts.database.session() as connection:
            ending = await tasks.fetch_last_ending(connection, self._fence.evaluation_id)
        if ending is None:
            return f"the process that evaluated it was lost {ATTEMPTS_MAX} times"
        return f"its pod was lost {ATTEMPTS_MAX} times; the last time: {ending.get('message', '')}"

    async def _evaluated(self) -> EvaluationEnd:
        parts, account = self._parts, self._account
        job = await insist(self._fetch_job)
        self.check_interval_s = job.check_interval_s
        versions = await parts.stream.versions()
        account.evaluator, account.version = versions.evaluator, versions.version
        account.key = key_of(job, versions, store_dir=parts.nix.store_dir)
        if not job.force and await self._reuse():
            end = EvaluationEnd(status=EvaluationStatus.COMPLETED, reason="Reused")
        else:
            end = await parts.stream.evaluate(self._claim, job, account)
        self._is_ended = True
        return end

    async def _fetch_job(self) -> Job:
        async with self._parts.database.session() as connection:
            job = await evaluations.fetch_job(connection, self._fence.evaluation_id)
        if job is None:
            raise LeaseLostError("the evaluation is gone")
        return job

    async def _reuse(self) -> bool:
        """Take the jobs of an equal evaluation if all its derivations are here; no process."""
        parts = self._parts
        equal = await insist(self._fetch_equal)
        if equal is None or not await parts.stream.keep_equal(equal, self._fence.evaluation_id):
            return False
        try:
            await insist(partial(parts.ingest.reuse, self._fence, equal))
        except NotFoundError as error:
            _log.info("scheduler.evaluation_not_reused", error=str(error))
            return False
        return True

    async def _fetch_equal(self) -> EvaluationId | None:
        account = self._account
        async with self._parts.database.transaction() as connection:
            equal = await evaluations.fetch_equal(
                connection, account.key, self._fence.evaluation_id
            )
            if equal is not None and not await evaluations.describe_equal(
                connection,
                self._fence,
                equal,
                evaluator=account.evaluator,
                evaluator_version=account.version,
            ):
                raise LeaseLostError("the evaluation went to somebody else")
            return equal


async def insist(work: Callable[[], Awaitable[T]]) -> T:
    """Do something with PostgreSQL or Nix, again while it does not answer.

    There is no end to it: whoever holds the lease ends the whole run when that is lost.
    """
    tries = 0
    while True:
        try:
            return await work()
        except UnavailableError as error:
            tries += 1
            _log.warning("scheduler.evaluation_waits", error=str(error), tries=tries)
            await asyncio.sleep(_PATIENCE.delay_s(tries))


def ms_since(began_s: float) -> int:
    """Milliseconds since ``began_s`` on the monotonic clock."""
    return round((time.monotonic() - began_s) * 1000)
