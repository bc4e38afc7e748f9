"""Brings what is seen into force: a batch at a time, and now and then everything.

A watch tells of changes; that it tells of all of them is not believed. Every comparison lists all
objects, brings the database to them, and the statuses to the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from fc_operator.clients import kube as clients
from fc_operator.clients.kube import Kube
from fc_operator.errors import FcError, LeaseLostError, NotFoundError, UnavailableError
from fc_operator.intake.operator.objects import Mark, Mirror, Seen, seen
from fc_operator.intake.operator.statuses import Broken, Finding, Held
from fc_operator.intake.operator.writer import StatusWriter
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.kit.services import LoopService
from fc_operator.model import desired as nouns
from fc_operator.model.desired import Declaration, Kind
from fc_operator.model.problems import Problem
from fc_operator.model.resources import Place
from fc_operator.model.states import ObjectState
from fc_operator.operations.cluster import Cluster
from fc_operator.spec import manifests

_BATCH = 500
_SETTLE_S = 0.05
_LIST_TRIES = 5
_STUCK_S = 300.0
"""No step takes as long: each call in it has a timeout."""
_DEAF_ROUNDS = 2
_log = logs.get_logger()


@dataclass(slots=True)
class _Batch:
    """Objects on their way into force."""

    marks: dict[Place, Mark] = field(default_factory=dict)
    read_at: list[tuple[str, Declaration]] = field(default_factory=list)
    """With the time when each was made."""
    broken: dict[Place, Broken] = field(default_factory=dict)
    gone: list[Place] = field(default_factory=list)
    """Deleted: some are there no more, some wait for us to let them go."""

    def read(self, object_: Seen, body: Mapping[str, Any]) -> None:
        """Take an object up. Validating it takes some time."""
        place = object_.place
        self.marks[place] = object_.mark
        if object_.deleting:
            self.gone.append(place)
            return
        # What a list holds does not say of which kind it is; we know what we asked for.
        whole = {**body, "apiVersion": nouns.API_VERSION, "kind": object_.kind}
        declaration, problems = manifests.parse_object(whole)
        if declaration is None:
            self.broken[place] = Broken(
                generation=object_.generation, problems=problems or _UNREADABLE
            )
        else:
            self.read_at.append((object_.created_at, declaration))

    def add(self, other: _Batch) -> None:
        """Take up all of another batch."""
        self.marks.update(other.marks)
        self.read_at += other.read_at
        self.broken.update(other.broken)
        self.gone += other.gone

    @property
    def declarations(self) -> list[Declaration]:
        """Oldest first: of two that claim a name at once the older one has it."""
        return [declaration for _, declaration in sorted(self.read_at, key=itemgetter(0))]


_UNREADABLE = (Problem(message="it can't be read"),)


class _Tries:
    """How often something failed in a row, and how long to wait then."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._failures = 0

    async def of(self, step: Callable[[], Awaitable[None]]) -> float:
        """Do it; 0 if it went well, else the seconds until the next try.

        Raises:
            LeaseLostError: whoever holds the lease ends the process.
        """
        try:
            await step()
        except LeaseLostError:
            raise
        except FcError as error:
            self._failures += 1
            delay_s = self._backoff.delay_s(self._failures)
            if isinstance(error, UnavailableError) and error.delay_s is not None:
                delay_s = max(delay_s, error.delay_s)
            _log.warning("operator.step_failed", error=str(error), retry_in_s=round(delay_s, 2))
            return delay_s
        self._failures = 0
        return 0.0


