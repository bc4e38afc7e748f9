"""Reads ``service_heartbeats``: who lives."""

from __future__ import annotations

from collections.abc import Sequence

from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_queries = load("health")


async def seen_s_ago(connection: Connection, kinds: Sequence[str]) -> float | None:
    """Seconds since any process of these kinds was seen alive; None if none ever was."""
    row = await _queries.fetch_heartbeat(connection, kinds=kinds)
    return None if row is None else row["seen_s_ago"]
