"""What one evaluation is fenced by, made from and ended with."""

from __future__ import annotations

from dataclasses import dataclass

from fc_operator.model.ids import EvaluationId, StorePath, TaskId
from fc_operator.model.statuses import EvaluationStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFence:
    """Who may write results of an evaluation: the task that holds it, as long as it is live."""

    evaluation_id: EvaluationId
    task_id: TaskId


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedInput:
    """What an input of a jobset was resolved to; a row of ``evaluation_inputs``."""

    name: str
    type: str
    """git, string, boolean, path or build."""
    value: str
    """As declared."""
    revision: str | None = None
    """Git: the commit. Build: the id of the build."""
    store_path: StorePath | None = None
    """Where its content lies in the store, for git, path and build."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationEnd:
    """How the evaluator ended; the jobs were written before, batch by batch."""

    status: EvaluationStatus
    """COMPLETED, FAILED, CANCELLED or TIMED_OUT."""
    reason: str = ""
    """A CamelCase word that does not change: ``CheckoutFailed``, ``MemoryLimit``, …"""
    error_kind: str | None = None
    """fetch, evaluation, limit or internal; None when it ended well."""
    message: str = ""
    """For people: the end of what the evaluator said."""
    evaluator: str = ""
    """``nix-eval-jobs`` or ``walker``."""
    evaluator_version: str = ""
    checkout_ms: int = 0
    evaluation_ms: int = 0