class Desk:
    """A service (see ``kit.services``): the one place where objects become declarations."""

    name = "operator.desk"

    def __init__(
        self,
        kube: Kube,
        cluster: Cluster,
        mirror: Mirror,
        writer: StatusWriter,
        *,
        namespaces: Sequence[str] = (),
        compare_s: float,
        confirm_prune: bool = False,
        backoff: Backoff | None = None,
    ) -> None:
        self._kube = kube
        self._cluster = cluster
        self._mirror = mirror
        self._writer = writer
        self._namespaces = tuple(namespaces)
        self._compare_s = compare_s
        self._confirm_prune = confirm_prune
        self._backoff = backoff or Backoff(base_s=0.5, cap_s=15.0)
        self._waiting: dict[Place, Mapping[str, Any] | None] = {}
        """Objects to bring into force, as last seen; None: gone."""
        self._handled: dict[Place, Mark] = {}
        self._unheard: set[Place] = set()
        """What a comparison found and no watch has told of since."""
        self._wake = asyncio.Event()
        self._compare_at_s = 0.0
        self._working_since_s: float | None = None
        self._loop = LoopService(self.name, self._run)
        self.compared = asyncio.Event()
        """Set once all objects were brought into force for the first time."""
        self.comparisons = 0
        self.deaf_rounds = 0
        """Comparisons in a row that found what no watch had told of since the one before."""

    async def start(self) -> None:
        """See ``Service.start``."""
        self._compare_at_s = asyncio.get_running_loop().time()
        await self._loop.start()

    async def stop(self) -> None:
        """See ``Service.stop``."""
        await self._loop.stop()

    def trouble(self) -> str:
        """Why this process should be started anew; empty while it makes progress.

        What is out of reach is no reason: starting anew would not mend it.
        """
        since_s = self._working_since_s
        if since_s is not None and time.monotonic() - since_s > _STUCK_S:
            return f"one step takes longer than {_STUCK_S:.0f} s"
        if self.deaf_rounds >= _DEAF_ROUNDS:
            return f"{self.deaf_rounds} comparisons in a row found what no watch told of"
        return ""

    @property
    def resting(self) -> bool:
        """Whether nothing waits to be brought into force."""
        return not self._waiting and self._working_since_s is None and self.compared.is_set()

    def is_waiting(self, place: Place) -> bool:
        """Whether an object will be looked at soon, so that what is known of it is old."""
        return place in self._waiting

    # What the watch tells --------------------------------------------------------------------

    def tell(self, kind: Kind, body: Mapping[str, Any], *, deleted: bool) -> None:
        """An object was seen. Cheap; called on the event loop for every event of a watch."""
        object_ = seen(kind, body)
        place = object_.place
        self._unheard.discard(place)
        if deleted:
            if self._mirror.drop(place, object_.uid, object_.version):
                self._handled.pop(place, None)
                self._writer.forget(place)
                self._ask(place, None)
            return
        if self._mirror.put(object_) and self._handled.get(place) != object_.mark:
            self._ask(place, body)

    def _ask(self, place: Place, body: Mapping[str, Any] | None) -> None:
        self._waiting[place] = body
        self._wake.set()

    # The loop -------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        bring, compare = _Tries(self._backoff), _Tries(self._backoff)
        while True:
            now_s = loop.time()
            if now_s >= self._compare_at_s:
                # One that fails holds up nothing that the watches tell.
                delay_s = await compare.of(self._compare)
                self._compare_at_s = loop.time() + (delay_s or self._compare_s)
            elif self._waiting:
                if delay_s := await bring.of(self._bring_some):
                    await asyncio.sleep(min(delay_s, max(self._compare_at_s - loop.time(), 0)))
            else:
                await self._rest(self._compare_at_s - now_s)

    async def _rest(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(max(timeout_s, 0)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        # What was applied together comes together, and goes through as one.
        await asyncio.sleep(_SETTLE_S)

    # Some objects ---------------------------------------------------------------------------

    async def _bring_some(self) -> None:
        self._working_since_s = time.monotonic()
        try:
            await self._bring_first()
        finally:
            self._working_since_s = None

    async def _bring_first(self) -> None:
        some = list(self._waiting.items())[:_BATCH]
        for place, _ in some:
            del self._waiting[place]
        try:
            await self._bring_each(some)
        except FcError as error:
            for place, body in some:
                if self._handled_since(place, body):
                    continue
                self._waiting.setdefault(place, body)
                self._hold(place, error)
            raise

    def _handled_since(self, place: Place, body: Mapping[str, Any] | None) -> bool:
        return body is not None and self._handled.get(place) == seen(place[0], body).mark

    def _hold(self, place: Place, error: Exception) -> None:
        """Say on the object that we are not done with it."""
        object_ = self._mirror.get(place)
        if object_ is not None and not object_.deleting:
            message = f"it could not be looked at yet: {error}"
            self._writer.submit(place, Held(generation=object_.generation, message=message))

    async def _bring_each(self, some: Sequence[tuple[Place, Mapping[str, Any] | None]]) -> None:
        """All at once; where that surprises us, in halves, so that one odd object is alone."""
        try:
            await self._bring(some)
        except FcError:
            raise
        except Exception as error:  # noqa: BLE001 - logged where one object is left
            if len(some) > 1:
                middle = len(some) // 2
                await self._bring_each(some[:middle])
                await self._bring_each(some[middle:])
                return
            _log.exception("operator.object_surprised", place="/".join(some[0][0]))
            # The next comparison tries it again.
            self._hold(some[0][0], error)

    async def _bring(self, some: Sequence[tuple[Place, Mapping[str, Any] | None]]) -> None:
        def read() -> _Batch:
            batch = _Batch()
            for place, body in some:
                if body is None:
                    batch.gone.append(place)
                else:
                    batch.read(seen(place[0], body), body)
            return batch

        batch = await asyncio.to_thread(read)
        touched = await self._cluster.bring(batch.declarations, batch.gone)
        places = {*touched, *(place for place, _ in some)}
        found = {each.place: each for each in await self._cluster.states(places=places)}
        self._handled.update(batch.marks)
        self._submit(found, batch)

    def _submit(self, found: Mapping[Place, ObjectState], batch: _Batch) -> None:
        for place, state in found.items():
            if place not in batch.broken:
                self._writer.submit(place, state)
        for place, broken in batch.broken.items():
            self._writer.submit(place, broken)
        for place in batch.gone:
            finding: Finding | None = found.get(place)
            self._writer.submit(place, finding)

    # All objects ----------------------------------------------------------------------------

    async def _compare(self) -> None:
        self._working_since_s = time.monotonic()
        try:
            await self._compare_all()
        finally:
            self._working_since_s = None

    async def _compare_all(self) -> None:
        start_s = time.monotonic()
        first = not self.compared.is_set()
        batch = _Batch()
        listed: dict[Place, Seen] = {}
        for kind in nouns.KINDS:
            for namespace in self._namespaces or (None,):
                await self._list(kind, namespace, batch, listed)
        missed = 0 if first else self._note_missed(listed)
        self._remember(listed)
        report = await self._cluster.compare(
            batch.declarations,
            batch.broken.keys(),
            gone=batch.gone,
            confirm=self._confirm_prune,
        )
        if report.prune_blocked:
            _log.warning("operator.prune_blocked", reason=report.prune_blocked)
        found = {each.place: each for each in await self._cluster.states()}
        self._handled.update({place: object_.mark for place, object_ in listed.items()})
        self._submit({place: found[place] for place in listed if place in found}, batch)
        self.comparisons += 1
        self.compared.set()
        _log.info(
            "operator.compared",
            objects=len(listed),
            missed=missed,
            changes=sum(report.counts.values()) - report.counts.get("unchanged", 0),
            seconds=round(time.monotonic() - start_s, 2),
        )

    async def _list(
        self, kind: Kind, namespace: str | None, batch: _Batch, listed: dict[Place, Seen]
    ) -> None:
        """All objects of a kind. One page that fails is not worth reading all kinds again."""
        for attempt in range(1, _LIST_TRIES + 1):
            found, objects = _Batch(), dict[Place, Seen]()
            try:
                await self._list_once(kind, namespace, found, objects)
            except NotFoundError as error:
                raise UnavailableError(
                    f"the API server does not know our kind {kind}",
                    hint="apply the files in crds/",
                ) from error
            except UnavailableError as error:
                if attempt == _LIST_TRIES:
                    raise
                delay_s = self._backoff.delay_s(attempt)
                await asyncio.sleep(delay_s if error.delay_s is None else error.delay_s)
            else:
                batch.add(found)
                listed.update(objects)
                return

    async def _list_once(
        self, kind: Kind, namespace: str | None, batch: _Batch, listed: dict[Place, Seen]
    ) -> None:
        bodies: list[Mapping[str, Any]] = []

        def read() -> None:
            for body in bodies:
                object_ = seen(kind, body)
                listed[object_.place] = object_
                batch.read(object_, body)

        async for body in self._kube.list(clients.OWN[kind], namespace, page=_BATCH):
            bodies.append(body)
            if len(bodies) == _BATCH:
                await asyncio.to_thread(read)
                bodies.clear()
        await asyncio.to_thread(read)

    def _note_missed(self, listed: Mapping[Place, Seen]) -> int:
        """Count what no watch has told of yet.

        What was missed is brought into force and its status written, of which a watch that lives
        tells in turn; what stays unheard from one comparison to the next makes us deaf.
        """
        still = {place for place in self._unheard if place in listed}
        self.deaf_rounds = self.deaf_rounds + 1 if still else 0
        missed = {
            place
            for place, object_ in listed.items()
            if self._handled.get(place) != object_.mark and place not in self._waiting
        }
        self._unheard = still | missed
        return len(missed)

    def _remember(self, listed: Mapping[Place, Seen]) -> None:
        self._mirror.forget_ends()
        for object_ in listed.values():
            self._mirror.put(object_)
            body = self._waiting.get(object_.place)
            if body is not None and seen(object_.kind, body).mark == object_.mark:
                del self._waiting[object_.place]
        for place in [*self._mirror.places()]:
            if place not in listed and place not in self._waiting:
                self._mirror.drop(place)
                self._handled.pop(place, None)
                self._writer.forget(place)
