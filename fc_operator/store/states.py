"""How the declarations of a source stand, read in one query for many statuses at once."""

from __future__ import annotations

from collections.abc import Collection
from uuid import UUID

from fc_operator.model.conditions import Condition
from fc_operator.model.resources import Place
from fc_operator.model.sources import Source
from fc_operator.model.states import ObjectState, facts_of
from fc_operator.store.database import Connection, Record
from fc_operator.store.queries import load

_sql = load("states")


async def list_states(
    connection: Connection,
    source: Source,
    *,
    places: Collection[Place] | None = None,
    evaluations: Collection[UUID] | None = None,
) -> list[ObjectState]:
    """The declarations of a source; only some, by place or by the evaluations of its jobsets."""
    places = None if places is None else list(places)
    rows = _sql.list_states(
        connection,
        source_kind=source.kind,
        source_name=source.name,
        kinds=None if places is None else [place[0] for place in places],
        namespaces=None if places is None else [place[1] for place in places],
        names=None if places is None else [place[2] for place in places],
        evaluation_ids=None if evaluations is None else list(evaluations),
    )
    return [_state(row) async for row in rows]


def _state(row: Record) -> ObjectState:
    return ObjectState(
        kind=row["kind"],
        namespace=row["namespace"],
        name=row["name"],
        identity=row["identity"],
        owns=row["owns"],
        uid=row["uid"],
        generation=row["observed_generation"],
        last_handled_request=row["last_handled_request"],
        conditions=tuple(Condition.from_dict(each) for each in row["conditions"]),
        pruning=row["pruning"],
        **facts_of(row["kind"], row["facts"]),
    )
