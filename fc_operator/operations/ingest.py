"""An evaluation's rows on their way into the database, batch by batch, while the evaluator runs.

A batch is planned outside of any transaction (Nix is asked, .drv files and outputs are read), then
written in one, while the next is planned. Writing the same batch again changes nothing, so a lost
connection is no loss.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fc_operator.clients.nix import Missing
from fc_operator.clients.registrations import describe
from fc_operator.errors import LeaseLostError, NotFoundError
from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import (
    BuildId,
    ClassId,
    DrvPath,
    EvaluationId,
    StepId,
    StorePath,
    new_uuid,
)
from fc_operator.model.jobs import Derivation, JobError, JobRow, dotted
from fc_operator.model.outcomes import Harvest
from fc_operator.model.statuses import LIVE, BuildStatus, EvaluationStatus
from fc_operator.operations import builds as build_operations
from fc_operator.planner import aggregates, placement, plans
from fc_operator.planner.placement import Placement, StepState
from fc_operator.planner.plans import Plan, PlannedJob, PlannedStep, Presence
from fc_operator.results import support
from fc_operator.settings import BuildSettings
from fc_operator.store import builds as builds_store
from fc_operator.store import checks, listener
from fc_operator.store import ingest as store
from fc_operator.store import steps as steps_store
from fc_operator.store.database import Connection, Database, notify

_AGE_MARGIN_S = 1.0
_REUSE_ROWS = 1000


class Knowledge(Protocol):
    """What is known of derivations and outputs: Nix's own store here, or the binary cache."""

    @property
    def store_dir(self) -> str:
        """Folder of the store."""
        ...

    async def missing(self, drv_paths: Iterable[DrvPath]) -> Missing:
        """What must be built or fetched before all outputs of ``drv_paths`` are valid."""
        ...

    async def derivations(self, drv_paths: Collection[DrvPath]) -> Mapping[DrvPath, Derivation]:
        """Facts of those derivations that are here and can be understood."""
        ...

    async def registrations(self, paths: Iterable[str]) -> dict[str, tuple[str, int]]:
        """NAR hash and NAR size of those of ``paths`` whose files can be read here."""
        ...

    async def add_roots(self, paths: Collection[StorePath], link: Path) -> None:
        """Keep ``paths`` from the collector while links named after ``link`` are there."""
        ...

    async def present(self, paths: Collection[str]) -> bool:
        """Whether all ``paths`` are here."""
        ...


@dataclass(slots=True)
class _Session:
    """What is remembered of one evaluation between its batches."""

    fence: EvaluationFence
    context: store.Context
    waiting: _Waiting | None = None
    """The batch that is being written, or has to be again."""
    known: set[DrvPath] = field(default_factory=set)
    """Steps that were planned in earlier batches, that being written among them."""
    classes: dict[store.StepClass, ClassId] = field(default_factory=dict)
    held: dict[str, JobRow] = field(default_factory=dict)
    """Aggregates by name, which have to wait for all other jobs."""
    aggregates: dict[str, tuple[DrvPath, ...]] = field(default_factory=dict)
    """Constituents that were given as derivations, by name of aggregate."""
    forsaken: set[StepId] = field(default_factory=set)
    """Needed by jobs that failed at once; only the end tells whether by others too."""
    seen: set[int] = field(default_factory=set)
    """Hashes of the names of jobs whose inputs are noted."""
    needing: array[int] = field(default_factory=lambda: array("q"))
    needed: array[int] = field(default_factory=lambda: array("q"))
    """Pairs of hashes: the name of a job and the .drv of one of its inputs."""

    def note(self, jobs: Iterable[PlannedJob]) -> None:
        """Keep of written jobs what the end of the evaluation needs, in little memory."""
        for job in jobs:
            row = job.row
            name = hash(row.job_name)
            if row.is_aggregate:
                self.aggregates[row.job_name] = row.constituents
            if name in self.seen:
                continue
            self.seen.add(name)
            for drv in job.needs_jobs:
                self.needing.append(name)
                self.needed.append(hash(drv))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """A planned batch, ready to be written."""

    plan: Plan
    errors: tuple[JobError, ...]
    harvests: dict[int, Harvest]
    """Of jobs that are valid already, by their place in the plan."""
    asked: frozenset[DrvPath]
    asked_at_s: float


