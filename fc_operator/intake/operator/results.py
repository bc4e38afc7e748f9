"""Tells the cluster what came of its objects: evaluations, builds, syncs, other owners."""

from __future__ import annotations

import asyncio
from uuid import UUID

from fc_operator.intake.operator.desk import Desk
from fc_operator.intake.operator.objects import Mirror
from fc_operator.intake.operator.writer import StatusWriter
from fc_operator.kit.services import LoopService
from fc_operator.operations.cluster import Cluster
from fc_operator.store.listener import (
    BUILDS,
    EVALUATIONS,
    RESOURCES,
    SOURCES,
    Listener,
    Subscription,
)

_POLL_S = 30.0


class ResultsService:
    """A service (see ``kit.services``): reads states that may have changed and has them written."""

    name = "operator.results"

    def __init__(
        self,
        listener: Listener,
        cluster: Cluster,
        mirror: Mirror,
        desk: Desk,
        writer: StatusWriter,
        *,
        status_s: float,
        poll_s: float = _POLL_S,
    ) -> None:
        self._listener = listener
        self._cluster = cluster
        self._mirror = mirror
        self._desk = desk
        self._writer = writer
        self._status_s = status_s
        self._poll_s = poll_s
        self._loop = LoopService(self.name, self._run)

    async def start(self) -> None:
        """See ``Service.start``."""
        await self._loop.start()

    async def stop(self) -> None:
        """See ``Service.stop``."""
        await self._loop.stop()

    async def _run(self) -> None:
        await self._desk.compared.wait()
        with self._listener.subscribe(RESOURCES, BUILDS, SOURCES, EVALUATIONS) as subscription:
            await self._read(None)
            while True:
                await self._read(await self._next(subscription))
                # However fast builds end, a status is written only so often.
                await asyncio.sleep(self._status_s)

    async def _next(self, subscription: Subscription) -> set[UUID] | None:
        """The evaluations that moved; None: anything may have."""
        payloads = await subscription.wait(self._poll_s)
        if payloads is None or "" in payloads:
            return None
        return {UUID(each) for payload in payloads for each in payload.split(",")}

    async def _read(self, evaluations: set[UUID] | None) -> None:
        for state in await self._cluster.states(evaluations=evaluations):
            object_ = self._mirror.get(state.place)
            if object_ is None or object_.deleting or self._desk.is_waiting(state.place):
                continue
            self._writer.submit(state.place, state)
