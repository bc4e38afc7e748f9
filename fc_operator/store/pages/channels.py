"""Reads ``channels`` for people."""

from __future__ import annotations

from datetime import datetime
from typing import Any, TypedDict, cast
from uuid import UUID

from fc_operator.errors import NotFoundError
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.pages import refs
from fc_operator.store.queries import load

_queries = load("pages/channels")


class ChannelRow(TypedDict):
    """A name that follows the latest good evaluation of a jobset."""

    id: UUID
    project: str
    name: str
    jobset: str
    current_evaluation_id: UUID | None
    current_evaluation: int | None
    commit_hash: str | None
    promoted_at: datetime | None
    created_at: datetime
    updated_at: datetime


async def list_channels(
    connection: Connection,
    reader: Reader,
    *,
    project: UUID | None = None,
    after: tuple[str, str] | None,
    page_size: int,
) -> list[ChannelRow]:
    """Channels by project and name."""
    after_project, after_name = after or (None, None)
    rows: list[Any] = [
        dict(row)
        async for row in _queries.list_channels(
            connection,
            project=project,
            after_project=after_project,
            after_name=after_name,
            all_projects=reader.all_projects,
            projects=reader.projects,
            page_size=page_size,
        )
    ]
    return rows


async def fetch(
    connection: Connection, reader: Reader, word: str, *, project: str | None = None
) -> ChannelRow:
    """The channel with this id, or of ``project`` with this name.

    Raises:
        NotFoundError: there is none, or the reader may not see it.
    """
    row = await _queries.fetch(
        connection,
        id=refs.parse(word).id,
        project=project,
        name=word,
        all_projects=reader.all_projects,
        projects=reader.projects,
    )
    if row is None:
        raise NotFoundError(f"no channel {word}")
    return cast("ChannelRow", dict(row))