@dataclass(slots=True, kw_only=True)
class _Waiting:
    """A batch on its way into the database."""

    rows: Sequence[JobRow]
    errors: Sequence[JobError]
    batch: _Batch
    writing: asyncio.Task[None] | None = None
    """None after a try that failed."""


class _StalePlanError(Exception):
    """A step that was planned in an earlier batch was cancelled since, and is needed after all."""


class Ingest:
    """Writes what evaluations yield. One instance serves all evaluations of a process.

    ``roots_dir`` holds a folder per evaluation whose links keep what it needs from the collector.
    """

    def __init__(
        self, database: Database, knowledge: Knowledge, builds: BuildSettings, *, roots_dir: Path
    ) -> None:
        self._database = database
        self._knowledge = knowledge
        self._builds = builds
        self._roots_dir = roots_dir
        self._sessions: dict[EvaluationId, _Session] = {}

    async def add(
        self, fence: EvaluationFence, rows: Sequence[JobRow], errors: Sequence[JobError]
    ) -> None:
        """As ``put``, and wait until it is written.

        Raises:
            LeaseLostError: the fence no longer holds; nothing was written.
            UnavailableError: PostgreSQL or Nix did not answer; try again.
        """
        await self.put(fence, rows, errors)
        await self._flush(await self._session(fence))

    async def put(
        self, fence: EvaluationFence, rows: Sequence[JobRow], errors: Sequence[JobError]
    ) -> None:
        """Plan one batch while the one before is written, then begin to write it in one
        transaction; from its end on its ready steps can be claimed.

        Batches of one evaluation come one after the other. What went wrong with a batch is told
        when the next one or the end comes. After any error the same call may be made again.

        Raises:
            LeaseLostError: the fence no longer holds; nothing more is written.
            UnavailableError: PostgreSQL or Nix did not answer; try again.
        """
        session = await self._session(fence)
        now = [row for row in _distinct(rows) if not row.named_constituents]
        session.held |= {row.job_name: row for row in rows if row.named_constituents}
        batch = await self._planned(session, now, errors)
        await self._flush(session)
        waiting = _Waiting(rows=now, errors=errors, batch=batch)
        session.waiting = waiting
        session.known |= _planned_in(batch)
        self._begin(session, waiting)

    async def forget(self, fence: EvaluationFence) -> None:
        """Stop writing for a holder that is done or gone; what is written stays."""
        session = self._sessions.get(fence.evaluation_id)
        if session is not None and session.fence == fence:
            self._sessions.pop(fence.evaluation_id)
            await _abandon(session)

    def _begin(self, session: _Session, waiting: _Waiting) -> asyncio.Task[None]:
        waiting.writing = asyncio.create_task(self._write(session, waiting.batch))
        # Its error is told to whoever comes next, if anybody does.
        waiting.writing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return waiting.writing

    async def _flush(self, session: _Session) -> None:
        """Wait until the batch before is written, and help where it could not be."""
        while (waiting := session.waiting) is not None:
            task = waiting.writing or self._begin(session, waiting)
            try:
                await task
            except _StalePlanError:
                waiting.writing = None
                await self._forget_cancelled(session)
                session.known -= _planned_in(waiting.batch)
                waiting.batch = await self._planned(session, waiting.rows, waiting.errors)
                session.known |= _planned_in(waiting.batch)
            except BaseException:
                waiting.writing = None
                raise
            else:
                session.waiting = None

    async def _forget_cancelled(self, session: _Session) -> None:
        async with self._database.session() as connection:
            session.known -= await store.list_cancelled_steps(connection, session.known)

    async def finish(self, fence: EvaluationFence, end: EvaluationEnd) -> None:
        """Write everything that only the end of an evaluation tells.

        Raises:
            LeaseLostError: the fence no longer holds; nothing was written.
            UnavailableError: PostgreSQL or Nix did not answer; try again.
        """
        session = await self._session(fence)
        if end.status is EvaluationStatus.CANCELLED:
            await _abandon(session)
        await self._flush(session)
        completed = end.status is EvaluationStatus.COMPLETED
        last, members = await self._last_batch(fence, session) if completed else (None, {})
        if completed:
            await self._supersede(fence)

        async def change(connection: Connection) -> None:
            woken = False
            await self._hold(connection, fence)
            forsaken = session.forsaken
            if last is not None:
                writing = _Writing(connection, fence.evaluation_id, session, last)
                await writing.run()
                forsaken = forsaken | writing.forsaken
            await build_operations.drop_forsaken(connection, forsaken)
            if completed:
                inputs = list(last.plan.jobs) if last is not None else []
                await _relate(connection, fence.evaluation_id, session, inputs, members)
            woken = await checks.wake_dependents_of_found(connection, fence.evaluation_id)
            await store.end_evaluation(connection, fence, end)
            settled = await builds_store.settle(connection, [fence.evaluation_id])
            await notify(connection, listener.BUILDS, str(fence.evaluation_id))
            if settled or woken:
                await notify(connection, listener.JOBSETS)

        await self._database.run(change)
        self._sessions.pop(fence.evaluation_id, None)

    async def _last_batch(
        self, fence: EvaluationFence, session: _Session
    ) -> tuple[_Batch | None, dict[str, tuple[str, ...]]]:
        """Aggregates by name, planned now that all jobs are known; and their constituents."""
        if not session.held:
            return None, {}
        async with self._database.session() as connection:
            jobs = await store.list_jobs(connection, fence.evaluation_id)
        resolution = aggregates.resolve(
            tuple(session.held.values()), (job.job_name for job in jobs)
        )
        rows = [session.held[name] for name in resolution.constituents]
        drv_of = {job.job_name: job.drv_path for job in jobs}
        drv_of |= {name: row.drv_path for name, row in session.held.items()}
        more_needs: dict[DrvPath, list[DrvPath]] = {}
        for name, members in resolution.constituents.items():
            needs = more_needs.setdefault(session.held[name].drv_path, [])
            needs += [drv_of[member] for member in members]
        batch = await self._planned(
            session,
            rows,
            resolution.errors,
            more_needs=more_needs,
            waiting={job.drv_path for job in jobs if job.is_step},
        )
        await self._add_classes(session, batch.plan.steps)
        return batch, resolution.constituents

    async def _supersede(self, fence: EvaluationFence) -> None:
        """Where only the latest counts, older evaluations of the same stream stop."""

        async def change(connection: Connection) -> None:
            await self._hold(connection, fence)
            older = await builds_store.list_superseded(connection, fence.evaluation_id)
            await build_operations.cancel_in(
                connection, older, reason="Superseded", message="a newer evaluation took its place"
            )
            if await builds_store.supersede_evaluations(connection, fence.evaluation_id):
                await notify(connection, listener.EVALUATIONS)

        await self._database.run(change)

    async def reuse(self, fence: EvaluationFence, source: EvaluationId) -> None:
        """Take over the rows of an ended evaluation whose every input was equal.

        Builds are made anew on shared steps; ``finish`` follows as after any evaluation.

        Raises:
            NotFoundError: some of its derivations are gone; evaluate instead.
            LeaseLostError: the fence no longer holds.
            UnavailableError: PostgreSQL or Nix did not answer; try again.
        """
        async with self._database.session() as connection:
            jobs = await store.list_jobs(connection, source)
            errors = await store.list_reusable_errors(connection, source)
        if not await self._knowledge.present([job.drv_path for job in jobs]):
            raise NotFoundError(f"derivations of evaluation {source} are gone")
        after = ""
        while True:
            async with self._database.session() as connection:
                rows = await store.list_reusable(connection, source, after=after, limit=_REUSE_ROWS)
            await self.put(fence, rows, errors)
            if len(rows) < _REUSE_ROWS:
                break
            after, errors = rows[-1].job_name, []
        await self._flush(await self._session(fence))

        async def change(connection: Connection) -> None:
            await self._hold(connection, fence)
            await store.note_reuse(connection, fence.evaluation_id, source)

        await self._database.run(change)

    async def _hold(self, connection: Connection, fence: EvaluationFence) -> None:
        if not await store.hold_fence(connection, fence):
            self._sessions.pop(fence.evaluation_id, None)
            raise LeaseLostError(f"evaluation {fence.evaluation_id} went to somebody else")

    async def _session(self, fence: EvaluationFence) -> _Session:
        session = self._sessions.get(fence.evaluation_id)
        if session is not None and session.fence != fence:
            await self.forget(session.fence)
            session = None
        if session is None:
            async with self._database.session() as connection:
                context = await store.fetch_context(connection, fence.evaluation_id)
            if context is None:
                raise LeaseLostError(f"evaluation {fence.evaluation_id} is gone")
            session = self._sessions[fence.evaluation_id] = _Session(fence=fence, context=context)
        return session

    async def _planned(
        self,
        session: _Session,
        rows: Sequence[JobRow],
        errors: Sequence[JobError],
        *,
        more_needs: Mapping[DrvPath, Sequence[DrvPath]] | None = None,
        waiting: Collection[DrvPath] = (),
    ) -> _Batch:
        """Plan ``rows``. Those with ``more_needs`` become steps in any case, for they have to wait
        for ``waiting`` steps that their derivations do not name.
        """
        asked_at_s = time.monotonic()
        missing, silent = plans.told(rows)
        asked = Missing()
        if silent:
            asked = await self._knowledge.missing(row.drv_path for row in silent)
            missing = Missing(
                will_build=tuple(dict.fromkeys((*missing.will_build, *asked.will_build))),
                will_fetch=missing.will_fetch | asked.will_fetch,
                unknown=asked.unknown,
            )
        if more_needs:
            missing = replace(
                missing,
                will_build=tuple(dict.fromkeys((*missing.will_build, *more_needs, *waiting))),
            )
        known = session.known | set(waiting) if waiting else session.known
        unread = plans.unread(rows, missing.will_build, known)
        facts = await self._knowledge.derivations(unread) if unread else {}
        plan = plans.plan(
            rows,
            missing,
            facts,
            known=known,
            more_needs=more_needs,
            limits=plans.Limits(
                timeout_s=self._builds.timeout_s,
                max_silent_s=self._builds.max_silent_s,
                jobset_timeout_s=session.context.jobset_timeout_s,
                jobset_max_silent_s=session.context.jobset_max_silent_s,
            ),
        )
        return _Batch(
            plan=plan,
            errors=(*errors, *plan.errors),
            harvests=await self._harvests(session.fence.evaluation_id, plan.jobs),
            asked=frozenset(asked.will_build) | frozenset(more_needs or ()),
            asked_at_s=asked_at_s,
        )

    async def _harvests(
        self, evaluation_id: EvaluationId, jobs: Sequence[PlannedJob]
    ) -> dict[int, Harvest]:
        """What the outputs of jobs that are valid already say about themselves.

        They become roots first, as what is built does: nobody builds them again.
        """
        valid = {
            number: {name: str(path) for name, path in job.row.outputs.items() if path}
            for number, job in enumerate(jobs)
            if job.presence is Presence.VALID
        }
        paths = {path for outputs in valid.values() for path in outputs.values()}
        if not paths:
            return {}
        known = await self._knowledge.registrations(paths)
        if not known:
            return {}
        # A name of its own, so that no batch takes the links of another.
        link = self._roots_dir / str(evaluation_id) / f"outputs-{new_uuid().hex}"
        await self._knowledge.add_roots([StorePath(path) for path in known], link)

        def read() -> dict[int, Harvest]:
            return {
                number: support.harvest(
                    describe({name: p for name, p in outputs.items() if p in known}, known),
                    store_dir=self._knowledge.store_dir,
                )
                for number, outputs in valid.items()
            }

        return await asyncio.to_thread(read)

    async def _write(self, session: _Session, batch: _Batch) -> None:
        fence = session.fence
        await self._add_classes(session, batch.plan.steps)

        async def change(connection: Connection) -> _Writing:
            await self._hold(connection, fence)
            writing = _Writing(connection, fence.evaluation_id, session, batch)
            await writing.run(check_known=True)
            return writing

        writing = await self._database.run(change)
        session.forsaken |= writing.forsaken
        session.note(batch.plan.jobs)
        if writing.shared:
            await self._raise_shared(session, writing.shared)

    async def _add_classes(self, session: _Session, steps: Iterable[PlannedStep]) -> None:
        wanted = {_class_of(step) for step in steps} - session.classes.keys()
        if wanted:
            async with self._database.transaction() as connection:
                session.classes |= await store.classes(connection, wanted)

    async def _raise_shared(
        self, session: _Session, shared: Sequence[tuple[StepId, PlannedStep]]
    ) -> None:
        # In a transaction of its own: the batch itself changes no row that others may want.
        async def change(connection: Connection) -> None:
            moved = await store.raise_steps(
                connection,
                [(id_, s.priority, s.timeout_s, s.max_silent_s) for id_, s in shared],
                timeout_s=self._builds.timeout_s,
                max_silent_s=self._builds.max_silent_s,
                jobset_id=session.context.jobset_id,
            )
            if moved:
                await notify(connection, listener.STEPS)

        await self._database.run(change)


