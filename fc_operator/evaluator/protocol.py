"""What every evaluator promises: the same rows, in batches, with errors as values.

An evaluator yields batches as they come. A failed attribute is a ``JobError`` in a batch and the
evaluation goes on; only what ends the whole evaluation is raised. The derivation of every yielded
row is in the store and has a link in ``request.roots_dir``, so that no collector takes it. Closing
the stream, at whatever moment, kills the evaluator's process group.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from fc_operator.evaluator.requests import EvaluationRequest, Versions
from fc_operator.model.jobs import JobError, JobRow


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationBatch:
    """Up to 500 rows and errors, or what came within 250 ms."""

    rows: tuple[JobRow, ...] = ()
    errors: tuple[JobError, ...] = ()


class Evaluator(Protocol):
    """nix-eval-jobs or the built-in walker."""

    @property
    def name(self) -> str:
        """``nix-eval-jobs`` or ``walker``; shown with every evaluation."""
        ...

    async def versions(self) -> Versions:
        """Who it is.

        Raises:
            PrerequisiteError: it can't be run.
        """
        ...

    def evaluate(self, request: EvaluationRequest) -> AsyncGenerator[EvaluationBatch, None]:
        """Evaluate and stream.

        Raises:
            EvaluationError: the whole expression does not evaluate; the message is Nix's.
            LimitReachedError: time or output, or memory where no attribute is to blame.
            PrerequisiteError: the evaluator can't be run.
            UnavailableError: the machine failed, such as a full disk; the source is not to blame.
        """
        ...
