"""Reads ``config_repositories`` and the problems of their files, for people."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict, cast
from uuid import UUID

from fc_operator.errors import NotFoundError
from fc_operator.store.database import Connection
from fc_operator.store.pages import refs
from fc_operator.store.queries import load

_queries = load("pages/config_repositories")


class ConfigRepositoryRow(TypedDict):
    """A config repository in a list."""

    id: UUID
    name: str
    kind: str
    url: str
    branch: str | None
    path: str
    interval_s: int
    prune: bool
    suspended: bool
    deleting_at: datetime | None
    bootstrap: bool
    last_revision: str | None
    last_synced_at: datetime | None
    next_sync_at: datetime | None
    sync_failures: int
    confirmed_revision: str | None
    conditions: list[dict[str, Any]]
    created_at: datetime
    updated_at: datetime
    resources: int
    problems: int


class ConfigRepository(ConfigRepositoryRow):
    """A config repository alone."""

    last_tree: str | None
    namespace: str
    problem_list: list[dict[str, Any]]


async def list_config_repositories(
    connection: Connection, *, after: str | None, page_size: int
) -> list[ConfigRepositoryRow]:
    """Config repositories by name."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_config_repositories(
            connection, after_name=after, page_size=page_size
        )
    ]
    return rows


async def fetch(connection: Connection, word: str) -> ConfigRepository:
    """The config repository with this name or id.

    Raises:
        NotFoundError: there is none.
    """
    ref = refs.parse(word)
    row = await _queries.fetch(connection, name=ref.name, id=ref.id)
    if row is None:
        raise NotFoundError(f"no config repository {word}")
    return cast("ConfigRepository", dict(row))