class _Writing:
    """One batch in one transaction."""

    def __init__(
        self,
        connection: Connection,
        evaluation_id: EvaluationId,
        session: _Session,
        batch: _Batch,
    ) -> None:
        self._connection = connection
        self._evaluation_id = evaluation_id
        self._session = session
        self._batch = batch
        self._states: dict[DrvPath, StepState] = {}
        self.shared: list[tuple[StepId, PlannedStep]] = []
        self.forsaken: set[StepId] = set()

    async def run(self, *, check_known: bool = False) -> None:
        """Write everything and announce it once.

        Raises:
            _StalePlanError: ``check_known``, and a known step was cancelled since.
        """
        jobs, build_ids = await self._new_jobs()
        await self._lock(jobs)
        planned = {step.derivation.drv_path for step in self._batch.plan.steps}
        if check_known and any(
            state.status is BuildStatus.CANCELLED and drv not in planned
            for drv, state in self._states.items()
        ):
            raise _StalePlanError
        placed = placement.place(
            self._batch.plan.steps,
            self._states,
            asked=self._batch.asked,
            asked_age_s=time.monotonic() - self._batch.asked_at_s + _AGE_MARGIN_S,
        )
        self.shared = [
            (state.id, step)
            for step in self._batch.plan.steps
            if (state := self._states.get(step.derivation.drv_path)) is not None
            and state.status in LIVE
        ]
        ready = await self._write_steps(placed, build_ids)
        builds = await self._write_builds(jobs, build_ids)
        if placed.failed:
            fallout = await steps_store.fail_dependents(self._connection, placed.failed)
            self.forsaken = fallout.forsaken
        errors = [(error, dotted(error.attr_path)) for error in self._batch.errors]
        added = (
            await store.add_errors(self._connection, self._evaluation_id, errors) if errors else 0
        )
        if builds or added:
            await store.count_batch(
                self._connection,
                self._evaluation_id,
                jobs=len(builds),
                jobs_new=sum(build.is_new for build in builds),
                errors=added,
            )
            await notify(self._connection, listener.BUILDS, str(self._evaluation_id))
        if ready or self._states:
            # Also when none is new: claims pass over steps that we held.
            await notify(self._connection, listener.STEPS)

    async def _new_jobs(self) -> tuple[dict[int, PlannedJob], list[BuildId]]:
        """Jobs that are not written yet, by their place; and the build's id of each place."""
        jobs = self._batch.plan.jobs
        names = [job.row.job_name for job in jobs]
        written = await store.list_known_jobs(self._connection, self._evaluation_id, names)
        ids = [written.get(name) or BuildId(new_uuid()) for name in names]
        return {n: job for n, job in enumerate(jobs) if names[n] not in written}, ids

    async def _lock(self, jobs: dict[int, PlannedJob]) -> None:
        shown = {j.row.drv_path for j in jobs.values() if j.presence is Presence.TO_BUILD}
        needed = {step.derivation.drv_path for step in self._batch.plan.steps}
        needed.update(need for step in self._batch.plan.steps for need in step.needs)
        await self._learn(shown, shown=True)
        await self._learn(needed - shown)

    async def _learn(self, drv_paths: Iterable[DrvPath], *, shown: bool = False) -> None:
        for step in await store.lock_steps(self._connection, list(drv_paths), shown=shown):
            self._states[step.drv_path] = StepState(
                id=step.id,
                status=step.status,
                outputs_valid=step.outputs_valid,
                finished_age_s=step.finished_age_s,
                root_cause=step.root_cause_step_id,
                root_cause_drv=step.root_cause_drv,
                is_remembered=step.is_remembered,
            )

    async def _write_steps(self, placed: Placement, build_ids: Sequence[BuildId]) -> int:
        """Write steps, edges, outputs and the queue; how many are ready."""
        connection, session = self._connection, self._session
        jobset_id = session.context.jobset_id
        inserted = await self._insert(placed, build_ids) if placed.new else {}
        for drv, (step_id, status) in inserted.items():
            remembered = status is BuildStatus.CACHED_FAILURE
            self._states[drv] = StepState(
                id=step_id, status=status, outputs_valid=False, is_remembered=remembered
            )
            if remembered:
                placed.failed.add(step_id)
        if placed.revived:
            await store.revive_steps(
                connection,
                [
                    (self._states[drv].id, placed.blockers[drv], step.priority)
                    for drv, step in placed.revived.items()
                ],
                jobset_id,
            )
            for drv in placed.revived:
                self._states[drv] = replace(
                    self._states[drv],
                    status=BuildStatus.PENDING,
                    outputs_valid=False,
                    root_cause=None,
                    is_remembered=False,
                )
        written = {drv: placed.new[drv] for drv in inserted} | placed.revived
        edges = [
            (self._states[drv].id, self._states[need].id)
            for drv, step in written.items()
            for need in step.needs
        ]
        if edges:
            await store.copy_edges(connection, edges)
        outputs = [
            (self._states[drv].id, name, path)
            for drv in inserted
            for name, path in placed.new[drv].derivation.outputs.items()
        ]
        if outputs:
            await store.copy_outputs(connection, outputs)
        ready = [
            (self._states[drv].id, session.classes[_class_of(step)], jobset_id, step.priority)
            for drv, step in written.items()
            if placed.blockers[drv] == 0 and self._states[drv].status is BuildStatus.PENDING
        ]
        if ready:
            await store.copy_ready(connection, ready)
        return len(ready)

    async def _insert(
        self, placed: Placement, build_ids: Sequence[BuildId]
    ) -> dict[DrvPath, tuple[StepId, BuildStatus]]:
        rows = [
            store.NewStep(
                drv_path=drv,
                name=step.derivation.name,
                class_id=self._session.classes[_class_of(step)],
                blockers=placed.blockers[drv],
                priority=step.priority,
                timeout_s=step.timeout_s,
                max_silent_s=step.max_silent_s,
                is_fixed_output=step.derivation.is_fixed_output,
                prefer_local=step.derivation.prefer_local,
                build_id=build_ids[step.job],
            )
            for drv, step in placed.new.items()
        ]
        inserted = await store.insert_steps(self._connection, rows, self._session.context.jobset_id)
        others = placed.new.keys() - inserted.keys()
        if others:
            await self._meet(placed, inserted, others)
        return inserted

    async def _meet(
        self,
        placed: Placement,
        inserted: dict[DrvPath, tuple[StepId, BuildStatus]],
        others: Iterable[DrvPath],
    ) -> None:
        """Another evaluation wrote some of our new steps meanwhile: they are shared now."""
        met = set(others)
        await self._learn(met)
        self.shared += [(self._states[drv].id, placed.new[drv]) for drv in met]
        changed = {}
        for drv, (step_id, _) in inserted.items():
            done = sum(
                need in met and self._states[need].outputs_valid for need in placed.new[drv].needs
            )
            placed.failed.update(
                self._states[need].id
                for need in placed.new[drv].needs
                if need in met and placement.blocks(self._states[need])
            )
            if done:
                placed.blockers[drv] -= done
                changed[step_id] = placed.blockers[drv]
        if changed:
            await store.set_blockers(self._connection, changed)

    async def _write_builds(
        self, jobs: dict[int, PlannedJob], build_ids: Sequence[BuildId]
    ) -> list[store.NewBuild]:
        unchanged = set()
        if self._session.context.previous_id is not None and jobs:
            named = [(job.row.job_name, job.row.drv_path) for job in jobs.values()]
            unchanged = await store.list_unchanged(
                self._connection, self._session.context.previous_id, named
            )
        builds = [
            self._build(job, build_ids[n], self._batch.harvests.get(n), unchanged)
            for n, job in jobs.items()
        ]
        await store.copy_builds(self._connection, builds)
        harvests = {
            build_ids[n]: harvest for n, harvest in self._batch.harvests.items() if n in jobs
        }
        products = [(id_, product) for id_, h in harvests.items() for product in h.products]
        metrics = [(id_, metric) for id_, h in harvests.items() for metric in h.metrics]
        if products:
            await builds_store.copy_products(self._connection, products)
        if metrics:
            await builds_store.copy_metrics(self._connection, metrics)
        return builds

    def _build(
        self, job: PlannedJob, build_id: BuildId, harvest: Harvest | None, unchanged: set[str]
    ) -> store.NewBuild:
        row = job.row
        build = store.NewBuild(
            id=build_id,
            evaluation_id=self._evaluation_id,
            job_name=row.job_name,
            attr_path=row.attr_path,
            nix_name=row.name,
            drv_path=row.drv_path,
            system=row.system,
            status=BuildStatus.PENDING,
            step_id=None,
            priority=job.priority,
            description=row.meta.description,
            homepage=row.meta.homepage,
            license=row.meta.license,
            maintainers=row.meta.maintainers,
            timeout_s=row.meta.timeout_s,
            max_silent_s=row.meta.max_silent_s,
            is_channel=row.meta.is_channel,
            is_aggregate=row.is_aggregate,
            constituents=[*row.constituents, *row.named_constituents] if row.is_aggregate else None,
            is_new=row.job_name not in unchanged,
        )
        if job.presence is Presence.TO_BUILD:
            return self._following(build, self._states[row.drv_path])
        return _found(build, job, harvest or Harvest())

    @staticmethod
    def _following(build: store.NewBuild, state: StepState) -> store.NewBuild:
        status = placement.status_of_build(state)
        reasons = {
            BuildStatus.CACHED_FAILURE: "CachedFailure",
            BuildStatus.DEPENDENCY_FAILED: "DependencyFailed",
        }
        return replace(
            build,
            status=status,
            step_id=state.id,
            root_cause_step_id=state.root_cause,
            status_reason=reasons.get(status, ""),
        )


