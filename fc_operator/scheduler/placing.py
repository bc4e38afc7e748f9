"""What is said of a project whose pods may not run where it wants them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from fc_operator.executors.targets import Choice
from fc_operator.model import conditions as terms
from fc_operator.model.conditions import Condition

_REASONS: Final = frozenset({terms.TARGET_NOT_ALLOWED, terms.TEMPLATE_NOT_ALLOWED})


def conditions_of(
    old: Sequence[Condition], choice: Choice, *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The conditions of a project that got ``choice``; others' complaints come before ours."""
    before = terms.find(old, terms.READY)
    if before is None or (before.status != "True" and before.reason not in _REASONS):
        return tuple(old)
    if choice.target is not None:
        if before.reason not in _REASONS:
            return tuple(old)
        ready = Condition(
            type=terms.READY,
            status="True",
            reason=terms.RECONCILED,
            observed_generation=generation,
        )
        return terms.with_condition(terms.without_condition(old, terms.STALLED), ready, now)
    ready = Condition(
        type=terms.READY,
        status="False",
        reason=choice.reason,
        message=choice.message,
        observed_generation=generation,
    )
    stalled = replace(ready, type=terms.STALLED, status="True")
    return terms.with_condition(terms.with_condition(old, ready, now), stalled, now)
