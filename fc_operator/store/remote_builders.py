"""Remote builders as they are declared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from fc_operator.model.desired import DesiredBuilder, SecretRef
from fc_operator.model.ids import BuilderId, new_uuid
from fc_operator.model.resources import Recorded
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("remote_builders")


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A builder, and how it stands."""

    id: BuilderId
    name: str
    ssh_uri: str
    systems: tuple[str, ...]
    max_jobs: int
    speed_factor: int
    supported_features: tuple[str, ...]
    mandatory_features: tuple[str, ...]
    host_key: str
    """As declared, else as pinned by hand; empty: none, so nothing is said to it."""
    namespace: str
    ssh_key_secret: str
    ssh_key_secret_key: str
    enabled: bool
    drain: bool
    consecutive_failures: int
    last_error: str
    backoff_s: float | None
    """Seconds until it is tried again; 0 or None when it need not wait."""
    test_requested_at: datetime | None


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


async def list_standing(connection: Connection) -> list[Standing]:
    """All builders that are not on their way out, by name."""
    found = []
    async for row in _sql.list_standing(connection):
        lists = {
            name: tuple(row[name])
            for name in ("systems", "supported_features", "mandatory_features")
        }
        found.append(Standing(**{**dict(row), **lists}))
    return found


async def fetch_room(connection: Connection, builder_id: BuilderId) -> int:
    """How many more steps may run on a builder, over all schedulers; 0 where none may.

    Until the transaction ends nobody else claims for it, so it stays true.
    """
    max_jobs = await _sql.fetch_room(connection, id=builder_id)
    if max_jobs is None:
        return 0
    # A statement of its own: it has to see what others wrote while we waited for the row.
    running = await _sql.count_running(connection, id=builder_id)
    return max(0, int(max_jobs) - int(running))


async def fail(
    connection: Connection,
    builder_id: BuilderId,
    message: str,
    delays_s: Sequence[float],
    findings: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Leave a builder alone for a while; ``delays_s`` holds the first, second, … and last delay."""
    await _sql.fail(
        connection,
        id=builder_id,
        message=message[:2000],
        delays_s=list(delays_s),
        findings=None if findings is None else list(findings),
    )


async def recover(connection: Connection, builder_id: BuilderId) -> None:
    """A builder can be used (again)."""
    await _sql.recover(connection, id=builder_id)


async def tell(
    connection: Connection, builder_id: BuilderId, findings: Sequence[Mapping[str, Any]]
) -> None:
    """Write down what a look at a builder found; nobody waits for one any more."""
    await _sql.tell(connection, id=builder_id, findings=list(findings))


async def request_test(connection: Connection, builder_id: UUID) -> None:
    """Have some scheduler look at a builder."""
    await _sql.request_test(connection, id=builder_id)


async def pin(connection: Connection, builder_id: UUID, host_key: str) -> None:
    """Trust a host key, where the manifest names none."""
    await _sql.pin(connection, id=builder_id, host_key=host_key)
