"""Config repositories: as they are declared, and their syncs, one holder at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from fc_operator.model.conditions import Condition
from fc_operator.model.desired import DesiredConfigRepository
from fc_operator.model.ids import ConfigRepositoryId, new_uuid
from fc_operator.model.resources import Recorded
from fc_operator.store import webhook_configs
from fc_operator.store.database import Connection, Record
from fc_operator.store.queries import load

_sql = load("config_repositories")


@dataclass(frozen=True, slots=True, kw_only=True)
class DueSource:
    """A claimed config repository."""

    id: ConfigRepositoryId
    name: str
    namespace: str
    kind: Literal["git", "directory"]
    url: str
    """A git URL, or the path of a directory."""
    branch: str | None
    path: str
    """The folder inside that is read; empty is all of it."""
    interval_s: int
    prune: bool
    credentials_secret: str | None
    last_revision: str | None
    last_tree: str | None
    sync_failures: int
    confirmed_revision: str | None
    conditions: tuple[Condition, ...]
    due_at: datetime
    bootstrap: bool = False
    """Whether settings name it, and no manifest; whoever writes settings is trusted with all."""

    @property
    def own_namespace(self) -> str | None:
        """The one namespace in which it may declare objects; None: in any."""
        return None if self.bootstrap else self.namespace


async def list_recorded(connection: Connection, names: Collection[str]) -> list[Recorded]:
    """Config repositories as their rows have them, by name; not the one of ``fc up --config``."""
    if not names:
        return []
    rows = [row async for row in _sql.list_by_name(connection, names=list(names))]
    webhooks = webhook_configs.specs_by_parent(
        await webhook_configs.list_of_config_repositories(connection, [row["id"] for row in rows])
    )
    return [
        Recorded(
            id=row["id"],
            namespace=row["namespace"],
            deleting=row["deleting"],
            declared=DesiredConfigRepository(
                name=row["name"],
                url=row["url"],
                branch=row["branch"],
                path=row["path"],
                interval_s=row["interval_s"],
                prune=row["prune"],
                credentials_secret=row["credentials_secret"],
                suspended=row["suspended"],
                webhooks=webhooks.get(row["id"], ()),
            ),
        )
        for row in rows
    ]


async def upsert(
    connection: Connection,
    repositories: Sequence[DesiredConfigRepository],
    namespaces: Mapping[str, str],
) -> dict[str, ConfigRepositoryId]:
    """Bring config repositories to what was declared, due now; ids by name."""
    rows = [
        {
            "id": str(new_uuid()),
            "name": each.name,
            "namespace": namespaces[each.name],
            "url": each.url,
            "branch": each.branch,
            "path": each.path,
            "interval_s": each.interval_s,
            "prune": each.prune,
            "credentials_secret": each.credentials_secret,
            "suspended": each.suspended,
        }
        for each in repositories
    ]
    return {
        row["name"]: ConfigRepositoryId(row["id"])
        async for row in _sql.upsert(connection, rows=rows)
    }


async def request(connection: Connection, names: Sequence[str]) -> list[str]:
    """Have sources synced now; the names of those that exist."""
    return [row["name"] async for row in _sql.request(connection, names=list(names))]


async def confirm(connection: Connection, name: str, revision: str) -> bool:
    """Allow the pruning that one revision asks for; whether there is such a source."""
    return await _sql.confirm(connection, name=name, revision=revision) is not None


async def mark_deleting(connection: Connection, names: Sequence[str]) -> None:
    """Sync some repositories no more."""
    if names:
        await _sql.mark_deleting(connection, names=list(names))


async def delete(connection: Connection, id_: UUID) -> bool | None:
    """Delete one on its way out; whether what it declared goes too, None if it is not there."""
    found: bool | None = await _sql.delete(connection, id=id_)
    return found


async def upsert_bootstrap(
    connection: Connection,
    *,
    name: str,
    kind: Literal["git", "directory"],
    url: str,
    branch: str | None,
    path: str,
    interval_s: int,
    credentials_secret: str | None,
) -> None:
    """The source that ``fc up --config`` names."""
    await _sql.upsert_bootstrap(
        connection,
        name=name,
        kind=kind,
        url=url,
        branch=branch,
        path=path,
        interval_s=interval_s,
        credentials_secret=credentials_secret,
    )


async def suspend_bootstrap(connection: Connection, name: str) -> None:
    """There is no such source this time; what it declared stays."""
    await _sql.suspend_bootstrap(connection, name=name)


async def claim(
    connection: Connection, *, owner: str, lease_s: float, size: int
) -> list[DueSource]:
    """Take the lease of up to ``size`` sources that are due."""
    rows = _sql.claim(connection, owner=owner, lease_s=lease_s, size=size)
    return [_due(row) async for row in rows]


async def renew(connection: Connection, id_: UUID, *, owner: str, lease_s: float) -> bool:
    """Lengthen a lease; whether it still held."""
    return bool(await _sql.renew(connection, id=id_, owner=owner, lease_s=lease_s))


async def is_held(connection: Connection, source: DueSource, *, owner: str) -> bool:
    """Whether this process may still write what it read of this source, as declared then."""
    return bool(
        await _sql.is_held(
            connection,
            id=source.id,
            owner=owner,
            url=source.url,
            path=source.path,
            branch=source.branch,
        )
    )


async def finish(
    connection: Connection,
    source: DueSource,
    *,
    owner: str,
    delay_s: float,
    failures: int,
    conditions: Sequence[Condition],
    revision: str | None = None,
    tree: str | None = None,
) -> None:
    """End a sync: remember its outcome, give up the lease, be due after ``delay_s``.

    A ``revision`` says that it was brought into force.
    """
    await _sql.finish(
        connection,
        id=source.id,
        owner=owner,
        delay_s=delay_s,
        failures=failures,
        revision=revision,
        tree=tree,
        conditions=[each.as_dict() for each in conditions],
        synced=revision is not None,
        claimed_due=source.due_at,
    )


async def release(connection: Connection, *, owner: str) -> None:
    """Give up all leases of a process."""
    await _sql.release(connection, owner=owner)


async def next_due_s(connection: Connection) -> float | None:
    """Seconds until a source is due; None when there is none."""
    found: float | None = await _sql.next_due_s(connection)
    return found


async def list_directories(connection: Connection) -> list[tuple[str, str, str]]:
    """Name, folder and path inside of each directory source."""
    rows = _sql.list_directories(connection)
    return [(row["name"], row["url"], row["path"]) async for row in rows]


def _due(row: Record) -> DueSource:
    return DueSource(
        id=ConfigRepositoryId(row["id"]),
        name=row["name"],
        namespace=row["namespace"],
        kind=row["kind"],
        url=row["url"],
        branch=row["branch"],
        path=row["path"],
        interval_s=row["interval_s"],
        prune=row["prune"],
        credentials_secret=row["credentials_secret"],
        last_revision=row["last_revision"],
        last_tree=row["last_tree"],
        sync_failures=row["sync_failures"],
        confirmed_revision=row["confirmed_revision"],
        conditions=tuple(Condition.from_dict(each) for each in row["conditions"]),
        due_at=row["next_sync_at"],
        bootstrap=row["bootstrap"],
    )
