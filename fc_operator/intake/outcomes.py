"""What a sync came to, as conditions of its source. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from fc_operator.errors import (
    CallerError,
    FcError,
    PrerequisiteError,
    RetryLaterError,
    SecretError,
)
from fc_operator.model import conditions as terms
from fc_operator.model.conditions import Condition
from fc_operator.reconciler.plans import Report

HISTORY_REWRITTEN = "HistoryRewritten"
"""A condition and a reason of our own: the branch no longer contains what was in force."""
_REWRITTEN_REASON = "ForcePushed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Ready, and who has to act if it is not."""

    reason: str
    message: str = ""
    ready: bool = False
    stalled: bool = False
    """A person has to act; otherwise time and others may help."""


def of_report(report: Report) -> Outcome:
    """Of a sync that read its source."""
    if report.problems:
        first = "; ".join(str(each) for each in report.problems[:3])
        count = len(report.problems)
        return Outcome(
            reason=terms.SOURCE_INVALID,
            message=f"{count} problem{'s' if count > 1 else ''}; what is broken stays as it was: "
            f"{first}",
            stalled=True,
        )
    if report.prune_reason:
        return Outcome(reason=report.prune_reason, message=report.prune_blocked, stalled=True)
    declared = len(report.objects)
    waiting = sum(bool(each.reason) for each in report.objects)
    message = f"{declared} object{'' if declared == 1 else 's'} at {report.revision[:19]}"
    if waiting:
        message += f"; {waiting} of them not ready, see their conditions"
    return Outcome(reason=terms.RECONCILED, message=message, ready=True)


def of_rewriting(revision: str, told: str) -> Outcome:
    """Of a branch that was force-pushed and whose new history nobody has confirmed yet."""
    return Outcome(
        reason=HISTORY_REWRITTEN,
        message=f"the last good state stays; {told}; `fc sync NAME --confirm {revision}` takes it",
        stalled=True,
    )


def of_error(error: FcError) -> Outcome:
    """Of a sync that could not read its source: the last good state stays."""
    message = f"the last good state stays; {error}"
    match error:
        case SecretError():
            return Outcome(reason=terms.SECRET_NOT_FOUND, message=message, stalled=True)
        case PrerequisiteError():
            return Outcome(reason=terms.PREREQUISITE_MISSING, message=message, stalled=True)
        case CallerError():
            return Outcome(reason=terms.SOURCE_INVALID, message=message, stalled=True)
        case RetryLaterError():
            return Outcome(reason=terms.SOURCE_UNREACHABLE, message=message)
        case _:
            return Outcome(reason=terms.INTERNAL, message=message)


def of_surprise(error: Exception) -> Outcome:
    """Of a sync that ended by a fault of ours."""
    what = f"{type(error).__name__}: {error}"[:500]
    return Outcome(reason=terms.INTERNAL, message=f"the last good state stays; {what}")


def conditions_of(
    outcome: Outcome, old: Sequence[Condition], now: datetime, *, rewritten: str | None = None
) -> tuple[Condition, ...]:
    """The source's conditions after a sync; ``rewritten`` tells of a force-push.

    A sync without news keeps what an earlier one said of a force-push only until the next commit
    comes, for which the caller passes an empty text.
    """
    ready = Condition(
        type=terms.READY,
        status="True" if outcome.ready else "False",
        reason=outcome.reason,
        message=outcome.message[:2000],
    )
    found = terms.with_condition(old, ready, now)
    found = terms.without_condition(found, terms.STALLED)
    found = terms.without_condition(found, terms.RECONCILING)
    if outcome.stalled:
        before = terms.find(old, terms.STALLED)
        stalled = replace(ready, type=terms.STALLED, status="True")
        found = terms.with_condition((*found, before) if before else found, stalled, now)
    elif not outcome.ready:
        before = terms.find(old, terms.RECONCILING)
        progress = replace(
            ready,
            type=terms.RECONCILING,
            status="True",
            reason=terms.PROGRESSING_WITH_RETRY,
        )
        found = terms.with_condition((*found, before) if before else found, progress, now)
    if rewritten:
        told = Condition(
            type=HISTORY_REWRITTEN, status="True", reason=_REWRITTEN_REASON, message=rewritten
        )
        return terms.with_condition(found, told, now)
    return found if rewritten is None else terms.without_condition(found, HISTORY_REWRITTEN)
