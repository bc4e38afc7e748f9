"""Declared resources: owners, conditions, pruning, and the problems of sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import orjson

from fc_operator.errors import UnavailableError
from fc_operator.model.conditions import Condition
from fc_operator.model.ids import ProjectId
from fc_operator.model.problems import Problem
from fc_operator.model.resources import Key, Place, Resource
from fc_operator.model.sources import Source
from fc_operator.store.database import Connection, Record
from fc_operator.store.queries import load

_sql = load("managed_resources")


async def lock(connection: Connection) -> datetime:
    """Wait until this transaction is the only one that reconciles; returns its time.

    Raises:
        UnavailableError: others reconcile for longer than the session waits for locks.
    """
    try:
        now: datetime = await _sql.lock(connection)
    except asyncpg.LockNotAvailableError as error:
        raise UnavailableError("other sources are being reconciled; this one waits") from error
    return now


async def clock(connection: Connection) -> datetime:
    """The database's time."""
    now: datetime = await _sql.clock(connection)
    return now


async def list_concerned(
    connection: Connection,
    source: Source,
    keys: Sequence[Key],
    places: Sequence[Place] | None = None,
) -> list[Resource]:
    """Rows of a source, only those at ``places`` if given, and the owners of ``keys``; ``spec`` is
    not read.
    """
    rows = _sql.list_concerned(
        connection,
        source_kind=source.kind,
        source_name=source.name,
        place_kinds=None if places is None else [place[0] for place in places],
        namespaces=None if places is None else [place[1] for place in places],
        names=None if places is None else [place[2] for place in places],
        kinds=[kind for kind, _ in keys],
        identities=[identity for _, identity in keys],
    )
    remembered: dict[bytes, tuple[Condition, ...]] = {}
    return [_resource(row, remembered) async for row in rows]


async def list_waiting(connection: Connection, source: Source) -> list[Resource]:
    """Rows of sources other than this one that wait for an owner to leave or a thing to come."""
    rows = _sql.list_waiting(connection, source_kind=source.kind, source_name=source.name)
    return [_resource(row) async for row in rows]


async def list_waiting_of_source(connection: Connection, source: Source) -> list[Resource]:
    """Rows of a source that wait for something, a secret among it, with their specs."""
    rows = _sql.list_waiting_of_source(connection, source_kind=source.kind, source_name=source.name)
    return [_resource(row) async for row in rows]


