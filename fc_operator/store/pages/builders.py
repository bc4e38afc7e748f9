"""Reads ``remote_builders`` and the machines that build by themselves, for people."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict, cast
from uuid import UUID

from fc_operator.errors import NotFoundError
from fc_operator.store.database import Connection
from fc_operator.store.pages import refs
from fc_operator.store.pages.projects import DeclaredBy
from fc_operator.store.queries import load

_queries = load("pages/builders")


class Finding(TypedDict):
    """One thing that was tried at a builder."""

    check: str
    ok: bool
    message: str
    hint: str


class BuilderRow(TypedDict):
    """A builder in a list; where its key comes from is nobody's business."""

    id: UUID
    name: str
    ssh_uri: str
    systems: list[str]
    max_jobs: int
    speed_factor: int
    supported_features: list[str]
    mandatory_features: list[str]
    public_host_key: str | None
    pinned_host_key: str | None
    """By `fc builder pin`; one in the manifest goes before it."""
    enabled: bool
    drain: bool
    deleting_at: datetime | None
    consecutive_failures: int
    disabled_until: datetime | None
    last_failure: datetime | None
    last_error: str | None
    last_seen_at: datetime | None
    test_requested_at: datetime | None
    """A look was asked for and has not ended yet."""
    tested_at: datetime | None
    findings: list[Finding]
    """What the last look at it found, in the order in which it was tried."""
    created_at: datetime
    updated_at: datetime
    running: int


class Builder(BuilderRow):
    """A builder alone."""

    declared_by: DeclaredBy | None


class MachineRow(TypedDict):
    """A process of ours that is alive."""

    owner: str
    kind: str
    host: str
    started_at: datetime
    seen_at: datetime
    info: dict[str, Any]
    """What it says of itself: slots, systems, features, sandbox, versions."""
    running: int


async def list_builders(
    connection: Connection, *, after: str | None, page_size: int
) -> list[BuilderRow]:
    """Builders by name."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_builders(connection, after_name=after, page_size=page_size)
    ]
    return rows


async def fetch(connection: Connection, word: str) -> Builder:
    """The builder with this name or id.

    Raises:
        NotFoundError: there is none.
    """
    ref = refs.parse(word)
    row = await _queries.fetch(connection, name=ref.name, id=ref.id)
    if row is None:
        raise NotFoundError(f"no builder {word}")
    return cast("Builder", dict(row))


async def list_machines(connection: Connection) -> list[MachineRow]:
    """Processes of ours that are alive."""
    rows: list[Any] = [dict(row) async for row in _queries.list_machines(connection)]
    return rows
