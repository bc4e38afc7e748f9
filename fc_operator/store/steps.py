"""Steps: derivations to build, one row each, and how their ends travel through the graph."""

from __future__ import annotations

from collections.abc import Collection

from fc_operator.model.ids import BuildId, EvaluationId, StepId
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("steps")


async def fail_dependents(
    connection: Connection, step_ids: Collection[StepId]
) -> list[tuple[BuildId, EvaluationId]]:
    """All that needs the failed steps fails too; the builds that ended by it."""
    return [
        (BuildId(row["id"]), EvaluationId(row["evaluation_id"]))
        async for row in _sql.fail_dependents(connection, step_ids=sorted(step_ids))
    ]
