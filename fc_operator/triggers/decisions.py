"""Whether a look at a source leads to an evaluation, and when the next look is due. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fc_operator.kit.backoff import Backoff
from fc_operator.model.ids import CommitId
from fc_operator.model.statuses import EvaluationStatus, JobsetState
from fc_operator.store.checks import DueJobset, LastEvaluation

_LIVE = frozenset({EvaluationStatus.PENDING, EvaluationStatus.RUNNING})
PASSING = frozenset({"fetch", "internal"})
"""Kinds of failure that are no fault of the source: another try may end well."""
QUARANTINED = "Quarantined"
"""The reason of an evaluation whose holders were lost again and again."""
_AFTER_ERROR = Backoff(base_s=15, factor=2, cap_s=1800)
_LACKING_S_MAX = 60.0
_WAITING_S_MAX = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a look came to."""

    evaluate: bool
    trigger: str
    """Of the evaluation: declared, interval, webhook, request or input."""


def decide(
    jobset: DueJobset, last: LastEvaluation | None, *, commit: CommitId, key: str
) -> Verdict:
    """Evaluate when what decides the jobs differs from the last time; the key says whether.

    An equal key is evaluated again when it was asked for with force, when the last try failed by no
    fault of the source, when a person asks after a failure, and once for each new declaration of a
    one_shot.
    """
    trigger = jobset.reason
    if last is None:
        return Verdict(evaluate=True, trigger=trigger)
    if jobset.reason == "interval" and last.commit == commit:
        # The commit is the same, so it is an input (or our evaluator) that changed.
        trigger = "input"
    is_asked = jobset.reason == "request"
    again = (
        last.key != key
        or (is_asked and jobset.requested_force)
        or (is_asked and last.status not in {*_LIVE, EvaluationStatus.COMPLETED})
        or _may_pass(last)
        or (jobset.state == JobsetState.ONE_SHOT and last.status not in _LIVE)
    )
    return Verdict(evaluate=again, trigger=trigger)


def _may_pass(last: LastEvaluation) -> bool:
    # What its holders did not survive would only cost more of them.
    return (
        last.status is EvaluationStatus.FAILED
        and last.error_kind in PASSING
        and last.reason != QUARANTINED
    )


def next_look_s(
    jobset: DueJobset, *, jitter: float, rng: random.Random | None = None
) -> float | None:
    """Seconds until the next look after one that went well; None is never by itself."""
    if jobset.check_interval_s == 0 or jobset.state == JobsetState.ONE_SHOT:
        return None
    spread = (rng or random).uniform(-jitter, jitter)
    return jobset.check_interval_s * (1 + spread)


def after_error_s(failures: int, rng: random.Random | None = None) -> float:
    """Seconds until the next try after the ``failures``-th failed look in a row."""
    return _AFTER_ERROR.delay_s(failures, rng)


def after_lack_s(failures: int, rng: random.Random | None = None) -> float:
    """The same where this machine lacks something: who mends it shall not wait for long."""
    return min(_AFTER_ERROR.delay_s(failures, rng), _LACKING_S_MAX)


def waiting_s(jobset: DueJobset) -> float:
    """Seconds until a jobset that waits for another's build looks again."""
    return min(float(jobset.check_interval_s or _WAITING_S_MAX), _WAITING_S_MAX)


def after_failed_evaluation_s(check_interval_s: int) -> float:
    """Seconds until a source is looked at again whose evaluation failed by no fault of its own."""
    return float(max(60, check_interval_s))
