"""What both duties of an evaluation's pod share: how they are stopped, and what they then say."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fc_operator.model.ids import StepId
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.model.work import EvaluationReport, HeartbeatAnswer


class EvaluationDuty:
    """The part of ``session.Duty`` that fetching and evaluating have in common; ``_doing`` is the
    work itself, ``_leaving`` what is told once that was stopped.
    """

    def __init__(self) -> None:
        self._doing: asyncio.Task[Any] | None = None
        self._leaving: EvaluationReport | None = None

    def running(self) -> Sequence[tuple[StepId, int]]:
        """See ``Duty.running``."""
        return ()

    async def obey(self, answer: HeartbeatAnswer) -> None:
        """See ``Duty.obey``."""
        if answer.cancel_task and self._doing is not None:
            self._leaving = _cancelled(answer.reason)
            self._doing.cancel()

    async def stop(self) -> None:
        """See ``Duty.stop``."""
        self._leaving = self._leaving or _interrupted()
        if self._doing is not None:
            self._doing.cancel()


def _interrupted() -> EvaluationReport:
    """Told to go before the end."""
    return EvaluationReport(
        status=EvaluationStatus.CANCELLED, reason="Interrupted", interrupted=True
    )


def _cancelled(reason: str) -> EvaluationReport:
    """Told that nobody wants it any more."""
    return EvaluationReport(status=EvaluationStatus.CANCELLED, reason=reason or "Cancelled")
