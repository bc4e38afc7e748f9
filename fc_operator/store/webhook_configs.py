"""Incoming webhooks of projects and of config repositories, with their secrets encrypted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal
from uuid import UUID

from fc_operator.model.desired import SecretRef, WebhookSpec
from fc_operator.model.resources import WebhookRow
from fc_operator.store.database import Connection, Record
from fc_operator.store.queries import load

_sql = load("webhook_configs")

Parent = Literal["project", "config_repository"]


async def list_of_projects(connection: Connection, ids: Collection[UUID]) -> list[WebhookRow]:
    """Webhooks of some projects."""
    return [_row(each) async for each in _sql.list_of_projects(connection, ids=list(ids))]


async def list_of_config_repositories(
    connection: Connection, ids: Collection[UUID]
) -> list[WebhookRow]:
    """Webhooks of some config repositories."""
    rows = _sql.list_of_config_repositories(connection, ids=list(ids))
    return [_row(each) async for each in rows]


async def replace(
    connection: Connection, parent: Parent, parts: Mapping[UUID, Sequence[WebhookRow]]
) -> None:
    """Make these the webhooks of some parents; rows keep their ids, which deliveries refer to."""
    rows = sorted((each for webhooks in parts.values() for each in webhooks), key=lambda x: x.id)
    await _sql.delete_others(
        connection, parent_ids=list(parts), kept_ids=[each.id for each in rows]
    )
    if not rows:
        return
    of_project = parent == "project"
    await _sql.upsert(
        connection,
        ids=[each.id for each in rows],
        project_ids=[each.parent_id if of_project else None for each in rows],
        config_repository_ids=[None if of_project else each.parent_id for each in rows],
        forges=[each.forge for each in rows],
        names=[each.secret_name for each in rows],
        keys=[each.secret_key for each in rows],
        ciphertexts=[each.ciphertext for each in rows],
        enabled=[each.enabled for each in rows],
    )


def specs_by_parent(rows: Iterable[WebhookRow]) -> dict[UUID, tuple[WebhookSpec, ...]]:
    """Webhooks as manifests declare them."""
    found: dict[UUID, list[WebhookSpec]] = defaultdict(list)
    for row in rows:
        secret = SecretRef(name=row.secret_name, key=row.secret_key)
        found[row.parent_id].append(
            WebhookSpec(forge=row.forge, secret=secret, enabled=row.enabled)
        )
    return {parent: tuple(specs) for parent, specs in found.items()}


def _row(row: Record) -> WebhookRow:
    return WebhookRow(
        id=row["id"],
        parent_id=row["parent_id"],
        forge=row["forge_type"],
        secret_name=row["secret_name"] or "",
        secret_key=row["secret_key"] or "",
        ciphertext=row["secret_ciphertext"],
        enabled=row["enabled"],
    )
