"""One look at the sources of some jobsets, from the claim to what came of it.

Everything outside is asked first; the decision is then written in one transaction in which the
claim still holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from fc_operator.clients.git import Git, Mirror
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import FcError, PrerequisiteError
from fc_operator.kit import logs
from fc_operator.model.evaluations import ResolvedInput
from fc_operator.model.ids import CommitId, EvaluationId, Owner, new_uuid
from fc_operator.settings import EvaluationSettings
from fc_operator.store import checks, listener
from fc_operator.store.checks import BuildInput, DueJobset
from fc_operator.store.database import Connection, Database, notify
from fc_operator.triggers import decisions, sources
from fc_operator.triggers.inputs import BuildInputRef
from fc_operator.triggers.sources import Remotes, WaitingForBuild

_log = logs.get_logger()
_BUSY_S = 1.0
"""Until a jobset looks again whose evaluation of the same commit has to end first."""
_ONE_AT_A_TIME_S = 5.0
_SUDDEN = frozenset({"webhook", "request"})
"""Reasons after which somebody waits for what comes of it."""

KeyOf = Callable[[DueJobset, CommitId, Sequence[ResolvedInput]], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Where a jobset's source stands."""

    commit: CommitId
    inputs: tuple[ResolvedInput, ...]
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Why that can't be told; shown on the jobset."""

    error: str
    is_waiting: bool = False
    """It is no error: the jobset waits for a build of another one."""
    is_lack: bool = False
    """It is no fault of the source: this machine has no Nix that works."""


