"""Reads and writes ``api_keys``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict
from uuid import UUID

from fc_operator.model.ids import ProjectId
from fc_operator.model.statuses import Role
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_queries = load("api_keys")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveKey:
    """A key that is neither revoked nor expired."""

    id: UUID
    name: str
    role: Role
    is_stale: bool
    """Its last use was noted a minute ago or more."""
    memberships: Mapping[ProjectId, str]


class KeyRow(TypedDict):
    """A key as administrators see it."""

    id: UUID
    name: str
    role: str
    prefix: str
    user: str | None
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None


async def insert(
    connection: Connection,
    *,
    id: UUID,  # noqa: A002 - the column's name
    name: str,
    role: Role,
    key_hash: str,
    prefix: str,
    user_id: UUID | None,
    expires_at: datetime | None,
) -> None:
    """Write a new key."""
    await _queries.insert(
        connection,
        id=id,
        name=name,
        role=role,
        key_hash=key_hash,
        prefix=prefix,
        user_id=user_id,
        expires_at=expires_at,
    )


async def fetch_live(connection: Connection, key_hash: str) -> LiveKey | None:
    """The key of this hash, if it is still good and its user enabled."""
    row = await _queries.fetch_live(connection, key_hash=key_hash)
    if row is None:
        return None
    return LiveKey(
        id=row["id"],
        name=row["name"],
        role=Role(row["role"]),
        is_stale=row["is_stale"],
        memberships=dict(zip(row["projects"], row["project_roles"], strict=True)),
    )


async def touch(connection: Connection, id: UUID) -> None:  # noqa: A002 - the column's name
    """Note that a key was used, at most once a minute."""
    await _queries.touch(connection, id=id)


async def revoke(connection: Connection, ref: str) -> tuple[UUID, str] | None:
    """End the key with this id or shown prefix; its id and name, or None where there is none."""
    row = await _queries.revoke(connection, ref=ref)
    return None if row is None else (row["id"], row["name"])


async def list_keys(
    connection: Connection, *, after: tuple[datetime, UUID] | None, page_size: int
) -> list[KeyRow]:
    """Keys, newest first, also those that are no longer good."""
    after_created_at, after_id = after or (None, None)
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_keys(
            connection, after_created_at=after_created_at, after_id=after_id, page_size=page_size
        )
    ]
    return rows


async def fetch_user(connection: Connection, username: str) -> UUID | None:
    """The id of a user, whatever the case of the name."""
    row = await _queries.fetch_user(connection, username=username)
    return None if row is None else row["id"]
