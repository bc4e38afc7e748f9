"""Maintenance: what ran out, what is over, what nobody can build, what has had its day.

One process at a time has the duty. Each round is a list of named chores; one that fails is logged
and does not keep the others from their turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fc_operator.clients.objects import ObjectStore
from fc_operator.errors import FcError, UnavailableError
from fc_operator.kit import logs
from fc_operator.kit.services import LoopService
from fc_operator.model.ids import Owner, StepId
from fc_operator.model.statuses import BuildStatus
from fc_operator.operations import steps as step_operations
from fc_operator.queue.offers import Offer, fits
from fc_operator.results import archive
from fc_operator.settings import BuildSettings, QueueSettings
from fc_operator.store import claims, listener, maintenance, steps
from fc_operator.store import logs as log_store
from fc_operator.store.database import Connection, Database, notify, owner_id
from fc_operator.store.maintenance import OfferRow, StepClass

_log = logs.get_logger()
_DUTY = "maintenance"
_ROUND_MAX = 500
"""Rows that one chore handles at once."""
_ARCHIVE_MAX = 50
_ALIVE_S = 60.0
"""A scheduler that said nothing for so long offers nothing."""
_PRUNE_EVERY_S = 60.0
_TASKS_AGE_S = 86_400.0
_DELIVERIES_AGE_S = 72 * 3600.0
"""Forges repeat a delivery for three days at most."""


@dataclass(slots=True)
class _Chore:
    name: str
    run: Callable[[], Awaitable[int]]
    every_s: float
    due_s: float = 0.0


class MaintenanceService:
    """See the module. ``objects`` is where finished logs go."""

    name = "maintenance"

    def __init__(
        self,
        database: Database,
        objects: ObjectStore,
        *,
        queue: QueueSettings,
        builds: BuildSettings,
        owner: Owner | None = None,
    ) -> None:
        self._database = database
        self._objects = objects
        self._queue = queue
        self._builds = builds
        self.owner = owner or Owner(owner_id("maintenance"))
        self._loop = LoopService(self.name, self._run)
        tick_s = min(1.0, queue.poll_s)
        self._chores = [
            _Chore("lost_leases", self.requeue_lost, tick_s),
            _Chore("backoffs", self.queue_due, tick_s),
            _Chore("logs", self.archive_logs, tick_s),
            _Chore("unsupported", self.give_up_unsupported, queue.poll_s),
            _Chore("supported_again", self.take_back_supported, queue.poll_s),
            _Chore("orphans", self.refile_orphans, queue.poll_s),
            _Chore("old_rows", self.prune, _PRUNE_EVERY_S),
        ]
        self._tick_s = tick_s
        self._since_s = time.monotonic()

    async def start(self) -> None:
        """See ``Service.start``."""
        await self._loop.start()

    async def stop(self) -> None:
        """See ``Service.stop``; the next process need not wait for the duty."""
        await self._loop.stop()
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(2), self._database.session() as connection:
                await maintenance.drop_duty(connection, _DUTY, self.owner)

    async def _run(self) -> None:
        while True:
            if await self._has_duty():
                await self.round()
            await asyncio.sleep(self._tick_s)

    async def _has_duty(self) -> bool:
        async with self._database.session() as connection:
            epoch = await maintenance.take_duty(connection, _DUTY, self.owner, self._queue.lease_s)
        return epoch is not None

    async def round(self) -> None:
        """Do each chore that is due."""
        for chore in self._chores:
            now_s = time.monotonic()
            if now_s < chore.due_s:
                continue
            chore.due_s = now_s + chore.every_s
            try:
                done = await chore.run()
            except (FcError, TimeoutError) as error:
                _log.warning("scheduler.chore_failed", chore=chore.name, error=str(error))
            else:
                if done:
                    _log.info("scheduler.chore_done", chore=chore.name, count=done)

    async def requeue_lost(self) -> int:
        """Steps whose leases ran out are pending again."""
        async with self._database.session() as connection:
            leases = await claims.list_expired(connection, _ROUND_MAX)
        return await step_operations.requeue(self._database, leases) if leases else 0

    async def queue_due(self) -> int:
        """Steps whose backoff is over can be claimed."""

        async def change(connection: Connection) -> int:
            queued = await steps.queue_due(connection)
            if queued:
                await notify(connection, listener.STEPS)
            return len(queued)

        return await self._database.run(change)

    async def give_up_unsupported(self) -> int:
        """Steps that no builder can take end, after some patience."""
        count = 0
        async with self._database.session() as connection:
            offers = await maintenance.list_offers(connection, _ALIVE_S)
            waiting = await maintenance.list_waiting_classes(connection)
        if not any(offer.is_live for offer in offers):
            return 0  # nobody builds at all now; that says nothing about what could be built
        # After a start of ours builders may need a while to say what they offer.
        patience_s = time.monotonic() - self._since_s
        for class_, waits_s in waiting:
            waited_s = min(waits_s, patience_s)
            if waited_s < self._builds.unsupported_after_s or _is_offered(class_, offers):
                continue
            async with self._database.session() as connection:
                ids = await maintenance.list_given_up(
                    connection, class_.id, self._builds.unsupported_after_s, _ROUND_MAX
                )
            ended = await step_operations.give_up(
                self._database,
                ids,
                status=BuildStatus.UNSUPPORTED_SYSTEM,
                reason="UnsupportedSystem",
                message=_lacks(class_),
            )
            count += len(ended)
        return count

    async def take_back_supported(self) -> int:
        """Steps that were given up run after all when a builder for them appears."""
        async with self._database.session() as connection:
            classes = await maintenance.list_unsupported_classes(connection)
            offers = await maintenance.list_offers(connection, _ALIVE_S) if classes else []
            able = [class_.id for class_ in classes if _is_offered(class_, offers)]
            ids = await maintenance.list_unsupported(connection, able, _ROUND_MAX) if able else []
        if ids:
            await step_operations.take_back(self._database, ids)
        return len(ids)

    async def refile_orphans(self) -> int:
        """Waiting steps of jobsets that may not run go to others that want them, or end."""
        async with self._database.session() as connection:
            orphans = await maintenance.list_orphans(connection, _ROUND_MAX)
        if not orphans:
            return 0

        async def change(connection: Connection) -> set[StepId]:
            await steps.lock(connection, [step_id for step_id, _ in orphans])
            moved = await maintenance.refile(connection, [step_id for step_id, _ in orphans])
            if moved:
                await notify(connection, listener.STEPS)
            return moved

        moved = await self._database.run(change)
        forsaken = [step_id for step_id, is_gone in orphans if is_gone and step_id not in moved]
        if forsaken:
            await step_operations.give_up(
                self._database,
                forsaken,
                status=BuildStatus.CANCELLED,
                reason="Unwanted",
                message="its jobset is gone",
            )
        return len(moved) + len(forsaken)

    async def archive_logs(self) -> int:
        """Finished logs move to the object store; a log that can't be moved stays and waits."""
        async with self._database.session() as connection:
            logs_left = await log_store.list_unarchived(connection, _ARCHIVE_MAX)
        count = 0
        for step_id, attempt in logs_left:
            written = await archive.write(
                self._objects,
                archive.key_of(step_id, attempt),
                log_store.read(self._database, step_id, attempt),
            )
            async with self._database.transaction() as connection:
                await log_store.note_archived(
                    connection, step_id, attempt, key=written.key, lines=written.lines
                )
            count += 1
        return count

    async def prune(self) -> int:
        """Rows that nobody needs any more go, some at a time."""
        async with self._database.session() as connection:
            await maintenance.prune(
                connection,
                tasks_age_s=_TASKS_AGE_S,
                deliveries_age_s=_DELIVERIES_AGE_S,
                usage_age_s=2 * self._queue.usage_window_s,
                limit=_ROUND_MAX,
            )
        return 0


def _is_offered(class_: StepClass, offers: list[OfferRow]) -> bool:
    return any(
        fits(
            Offer(systems=offer.systems, features=offer.features, mandatory=offer.mandatory),
            class_.system,
            class_.features,
        )
        for offer in offers
    )


def _lacks(class_: StepClass) -> str:
    features = f" with features {', '.join(class_.features)}" if class_.features else ""
    return f"no builder for {class_.system}{features}"
