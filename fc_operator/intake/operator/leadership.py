"""One operator acts at a time: a lease in the database, not in the cluster that it acts on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from fc_operator.errors import UnavailableError
from fc_operator.kit import logs
from fc_operator.model.ids import Owner
from fc_operator.store import duties, maintenance
from fc_operator.store.database import Connection, Database

DUTY = "operator"
_RENEW_S = 0.5
"""Seconds between looks at the lease, so that its loss ends us within one."""
_MARGIN = 0.2
"""Share of the lease before its end at which a holder that can't renew it gives up."""
_log = logs.get_logger()


class Leadership:
    """A service (see ``kit.services``) that holds the lease once :meth:`acquire` returned."""

    name = "operator.leadership"

    def __init__(
        self, database: Database, *, owner: str, lease_s: float, lost: Callable[[str], None]
    ) -> None:
        """``lost`` is called once, with a reason, when the lease is gone: end the process."""
        self._database = database
        self.owner = Owner(owner)
        self._lease_s = lease_s
        self._lost = lost
        self._task: asyncio.Task[None] | None = None
        self._held_at_s = 0.0

    async def acquire(self) -> None:
        """Wait until nobody else has the lease and the database answers, and take it."""
        told = False
        while not await self._take():
            if not told:
                _log.info("operator.waiting_for_lease")
                told = True
            await asyncio.sleep(min(1.0, self._lease_s / 5))
        _log.info("operator.leading", owner=self.owner)

    async def seize(self, lease_s: float) -> None:
        """Take the lease from whoever has it, who ends within a second."""
        async with self._database.session() as connection:
            await duties.seize(connection, DUTY, self.owner, lease_s)

    async def still_held(self, connection: Connection) -> bool:
        """Whether it is ours, asked inside a transaction that writes."""
        return await duties.holds(connection, DUTY, self.owner)

    async def start(self) -> None:
        """See ``Service.start``: renew it from now on."""
        self._task = asyncio.create_task(self._renew(), name=self.name)

    async def stop(self) -> None:
        """See ``Service.stop``; the next operator need not wait."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(2), self._database.session() as connection:
                await maintenance.drop_duty(connection, DUTY, self.owner)

    async def _take(self) -> bool:
        begun_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._lease_s / 3), self._database.session() as connection:
                epoch = await maintenance.take_duty(connection, DUTY, self.owner, self._lease_s)
        except (UnavailableError, TimeoutError) as error:
            _log.warning("operator.lease_not_reached", error=str(error))
            return False
        if epoch is not None:
            self._held_at_s = begun_s
        return epoch is not None

    async def _renew(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_RENEW_S)
            begun_s = loop.time()
            try:
                async with asyncio.timeout(2), self._database.session() as connection:
                    held = await maintenance.take_duty(connection, DUTY, self.owner, self._lease_s)
            except (UnavailableError, TimeoutError):
                if loop.time() - self._held_at_s > self._lease_s * (1 - _MARGIN):
                    self._lost("the lease could not be renewed in time")
                    return
                continue
            if held is None:
                self._lost("another operator has the lease")
                return
            self._held_at_s = begun_s
