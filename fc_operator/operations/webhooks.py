"""A forge tells of a push: noted once, and who follows that ref is woken, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from fc_operator.model.pushes import Push
from fc_operator.store import checks, config_repositories, listener, webhook_deliveries
from fc_operator.store.database import Connection, Database, notify
from fc_operator.store.webhook_deliveries import Hook


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What a delivery did."""

    woken: tuple[str, ...] = ()
    """Names of the jobsets, or of the config repository."""
    is_duplicate: bool = False


async def accept_push(database: Database, hook: Hook, delivery_id: str, push: Push) -> Received:
    """Wake the jobsets of the hook's project that follow the ref; a delivery counts once."""

    async def change(connection: Connection) -> Received:
        if not await webhook_deliveries.insert(connection, hook.id, delivery_id):
            return Received(is_duplicate=True)
        if push.is_deletion:
            return Received()
        found = await webhook_deliveries.match_jobsets(
            connection, hook.parent_id, push.names, is_default=push.is_default
        )
        woken = set(await checks.wake(connection, [id_ for id_, _ in found], "webhook"))
        if woken:
            await notify(connection, listener.JOBSETS)
        return Received(woken=tuple(name for id_, name in found if id_ in woken))

    return await database.run(change)


async def accept_config_push(
    database: Database, hook: Hook, delivery_id: str, push: Push
) -> Received:
    """Sync the hook's config repository if it follows the ref; a delivery counts once."""

    async def change(connection: Connection) -> Received:
        if not await webhook_deliveries.insert(connection, hook.id, delivery_id):
            return Received(is_duplicate=True)
        if push.is_deletion or not push.moves(hook.branch):
            return Received()
        woken = await config_repositories.request(connection, [hook.parent])
        if woken:
            await notify(connection, listener.SOURCES)
        return Received(woken=tuple(woken))

    return await database.run(change)
