"""Writes what differs into the cluster: finalizers, statuses, and events for people.

A write names the version that it was made for, so that nothing of others is lost; when it is not
the present one, the object is read and compared anew. Where nothing differs, nothing is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fc_operator.clients import kube as clients
from fc_operator.clients.kube import Kube
from fc_operator.errors import (
    ConflictError,
    FcError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from fc_operator.intake.operator import statuses
from fc_operator.intake.operator.objects import FINALIZER, Mirror, Seen, seen
from fc_operator.intake.operator.statuses import Finding, Held
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.model import desired as nouns
from fc_operator.model.resources import Place

_STALE_TRIES = 5
_CONTROLLER = "fc-operator.dev/operator"
_log = logs.get_logger()


@dataclass(slots=True)
class Counts:
    """What was sent since the start; a restart at rest sends nothing."""

    patches: int = 0
    events: int = 0
    failures: int = 0


class StatusWriter:
    """A service (see ``kit.services``): workers that bring objects to what was found of them."""

    name = "operator.writer"

    def __init__(
        self,
        kube: Kube,
        mirror: Mirror,
        *,
        workers: int,
        public_url: str = "",
        backoff: Backoff | None = None,
    ) -> None:
        self._kube = kube
        self._mirror = mirror
        self._workers = workers
        self._public_url = public_url.rstrip("/")
        self._backoff = backoff or Backoff(base_s=0.5, cap_s=60.0)
        self._findings: dict[Place, Finding | None] = {}
        """What is to be written; None: the declaration is gone."""
        self._queue: asyncio.Queue[Place] = asyncio.Queue()
        self._queued: set[Place] = set()
        self._busy: set[Place] = set()
        self._tries: dict[Place, int] = {}
        self._timers: dict[Place, asyncio.TimerHandle] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._pause_until_s = 0.0
        self.idle = asyncio.Event()
        """Set while nothing waits to be written."""
        self.idle.set()
        self.counts = Counts()
        self.progressed: Callable[[], None] = lambda: None
        """Called whenever a write ended, well or not."""

    async def start(self) -> None:
        """See ``Service.start``."""
        self._tasks = [
            asyncio.create_task(self._work(), name=f"{self.name} {number}")
            for number in range(self._workers)
        ]

    async def stop(self) -> None:
        """See ``Service.stop``; what was not written is found again at the next start."""
        tasks, self._tasks = self._tasks, []
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def submit(self, place: Place, finding: Finding | None) -> None:
        """Have an object brought to what was found of it; a later finding takes its place."""
        self._findings[place] = finding
        if place not in self._queued and place not in self._timers:
            self._enqueue(place)

    def forget(self, place: Place) -> None:
        """The object is gone: there is nothing to write any more."""
        self._findings.pop(place, None)
        self._tries.pop(place, None)
        if timer := self._timers.pop(place, None):
            timer.cancel()
        self._settle()

    @property
    def waiting(self) -> int:
        """Objects that are to be written, now or at a later try."""
        return len(self._queued) + len(self._busy) + len(self._timers)

    # Workers --------------------------------------------------------------------------------

    def _enqueue(self, place: Place) -> None:
        self._timers.pop(place, None)
        self._queued.add(place)
        self.idle.clear()
        self._queue.put_nowait(place)

    def _settle(self) -> None:
        if not self.waiting:
            self.idle.set()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            place = await self._queue.get()
            self._queued.discard(place)
            if place in self._busy:  # one at a time for each object; its worker looks again
                continue
            self._busy.add(place)
            try:
                if (wait_s := self._pause_until_s - loop.time()) > 0:
                    await asyncio.sleep(wait_s)
                await self._write_until_right(place)
            finally:
                self._busy.discard(place)
                self.progressed()
                self._settle()

    async def _write_until_right(self, place: Place) -> None:
        while place in self._findings:
            finding = self._findings[place]
            try:
                await self._write(place, finding)
            except NotFoundError:
                self._mirror.drop(place)
                self.forget(place)
                return
            except FcError as error:
                self._again_later(place, error)
                return
            except Exception as error:  # noqa: BLE001 - one odd object never stops a worker
                _log.exception("operator.write_surprised", place="/".join(place))
                self._again_later(place, error)
                return
            self._tries.pop(place, None)
            if self._findings.get(place) is finding:
                self._findings.pop(place, None)
                return

    def _again_later(self, place: Place, error: Exception) -> None:
        loop = asyncio.get_running_loop()
        self.counts.failures += 1
        tries = self._tries[place] = self._tries.get(place, 0) + 1
        delay_s = self._backoff.delay_s(tries)
        if isinstance(error, UnavailableError) and error.delay_s is not None:
            # Said to all of us, not about this object.
            delay_s = max(delay_s, error.delay_s)
            self._pause_until_s = max(self._pause_until_s, loop.time() + error.delay_s)
        log = _log.warning if tries in {1, 5} else _log.debug
        log(
            "operator.write_failed",
            place="/".join(place),
            error=str(error),
            tries=tries,
            retry_in_s=round(delay_s, 2),
        )
        self._timers[place] = loop.call_later(delay_s, self._enqueue, place)

    # One object -----------------------------------------------------------------------------

    async def _write(self, place: Place, finding: Finding | None) -> None:
        for _ in range(_STALE_TRIES):
            object_ = self._mirror.get(place)
            if object_ is None:
                return
            try:
                await self._bring(object_, finding)
            except (InvalidError, ConflictError) as error:
                if not await self._moved(object_):
                    raise
                _log.debug("operator.write_was_stale", place="/".join(place), error=str(error))
            else:
                return
        raise UnavailableError("the object changes faster than it can be written")

    async def _moved(self, object_: Seen) -> bool:
        """Read an object again; whether it is another version than the one we knew."""
        kind, namespace, name = object_.place
        fresh = seen(kind, await self._kube.get(clients.OWN[kind], namespace, name))
        self._mirror.put(fresh)
        return fresh.version != object_.version

    async def _bring(self, object_: Seen, finding: Finding | None) -> None:
        if object_.deleting:
            if object_.held and statuses.is_gone(finding):
                await self._release(object_)
            return
        if finding is None or not statuses.describes(finding, object_):
            return
        if not object_.held:
            object_ = await self._hold(object_)
        if isinstance(finding, Held) and object_.status.get("observedGeneration") == (
            finding.generation
        ):
            return  # what it says is still true
        before = dict(object_.status)
        after = statuses.render(finding, before, datetime.now(UTC), public_url=self._public_url)
        steps = statuses.operations(before, after)
        if steps:
            await self._patch(object_, steps, sub="status")
            for notice in statuses.notices(before, after):
                await self._tell(object_, notice)

    async def _hold(self, object_: Seen) -> Seen:
        step: dict[str, Any]
        if object_.finalizers:
            step = {"op": "add", "path": "/metadata/finalizers/-", "value": FINALIZER}
        else:
            step = {"op": "add", "path": "/metadata/finalizers", "value": [FINALIZER]}
        return await self._patch(object_, [step])

    async def _release(self, object_: Seen) -> None:
        index = object_.finalizers.index(FINALIZER)
        path = f"/metadata/finalizers/{index}"
        await self._patch(
            object_,
            [{"op": "test", "path": path, "value": FINALIZER}, {"op": "remove", "path": path}],
        )

    async def _patch(self, object_: Seen, steps: list[dict[str, Any]], *, sub: str = "") -> Seen:
        version = {"op": "test", "path": "/metadata/resourceVersion", "value": object_.version}
        self.counts.patches += 1
        body = await self._kube.patch(
            clients.OWN[object_.kind],
            object_.namespace,
            object_.name,
            [version, *steps],
            sub=sub,
        )
        fresh = seen(object_.kind, body)
        self._mirror.put(fresh)
        return fresh

    async def _tell(self, object_: Seen, notice: statuses.Notice) -> None:
        """Events are extra: the condition says the same and stays."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        event: dict[str, Any] = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "generateName": f"{object_.name[:200].rstrip('.-')}-",
                "namespace": object_.namespace,
            },
            "regarding": {
                "apiVersion": nouns.API_VERSION,
                "kind": object_.kind,
                "namespace": object_.namespace,
                "name": object_.name,
                "uid": object_.uid,
            },
            "type": "Warning",
            "reason": notice.reason,
            "note": notice.message[:1_000],
            "action": "Reconcile",
            "eventTime": now,
            "reportingController": _CONTROLLER,
            "reportingInstance": "fc-operator",
        }
        try:
            await self._kube.create(clients.EVENTS, object_.namespace, event)
        except FcError as error:
            _log.warning("operator.event_lost", reason=notice.reason, error=str(error))
        else:
            self.counts.events += 1
