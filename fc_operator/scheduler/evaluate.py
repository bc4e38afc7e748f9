"""Two duties: looking at the sources of jobsets, and evaluating what became due.

Both claim by lease, so several schedulers may run. What they do with a claim stands in ``triggers``
and ``scheduler.evaluation_run``; where an evaluation runs is a ``Stream``'s to know.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from fc_operator.clients.git import Git
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import LeaseLostError, PrerequisiteError, UnavailableError
from fc_operator.evaluator import key, roots
from fc_operator.evaluator.checkouts import Checkouts
from fc_operator.evaluator.find import Evaluators
from fc_operator.evaluator.requests import Versions
from fc_operator.kit import logs
from fc_operator.kit.lives import Lives
from fc_operator.kit.services import LoopService
from fc_operator.model.evaluations import ResolvedInput
from fc_operator.model.ids import CommitId, Owner, TaskId, new_uuid
from fc_operator.operations.ingest import Ingest
from fc_operator.scheduler.evaluation_local import LocalStream
from fc_operator.scheduler.evaluation_run import InterruptedRun, Parts, Run, Stream
from fc_operator.settings import EvaluationSettings, NixSettings, QueueSettings
from fc_operator.store import checks, evaluations, listener
from fc_operator.store.checks import DueJobset
from fc_operator.store.database import Connection, Database, notify, owner_id
from fc_operator.store.evaluations import Claim
from fc_operator.store.listener import Listener, Subscription
from fc_operator.triggers import decisions
from fc_operator.triggers.checks import Checks

_log = logs.get_logger()

_DUE_S_MIN = 0.01
"""Clocks differ a little: ask again after this, not at once."""
_CHECK_LEASE_S = 180.0
"""Longer than any host may take to answer; a look is not renewed."""
_CHECKS_MOST = 200
_SHUTDOWN = "Shutdown"
_LEASE_LOST = "LeaseLost"
_SWEEP_S = 600.0


class Versioned(Protocol):
    """Who evaluates, here or in a pod: an ``Evaluator``, or a ``Stream``."""

    async def versions(self) -> Versions:
        """Part of the key.

        Raises:
            PrerequisiteError: nothing can be evaluated now.
        """
        ...


class CheckService:
    """Finds due jobsets and looks at their sources, one question per repository.

    Repositories are looked at side by side, so that a slow host delays only its own jobsets.
    ``owner_file`` remembers who looked here before, so that a restart after a crash needs not wait
    for the long lease of a look; it must belong to one process at a time.
    """

    name = "checks"

    def __init__(
        self,
        *,
        database: Database,
        listener: Listener,
        git: Git,
        secrets: Secrets,
        evaluators: Evaluators,
        nix: NixSettings,
        evaluation: EvaluationSettings,
        queue: QueueSettings,
        stream: Versioned | None = None,
        owner: Owner | None = None,
        owner_file: Path | None = None,
    ) -> None:
        """``stream``: who evaluates instead of ``evaluators``, such as a ``PodStream``."""
        self._database = database
        self._listener = listener
        self._evaluators = evaluators
        self._stream = stream
        self._nix = nix
        self._lives = Lives(owner_file)
        self._poll_s = queue.poll_s
        self._owner = owner or Owner(owner_id("checks"))
        self._checks = Checks(
            database,
            git=git,
            secrets=secrets,
            settings=evaluation,
            key_of=self._key_of,
            owner=self._owner,
        )
        self._looks: set[asyncio.Task[None]] = set()
        self._loop = LoopService(self.name, self._run)

    async def start(self) -> None:
        """See ``Service.start``."""
        await self._loop.start()

    async def stop(self) -> None:
        """See ``Service.stop``; claims are given back, so that others need not wait for them."""
        await self._loop.stop()
        await _cancelled(self._looks)
        await self._checks.close()
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(2):
                await self._give_back(self._owner)
                await self._lives.end()

    async def _run(self) -> None:
        # After an error of ours: what this process still has claimed is nobody's work.
        await _cancelled(self._looks)
        for owner in (self._owner, *await self._lives.earlier(self._owner)):
            await self._give_back(Owner(owner))
        await self._lives.begin(self._owner)
        with self._listener.subscribe(listener.JOBSETS) as wakes:
            while True:
                while await self._look(wakes):
                    pass
                await wakes.wait(await self._until_next_s())

    async def _until_next_s(self) -> float:
        """How long nothing is due, at most the poll that makes up for lost wake-ups."""
        async with self._database.session() as connection:
            next_s = await checks.next_due_in_s(connection)
        return self._poll_s if next_s is None else min(self._poll_s, max(next_s, _DUE_S_MIN))

    async def _give_back(self, owner: Owner) -> None:
        async with self._database.transaction() as connection:
            await checks.give_back(connection, owner)

    async def _look(self, wakes: Subscription) -> bool:
        """Claim what is due and look at it in the background; whether there was anything.

        Each look that ends wakes: it tells when the next one is due.
        """
        async with self._database.transaction() as connection:
            due = await checks.claim_due(
                connection, self._owner, lease_s=_CHECK_LEASE_S, most=_CHECKS_MOST
            )
        groups: dict[tuple[str, str, str | None], list[DueJobset]] = defaultdict(list)
        for jobset in due:
            where = (jobset.repository_url, jobset.namespace, jobset.credentials_secret)
            groups[where].append(jobset)
        for group in groups.values():
            task = asyncio.create_task(self._look_at(group), name="check")
            self._looks.add(task)
            task.add_done_callback(self._looks.discard)
            task.add_done_callback(lambda _: wakes.wake())
        return bool(due)

    async def _look_at(self, jobsets: Sequence[DueJobset]) -> None:
        try:
            await self._checks.look(jobsets)
        except* UnavailableError as errors:
            # The claims come back when their lease ends, or when this service starts again.
            _log.warning("scheduler.look_lost", error=str(errors.exceptions[0]))
            await self._give_back_soon(jobsets)
        except* Exception as errors:  # noqa: BLE001 - the lease brings these looks back
            _log.exception("scheduler.look_broke", error=repr(errors))

    async def _give_back_soon(self, jobsets: Sequence[DueJobset]) -> None:
        while True:
            await asyncio.sleep(1)
            with contextlib.suppress(UnavailableError, TimeoutError):
                async with self._database.transaction() as connection:
                    await checks.give_back_some(connection, self._owner, [j.id for j in jobsets])
                return

    async def _key_of(
        self, jobset: DueJobset, commit: CommitId, inputs: Sequence[ResolvedInput]
    ) -> str:
        versions = await (self._stream or self._evaluators.current()).versions()
        return key.key_of(
            key.Deciding(
                commit=commit,
                expression=jobset.expression,
                is_flake=jobset.is_flake,
                inputs=inputs,
                systems=jobset.systems,
                allow_import_from_derivation=jobset.allow_import_from_derivation,
                versions=versions,
                store_dir=self._nix.store_dir,
            )
        )


@dataclass(slots=True)
class _Held:
    """An evaluation of ours."""

    claim: Claim
    run: Run
    trusted_until_s: float
    """By our own clock; afterwards somebody else may have it."""
    work: asyncio.Task[None] | None = None
    stop_reason: str = ""
    holder: asyncio.Task[None] | None = field(default=None, repr=False)

    def stop(self, reason: str) -> None:
        """End its work, for the first reason given."""
        if not self.stop_reason and self.work is not None:
            self.stop_reason = reason
            self.work.cancel()


class EvaluationService:
    """Claims pending evaluations and runs several side by side.

    ``work_dir`` is a folder of this service alone: what lies in it at the start is removed.
    ``env`` is our own environment; ``home`` the folder that evaluators take for their home.
    ``stream`` is where evaluations run; on this machine, unless said otherwise.
    """

    name = "evaluations"

    def __init__(
        self,
        *,
        database: Database,
        listener: Listener,
        git: Git,
        secrets: Secrets,
        ingest: Ingest,
        evaluators: Evaluators,
        nix: NixSettings,
        evaluation: EvaluationSettings,
        queue: QueueSettings,
        work_dir: Path,
        env: Mapping[str, str],
        home: Path,
        roots_dir: Path | None = None,
        owner: Owner | None = None,
        stream: Stream | None = None,
    ) -> None:
        self._database = database
        self._listener = listener
        self._evaluation = evaluation
        self._queue = queue
        self._work_dir = work_dir.absolute()
        self._roots_dir = roots_dir or roots.default_dir(env)
        self._owner = owner or Owner(owner_id("evaluations"))
        self._stream = stream or LocalStream(
            database=database,
            secrets=secrets,
            ingest=ingest,
            evaluators=evaluators,
            checkouts=Checkouts(git, env=env, home=home),
            evaluation=evaluation,
            work_dir=self._work_dir,
            roots_dir=self._roots_dir,
        )
        self._parts = Parts(database=database, ingest=ingest, stream=self._stream, nix=nix)
        self._held: dict[TaskId, _Held] = {}
        self._room = asyncio.Event()
        self._is_explained = True
        """Whether waiting evaluations may still say that there is no evaluator."""
        self._pause_until_s = 0.0
        self._loops = [
            LoopService(self.name, self._claim_loop),
            LoopService(f"{self.name}-leases", self._lease_loop),
            LoopService(f"{self.name}-reaper", self._reap_loop),
        ]

    async def start(self) -> None:
        """See ``Service.start``."""
        await asyncio.to_thread(_empty, self._work_dir)
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        """See ``Service.stop``; what runs is killed, given back and not counted as a try."""
        await self._loops[0].stop()
        for held in list(self._held.values()):
            held.stop(_SHUTDOWN)
        holders = [held.holder for held in self._held.values() if held.holder]
        if holders:
            _, late = await asyncio.wait(holders, timeout=4)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for loop in self._loops[1:]:
            await loop.stop()
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(2), self._database.transaction() as connection:
                # A claim that was cut off between its commit and our knowing of it.
                if await evaluations.give_back_owned(connection, self._owner):
                    await notify(connection, listener.EVALUATIONS)

    # Claiming -----------------------------------------------------------------------------------

    async def _claim_loop(self) -> None:
        with self._listener.subscribe(listener.EVALUATIONS) as wakes:
            while True:
                if await self._is_ready():
                    while len(self._held) < self._evaluation.max_parallel and await self._claim():
                        pass
                await self._wait(wakes)
                await self._see_cancels()

    async def _wait(self, wakes: listener.Subscription) -> None:
        self._room.clear()
        waits = {
            asyncio.create_task(wakes.wait(self._queue.poll_s)),
            asyncio.create_task(self._room.wait()),
        }
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(waits)

    async def _is_ready(self) -> bool:
        """Whether there is an evaluator here; if not, all that waits says so."""
        reason = message = ""
        try:
            await self._stream.versions()
        except PrerequisiteError as error:
            reason, message = "PrerequisiteMissing", str(error)
        if reason or self._is_explained:
            async with self._database.transaction() as connection:
                if await evaluations.explain_waiting(connection, reason, message):
                    _log.warning("scheduler.evaluations_wait", reason=reason, error=message)
                    await notify(connection, listener.BUILDS)
            self._is_explained = bool(reason)
        return not reason and time.monotonic() >= self._pause_until_s

    async def _claim(self) -> bool:
        task_id = TaskId(new_uuid())
        asked_s = time.monotonic()

        async def change(connection: Connection) -> Claim | None:
            claim = await evaluations.claim_next(
                connection, self._owner, task_id, lease_s=self._queue.lease_s
            )
            if claim is not None:
                await notify(connection, listener.BUILDS, str(claim.fence.evaluation_id))
            return claim

        claim = await self._database.run(change)
        if claim is None:
            return False
        held = _Held(
            claim=claim,
            run=Run(self._parts, claim),
            trusted_until_s=asked_s + self._queue.lease_s - self._queue.margin_s,
        )
        self._held[task_id] = held
        held.work = asyncio.create_task(held.run.run(), name=f"evaluate {claim.fence}")
        held.holder = asyncio.create_task(self._hold(held), name=f"hold {claim.fence}")
        return True

    # Holding ------------------------------------------------------------------------------------

    async def _hold(self, held: _Held) -> None:
        fence = held.claim.fence
        assert held.work is not None
        try:
            try:
                await held.work
            except asyncio.CancelledError:
                if not held.stop_reason:
                    held.work.cancel()
                    raise
                await self._stopped(held)
            except LeaseLostError:
                _log.warning("scheduler.evaluation_lost", evaluation=str(fence.evaluation_id))
            except InterruptedRun as error:
                _log.warning(
                    "scheduler.evaluation_interrupted",
                    evaluation=str(fence.evaluation_id),
                    reason=error.reason,
                    error=error.message,
                )
                await self._leave(held, is_charged=error.is_charged, reason=error.reason)
            except PrerequisiteError as error:
                # Nothing here can be evaluated; claiming it again at once would end the same way.
                _log.warning("scheduler.evaluation_impossible", error=str(error))
                self._pause_until_s = time.monotonic() + self._queue.poll_s
                await self._leave(held)
        except (LeaseLostError, UnavailableError) as error:
            # Its lease ends by itself, and then it is taken up again.
            _log.warning(
                "scheduler.evaluation_left", evaluation=str(fence.evaluation_id), error=str(error)
            )
        except Exception:  # noqa: BLE001 - one evaluation must not end the service
            _log.exception("scheduler.hold_broke", evaluation=str(fence.evaluation_id))
        finally:
            try:
                # While it still counts as held, so that a stop waits for it.
                await held.run.leave()
            finally:
                self._held.pop(fence.task_id, None)
                self._room.set()
                await self._parts.ingest.forget(fence)
                await self._look_again(held)

    async def _stopped(self, held: _Held) -> None:
        if held.stop_reason == _LEASE_LOST:
            _log.warning(
                "scheduler.evaluation_lease_lost", evaluation=str(held.claim.fence.evaluation_id)
            )
            await self._leave(held)
        elif held.stop_reason == _SHUTDOWN:
            await self._leave(held)
        else:
            await held.run.end_cancelled(held.stop_reason)

    async def _leave(self, held: _Held, *, is_charged: bool = False, reason: str = "") -> None:
        """Let another take it up; the try does not count, unless ``is_charged``."""
        async with self._database.transaction() as connection:
            if await evaluations.give_back(
                connection, held.claim.fence.task_id, is_charged=is_charged, reason=reason
            ):
                await notify(connection, listener.EVALUATIONS)
                await notify(connection, listener.BUILDS, str(held.claim.fence.evaluation_id))

    # Leases -------------------------------------------------------------------------------------

    async def _lease_loop(self) -> None:
        renewed_s = 0.0
        while True:
            await asyncio.sleep(min(1.0, self._queue.heartbeat_s / 2))
            self._stop_untrusted()
            if self._held and time.monotonic() - renewed_s >= self._queue.heartbeat_s:
                renewed_s = time.monotonic()
                await self._renew()

    def _stop_untrusted(self) -> None:
        now_s = time.monotonic()
        for held in list(self._held.values()):
            if now_s >= held.trusted_until_s:
                held.stop(_LEASE_LOST)

    async def _renew(self) -> None:
        asked_s = time.monotonic()
        mine = list(self._held)
        try:
            async with (
                asyncio.timeout(self._queue.heartbeat_s),
                self._database.transaction() as connection,
            ):
                answers = await evaluations.renew(
                    connection, self._owner, mine, lease_s=self._queue.lease_s
                )
        except (UnavailableError, TimeoutError) as error:
            _log.warning("scheduler.renewal_failed", error=str(error))
            return
        for task_id in mine:
            held = self._held.get(task_id)
            if held is None:
                continue
            if task_id not in answers:
                held.stop(_LEASE_LOST)
            elif (reason := answers[task_id]) is not None:
                held.stop(reason)
            else:
                held.trusted_until_s = asked_s + self._queue.lease_s - self._queue.margin_s

    async def _see_cancels(self) -> None:
        if not self._held:
            return
        async with self._database.session() as connection:
            cancels = await evaluations.list_cancels(connection, list(self._held))
        for task_id, reason in cancels.items():
            if held := self._held.get(task_id):
                held.stop(reason)

    # Cleaning up after others -------------------------------------------------------------------

    async def _reap_loop(self) -> None:
        swept_s = -_SWEEP_S
        while True:
            async with self._database.transaction() as connection:
                lost = await evaluations.reap_lost(connection)
                if lost:
                    await notify(connection, listener.EVALUATIONS)
                    ids = ",".join(str(evaluation_id) for evaluation_id, _ in lost)
                    await notify(connection, listener.BUILDS, ids)
            for evaluation_id, attempt in lost:
                _log.warning(
                    "scheduler.evaluation_requeued", evaluation=str(evaluation_id), attempt=attempt
                )
            if time.monotonic() - swept_s >= _SWEEP_S:
                await self._sweep_roots()
                swept_s = time.monotonic()
            await asyncio.sleep(self._queue.poll_s)

    async def _sweep_roots(self) -> None:
        """Let go of derivations that no evaluation keeps any more."""
        there = await asyncio.to_thread(_ids_in, self._roots_dir)
        if there:
            async with self._database.session() as connection:
                kept = await evaluations.list_rooted(connection, there)
            for evaluation_id in there - kept:
                await asyncio.to_thread(roots.drop, self._roots_dir / str(evaluation_id))

    async def _look_again(self, held: _Held) -> None:
        """After a failure that is no fault of the source, have another look, not too soon."""
        end = held.run.end
        if end is None or end.error_kind not in decisions.PASSING:
            return
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with self._database.transaction() as connection:
                await checks.retry_later(
                    connection,
                    held.claim.jobset_id,
                    decisions.after_failed_evaluation_s(held.run.check_interval_s),
                )


async def _cancelled(tasks: Collection[asyncio.Task[Any]]) -> None:
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


def _empty(folder: Path) -> None:
    """Only for us: a build without a sandbox must not read the sources of others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _ids_in(folder: Path) -> set[UUID]:
    found: set[UUID] = set()
    if folder.is_dir():
        for entry in folder.iterdir():
            with contextlib.suppress(ValueError):
                found.add(UUID(entry.name))
    return found
