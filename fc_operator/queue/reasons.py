"""Why something waits: the one reason that stands in its way now. Pure.

Each reason has a CamelCase word that does not change, and words for people. What is asked first
wins: what can't go on by itself comes before what only takes time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from fc_operator.queue.offers import Offer, fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """A step that has to end first."""

    name: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known of a live step."""

    status: str
    system: str
    features: tuple[str, ...] = ()
    blockers: tuple[Blocker, ...] = ()
    """Some of the steps that it waits for, running ones first."""
    blockers_count: int = 0
    not_before: datetime | None = None
    """End of its backoff."""
    last_reason: str = ""
    """Of its last attempt, where it is tried again."""
    infra_failures: int = 0
    is_ready: bool = False
    jobset_is_suspended: bool = False
    jobset_is_gone: bool = False
    is_cancelling: bool = False
    builder: str = ""
    """Who runs it."""
    ahead: int = 0
    """Ready steps of its class that go first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderOffer:
    """A builder, as it last said."""

    name: str
    offer: Offer
    slots: int = 1
    free: int = 0
    problem: str = ""
    """Why it has no slots, in its own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why it does not run, or that it does."""

    code: str
    message: str
    until: datetime | None = None


def why(situation: Situation, builders: Sequence[BuilderOffer]) -> Reason:
    """The one reason why the step, and so its build, is not further."""
    at = situation
    if at.status == "running":
        if at.is_cancelling:
            return Reason(code="Cancelling", message=f"being stopped on {at.builder}")
        return Reason(code="Running", message=f"runs on {at.builder}")
    if at.status != "pending":
        return Reason(code="Ended", message=f"ended as {at.status}")
    if at.blockers_count:
        return _blocked(at)
    if at.jobset_is_gone:
        return Reason(code="JobsetGone", message="its jobset is being deleted")
    if at.jobset_is_suspended:
        return Reason(code="Suspended", message="its jobset or project is suspended")
    if at.not_before is not None:
        tries = f"{at.infra_failures} infrastructure failures"
        message = f"tried again later after {tries}, the last one {at.last_reason}"
        return Reason(code="Backoff", message=message, until=at.not_before)
    return _without_builder(at, builders) or _in_line(at, builders)


def _blocked(at: Situation) -> Reason:
    first = at.blockers[0] if at.blockers else None
    more = f" and {at.blockers_count - 1} more" if at.blockers_count > 1 else ""
    if first is None:
        return Reason(code="Dependencies", message=f"waits for {at.blockers_count} steps")
    return Reason(code="Dependencies", message=f"waits for {first.name} ({first.status}){more}")


def _without_builder(at: Situation, builders: Sequence[BuilderOffer]) -> Reason | None:
    features = f" with features {', '.join(at.features)}" if at.features else ""
    able = [b for b in builders if fits(b.offer, at.system, at.features)]
    if not builders:
        return Reason(code="NoScheduler", message="no scheduler runs that could build anything")
    if not able:
        of_system = any(fits(b.offer, at.system, b.offer.mandatory) for b in builders)
        code = "NoFeature" if of_system and at.features else "NoBuilder"
        return Reason(code=code, message=f"no builder for {at.system}{features}")
    if all(b.slots == 0 for b in able):
        names = ", ".join(sorted(b.name for b in able))
        problems = "; ".join(sorted({b.problem for b in able if b.problem}))
        message = f"{names} can't build at the moment"
        return Reason(
            code="BuilderUnusable", message=f"{message}: {problems}" if problems else message
        )
    return None


def _in_line(at: Situation, builders: Sequence[BuilderOffer]) -> Reason:
    able = [b for b in builders if fits(b.offer, at.system, at.features)]
    if all(b.free == 0 for b in able):
        behind = f", behind {at.ahead} others" if at.ahead else ""
        return Reason(code="Busy", message=f"all builders for {at.system} are busy{behind}")
    if at.ahead:
        return Reason(code="Queued", message=f"behind {at.ahead} others")
    return Reason(code="Ready", message="will start now")
