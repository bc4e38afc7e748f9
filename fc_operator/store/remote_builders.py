"""Remote builders as they are declared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from fc_operator.model.desired import DesiredBuilder, SecretRef
from fc_operator.model.ids import BuilderId, new_uuid
from fc_operator.model.resources import Recorded
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("remote_builders")


async def list_recorded(connection: Connection, names: Collection[str]) -> list[Recorded]:
    """Builders as their rows have them, by name."""
    if not names:
        return []
    return [
        Recorded(
            id=row["id"],
            namespace=row["namespace"],
            deleting=row["deleting"],
            declared=DesiredBuilder(
                name=row["name"],
                ssh_uri=row["ssh_uri"],
                systems=tuple(row["systems"]),
                public_host_key=row["public_host_key"],
                ssh_key=SecretRef(
                    name=row["ssh_key_secret"] or "", key=row["ssh_key_secret_key"] or ""
                ),
                max_jobs=row["max_jobs"],
                speed_factor=row["speed_factor"],
                supported_features=tuple(row["supported_features"]),
                mandatory_features=tuple(row["mandatory_features"]),
                enabled=row["enabled"],
                drain=row["drain"],
            ),
        )
        async for row in _sql.list_by_name(connection, names=list(names))
    ]


async def upsert(
    connection: Connection, builders: Sequence[DesiredBuilder], namespaces: Mapping[str, str]
) -> dict[str, BuilderId]:
    """Bring builders to what was declared; ids by name."""
    rows = [
        {
            "id": str(new_uuid()),
            "name": each.name,
            "ssh_uri": each.ssh_uri,
            "systems": list(each.systems),
            "max_jobs": each.max_jobs,
            "speed_factor": each.speed_factor,
            "supported_features": list(each.supported_features),
            "mandatory_features": list(each.mandatory_features),
            "enabled": each.enabled,
            "public_host_key": each.public_host_key,
            "namespace": namespaces[each.name],
            "ssh_key_secret": each.ssh_key.name,
            "ssh_key_secret_key": each.ssh_key.key,
            "drain": each.drain,
        }
        for each in builders
    ]
    return {row["name"]: BuilderId(row["id"]) async for row in _sql.upsert(connection, rows=rows)}


async def request(connection: Connection, names: Sequence[str]) -> None:
    """Have builders tried again at once."""
    await _sql.request(connection, names=list(names))


async def mark_deleting(connection: Connection, names: Sequence[str]) -> None:
    """Send nothing to some builders any more."""
    if names:
        await _sql.mark_deleting(connection, names=list(names))


async def delete(connection: Connection, ids: Sequence[UUID]) -> None:
    """Delete builders on their way out."""
    if ids:
        await _sql.delete(connection, ids=list(ids))
