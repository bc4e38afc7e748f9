"""Reads ``managed_resources`` for people; the spec itself stays in the manifest."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_queries = load("pages/managed_resources")


class ManagedResourceRow(TypedDict):
    """One declaration, whether it owns its object or was refused."""

    id: UUID
    kind: str
    namespace: str
    name: str
    identity: str
    owns: bool
    source_kind: str
    source_name: str
    path: str | None
    line: int | None
    revision: str
    spec_hash: str
    generation: int
    observed_generation: int
    last_handled_request: str | None
    conditions: list[dict[str, Any]]
    pruning_since: datetime | None
    object_id: UUID | None
    created_at: datetime
    updated_at: datetime


async def list_managed_resources(
    connection: Connection,
    reader: Reader,
    *,
    kind: str | None = None,
    source_kind: str | None = None,
    source: str | None = None,
    project: str | None = None,
    condition: str | None = None,
    after: tuple[str, str, UUID] | None,
    page_size: int,
) -> list[ManagedResourceRow]:
    """Declarations by kind and identity; ``condition`` is ``Type`` or ``Type=Status``."""
    after_kind, after_identity, after_id = after or (None, None, None)
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_managed_resources(
            connection,
            kind=kind,
            source_kind=source_kind,
            source=source,
            project=project,
            condition=condition,
            all_projects=reader.all_projects,
            projects=reader.projects,
            after_kind=after_kind,
            after_identity=after_identity,
            after_id=after_id,
            page_size=page_size,
        )
    ]
    return rows
