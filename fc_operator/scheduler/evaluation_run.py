"""One claimed evaluation from its checkout to its end; who holds the lease is not known here."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from fc_operator.clients.git import GitCredentials
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import (
    EvaluationError,
    FcError,
    GiveUpError,
    LeaseLostError,
    LimitReachedError,
    NotFoundError,
    PrerequisiteError,
    UnavailableError,
)
from fc_operator.evaluator import key, roots
from fc_operator.evaluator.checkouts import Checkout, CheckoutOrder, Checkouts
from fc_operator.evaluator.find import Evaluators
from fc_operator.evaluator.protocol import Evaluator
from fc_operator.evaluator.requests import Versions
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.model.desired import InputSpec
from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import BuildId, DrvPath, EvaluationId
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.operations.ingest import Ingest
from fc_operator.settings import EvaluationSettings, NixSettings
from fc_operator.store import evaluations
from fc_operator.store.database import Database
from fc_operator.store.evaluations import Claim, Job
from fc_operator.triggers import decisions, inputs, sources

_log = logs.get_logger()
T = TypeVar("T")

ATTEMPTS_MAX = 3
"""Losses of a holder after which an evaluation fails: it may be what kills its holders."""
_PATIENCE = Backoff(base_s=0.1, factor=2, cap_s=2)
_LIMITS = {"time": "TimeLimit", "memory": "MemoryLimit", "output": "OutputLimit"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run needs; the same for all of a process."""

    database: Database
    secrets: Secrets
    ingest: Ingest
    evaluators: Evaluators
    checkouts: Checkouts
    nix: NixSettings
    evaluation: EvaluationSettings
    work_dir: Path
    roots_dir: Path


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
    """Evaluates one claim. Cancelling the task of ``run`` kills its processes."""

    def __init__(self, parts: Parts, claim: Claim) -> None:
        self._parts = parts
        self._claim = claim
        self._evaluator = ""
        self._version = ""
        self._checkout_ms = 0
        self._began_s: float | None = None
        self.end: EvaluationEnd | None = None
        """How it ended, once that is written."""
        self.check_interval_s = 0
        """Of its jobset."""

    @property
    def _fence(self) -> EvaluationFence:
        return self._claim.fence

    @property
    def folder(self) -> Path:
        """Its own; removed at the end, whatever the end was."""
        return self._parts.work_dir / str(self._fence.task_id)

    async def run(self) -> None:
        """Evaluate and write the end.

        Raises:
            LeaseLostError: it went to somebody else; nothing was written.
            PrerequisiteError: it can't be evaluated here now; nothing was written.
            CancelledError: the caller writes the end, see ``end_cancelled``.
        """
        try:
            end = await self._ended()
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True))
        await self.finish(end)

    async def finish(self, end: EvaluationEnd) -> None:
        """Write how it ended; again and again while PostgreSQL does not answer."""
        whole = replace(
            end,
            evaluator=self._evaluator,
            evaluator_version=self._version,
            checkout_ms=self._checkout_ms,
            evaluation_ms=0 if self._began_s is None else _ms_since(self._began_s),
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

    async def _ended(self) -> EvaluationEnd:
        if self._claim.cancel_requested:
            return EvaluationEnd(
                status=EvaluationStatus.CANCELLED, reason=self._claim.status_reason or "Cancelled"
            )
        if self._claim.attempt > ATTEMPTS_MAX:
            return _failed(
                "internal",
                decisions.QUARANTINED,
                f"the process that evaluated it was lost {ATTEMPTS_MAX} times",
            )
        try:
            return await self._evaluated()
        except (LeaseLostError, PrerequisiteError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - every evaluation has an end that can be seen
            _log.exception("scheduler.evaluation_broke", evaluation=str(self._fence.evaluation_id))
            return _failed("internal", "Internal", f"our own error: {error!r}")

    async def _evaluated(self) -> EvaluationEnd:
        parts = self._parts
        job = await insist(self._fetch_job)
        self.check_interval_s = job.check_interval_s
        evaluator = parts.evaluators.current()
        versions = await evaluator.versions()
        self._evaluator, self._version = versions.evaluator, versions.version
        key = key_of(job, versions, store_dir=parts.nix.store_dir)
        if not job.force and await self._reuse(key):
            return EvaluationEnd(status=EvaluationStatus.COMPLETED, reason="Reused")
        began_s = time.monotonic()
        try:
            checkout = await self._checkout(job)
        except (FcError, TimeoutError) as error:
            if isinstance(error, PrerequisiteError | LeaseLostError):
                raise
            return _no_checkout(error, parts.evaluation.fetch_timeout_s)
        finally:
            self._checkout_ms = _ms_since(began_s)
        self._began_s = time.monotonic()
        describing = asyncio.create_task(self._describe(checkout, key))
        try:
            end = await self._stream(evaluator, checkout)
            await describing
        except NotFoundError as error:
            return _no_checkout(error, parts.evaluation.fetch_timeout_s)
        finally:
            checkout.commit.cancel()
            describing.cancel()
            await asyncio.gather(checkout.commit, describing, return_exceptions=True)
        return end

    async def _fetch_job(self) -> Job:
        async with self._parts.database.session() as connection:
            job = await evaluations.fetch_job(connection, self._fence.evaluation_id)
        if job is None:
            raise LeaseLostError("the evaluation is gone")
        return job

    async def _reuse(self, key: str) -> bool:
        """Take the jobs of an equal evaluation if all its derivations are here; no process."""
        parts = self._parts
        equal = await insist(partial(self._fetch_equal, key))
        if equal is None or not await asyncio.to_thread(
            roots.copy,
            parts.roots_dir / str(equal),
            parts.roots_dir / str(self._fence.evaluation_id),
        ):
            return False
        try:
            await insist(partial(parts.ingest.reuse, self._fence, equal))
        except NotFoundError as error:
            _log.info("scheduler.evaluation_not_reused", error=str(error))
            return False
        return True

    async def _fetch_equal(self, key: str) -> EvaluationId | None:
        async with self._parts.database.transaction() as connection:
            equal = await evaluations.fetch_equal(connection, key, self._fence.evaluation_id)
            if equal is not None and not await evaluations.describe_equal(
                connection,
                self._fence,
                equal,
                evaluator=self._evaluator,
                evaluator_version=self._version,
            ):
                raise LeaseLostError("the evaluation went to somebody else")
            return equal

    async def _checkout(self, job: Job) -> Checkout:
        evaluation = self._parts.evaluation

        async def credentials_for(url: str) -> GitCredentials | None:
            return await sources.credentials_for(
                self._parts.secrets,
                namespace=job.namespace,
                secret=job.credentials_secret,
                repository_url=job.repository_url,
                url=url,
            )

        order = CheckoutOrder(
            repository_url=job.repository_url,
            credentials_for=credentials_for,
            commit=job.commit,
            expression=job.expression,
            is_flake=job.is_flake,
            inputs=job.inputs,
            input_urls={
                each.name: inputs.parse_git(each.value).url
                for each in job.inputs
                if each.type == "git"
            },
            builds=await insist(partial(self._builds, job)),
            paths={
                each.name: sources.allowed_path(
                    InputSpec(name=each.name, type=each.type, value=each.value),
                    evaluation.allowed_paths,
                )
                for each in job.inputs
                if each.type == "path" and each.value.startswith("/")
            },
            systems=job.systems,
            allow_import_from_derivation=job.allow_import_from_derivation,
            timeout_s=job.timeout_s or evaluation.timeout_s,
        )
        async with asyncio.timeout(evaluation.fetch_timeout_s):
            return await self._parts.checkouts.make(
                order,
                work_dir=self.folder,
                roots_dir=self._parts.roots_dir / str(self._fence.evaluation_id),
            )

    async def _builds(self, job: Job) -> dict[str, tuple[DrvPath, str]]:
        found: dict[str, tuple[DrvPath, str]] = {}
        wanted = {e.name: e.revision for e in job.inputs if e.type == "build" and e.revision}
        if wanted:
            async with self._parts.database.session() as connection:
                for name, build_id in wanted.items():
                    build = await evaluations.fetch_build_version(
                        connection, BuildId(UUID(build_id))
                    )
                    if build is not None:
                        found[name] = build
        return found

    async def _describe(self, checkout: Checkout, key: str) -> None:
        commit = await checkout.commit
        stored = {
            each.name: each.store_path
            for each in checkout.request.arguments
            if each.store_path is not None
        }

        async def change() -> bool:
            async with self._parts.database.transaction() as connection:
                if stored:
                    await evaluations.set_store_paths(connection, self._fence.evaluation_id, stored)
                return await evaluations.describe(
                    connection,
                    self._fence,
                    tree=commit.tree,
                    subject=commit.subject,
                    author=commit.author,
                    key=key,
                    evaluator=self._evaluator,
                    evaluator_version=self._version,
                    checkout_ms=self._checkout_ms,
                )

        if not await insist(change):
            raise LeaseLostError("the evaluation went to somebody else")

    async def _stream(self, evaluator: Evaluator, checkout: Checkout) -> EvaluationEnd:
        ingest = self._parts.ingest
        try:
            async with aclosing(evaluator.evaluate(checkout.request)) as batches:
                async for batch in batches:
                    await insist(partial(ingest.put, self._fence, batch.rows, batch.errors))
        except EvaluationError as error:
            return _failed("evaluation", "EvaluationFailed", error.message)
        except UnavailableError as error:
            # A full disk, say. Whatever it has told before, the source had no fair try.
            return _failed("internal", "MachineFailed", error.message)
        except LimitReachedError as error:
            return EvaluationEnd(
                status=EvaluationStatus.TIMED_OUT
                if error.limit == "time"
                else EvaluationStatus.FAILED,
                reason=_LIMITS.get(error.limit, "Limit"),
                error_kind="limit",
                message=error.message,
            )
        return EvaluationEnd(status=EvaluationStatus.COMPLETED)


def _failed(kind: str, reason: str, message: str) -> EvaluationEnd:
    return EvaluationEnd(
        status=EvaluationStatus.FAILED, reason=reason, error_kind=kind, message=message
    )


def _no_checkout(error: Exception, timeout_s: float) -> EvaluationEnd:
    if isinstance(error, GiveUpError):
        return _failed("evaluation", "InputInvalid", str(error))
    if isinstance(error, TimeoutError):
        return _failed("fetch", "CheckoutFailed", f"the checkout took longer than {timeout_s} s")
    return _failed("fetch", "CheckoutFailed", str(error))


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


def _ms_since(began_s: float) -> int:
    return round((time.monotonic() - began_s) * 1000)