def _found(build: store.NewBuild, job: PlannedJob, harvest: Harvest) -> store.NewBuild:
    """A build for which nothing has to be built."""
    outputs = {name: str(path) for name, path in job.row.outputs.items() if path}
    valid = job.presence is Presence.VALID
    return replace(
        build,
        status=BuildStatus.FAILED_WITH_OUTPUT if harvest.has_failed_file else BuildStatus.SUCCEEDED,
        cached=True,
        status_reason="AlreadyValid" if valid else "Substitutable",
        outputs=outputs,
        build_output_path=outputs.get("out") or next(iter(outputs.values()), None),
        release_name=harvest.release_name,
        warnings=harvest.warnings,
    )


def _class_of(step: PlannedStep) -> store.StepClass:
    return step.derivation.system, step.derivation.required_features


def _planned_in(batch: _Batch) -> set[DrvPath]:
    return {step.derivation.drv_path for step in batch.plan.steps}


async def _abandon(session: _Session) -> None:
    """End the write of the last batch, and let go of the batch."""
    waiting, session.waiting = session.waiting, None
    if waiting is not None and waiting.writing is not None:
        waiting.writing.cancel()
        await asyncio.wait({waiting.writing})


def _distinct(rows: Iterable[JobRow]) -> list[JobRow]:
    return list({row.attr_path: row for row in rows}.values())


