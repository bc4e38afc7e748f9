"""Claiming steps: what the builder can take, whose turn it is, one statement that takes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from fc_operator.model.ids import BuilderId, ClassId, JobsetId, Owner, TaskId, new_uuid
from fc_operator.queue import shares
from fc_operator.queue.offers import Offer, fits
from fc_operator.settings import QueueSettings
from fc_operator.store import claims as store
from fc_operator.store import listener, remote_builders
from fc_operator.store.claims import ClaimedStep, Waiting
from fc_operator.store.database import Connection, Database, notify


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """A declared builder."""

    id: BuilderId
    name: str


async def claim(
    database: Database,
    offer: Offer,
    free: int,
    *,
    owner: Owner,
    executor: str,
    settings: QueueSettings,
    builder: Builder | None = None,
) -> list[ClaimedStep]:
    """Take up to ``free`` ready steps, as one task under a lease.

    For a declared ``builder`` no more than it has room for, over all that claim for it.

    Raises:
        UnavailableError: what was claimed, if anything, is lost with its lease and comes back.
    """
    quotas = await _quotas(database, offer, min(free, settings.batch), settings)
    if not quotas:
        return []

    async def change(connection: Connection) -> list[ClaimedStep]:
        within = quotas
        if builder is not None:
            within = shares.cut(quotas, await remote_builders.fetch_room(connection, builder.id))
            if not within:
                return []
        steps, evaluations = await store.claim(
            connection,
            within,
            task_id=TaskId(new_uuid()),
            owner=owner,
            executor=executor,
            builder=builder.name if builder else None,
            builder_id=builder.id if builder else None,
            lease_s=settings.lease_s,
        )
        if evaluations:
            ids = ",".join(sorted(map(str, evaluations)))
            await notify(connection, listener.BUILDS, ids)
        return steps

    return await database.run(change)


Fitting = Callable[[Connection, list[Waiting]], Awaitable[list[Waiting]]]
"""Which of the waiting (class, jobset) pairs may be claimed now."""
Intent = Callable[[Connection, Sequence[ClaimedStep]], Awaitable[None]]
"""What is written together with a claim."""


async def turns(
    database: Database, fitting: Fitting, batches: int, settings: QueueSettings
) -> list[tuple[ClassId, JobsetId]]:
    """Whose batches go next, at most ``batches``; a pair stands there once per batch.

    How many steps wait is not known, so a batch may turn out to be small or empty.
    """
    async with database.session() as connection:
        heads = await store.list_waiting(connection)
        if heads:
            heads = await fitting(connection, heads)
        if not heads:
            return []
        jobsets = {head.jobset_id for head in heads}
        usage = await store.list_usage(connection, jobsets, settings.usage_window_s)
    # What runs now will cost something yet; else whoever has begun nothing would take all.
    soon = [
        replace(_share(row), used_s=row.used_s + row.running * shares.EXPECTED_S) for row in usage
    ]
    allotted = shares.allot(_heads(heads), soon, batches)
    return [(class_id, jobset_id) for class_id, jobset_id, n in allotted for _ in range(n)]


async def claim_batch(
    database: Database,
    turn: tuple[ClassId, JobsetId],
    most: int,
    *,
    task_id: TaskId,
    owner: Owner,
    executor: str,
    builder: str,
    settings: QueueSettings,
    intent: Intent,
) -> list[ClaimedStep]:
    """Take up to ``most`` ready steps of one class and jobset as one task under a lease.

    ``intent`` writes in the same transaction what shall be done with them; it may run twice.

    Raises:
        UnavailableError: what was claimed, if anything, is lost with its lease and comes back.
    """
    class_id, jobset_id = turn

    async def change(connection: Connection) -> list[ClaimedStep]:
        steps, evaluations = await store.claim(
            connection,
            [(class_id, jobset_id, most)],
            task_id=task_id,
            owner=owner,
            executor=executor,
            builder=builder,
            lease_s=settings.lease_s,
        )
        if steps:
            await intent(connection, steps)
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