async def list_of_source(connection: Connection, source: Source) -> list[Resource]:
    """All rows of a source, with their specs."""
    rows = _sql.list_of_source(connection, source_kind=source.kind, source_name=source.name)
    return [_resource(row) async for row in rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectOwner:
    """Whose a project is."""

    id: ProjectId
    name: str
    source: Source | None
    """None: nobody declares it any more, or nobody ever did."""


async def list_project_owners(connection: Connection, names: Sequence[str]) -> list[ProjectOwner]:
    """Those of some projects that exist."""
    return [
        ProjectOwner(
            id=ProjectId(row["id"]),
            name=row["name"],
            source=row["source_kind"] and Source(row["source_kind"], row["source_name"]),
        )
        async for row in _sql.list_project_owners(connection, names=list(names))
    ]


async def list_specs(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, dict[str, Any]]:
    """The specs of some rows."""
    return {row["id"]: row["spec"] async for row in _sql.list_specs(connection, ids=list(ids))}


async def upsert(connection: Connection, resources: Iterable[Resource]) -> None:
    """Write whole rows; a ``spec`` of None leaves the one that is there."""
    rows = [
        {
            "id": str(each.id),
            "source_kind": each.source.kind,
            "source_name": each.source.name,
            "kind": each.kind,
            "namespace": each.namespace,
            "name": each.name,
            "identity": each.identity,
            "owns": each.owns,
            "object_id": str(each.object_id) if each.object_id else None,
            "path": each.path or None,
            "line": each.line or None,
            "uid": each.uid,
            "revision": each.revision,
            "spec_hash": each.spec_hash,
            "spec": each.spec or None,
            "generation": each.generation,
            "observed_generation": each.observed_generation,
            "last_handled_request": each.last_handled_request,
            "conditions": [condition.as_dict() for condition in each.conditions],
            "pruning_since": each.pruning_since.isoformat() if each.pruning_since else None,
        }
        for each in resources
    ]
    if rows:
        await _sql.upsert(connection, rows=rows)


async def delete(connection: Connection, ids: Sequence[UUID]) -> None:
    """End some claims."""
    if ids:
        await _sql.delete(connection, ids=list(ids))


async def list_overdue(connection: Connection, *, grace_s: float, size: int) -> list[Resource]:
    """Rows whose grace time is over, oldest first."""
    return [
        _resource(row) async for row in _sql.list_overdue(connection, grace_s=grace_s, size=size)
    ]


async def list_sources(connection: Connection, kind: str) -> list[str]:
    """Names of the sources of a kind."""
    rows = _sql.list_sources(connection, source_kind=kind)
    return [row["source_name"] async for row in rows]


async def next_overdue_s(connection: Connection, *, grace_s: float) -> float | None:
    """Seconds until the next grace time is over; None when nothing is being pruned."""
    found: float | None = await _sql.next_overdue_s(connection, grace_s=grace_s)
    return found


async def hold_pruning(connection: Connection, id_: UUID) -> bool:
    """Whether a row still is on its way out; it stays so until commit."""
    return bool(await _sql.hold_pruning(connection, id=id_))


async def start_pruning_of_source(connection: Connection, source: Source) -> list[Key]:
    """Begin the pruning of all that a source owns; its objects."""
    rows = _sql.start_pruning_of_source(
        connection, source_kind=source.kind, source_name=source.name
    )
    return [(row["kind"], row["identity"]) async for row in rows]


async def delete_of_source(connection: Connection, source: Source, *, owned: bool) -> None:
    """End the claims of a source that is gone; those that own only if ``owned``."""
    await _sql.delete_of_source(
        connection, source_kind=source.kind, source_name=source.name, owned=owned
    )


async def list_problems(connection: Connection, source: Source) -> list[Problem]:
    """What is wrong with the files of a source."""
    rows = _sql.list_problems(connection, source_kind=source.kind, source_name=source.name)
    return [Problem(**row["problem"]) async for row in rows]


async def replace_problems(
    connection: Connection, source: Source, problems: Sequence[Problem]
) -> None:
    """Make these the problems of a source; nothing is written where they are the same."""
    of = {"source_kind": source.kind, "source_name": source.name}
    await _sql.delete_problems(connection, **of, from_nr=len(problems))
    if problems:
        await _sql.upsert_problems(connection, **of, problems=[each.as_dict() for each in problems])


def _resource(
    row: Record, remembered: dict[bytes, tuple[Condition, ...]] | None = None
) -> Resource:
    """``remembered`` holds conditions by their JSON: of thousands of rows most are alike."""
    conditions = None
    if remembered is not None:
        key = orjson.dumps(row["conditions"])
        conditions = remembered.get(key)
    if conditions is None:
        conditions = tuple(Condition.from_dict(each) for each in row["conditions"])
        if remembered is not None:
            remembered[key] = conditions
    return Resource(
        id=row["id"],
        source=Source(row["source_kind"], row["source_name"]),
        kind=row["kind"],
        namespace=row["namespace"],
        name=row["name"],
        identity=row["identity"],
        owns=row["owns"],
        object_id=row["object_id"],
        path=row["path"] or "",
        line=row["line"] or 0,
        uid=row["uid"],
        revision=row["revision"],
        spec_hash=row["spec_hash"],
        generation=row["generation"],
        observed_generation=row["observed_generation"],
        last_handled_request=row["last_handled_request"],
        conditions=conditions,
        pruning_since=row["pruning_since"],
        spec=row.get("spec"),
    )