async def _relate(
    connection: Connection,
    evaluation_id: EvaluationId,
    session: _Session,
    last: Sequence[PlannedJob],
    members: Mapping[str, tuple[str, ...]],
) -> None:
    """Write which jobs are made of which, and which need which."""
    session.note(last)
    jobs = await store.list_jobs(connection, evaluation_id)
    by_name = {job.job_name: job.id for job in jobs}
    pairs = {
        (by_name[name], by_name[member])
        for name, names in members.items()
        for member in names
        if name in by_name and member in by_name
    }
    shown = _shown(jobs)
    pairs |= {
        (by_name[name], shown[drv].id)
        for name, drvs in session.aggregates.items()
        for drv in drvs
        if drv in shown and name in by_name and shown[drv].id != by_name[name]
    }
    if pairs:
        await store.copy_constituents(connection, pairs)
    await store.copy_dependencies(connection, _dependencies(session, jobs))


def _shown(jobs: Iterable[store.WrittenJob]) -> dict[DrvPath, store.WrittenJob]:
    """Of several jobs of one derivation that with the shortest name, then the first."""
    shown: dict[DrvPath, store.WrittenJob] = {}
    for job in sorted(jobs, key=lambda job: (len(job.job_name), job.job_name)):
        shown.setdefault(job.drv_path, job)
    return shown


def _dependencies(
    session: _Session, jobs: Sequence[store.WrittenJob]
) -> Iterator[tuple[BuildId, BuildId]]:
    by_name = {hash(job.job_name): job.id for job in jobs}
    by_drv: dict[int, list[BuildId]] = {}
    for job in jobs:
        by_drv.setdefault(hash(job.drv_path), []).append(job.id)
    for name, drv in zip(session.needing, session.needed, strict=True):
        if name in by_name:
            for needed in by_drv.get(drv, ()):
                if needed != by_name[name]:
                    yield by_name[name], needed
