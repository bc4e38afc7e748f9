"""An evaluation in a pod: its work is written down, a pod asked for, its reports taken in order.

The agent in the pod speaks to `fc server`, which keeps what it tells in ``task_reports``; here it
is read and put into the database as the rows of a local evaluator are. The evaluation's lease is
ours: when we die it runs out, the agent is told that its task is over, and another evaluates anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from fc_operator.clients import git_urls
from fc_operator.clients.git import Git
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import (
    FcError,
    InvalidError,
    LeaseLostError,
    PrerequisiteError,
    ProtocolError,
    UnavailableError,
)
from fc_operator.evaluator import endings, rows
from fc_operator.evaluator.requests import Versions
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.kit.ciphers import Cipher
from fc_operator.model import work
from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import EvaluationId, StorePath, TaskId
from fc_operator.model.jobs import JobError, JobRow
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.model.work import (
    BuildInput,
    CheckoutReport,
    Credentials,
    EvaluationReport,
    EvaluationWork,
    GitCredential,
    GitWork,
    NixWork,
)
from fc_operator.operations import tasks as operations
from fc_operator.operations.ingest import Ingest
from fc_operator.scheduler.evaluation_local import fetch_builds
from fc_operator.scheduler.evaluation_run import (
    ATTEMPTS_MAX,
    Account,
    InterruptedRun,
    insist,
)
from fc_operator.settings import EvaluationSettings, GitSettings, KubernetesSettings, QueueSettings
from fc_operator.store import evaluations, listener
from fc_operator.store import tasks as store
from fc_operator.store.database import Database
from fc_operator.store.evaluations import Claim, Job
from fc_operator.store.listener import Listener, Subscription
from fc_operator.store.tasks import Progress
from fc_operator.triggers import inputs, sources

_log = logs.get_logger()
_READ = 4
"""Reports at once; each stands for up to 16 MiB."""
_LEAVE_S = 3.0
_AGAIN = Backoff(base_s=5, factor=3, cap_s=60)
_ENDS = frozenset(
    {
        EvaluationStatus.COMPLETED,
        EvaluationStatus.FAILED,
        EvaluationStatus.CANCELLED,
        EvaluationStatus.TIMED_OUT,
    }
)
_KINDS = frozenset({None, "fetch", "evaluation", "limit", "internal"})


class Launcher(Protocol):
    """Who makes pods: ``scheduler.pods.PodService``."""

    async def launch(self, task_id: TaskId, *, deadline_s: int = 0) -> None:
        """Have a pod made for an evaluation whose work is written.

        Returns once that is intended; what becomes of it is told by the task's row, announced on
        ``listener.TASKS``.

        Raises:
            UnavailableError: nothing is known to be intended.
        """
        ...

    async def dismiss(self, task_id: TaskId) -> None:
        """Delete the pod of a task that is over; raises nothing."""
        ...


class PodStream:
    """See ``evaluation_run.Stream``. ``nix`` is how agents call Nix: ``operations.tasks.nix_work``.

    What an evaluation needs of this machine, paths of its file system, no pod has: such jobsets end
    with a reason that says so.
    """

    def __init__(
        self,
        *,
        database: Database,
        listener: Listener,
        secrets: Secrets,
        cipher: Cipher,
        git: Git,
        ingest: Ingest,
        launcher: Launcher,
        nix: NixWork,
        evaluation: EvaluationSettings,
        kubernetes: KubernetesSettings,
        queue: QueueSettings,
    ) -> None:
        self._database = database
        self._listener = listener
        self._secrets = secrets
        self._cipher = cipher
        self._git = git
        self._ingest = ingest
        self._launcher = launcher
        self._nix = nix
        self._evaluation = evaluation
        self._kubernetes = kubernetes
        self._queue = queue

    async def versions(self) -> Versions:
        """See ``Stream.versions``: the image decides which evaluator there is, and its Nix."""
        return Versions(evaluator="pod", version=self._kubernetes.image)

    async def keep_equal(self, equal: EvaluationId, own: EvaluationId) -> bool:  # noqa: ARG002
        """See ``Stream.keep_equal``: the cache keeps all of it."""
        return True

    async def leave(self, fence: EvaluationFence, *, is_ended: bool) -> None:
        """See ``Stream.leave``. A pod that told its end leaves by itself."""
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                async with self._database.session() as connection:
                    await store.delete_reports(connection, fence.task_id, below=2**31 - 1)
                if not is_ended:
                    await self._launcher.dismiss(fence.task_id)

    async def evaluate(self, claim: Claim, job: Job, account: Account) -> EvaluationEnd:
        """See ``Stream.evaluate``."""
        task_id = claim.fence.task_id
        try:
            order = await self._order(claim.fence, job)
            credentials = await self._credentials(job, order)
        except FcError as error:
            if isinstance(error, PrerequisiteError | LeaseLostError):
                raise
            return endings.of_checkout(error, self._evaluation.fetch_timeout_s)
        await insist(partial(self._write, task_id, order, credentials))
        deadline_s = round(order.timeout_s + order.fetch_timeout_s)
        # Subscribed before there is anything to hear of.
        with self._listener.subscribe(listener.TASKS) as wakes:
            await insist(partial(self._launcher.launch, task_id, deadline_s=deadline_s))
            return await _Reading(self._parts(), claim, account, wakes).run()

    def _parts(self) -> _Parts:
        return _Parts(self._database, self._ingest, self._nix.store_dir, self._queue)

    async def _order(self, fence: EvaluationFence, job: Job) -> EvaluationWork:
        evaluation = self._evaluation
        for each in job.inputs:
            if each.type == "path" and each.value.startswith("/"):
                raise InvalidError(
                    f"input {each.name}: {each.value} is a path of one machine, and pods have none",
                    hint="take a path of the repository, or a git input",
                )
        builds = await insist(partial(fetch_builds, self._database, job))
        return EvaluationWork(
            task_id=fence.task_id,
            evaluation_id=fence.evaluation_id,
            repository_url=job.repository_url,
            commit=job.commit,
            expression=job.expression,
            is_flake=job.is_flake,
            inputs=job.inputs,
            input_urls={
                each.name: inputs.parse_git(each.value).url
                for each in job.inputs
                if each.type == "git"
            },
            builds={
                name: BuildInput(drv_path=drv_path, name=derivation)
                for name, (drv_path, derivation) in builds.items()
            },
            systems=job.systems,
            allow_import_from_derivation=job.allow_import_from_derivation,
            timeout_s=job.timeout_s or evaluation.timeout_s,
            fetch_timeout_s=evaluation.fetch_timeout_s,
            memory_bytes=evaluation.memory_bytes,
            output_bytes=evaluation.output_bytes,
            workers=evaluation.workers,
            max_memory_size_mib=evaluation.max_memory_size_mib,
            git=_git_work(self._git.settings),
            nix=self._nix,
            stop_grace_s=self._kubernetes.stop_grace_s,
        )

    async def _credentials(self, job: Job, order: EvaluationWork) -> bytes | None:
        """What opens the repositories of an evaluation, each for its own URL; sealed for its task.

        Raises:
            FcError: a URL is refused, or the secret is missing, does not fit, or is bound to
                another URL.
        """
        if job.credentials_secret is None:
            return None
        found = []
        for url in dict.fromkeys((order.repository_url, *order.input_urls.values())):
            given = await sources.credentials_for(
                self._secrets,
                namespace=job.namespace,
                secret=job.credentials_secret,
                repository_url=job.repository_url,
                url=url,
            )
            if given is None:
                continue
            asked = self._git.check_url(url)
            if given.url and not git_urls.covers(self._git.check_url(given.url), asked):
                raise InvalidError(
                    f"the secret {given.source} is bound to {given.url}, not to {asked.text}"
                )
            found.append(
                GitCredential(
                    url=url,
                    identity=given.identity,
                    known_hosts=given.known_hosts,
                    username=given.username,
                    password=given.password,
                )
            )
        sealed = Credentials(credentials=tuple(found))
        return operations.seal_credentials(self._cipher, order.task_id, sealed)

    async def _write(
        self, task_id: TaskId, order: EvaluationWork, credentials: bytes | None
    ) -> None:
        async with self._database.transaction() as connection:
            if not await store.set_work(
                connection, task_id, order.to_json(), credentials=credentials
            ):
                progress = await store.fetch_progress(connection, task_id)
                if progress is None or not progress.is_live:
                    raise LeaseLostError("the evaluation went to somebody else")


def _git_work(settings: GitSettings) -> GitWork:
    return GitWork(
        allowed_schemes=settings.allowed_schemes,
        allowed_hosts=settings.allowed_hosts,
        timeout_s=settings.timeout_s,
        max_bytes=settings.max_bytes,
    )


class _Parts:
    """What reading needs; the same for all evaluations."""

    __slots__ = ("database", "ingest", "queue", "silence_s", "store_dir")

    def __init__(
        self, database: Database, ingest: Ingest, store_dir: str, queue: QueueSettings
    ) -> None:
        self.database = database
        self.ingest = ingest
        self.store_dir = store_dir
        self.queue = queue
        self.silence_s = queue.agent_lease_s + queue.heartbeat_s
        """An agent that said nothing for this long is gone, wherever its pod is."""


class _Reading:
    """The reports of one evaluation, from the first to the end."""

    def __init__(self, parts: _Parts, claim: Claim, account: Account, wakes: Subscription) -> None:
        self._parts = parts
        self._claim = claim
        self._fence = claim.fence
        self._account = account
        self._wakes = wakes
        self._next = 0
        self._is_described = False

    async def run(self) -> EvaluationEnd:
        """How it ended.

        Raises:
            LeaseLostError: it went to somebody else.
            InterruptedRun: its pod is gone.
        """
        while True:
            progress, reports = await insist(self._look)
            if progress is None or not progress.is_live:
                raise LeaseLostError("the evaluation went to somebody else")
            if progress.checkout is not None and not self._is_described:
                await self._describe(progress.checkout)
            for seq, payload in reports:
                end = await self._take(payload)
                self._next = seq + 1
                if end is not None:
                    return await self._ended(end)
            if reports:
                continue
            if progress.next_report == self._next:
                given_up = await self._without_pod(progress)
                if given_up is not None:
                    return given_up
            await self._wakes.wait(self._parts.queue.poll_s)

    async def _look(self) -> tuple[Progress | None, list[tuple[int, bytes]]]:
        """How far it is, and what was told since; what was taken before goes.

        In this order: a pod that is over tells nothing more, so with its end all reports are there.
        """
        task_id = self._fence.task_id
        async with self._parts.database.transaction() as connection:
            progress = await store.fetch_progress(connection, task_id)
            if self._next:
                await store.delete_reports(connection, task_id, below=self._next)
            reports = await store.list_reports(connection, task_id, start=self._next, limit=_READ)
        return progress, reports

    async def _take(self, payload: bytes) -> EvaluationReport | None:
        """Put a report into the database; the end, if it was the last one."""
        try:
            told = await asyncio.to_thread(operations.read_report, payload)
            if isinstance(told, EvaluationReport):
                return told
            jobs, errors = _sorted(told, self._parts.store_dir)
        except ProtocolError as error:
            return EvaluationReport(
                status=EvaluationStatus.FAILED,
                reason="AgentBroke",
                error_kind="internal",
                message=error.message,
            )
        await insist(partial(self._parts.ingest.put, self._fence, jobs, errors))
        return None

    async def _ended(self, told: EvaluationReport) -> EvaluationEnd:
        if told.interrupted:
            raise InterruptedRun("AgentStopped", "its pod was told to go", is_charged=False)
        account = self._account
        account.evaluator = _word(told.evaluator) or account.evaluator
        account.version = _word(told.evaluator_version) or account.version
        account.checkout_ms = _ms(told.checkout_ms) or account.checkout_ms
        account.told_ms = _ms(told.evaluation_ms)
        if told.store_paths:
            await insist(partial(self._set_store_paths, told.store_paths))
        if told.status not in _ENDS or told.error_kind not in _KINDS:
            return endings.failed("internal", "AgentBroke", "its agent told an end that is none")
        return EvaluationEnd(
            status=told.status,
            reason=_word(told.reason),
            error_kind=told.error_kind,
            message=rows.clean_message(told.message),
        )

    async def _set_store_paths(self, paths: Mapping[str, StorePath]) -> None:
        inside = {
            name: path
            for name, path in paths.items()
            if path.startswith(f"{self._parts.store_dir}/") and "\0" not in path + name
        }
        async with self._parts.database.transaction() as connection:
            await evaluations.set_store_paths(connection, self._fence.evaluation_id, inside)

    async def _describe(self, data: Mapping[str, Any]) -> None:
        checkout = work.read(CheckoutReport, data)
        account = self._account
        account.checkout_ms = _ms(checkout.ms)

        async def change() -> bool:
            async with self._parts.database.transaction() as connection:
                return await evaluations.describe(
                    connection,
                    self._fence,
                    tree=checkout.tree,
                    subject=checkout.subject,
                    author=checkout.author,
                    key=account.key,
                    evaluator=account.evaluator,
                    evaluator_version=account.version,
                    checkout_ms=account.checkout_ms,
                )

        if not await insist(change):
            raise LeaseLostError("the evaluation went to somebody else")
        if checkout.store_paths:
            await insist(partial(self._set_store_paths, checkout.store_paths))
        self._is_described = True

    # Pods that go before they told the end ------------------------------------------------------

    async def _without_pod(self, progress: Progress) -> EvaluationEnd | None:
        """All that was told is taken: the end where nothing more will come; None to go on.

        Raises:
            InterruptedRun: the pod is gone, and another may fare better.
        """
        if progress.pod_ending is not None:
            return await self._judged(progress.pod_ending)
        if progress.silent_s is not None and progress.silent_s > self._parts.silence_s:
            raise InterruptedRun(
                "AgentSilent",
                f"its agent said nothing for {progress.silent_s:.0f} s",
                is_charged=True,
            )
        return None

    async def _judged(self, ending: Mapping[str, Any]) -> EvaluationEnd:
        reason = _word(str(ending.get("reason") or "PodGone"))
        message = str(ending.get("message") or "")
        if reason in _OWN_LIMITS:
            status, limit = _OWN_LIMITS[reason]
            return EvaluationEnd(status=status, reason=limit, error_kind="limit", message=message)
        if reason in _NOWHERE:
            return endings.failed("internal", reason, message)
        is_charged = ending.get("class") != "Free"
        if is_charged and self._claim.attempt >= ATTEMPTS_MAX:
            return endings.failed("internal", reason, message)
        if ending.get("class") == "Charged":
            # It would likely end so again: not at once. A cancel or a lost lease ends the wait.
            await asyncio.sleep(_AGAIN.delay_s(self._claim.attempt))
        raise InterruptedRun(reason, message, is_charged=is_charged)


_OWN_LIMITS = {
    "OOMKilled": (EvaluationStatus.FAILED, endings.LIMITS["memory"]),
    "StorageExceeded": (EvaluationStatus.FAILED, "StorageLimit"),
    "DeadlineExceeded": (EvaluationStatus.TIMED_OUT, endings.LIMITS["time"]),
}
"""Endings of pods that are limits of the evaluation itself."""
_NOWHERE = frozenset({"TargetNotAllowed", "TemplateNotAllowed"})
"""No pod was asked for: only another declaration, or an administrator, changes that."""


def _sorted(lines: Sequence[object], store_dir: str) -> tuple[list[JobRow], list[JobError]]:
    """Jobs and errors of a report, judged as the lines of any evaluator are.

    Raises:
        ProtocolError: a line is no JSON object.
    """
    jobs: list[JobRow] = []
    errors: list[JobError] = []
    for line in lines:
        if not isinstance(line, dict):
            raise ProtocolError("a row is no JSON object")
        item = rows.parse_row(line, store_dir=store_dir, name_of_root="default")
        if isinstance(item, JobRow):
            jobs.append(item)
        else:
            errors.append(item)
    return jobs, errors


def _word(text: str) -> str:
    """A word for people from an agent, short and harmless."""
    return rows.clean_message(text)[:200]


def _ms(number: int) -> int:
    return max(0, min(number, 2**31 - 1))
