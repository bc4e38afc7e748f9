"""How an evaluation ended, from what was raised on its way. Pure; the same in a pod and outside."""

from __future__ import annotations

from fc_operator.errors import EvaluationError, GiveUpError, LimitReachedError, UnavailableError
from fc_operator.model.evaluations import EvaluationEnd
from fc_operator.model.statuses import EvaluationStatus

LIMITS = {"time": "TimeLimit", "memory": "MemoryLimit", "output": "OutputLimit"}
"""Reasons, by ``LimitReachedError.limit``."""


def failed(kind: str, reason: str, message: str) -> EvaluationEnd:
    """A failure of one of the kinds of ``EvaluationEnd.error_kind``."""
    return EvaluationEnd(
        status=EvaluationStatus.FAILED, reason=reason, error_kind=kind, message=message
    )


def of_checkout(error: Exception, timeout_s: float) -> EvaluationEnd:
    """The source or an input could not be had."""
    if isinstance(error, GiveUpError):
        return failed("evaluation", "InputInvalid", str(error))
    if isinstance(error, TimeoutError):
        return failed("fetch", "CheckoutFailed", f"the checkout took longer than {timeout_s:g} s")
    return failed("fetch", "CheckoutFailed", str(error))


def of_evaluator(error: EvaluationError | UnavailableError | LimitReachedError) -> EvaluationEnd:
    """The evaluator itself ended badly."""
    if isinstance(error, EvaluationError):
        return failed("evaluation", "EvaluationFailed", error.message)
    if isinstance(error, LimitReachedError):
        status = EvaluationStatus.TIMED_OUT if error.limit == "time" else EvaluationStatus.FAILED
        reason = LIMITS.get(error.limit, "Limit")
        return EvaluationEnd(
            status=status, reason=reason, error_kind="limit", message=error.message
        )
    # A full disk, say. Whatever it has told before, the source had no fair try.
    return failed("internal", "MachineFailed", error.message)
