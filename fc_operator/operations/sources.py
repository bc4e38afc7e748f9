"""What people ask of sources, and the second phase of pruning: what went is deleted at last."""

from __future__ import annotations

from uuid import UUID

from fc_operator.errors import ConflictError, NotFoundError
from fc_operator.kit import logs
from fc_operator.model import desired as nouns
from fc_operator.model import sources
from fc_operator.model.resources import Resource
from fc_operator.model.sources import Source
from fc_operator.operations import builds, evaluations
from fc_operator.reconciler import apply as reconciling
from fc_operator.store import (
    config_repositories,
    jobsets,
    managed_resources,
    projects,
    remote_builders,
)
from fc_operator.store.database import Connection, Database, notify
from fc_operator.store.listener import RESOURCES, SOURCES

ACTOR = "pruning"
"""Who cancels what still runs of an object that goes, in the audit log."""
_BATCH = 500
"""Builds deleted in one transaction: some tens of milliseconds, so that nobody waits for long."""
_log = logs.get_logger()


async def request_sync(database: Database, name: str) -> None:
    """Have a config repository synced now.

    Raises:
        NotFoundError: there is none of this name.
    """

    async def change(connection: Connection) -> bool:
        found = await config_repositories.request(connection, [name])
        if found:
            await notify(connection, SOURCES)
        return bool(found)

    if not await database.run(change):
        raise NotFoundError(f"there is no config repository {name}")


async def confirm(database: Database, name: str, revision: str) -> None:
    """Let one revision of a config repository come into force although it prunes much or rewrites
    what was in force, and sync it now.

    Raises:
        NotFoundError: there is none of this name.
    """

    async def change(connection: Connection) -> bool:
        found = await config_repositories.confirm(connection, name, revision)
        if found:
            await notify(connection, SOURCES)
        return found

    if not await database.run(change):
        raise NotFoundError(f"there is no config repository {name}")


async def finish_pruning(database: Database, *, grace_s: float, size: int = 100) -> int:
    """The second phase for up to ``size`` objects whose grace time is over; how many are done.

    History goes in bounded batches, each in a transaction of its own, so that a project with many
    builds holds nobody up; a manifest that comes back meanwhile stops it. Several processes may
    do this at once, and one that is killed leaves nothing that the next would not find.
    """
    async with database.session() as connection:
        overdue = await managed_resources.list_overdue(connection, grace_s=grace_s, size=size)
    # What hangs on something else goes before it.
    overdue.sort(key=lambda row: -nouns.KINDS.index(row.kind))
    done = 0
    for row in overdue:
        finished = await _finish(database, row)
        done += finished
        if finished:
            _log.info("operations.object_pruned", kind=row.kind, identity=row.identity)
    return done


async def _finish(database: Database, row: Resource) -> bool:
    """Delete or retire one object; whether nothing of it is left to do."""
    object_id = row.object_id
    if object_id is None:
        return await _end_claim(database, row)
    match row.kind:
        case nouns.PROJECT:
            return await _finish_project(database, row, object_id)
        case nouns.JOBSET:
            return await _finish_jobset(database, row, object_id)
        case nouns.REMOTE_BUILDER:
            return await _finish_builder(database, row, object_id)
        case _:
            return await _finish_config_repository(database, row, object_id)


async def _finish_project(database: Database, row: Resource, id_: UUID) -> bool:
    async with database.session() as connection:
        policy = await projects.fetch_policy(connection, id_)
        own = await jobsets.list_of_project(connection, id_)
    for jobset_id in own:
        if not await _stop(database, jobset_id):
            return False
    if policy != "delete":
        return await _end_claim(database, row)

    async def mark(connection: Connection) -> bool:
        await managed_resources.lock(connection)
        if not await managed_resources.hold_pruning(connection, row.id):
            return False
        await jobsets.mark_deleting_of_project(connection, id_)
        return True

    if not await database.run(mark):
        return False
    for jobset_id in own:
        await _delete_history(database, jobset_id)

    async def delete(connection: Connection) -> bool:
        await managed_resources.lock(connection)
        if not await managed_resources.hold_pruning(connection, row.id):
            return False
        for jobset_id in await jobsets.list_of_project(connection, id_):
            await jobsets.delete_empty(connection, jobset_id)
        if not await projects.delete_empty(connection, id_):
            return False
        await managed_resources.delete(connection, [row.id])
        await notify(connection, RESOURCES)
        return True

    return await database.run(delete)


async def _finish_jobset(database: Database, row: Resource, id_: UUID) -> bool:
    if not await _stop(database, id_):
        return False
    async with database.session() as connection:
        policy = await jobsets.fetch_policy(connection, id_)
    if policy != "delete":
        return await _end_claim(database, row)
    await _delete_history(database, id_)

    async def delete(connection: Connection) -> bool:
        await managed_resources.lock(connection)
        if not await managed_resources.hold_pruning(connection, row.id):
            return False
        if not await jobsets.delete_empty(connection, id_):
            return False
        await managed_resources.delete(connection, [row.id])
        await notify(connection, RESOURCES)
        return True

    return await database.run(delete)


async def _finish_builder(database: Database, row: Resource, id_: UUID) -> bool:
    async def delete(connection: Connection) -> bool:
        await managed_resources.lock(connection)
        if not await managed_resources.hold_pruning(connection, row.id):
            return False
        await remote_builders.delete(connection, [id_])
        await managed_resources.delete(connection, [row.id])
        await notify(connection, RESOURCES)
        return True

    return await database.run(delete)


async def _finish_config_repository(database: Database, row: Resource, id_: UUID) -> bool:
    """The repository goes; what it declared goes its own way out, or stays without an owner."""
    source = Source(sources.CONFIG_REPOSITORY, row.identity)

    async def delete(connection: Connection) -> bool:
        await managed_resources.lock(connection)
        if not await managed_resources.hold_pruning(connection, row.id):
            return False
        prune = await config_repositories.delete(connection, id_)
        if prune:
            await reconciling.mark_deleting(
                connection, await managed_resources.start_pruning_of_source(connection, source)
            )
        await managed_resources.delete_of_source(connection, source, owned=not prune)
        await managed_resources.replace_problems(connection, source, ())
        await managed_resources.delete(connection, [row.id])
        await notify(connection, RESOURCES)
        return True

    return await database.run(delete)


async def _end_claim(database: Database, row: Resource) -> bool:
    """The declaration is gone for good; the object, if any, stays as history, stopped."""

    async def change(connection: Connection) -> bool:
        await managed_resources.lock(connection)
        if not await managed_resources.hold_pruning(connection, row.id):
            return False
        await managed_resources.delete(connection, [row.id])
        await notify(connection, RESOURCES)
        return True

    return await database.run(change)


async def _stop(database: Database, jobset_id: UUID) -> bool:
    """Cancel what a jobset still evaluates and builds; whether nothing of it runs any more."""
    async with database.session() as connection:
        live = await jobsets.list_live_evaluations(connection, jobset_id)
    for evaluation_id, evaluates in live:
        if evaluates:
            try:
                await evaluations.cancel(database, evaluation_id, ACTOR)
            except (ConflictError, NotFoundError):
                continue  # it ended by itself
        await builds.cancel_evaluation_builds(database, evaluation_id, ACTOR)
    async with database.session() as connection:
        return not await jobsets.list_live_evaluations(connection, jobset_id)


async def _delete_history(database: Database, jobset_id: UUID) -> None:
    async def change(connection: Connection) -> int:
        return await jobsets.delete_some_history(connection, jobset_id, _BATCH)

    while await database.run(change):
        pass
