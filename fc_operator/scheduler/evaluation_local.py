"""An evaluation on this machine: its checkout, its evaluator, and its rows on their way."""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import aclosing
from functools import partial
from pathlib import Path
from uuid import UUID

from fc_operator.clients.git import GitCredentials
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import (
    EvaluationError,
    FcError,
    LeaseLostError,
    LimitReachedError,
    NotFoundError,
    PrerequisiteError,
    UnavailableError,
)
from fc_operator.evaluator import endings, roots
from fc_operator.evaluator.checkouts import Checkout, CheckoutOrder, Checkouts
from fc_operator.evaluator.find import Evaluators
from fc_operator.evaluator.protocol import Evaluator
from fc_operator.evaluator.requests import Versions
from fc_operator.model.desired import InputSpec
from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import BuildId, DrvPath, EvaluationId
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.operations.ingest import Ingest
from fc_operator.scheduler.evaluation_run import Account, insist, ms_since
from fc_operator.settings import EvaluationSettings
from fc_operator.store import evaluations
from fc_operator.store.database import Database
from fc_operator.store.evaluations import Claim, Job
from fc_operator.triggers import inputs, sources


class LocalStream:
    """See ``evaluation_run.Stream``. ``work_dir`` holds a folder per evaluation, removed at its
    end; ``roots_dir`` one whose links keep what it needs from the collector.
    """

    def __init__(
        self,
        *,
        database: Database,
        secrets: Secrets,
        ingest: Ingest,
        evaluators: Evaluators,
        checkouts: Checkouts,
        evaluation: EvaluationSettings,
        work_dir: Path,
        roots_dir: Path,
    ) -> None:
        self._database = database
        self._secrets = secrets
        self._ingest = ingest
        self._evaluators = evaluators
        self._checkouts = checkouts
        self._evaluation = evaluation
        self._work_dir = work_dir
        self._roots_dir = roots_dir

    async def versions(self) -> Versions:
        """See ``Stream.versions``."""
        return await self._evaluators.current().versions()

    async def keep_equal(self, equal: EvaluationId, own: EvaluationId) -> bool:
        """See ``Stream.keep_equal``."""
        return await asyncio.to_thread(
            roots.copy, self._roots_dir / str(equal), self._roots_dir / str(own)
        )

    async def leave(self, fence: EvaluationFence, *, is_ended: bool) -> None:
        """See ``Stream.leave``; its folder went with the work."""

    def _folder(self, fence: EvaluationFence) -> Path:
        return self._work_dir / str(fence.task_id)

    async def evaluate(self, claim: Claim, job: Job, account: Account) -> EvaluationEnd:
        """See ``Stream.evaluate``."""
        folder = self._folder(claim.fence)
        try:
            return await self._evaluated(claim.fence, job, account)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def _evaluated(self, fence: EvaluationFence, job: Job, account: Account) -> EvaluationEnd:
        evaluator = self._evaluators.current()
        began_s = time.monotonic()
        try:
            checkout = await self._checkout(fence, job)
        except (FcError, TimeoutError) as error:
            if isinstance(error, PrerequisiteError | LeaseLostError):
                raise
            return endings.of_checkout(error, self._evaluation.fetch_timeout_s)
        finally:
            account.checkout_ms = ms_since(began_s)
        account.began_s = time.monotonic()
        describing = asyncio.create_task(self._describe(fence, checkout, account))
        try:
            end = await self._stream(fence, evaluator, checkout)
            await describing
        except NotFoundError as error:
            return endings.of_checkout(error, self._evaluation.fetch_timeout_s)
        finally:
            checkout.commit.cancel()
            describing.cancel()
            await asyncio.gather(checkout.commit, describing, return_exceptions=True)
        return end

    async def _checkout(self, fence: EvaluationFence, job: Job) -> Checkout:
        evaluation = self._evaluation

        async def credentials_for(url: str) -> GitCredentials | None:
            return await sources.credentials_for(
                self._secrets,
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
            builds=await insist(partial(fetch_builds, self._database, job)),
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
            return await self._checkouts.make(
                order,
                work_dir=self._folder(fence),
                roots_dir=self._roots_dir / str(fence.evaluation_id),
            )

    async def _describe(self, fence: EvaluationFence, checkout: Checkout, account: Account) -> None:
        commit = await checkout.commit
        stored = {
            each.name: each.store_path
            for each in checkout.request.arguments
            if each.store_path is not None
        }

        async def change() -> bool:
            async with self._database.transaction() as connection:
                if stored:
                    await evaluations.set_store_paths(connection, fence.evaluation_id, stored)
                return await evaluations.describe(
                    connection,
                    fence,
                    tree=commit.tree,
                    subject=commit.subject,
                    author=commit.author,
                    key=account.key,
                    evaluator=account.evaluator,
                    evaluator_version=account.version,
                    checkout_ms=account.checkout_ms,
                )

        if not await insist(change):
            raise LeaseLostError("the evaluation went to somebody else")

    async def _stream(
        self, fence: EvaluationFence, evaluator: Evaluator, checkout: Checkout
    ) -> EvaluationEnd:
        try:
            async with aclosing(evaluator.evaluate(checkout.request)) as batches:
                async for batch in batches:
                    await insist(partial(self._ingest.put, fence, batch.rows, batch.errors))
        except (EvaluationError, LimitReachedError, UnavailableError) as error:
            return endings.of_evaluator(error)
        return EvaluationEnd(status=EvaluationStatus.COMPLETED)


async def fetch_builds(database: Database, job: Job) -> dict[str, tuple[DrvPath, str]]:
    """What the build inputs of a job stand for: derivation and its name, by name of input."""
    found: dict[str, tuple[DrvPath, str]] = {}
    wanted = {e.name: e.revision for e in job.inputs if e.type == "build" and e.revision}
    if wanted:
        async with database.session() as connection:
            for name, build_id in wanted.items():
                build = await evaluations.fetch_build_version(connection, BuildId(UUID(build_id)))
                if build is not None:
                    found[name] = build
    return found
