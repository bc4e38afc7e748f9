"""Reads what stands in the way of a step, and says it."""

from __future__ import annotations

from fc_operator.model.ids import StepId
from fc_operator.queue import reasons
from fc_operator.queue.offers import Offer
from fc_operator.queue.reasons import Blocker, BuilderOffer, Reason, Situation
from fc_operator.store import claims, maintenance
from fc_operator.store.database import Connection

_ALIVE_S = 60.0


async def why(connection: Connection, step_id: StepId) -> Reason | None:
    """Why a step (and a live build of it) is not further; None when there is no such step."""
    row = await claims.fetch_situation(connection, step_id)
    if row is None:
        return None
    blockers = await claims.list_blockers(connection, step_id) if row["blockers"] else []
    offers = await maintenance.list_offers(connection, _ALIVE_S)
    situation = Situation(
        status=row["status"],
        system=row["system"],
        features=tuple(row["features"]),
        blockers=tuple(Blocker(name=name, status=status) for name, status in blockers),
        blockers_count=row["blockers"],
        not_before=row["not_before"],
        last_reason=row["status_reason"],
        infra_failures=row["infra_failures"],
        is_ready=row["is_ready"],
        jobset_is_suspended=row["is_suspended"],
        jobset_is_gone=row["is_gone"],
        is_cancelling=row["is_cancelling"],
        builder=row["builder"],
        ahead=row["ahead"],
    )
    return reasons.why(
        situation,
        [
            BuilderOffer(
                name=offer.name,
                offer=Offer(
                    systems=offer.systems, features=offer.features, mandatory=offer.mandatory
                ),
                slots=offer.slots,
                free=offer.free,
                problem=offer.problem,
            )
            for offer in offers
        ],
    )
