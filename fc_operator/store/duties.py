"""Duties that one process at a time has; taking and dropping them is in ``maintenance``."""

from __future__ import annotations

from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("duties")


async def holds(connection: Connection, name: str, owner: str) -> bool:
    """Whether ``owner`` has a duty at this moment."""
    return bool(await _sql.holds(connection, name=name, owner=owner))


async def seize(connection: Connection, name: str, owner: str, lease_s: float) -> None:
    """Take a duty away from whoever has it, for ``lease_s``."""
    await _sql.seize(connection, name=name, owner=owner, lease_s=lease_s)