class Checks:
    """Looks at sources for one process. ``key_of`` gives the evaluation key of what was found."""

    def __init__(
        self,
        database: Database,
        *,
        git: Git,
        secrets: Secrets,
        settings: EvaluationSettings,
        key_of: KeyOf,
        owner: Owner,
    ) -> None:
        self._database = database
        self._git = git
        self._secrets = secrets
        self._settings = settings
        self._key_of = key_of
        self._owner = owner
        self._fetches: set[asyncio.Task[Mirror]] = set()

    async def close(self) -> None:
        """End what still runs in the background."""
        running = list(self._fetches)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def look(self, jobsets: Sequence[DueJobset]) -> None:
        """Look at the sources of claimed jobsets; each is written as soon as it is known.

        Raises:
            UnavailableError: PostgreSQL does not answer; the claims come back by themselves.
        """
        remotes = Remotes(self._git, self._secrets)
        try:
            async with asyncio.TaskGroup() as group:
                for jobset in jobsets:
                    group.create_task(self._look_at(jobset, remotes))
        finally:
            await remotes.close()

    def _fetch(self, jobset: DueJobset, remotes: Remotes) -> None:
        """Begin to fetch what somebody says has changed: the mirror then tells where the branch
        stands, and the checkout needs to ask nobody.
        """
        task = remotes.fetch(jobset)
        if task not in self._fetches:
            self._fetches.add(task)
            task.add_done_callback(self._fetched)

    def _fetched(self, task: asyncio.Task[Mirror]) -> None:
        self._fetches.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The look itself, or the checkout, says the same where it is seen.
            _log.debug("triggers.fetch_failed", error=str(error))

    async def _look_at(self, jobset: DueJobset, remotes: Remotes) -> None:
        if jobset.reason in _SUDDEN:
            self._fetch(jobset, remotes)
        found = await self._find(jobset, remotes)
        if isinstance(found, Failed):
            await self._write_failure(jobset, found)
        else:
            await self._database.run(lambda connection: self._write(connection, jobset, found))

    async def _find(self, jobset: DueJobset, remotes: Remotes) -> Found | Failed:
        builds = await self._builds(jobset)

        async def find_build(ref: BuildInputRef) -> BuildInput | None:
            return builds.get(ref)

        try:
            commit = await sources.commit_of(jobset, remotes)
            inputs = await sources.resolve(
                jobset,
                remotes,
                allowed_paths=self._settings.allowed_paths,
                find_build=find_build,
            )
            return Found(
                commit=commit, inputs=inputs, key=await self._key_of(jobset, commit, inputs)
            )
        except WaitingForBuild as waiting:
            return Failed(error=str(waiting), is_waiting=True)
        except FcError as error:
            return Failed(error=str(error), is_lack=isinstance(error, PrerequisiteError))
        except Exception as error:  # noqa: BLE001 - one jobset must not end the looks at the others
            _log.exception("triggers.look_broke", jobset=f"{jobset.project}/{jobset.name}")
            return Failed(error=f"our own error: {error!r}")

    async def _builds(self, jobset: DueJobset) -> dict[BuildInputRef, BuildInput]:
        # Read before anything else is asked, so that an error of PostgreSQL is not taken for one of
        # the source.
        refs = sources.build_refs(jobset)
        found: dict[BuildInputRef, BuildInput] = {}
        if refs:
            async with self._database.session() as connection:
                for ref in refs:
                    build = await checks.fetch_build_input(
                        connection,
                        jobset.project_id,
                        project=ref.project,
                        jobset=ref.jobset,
                        job=ref.job,
                    )
                    if build is not None:
                        found[ref] = build
        return found

    async def _write_failure(self, jobset: DueJobset, failed: Failed) -> None:
        failures = jobset.failures if failed.is_waiting else jobset.failures + 1
        after_s = decisions.after_lack_s if failed.is_lack else decisions.after_error_s
        delay_s = decisions.waiting_s(jobset) if failed.is_waiting else after_s(failures)
        _log.warning(
            "triggers.look_failed",
            jobset=f"{jobset.project}/{jobset.name}",
            error=failed.error,
            retry_in_s=round(delay_s, 1),
        )
        async with self._database.transaction() as connection:
            await checks.release_failed(
                connection, self._owner, {jobset.id: (failed.error, delay_s, failures)}
            )
            await notify(connection, listener.RESOURCES)

    async def _write(self, connection: Connection, jobset: DueJobset, found: Found) -> None:
        held = await checks.hold_claim(connection, jobset.id, self._owner)
        if held is None:
            return
        is_asked = jobset.reason == "request"
        delay_s = decisions.next_look_s(jobset, jitter=self._settings.poll_jitter)
        is_done = True
        if held.must_wait and not is_asked:
            # Its last evaluation began after our claim; the newest commit is taken when it is over.
            delay_s, is_done = _ONE_AT_A_TIME_S, False
        elif not held.is_stopped:
            last = await checks.fetch_last(connection, jobset.id)
            verdict = decisions.decide(jobset, last, commit=found.commit, key=found.key)
            if verdict.evaluate and not await self._start(
                connection, jobset, found, verdict.trigger
            ):
                delay_s, is_done = _BUSY_S, False
        await checks.release(
            connection,
            jobset.id,
            self._owner,
            delay_s=delay_s,
            commit=found.commit,
            is_done=is_done,
        )

    async def _start(
        self, connection: Connection, jobset: DueJobset, found: Found, trigger: str
    ) -> bool:
        """Make the evaluation; false when one of the same commit has to end first."""
        evaluation_id = EvaluationId(new_uuid())

        async def insert() -> bool:
            return await checks.insert_evaluation(
                connection,
                evaluation_id,
                jobset.id,
                commit=found.commit,
                key=found.key,
                trigger=trigger,
                force=jobset.reason == "request" and jobset.requested_force,
                branch=jobset.branch,
                inputs=found.inputs,
            )

        ended: list[EvaluationId] = []
        made = await insert()
        if not made:
            # A live one of this commit is of an older declaration or older inputs.
            ended = await checks.supersede(connection, jobset.id, evaluation_id)
            made = await insert()
        if made and jobset.only_build_latest:
            ended += await checks.supersede(connection, jobset.id, evaluation_id)
        if made or ended:
            changed = [*([evaluation_id] if made else []), *ended]
            await notify(connection, listener.EVALUATIONS)
            await notify(connection, listener.BUILDS, ",".join(map(str, changed)))
        if made:
            _log.info(
                "triggers.evaluation_due",
                jobset=f"{jobset.project}/{jobset.name}",
                commit=found.commit,
                trigger=trigger,
                evaluation=str(evaluation_id),
            )
        return made
