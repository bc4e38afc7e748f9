"""Reads the webhooks that forges call and writes ``webhook_deliveries``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from fc_operator.model.ids import JobsetId
from fc_operator.model.statuses import Forge
from fc_operator.store.database import Connection
from fc_operator.store.pages import refs
from fc_operator.store.queries import load

_queries = load("webhook_deliveries")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A webhook that is configured and enabled."""

    id: UUID
    parent_id: UUID
    """The project, or the config repository."""
    parent: str
    branch: str | None
    """Of a config repository: the branch that it follows, None for the default one."""
    secret_ciphertext: bytes | None = field(repr=False)


async def fetch_hook_of_project(connection: Connection, word: str, forge: Forge) -> Hook | None:
    """The webhook of a project, called by name, number or id."""
    row = await _queries.fetch_hook_of_project(
        connection, **refs.parse(word)._asdict(), forge=forge
    )
    return _hook(row)


async def fetch_hook_of_config_repository(
    connection: Connection, name: str, forge: Forge
) -> Hook | None:
    """The webhook of a config repository."""
    row = await _queries.fetch_hook_of_config_repository(connection, name=name, forge=forge)
    return _hook(row)


async def insert(connection: Connection, hook_id: UUID, delivery_id: str) -> bool:
    """Note a delivery; False when it was noted within the last 72 h."""
    row = await _queries.insert(connection, webhook_config_id=hook_id, delivery_id=delivery_id)
    return row is not None


async def match_jobsets(
    connection: Connection, project_id: UUID, names: Sequence[str], *, is_default: bool
) -> list[tuple[JobsetId, str]]:
    """Ids and names of the live jobsets that follow one of ``names``, in the order of ids."""
    return [
        (JobsetId(row["id"]), row["name"])
        async for row in _queries.match_jobsets(
            connection, project_id=project_id, names=names, is_default=is_default
        )
    ]


def _hook(row: Any) -> Hook | None:
    if row is None:
        return None
    return Hook(
        id=row["id"],
        parent_id=row["parent_id"],
        parent=row["parent"],
        branch=row["branch"],
        secret_ciphertext=row["secret_ciphertext"],
    )
