"""What happens to a step when an attempt ends: it ends too, or is tried again. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fc_operator.kit.backoff import Backoff
from fc_operator.model.outcomes import Outcome, Retry
from fc_operator.model.statuses import BuildStatus

LOSSES_MAX = 3
"""A step whose holder vanished this often is what kills them: it is put aside (Q14)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of the step."""

    status: BuildStatus
    """A terminal one, or PENDING."""
    reason: str
    message: str
    delay_s: float = 0.0
    infra_failures: int = 0
    free_losses: int = 0


_CANCELLED = Decision(
    status=BuildStatus.CANCELLED, reason="Cancelled", message="cancelled while it ran"
)
_UNWANTED = Decision(
    status=BuildStatus.CANCELLED,
    reason="Unwanted",
    message="what needed it has ended, so it is not tried again",
)


def ladder(base_s: float) -> Backoff:
    """Delays after infrastructure failures: 60, 180, 540, 1620 s and no further, with jitter."""
    return Backoff(base_s=base_s, factor=3.0, cap_s=base_s * 27, jitter=0.2)


def decide(
    outcome: Outcome,
    *,
    infra_failures: int,
    free_losses: int,
    max_retries: int,
    backoff: Backoff,
    cancel_requested: bool = False,
    is_wanted: bool = True,
    rng: random.Random | None = None,
) -> Decision:
    """Judge the end of an attempt at a step with so many failures and losses before it.

    ``is_wanted`` says that a live build, or a live step that needs it, waits for the step.
    """
    is_cancelled = outcome.status is BuildStatus.CANCELLED
    if outcome.retry is Retry.NEVER and not (is_cancelled and is_wanted):
        return _end(outcome, outcome.status)
    if not is_wanted:
        return _CANCELLED if cancel_requested else _UNWANTED
    # Cancelled for one build while another came to want it: it starts again.
    if outcome.retry is Retry.FREE or is_cancelled:
        return Decision(
            status=BuildStatus.PENDING,
            reason=outcome.reason,
            message=outcome.message,
            infra_failures=infra_failures,
            free_losses=free_losses,
        )
    if outcome.retry is Retry.LOST:
        return _lose(outcome, infra_failures, free_losses + 1)
    failures = infra_failures + 1
    if failures > max_retries:
        return _end(outcome, outcome.status)
    return Decision(
        status=BuildStatus.PENDING,
        reason=outcome.reason,
        message=outcome.message,
        delay_s=backoff.delay_s(failures, rng),
        infra_failures=failures,
        free_losses=free_losses,
    )


def decide_lost(
    *,
    infra_failures: int,
    free_losses: int,
    cancel_requested: bool = False,
    is_wanted: bool = True,
    is_counted: bool = True,
) -> Decision:
    """Judge an attempt of which only the silence of its holder is known.

    It is no failure of the infrastructure, but it is counted for itself, unless the holder stopped
    in order (not ``is_counted``).
    """
    if not is_wanted:
        return _CANCELLED if cancel_requested else _UNWANTED
    losses = free_losses + is_counted
    if is_counted and losses >= LOSSES_MAX:
        return _quarantine(losses)
    return Decision(
        status=BuildStatus.PENDING,
        reason="LeaseLost",
        message="the process that ran it vanished",
        infra_failures=infra_failures,
        free_losses=losses,
    )


def _lose(outcome: Outcome, infra_failures: int, losses: int) -> Decision:
    """A loss of which more is known than silence."""
    if losses >= LOSSES_MAX:
        return _quarantine(losses, outcome.message)
    return Decision(
        status=BuildStatus.PENDING,
        reason=outcome.reason,
        message=outcome.message,
        infra_failures=infra_failures,
        free_losses=losses,
    )


def _quarantine(losses: int, last: str = "") -> Decision:
    message = f"{losses} processes that ran it vanished one after the other"
    return Decision(
        status=BuildStatus.ABORTED,
        reason="Quarantined",
        message=f"{message}, the last because {last}" if last else message,
    )


def _end(outcome: Outcome, status: BuildStatus) -> Decision:
    return Decision(status=status, reason=outcome.reason, message=outcome.message)
