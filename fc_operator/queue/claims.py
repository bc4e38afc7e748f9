"""Claiming steps: what the builder can take, whose turn it is, one statement that takes it."""

from __future__ import annotations

from collections.abc import Sequence

from fc_operator.model.ids import ClassId, JobsetId, Owner, TaskId, new_uuid
from fc_operator.queue import shares
from fc_operator.queue.offers import Offer, fits
from fc_operator.settings import QueueSettings
from fc_operator.store import claims as store
from fc_operator.store import listener
from fc_operator.store.claims import ClaimedStep, Waiting
from fc_operator.store.database import Connection, Database, notify


async def claim(
    database: Database,
    offer: Offer,
    free: int,
    *,
    owner: Owner,
    executor: str,
    settings: QueueSettings,
) -> list[ClaimedStep]:
    """Take up to ``free`` ready steps for a builder, as one task under a lease.

    Raises:
        UnavailableError: what was claimed, if anything, is lost with its lease and comes back.
    """
    quotas = await _quotas(database, offer, min(free, settings.batch), settings)
    if not quotas:
        return []

    async def change(connection: Connection) -> list[ClaimedStep]:
        steps, evaluations = await store.claim(
            connection,
            quotas,
            task_id=TaskId(new_uuid()),
            owner=owner,
            executor=executor,
            lease_s=settings.lease_s,
        )
        if evaluations:
            ids = ",".join(sorted(map(str, evaluations)))
            await notify(connection, listener.BUILDS, ids)
        return steps

    return await database.run(change)


async def _quotas(
    database: Database, offer: Offer, free: int, settings: QueueSettings
) -> list[tuple[ClassId, JobsetId, int]]:
    async with database.session() as connection:
        heads = [
            head
            for head in await store.list_waiting(connection)
            if fits(offer, head.system, head.features)
        ]
        if not heads:
            return []
        jobsets = {head.jobset_id for head in heads}
        usage = await store.list_usage(connection, jobsets, settings.usage_window_s)
    return shares.allot(_heads(heads), [_share(row) for row in usage], free)


def _heads(waiting: Sequence[Waiting]) -> list[shares.Head]:
    return [
        shares.Head(
            class_id=row.class_id, jobset_id=row.jobset_id, bump=row.bump, priority=row.priority
        )
        for row in waiting
    ]


def _share(row: store.Usage) -> shares.Share:
    return shares.Share(
        jobset_id=row.jobset_id, shares=row.shares, used_s=row.used_s, running=row.running
    )
