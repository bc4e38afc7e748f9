"""Reads ``projects`` for people."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict, cast
from uuid import UUID

from fc_operator.errors import NotFoundError
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.pages import refs
from fc_operator.store.queries import load

_queries = load("pages/projects")


class DeclaredBy(TypedDict):
    """The manifest that an object comes from."""

    id: str
    source_kind: str
    source_name: str
    path: str | None
    line: int | None
    revision: str
    conditions: list[dict[str, Any]]


class ProjectRow(TypedDict):
    """A project in a list."""

    id: UUID
    number: int
    name: str
    display_name: str
    description: str | None
    homepage: str
    owner: str
    repository_url: str
    visibility: str
    suspended: bool
    deleting_at: datetime | None
    created_at: datetime
    updated_at: datetime
    jobsets: int


class Project(ProjectRow):
    """A project alone."""

    namespace: str
    deletion_policy: str
    declared_by: DeclaredBy | None


async def list_projects(
    connection: Connection, reader: Reader, *, after: str | None, page_size: int
) -> list[ProjectRow]:
    """Projects by name."""
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_projects(
            connection,
            all_projects=reader.all_projects,
            projects=reader.projects,
            after_name=after,
            page_size=page_size,
        )
    ]
    return rows


async def fetch(connection: Connection, reader: Reader, word: str) -> Project:
    """The project called ``word``.

    Raises:
        NotFoundError: there is none, or the reader may not see it.
    """
    row = await _queries.fetch(
        connection,
        **refs.parse(word)._asdict(),
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    if row is None:
        raise NotFoundError(f"no project {word}")
    return cast("Project", dict(row))
