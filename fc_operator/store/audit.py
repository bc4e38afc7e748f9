"""Writes ``audit_log``: who changed what by hand."""

from __future__ import annotations

from typing import Any

from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_queries = load("audit")


async def insert(
    connection: Connection,
    *,
    actor: str,
    action: str,
    object: str,  # noqa: A002 - the column's name
    details: dict[str, Any],
) -> None:
    """Record a change; ``details`` hold what was asked for, never a secret."""
    await _queries.insert(connection, actor=actor, action=action, object=object, details=details)
