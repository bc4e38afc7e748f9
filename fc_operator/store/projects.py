"""Projects and what hangs on them: notifications, channels, members. Webhooks are by themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID

from fc_operator.model.desired import (
    ChannelSpec,
    DesiredProject,
    MemberSpec,
    NotificationSpec,
    PodsSpec,
    SecretRef,
)
from fc_operator.model.ids import ProjectId, new_uuid
from fc_operator.model.resources import Recorded
from fc_operator.store import webhook_configs
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("projects")


async def list_recorded(connection: Connection, names: Collection[str]) -> list[Recorded]:
    """Projects as their rows have them, by name."""
    if not names:
        return []
    rows = [row async for row in _sql.list_by_name(connection, names=list(names))]
    ids = [row["id"] for row in rows]
    if not ids:
        return []
    webhooks = webhook_configs.specs_by_parent(
        await webhook_configs.list_of_projects(connection, ids)
    )
    notifications: dict[UUID, list[NotificationSpec]] = defaultdict(list)
    async for row in _sql.list_notifications(connection, project_ids=ids):
        notifications[row["project_id"]].append(
            _notification(row["notification_type"], row["name"], row["config"], row["enabled"])
        )
    channels: dict[UUID, list[ChannelSpec]] = defaultdict(list)
    async for row in _sql.list_channels(connection, project_ids=ids):
        channels[row["project_id"]].append(ChannelSpec(name=row["name"], jobset=row["jobset"]))
    members: dict[UUID, list[MemberSpec]] = defaultdict(list)
    async for row in _sql.list_members(connection, project_ids=ids):
        members[row["project_id"]].append(MemberSpec(user=row["username"], role=row["role"]))
    return [
        Recorded(
            id=row["id"],
            namespace=row["namespace"],
            deleting=row["deleting"],
            declared=DesiredProject(
                name=row["name"],
                repository_url=row["repository_url"],
                display_name=row["display_name"],
                description=row["description"],
                homepage=row["homepage"],
                owner=row["owner"],
                visibility=row["visibility"],
                credentials_secret=row["credentials_secret"],
                pods=PodsSpec.from_dict(row["pods"]),
                cache_public=row["cache_public"],
                deletion_policy=row["deletion_policy"],
                suspended=row["suspended"],
                webhooks=webhooks.get(row["id"], ()),
                notifications=tuple(notifications[row["id"]]),
                channels=tuple(channels[row["id"]]),
                members=tuple(members[row["id"]]),
            ),
        )
        for row in rows
    ]


async def list_jobset_identities(connection: Connection, names: Collection[str]) -> frozenset[str]:
    """``project/jobset`` of all jobsets of some projects."""
    rows = _sql.list_jobset_names(connection, names=list(names))
    return frozenset([f"{row['project']}/{row['jobset']}" async for row in rows])


async def upsert(
    connection: Connection, projects: Sequence[DesiredProject], namespaces: Mapping[str, str]
) -> dict[str, ProjectId]:
    """Bring rows of projects (not their parts) to what was declared; ids by name."""
    rows = [
        {
            "id": str(new_uuid()),
            "name": each.name,
            "repository_url": each.repository_url,
            "display_name": each.display_name,
            "description": each.description,
            "homepage": each.homepage,
            "owner": each.owner,
            "visibility": each.visibility,
            "namespace": namespaces[each.name],
            "credentials_secret": each.credentials_secret,
            "pods": each.pods.as_dict(),
            "cache_public": each.cache_public,
            "deletion_policy": each.deletion_policy,
            "suspended": each.suspended,
        }
        for each in projects
    ]
    return {row["name"]: ProjectId(row["id"]) async for row in _sql.upsert(connection, rows=rows)}


async def replace_notifications(
    connection: Connection, parts: Mapping[UUID, Sequence[NotificationSpec]]
) -> None:
    """Make these the targets of some projects."""
    rows = [
        {
            "project_id": str(id_),
            "type": each.type,
            "name": each.name,
            "enabled": each.enabled,
            "config": _config(each),
        }
        for id_, specs in parts.items()
        for each in specs
    ]
    await _sql.delete_other_notifications(connection, project_ids=list(parts), rows=rows)
    if rows:
        await _sql.upsert_notifications(connection, rows=rows)


async def replace_members(
    connection: Connection, parts: Mapping[UUID, Sequence[MemberSpec]]
) -> None:
    """Make these the members of some projects. A user whom nobody made yet gets an account that
    can't log in: so the name is taken, and nobody who registers it later finds rights waiting.
    """
    rows = [
        {"project_id": str(id_), "username": each.user, "role": each.role}
        for id_, specs in parts.items()
        for each in specs
    ]
    await _sql.delete_other_members(connection, project_ids=list(parts), rows=rows)
    if rows:
        names = sorted({row["username"] for row in rows})
        await _sql.insert_users(connection, usernames=names)
        await _sql.upsert_members(connection, rows=rows)


async def replace_channels(
    connection: Connection, parts: Mapping[UUID, Sequence[ChannelSpec]]
) -> None:
    """Make these the channels of some projects; those whose jobset is missing are left out."""
    rows = [
        {"project_id": str(id_), "name": each.name, "jobset": each.jobset}
        for id_, specs in parts.items()
        for each in specs
    ]
    await _sql.delete_other_channels(connection, project_ids=list(parts), rows=rows)
    if rows:
        await _sql.upsert_channels(connection, rows=rows)


async def mark_deleting(connection: Connection, names: Sequence[str]) -> None:
    """Stop scheduling for some projects."""
    if names:
        await _sql.mark_deleting(connection, names=list(names))


async def fetch_policy(connection: Connection, id_: UUID) -> str | None:
    """``retain`` or ``delete``; None if there is no such project."""
    found: str | None = await _sql.fetch_policy(connection, id=id_)
    return found


async def delete_empty(connection: Connection, id_: UUID) -> bool:
    """Delete a project on its way out if it has no jobset left; whether it went."""
    return await _sql.delete_empty(connection, id=id_) is not None


def _config(spec: NotificationSpec) -> dict[str, Any]:
    return {
        "when": spec.when,
        "jobsets": list(spec.jobsets),
        "url": spec.url,
        "to": list(spec.to),
        "token": asdict(spec.token) if spec.token else None,
        "secret": asdict(spec.secret) if spec.secret else None,
    }


def _notification(type_: str, name: str, config: dict[str, Any], enabled: bool) -> NotificationSpec:  # noqa: FBT001 - a column
    token, secret = config.get("token"), config.get("secret")
    return NotificationSpec(
        type=type_,
        name=name,
        enabled=enabled,
        when=config.get("when", ""),
        jobsets=tuple(config.get("jobsets", ())),
        url=config.get("url"),
        to=tuple(config.get("to", ())),
        token=SecretRef(**token) if token else None,
        secret=SecretRef(**secret) if secret else None,
    )
