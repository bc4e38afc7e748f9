"""Dispatch: free slots are filled with claimed steps, what executors tell is recorded.

Several processes may run it side by side. A holder trusts its leases only so long: it counts from
before it asked for them, on its own monotonic clock, and stops its work a margin before they would
end, so that a step never runs twice at once however slow the database answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fc_operator.errors import UnavailableError
from fc_operator.executors.protocol import Capacity, Executor, StepRef, StopReason
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.kit.lives import Lives
from fc_operator.kit.services import LoopService
from fc_operator.model.ids import Owner, StepId
from fc_operator.model.tasks import (
    LogChunk,
    PhaseChanged,
    StepEnded,
    StepEvent,
    StepOrder,
    StepStarted,
)
from fc_operator.operations import steps as step_operations
from fc_operator.operations.steps import StepResult
from fc_operator.operations.tasks import order_of
from fc_operator.queue import claims
from fc_operator.queue.offers import Offer
from fc_operator.scheduler.builders import BuilderService
from fc_operator.scheduler.recorder import Recorder
from fc_operator.settings import BuildSettings, QueueSettings
from fc_operator.store import claims as store
from fc_operator.store import listener
from fc_operator.store.claims import ClaimedStep, Lease
from fc_operator.store.database import Database, owner_id
from fc_operator.store.listener import Listener, Subscription

_log = logs.get_logger()
_STOP_S = 4.0
"""Of the five seconds that a stop may take; the rest is for what is stopped after us."""
_PHASES_MAX = 200
_BUILDERS = "builders"
"""One event for all of them: what one does not take another may."""


@dataclass(slots=True)
class _Run:
    """One attempt that we hold."""

    lease: Lease
    executor: Executor
    trusted_until_s: float
    """On the monotonic clock; from then on somebody else may have it."""
    phases: list[tuple[str, int]] = field(default_factory=list)
    lost: bool = False


class DispatchService:
    """See the module. ``owner_file`` remembers who held leases here before, so that a restart after
    a crash needs not wait for them to run out; it must belong to one process at a time.
    """

    name = "dispatch"

    def __init__(
        self,
        database: Database,
        listener: Listener,
        executors: Sequence[Executor],
        *,
        queue: QueueSettings,
        builds: BuildSettings,
        owner: Owner | None = None,
        owner_file: Path | None = None,
        builders: BuilderService | None = None,
    ) -> None:
        self._database = database
        self._listener = listener
        self._executors = list(executors)
        self._builders = builders
        self._queue = queue
        self._builds = builds
        self.owner = owner or Owner(owner_id("scheduler"))
        self._lives = Lives(owner_file)
        self._runs: dict[StepRef, _Run] = {}
        self._streams: set[asyncio.Task[None]] = set()
        self._recorder = Recorder(database, builds, on_refused=self._forget)
        self._recording: asyncio.Task[None] | None = None
        self._slot_freed: dict[str, asyncio.Event] = {}
        self._loops: list[LoopService] = []
        self._stopping = False
        self._capacities: dict[str, Capacity] = {}
        self._adopting = asyncio.Lock()
        self._adopted = False
        self._beat_now = asyncio.Event()
        self._declared: set[str] = set()

    @property
    def running(self) -> frozenset[StepRef]:
        """Attempts that this process holds."""
        return frozenset(self._runs)

    async def start(self) -> None:
        """See ``Service.start``. Ends what an earlier life of this process left running."""
        if self._loops:
            return
        self._stopping = False
        self._recording = asyncio.create_task(self._recorder.run(), name="dispatch-recorder")
        self._loops = [
            LoopService("dispatch-leases", self._keep_leases),
            LoopService("dispatch-cancels", self._watch_cancels),
            *(
                LoopService(f"dispatch-{executor.name}", self._filler(executor))
                for executor in self._executors
            ),
            *([LoopService("dispatch-builders", self._fill_builders)] if self._builders else []),
        ]
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        """See ``Service.stop``. Running steps go back to the queue, free of charge."""
        if not self._loops:
            return
        self._stopping = True
        loops, self._loops = self._loops, []
        for loop in loops[1:]:
            await loop.stop()
        try:
            async with asyncio.timeout(_STOP_S):
                for ref, run in tuple(self._runs.items()):
                    await run.executor.cancel(ref, StopReason.SHUTDOWN)
                while self._streams:
                    await asyncio.wait(tuple(self._streams))
                await self._recorder.flush()
                await self._give_back()
                async with self._database.session() as connection:
                    await store.end_beat(connection, self.owner)
                await self._lives.end()
        except (TimeoutError, UnavailableError) as error:
            # What could not be given back comes back when its lease runs out.
            _log.warning("scheduler.stop_incomplete", error=repr(error), steps=len(self._runs))
        await loops[0].stop()
        for task in (*self._streams, self._recording):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._recording = None
        self._runs.clear()

    async def _give_back(self) -> None:
        # A claim that was being made when we began to stop.
        async with self._database.session() as connection:
            leases = await store.list_of_owners(connection, [self.owner])
        await step_operations.give_back(self._database, leases)

    def _filler(self, executor: Executor) -> Callable[[], Awaitable[None]]:
        async def fill() -> None:
            await self._adopt()
            with self._listener.subscribe(listener.STEPS) as wakes:
                await self._fill(executor, wakes)

        return fill

    async def _adopt(self) -> None:
        """Once: face what earlier lives left behind, here and in the database."""
        async with self._adopting:
            if self._adopted:
                return
            for executor in self._executors:
                await executor.adopt()
            earlier = [Owner(name) for name in await self._lives.earlier(self.owner)]
            if earlier:
                async with self._database.session() as connection:
                    leases = await store.list_of_owners(connection, earlier)
                back = await step_operations.requeue(self._database, leases, certain=True)
                _log.info("scheduler.earlier_life_ended", owners=earlier, steps=back)
            await self._lives.begin(self.owner)
            self._adopted = True

    async def _fill(self, executor: Executor, wakes: Subscription) -> None:
        """Claim whenever there are free slots and something may be ready."""
        freed = self._slot_freed.setdefault(executor.name, asyncio.Event())
        backoff, tries = Backoff(base_s=0.1, cap_s=2.0), 0
        while not self._stopping:
            freed.clear()
            try:
                claimed = await self._claim(executor)
                tries = 0
            except (UnavailableError, TimeoutError) as error:
                tries += 1
                delay_s = backoff.delay_s(tries)
                _log.warning(
                    "scheduler.claim_waits", error=str(error), retry_in_s=round(delay_s, 2)
                )
                await asyncio.sleep(delay_s)
                continue
            if not claimed:
                await _first(wakes.wait(self._queue.poll_s), freed.wait())

    async def _fill_builders(self) -> None:
        await self._adopt()
        assert self._builders is not None
        with self._listener.subscribe(listener.STEPS) as wakes:
            await self._fill_all(self._builders, wakes)

    async def _fill_all(self, builders: BuilderService, wakes: Subscription) -> None:
        """Claim for all declared builders in turn, as long as there is something for one of them.

        Each takes a portion by its speed, the best first, so that no builder idles behind another.
        """
        freed = self._slot_freed.setdefault(_BUILDERS, asyncio.Event())
        backoff, tries = Backoff(base_s=0.1, cap_s=2.0), 0
        while not self._stopping:
            freed.clear()
            builders.changed.clear()
            try:
                claimed = await self._claim_round(builders)
                tries = 0
            except (UnavailableError, TimeoutError) as error:
                tries += 1
                delay_s = backoff.delay_s(tries)
                _log.warning(
                    "scheduler.claim_waits", error=str(error), retry_in_s=round(delay_s, 2)
                )
                await asyncio.sleep(delay_s)
                continue
            if not claimed:
                await _first(wakes.wait(self._queue.poll_s), freed.wait(), builders.changed.wait())

    async def _claim_round(self, builders: BuilderService) -> int:
        declared = {builder.executor.name for builder in builders.list()}
        for name in self._declared - declared:
            self._capacities.pop(name, None)
        self._declared = declared
        for builder in builders.list():
            self._note(builder.executor, await builder.executor.capacity())
        able = await builders.ordered()
        claimed = 0
        for builder in able:
            most = builder.row.speed_factor if len(able) > 1 else None
            target = claims.Builder(id=builder.id, name=builder.row.name)
            claimed += await self._claim(builder.executor, builder=target, most=most)
        return claimed

    def _note(self, executor: Executor, capacity: Capacity) -> None:
        known = self._capacities.get(executor.name)
        if known is None or known.problem != capacity.problem:
            self._beat_now.set()
        self._capacities[executor.name] = capacity

    async def _claim(
        self,
        executor: Executor,
        *,
        builder: claims.Builder | None = None,
        most: int | None = None,
    ) -> int:
        """Claim for the free slots and start what was claimed; how many steps."""
        capacity = await executor.capacity()
        self._note(executor, capacity)
        mine = sum(run.executor is executor for run in self._runs.values())
        free = min(capacity.slots_free, capacity.slots_total - mine)
        if most is not None:
            free = min(free, most)
        if free <= 0:
            return 0
        asked_s = time.monotonic()
        steps = await claims.claim(
            self._database,
            Offer(
                systems=capacity.systems,
                features=capacity.features,
                mandatory=capacity.mandatory_features,
            ),
            free,
            owner=self.owner,
            executor=executor.name if builder is None else "ssh",
            settings=self._queue,
            builder=builder,
        )
        if steps:
            self._start_batch(executor, steps, asked_s)
        return len(steps)

    def _start_batch(
        self, executor: Executor, steps: Sequence[ClaimedStep], asked_s: float
    ) -> None:
        for step in steps:
            ref = StepRef(step_id=step.id, attempt=step.attempt)
            self._runs[ref] = _Run(
                lease=Lease(step_id=step.id, attempt=step.attempt, task_id=step.task_id),
                executor=executor,
                trusted_until_s=asked_s + self._queue.lease_s - self._queue.margin_s,
            )
            _log.info(
                "scheduler.step_claimed", step_id=step.id, attempt=step.attempt, name=step.name
            )
        orders = [order_of(step, self._builds) for step in steps]
        stream = asyncio.create_task(self._follow(executor, orders), name=f"batch-{steps[0].id}")
        self._streams.add(stream)
        stream.add_done_callback(self._streams.discard)

    def _free(self, executor: Executor) -> None:
        key = executor.name if executor in self._executors else _BUILDERS
        self._slot_freed[key].set()

    async def _follow(self, executor: Executor, orders: Sequence[StepOrder]) -> None:
        """Record a batch to its end."""
        try:
            async with aclosing(executor.start(orders)) as events:
                async for event in events:
                    await self._take(event)
        except Exception:  # noqa: BLE001 - one bad batch never stops the others
            # Against its contract; the leases of what has not ended run out and bring it back.
            _log.exception("scheduler.executor_broke", executor=executor.name)
        finally:
            for order in orders:
                self._runs.pop(StepRef(step_id=order.step_id, attempt=order.attempt), None)
            self._free(executor)

    async def _take(self, event: StepEvent) -> None:
        ref = StepRef(step_id=event.step_id, attempt=event.attempt)
        run = self._runs.get(ref)
        if run is None:
            return
        match event:
            case StepStarted():
                self._recorder.put_start(run.lease)
            case LogChunk():
                await self._recorder.put_chunk(run.lease, event)
            case PhaseChanged(phase=phase, at_ms=at_ms):
                if len(run.phases) < _PHASES_MAX:
                    run.phases.append((phase, at_ms))
            case StepEnded():
                self._recorder.put_end(
                    StepResult(lease=run.lease, ended=event, phases=tuple(run.phases))
                )
                del self._runs[ref]
                self._free(run.executor)
                _log.info(
                    "scheduler.step_ended",
                    step_id=event.step_id,
                    attempt=event.attempt,
                    status=event.outcome.status.value,
                    reason=event.outcome.reason,
                )

    async def _keep_leases(self) -> None:
        """Renew every beat, look at the clock every second, and stop what can't be trusted."""
        while True:
            started_s = time.monotonic()
            try:
                async with asyncio.timeout(self._queue.heartbeat_s):
                    await self._renew()
            except (UnavailableError, TimeoutError) as error:
                _log.warning(
                    "scheduler.leases_not_renewed", error=str(error) or "no answer in time"
                )
            tick_s = min(1.0, self._queue.heartbeat_s / 10)
            while time.monotonic() - started_s < self._queue.heartbeat_s:
                await self._stop_untrusted()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(tick_s):
                        await self._beat_now.wait()
                    self._beat_now.clear()
                    break

    async def _renew(self) -> None:
        refs = tuple(self._runs)
        asked_s = time.monotonic()
        async with self._database.session() as connection:
            held = await store.renew(
                connection, self.owner, [ref.step_id for ref in refs], self._queue.lease_s
            )
            if self._capacities:
                await store.beat(
                    connection,
                    self.owner,
                    kind="scheduler",
                    host=platform.node(),
                    info={"offers": [self._offered(name) for name in self._own_first()]},
                )
        still = {StepRef(step_id=lease.step_id, attempt=lease.attempt) for lease in held}
        for ref in refs:
            run = self._runs.get(ref)
            if run is None:
                continue
            if ref in still:
                # From before the question: a slow answer must not stretch the trust.
                run.trusted_until_s = asked_s + self._queue.lease_s - self._queue.margin_s
            else:
                await self._lose(ref, run)
        await self._cancel(
            (lease.step_id, lease.attempt) for lease in held if lease.cancel_requested
        )

    def _own_first(self) -> list[str]:
        return sorted(self._capacities, key=lambda name: name in self._declared)

    def _offered(self, name: str) -> dict[str, Any]:
        capacity = self._capacities[name]
        return {
            "name": name,
            "slots": capacity.slots_total,
            "free": capacity.slots_free,
            "systems": list(capacity.systems),
            "features": list(capacity.features),
            "mandatory": list(capacity.mandatory_features),
            "sandbox": capacity.sandbox,
            "problem": capacity.problem,
            "declared": name in self._declared,
        }

    async def _stop_untrusted(self) -> None:
        now_s = time.monotonic()
        for ref, run in tuple(self._runs.items()):
            if now_s >= run.trusted_until_s:
                await self._lose(ref, run)

    async def _lose(self, ref: StepRef, run: _Run) -> None:
        if not run.lost:
            run.lost = True
            _log.warning("scheduler.lease_lost", step_id=ref.step_id, attempt=ref.attempt)
            await run.executor.cancel(ref, StopReason.LEASE_LOST)

    def _forget(self, step_id: StepId) -> None:
        """A result was refused; nothing else of that attempt counts either."""
        for ref in [ref for ref in self._runs if ref.step_id == step_id]:
            self._runs[ref].lost = True

    async def _watch_cancels(self) -> None:
        with self._listener.subscribe(listener.CANCELS) as wakes:
            while True:
                if self._runs:
                    async with self._database.session() as connection:
                        cancelled = await store.list_cancelled(connection, self.owner)
                    await self._cancel(cancelled)
                await wakes.wait(self._queue.poll_s)

    async def _cancel(self, steps: Iterable[tuple[StepId, int]]) -> None:
        for step_id, attempt in steps:
            ref = StepRef(step_id=step_id, attempt=attempt)
            run = self._runs.get(ref)
            if run is not None:
                await run.executor.cancel(ref, StopReason.CANCELLED)


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for one of several; the others are given up."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
