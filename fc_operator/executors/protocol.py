"""The contract of every executor: local process, pod or SSH builder.

What holds for all of them, and what the conformance suite asks of each:

- ``start`` takes a batch and gives one stream of events. The steps of a batch may depend on each
  other; the executor finds their order itself (from the .drv files) and runs the rest side by side.
- Per order: ``StepStarted`` at most once and before any other event of it; ``LogChunk`` pieces
  whose offsets begin at 0 and leave no gap; ``PhaseChanged`` where the builder names phases; and
  exactly one ``StepEnded``, always, as its last event. Faults of the infrastructure (no process,
  no link, no disk, no .drv) are outcomes with ``Retry.INFRASTRUCTURE``, never exceptions out of
  the stream.
  A step that never ran (its dependency in the batch failed, or it was cancelled while it waited)
  has only its ``StepEnded``.
- When ``StepEnded`` with valid outputs has been yielded, these outputs are registered with Nix, are
  protected from garbage collection and are described by ``outcome.harvest``.
- When any ``StepEnded`` has been yielded, nothing of the step runs any more, on any machine.
- An already valid step is a success without a build (reason ``AlreadyValid``).
- Closing the stream early (``aclose``, or the consumer is cancelled) stops all steps of the batch.
- The consumer's pace is respected: an executor that is not read slows its builds down rather than
  filling memory.
- ``cancel`` names the attempt, so a late cancel never hits the next one.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from fc_operator.model.ids import StepId
from fc_operator.model.tasks import StepEvent, StepOrder


class StopReason(StrEnum):
    """Why a running step is stopped from outside; decides its outcome."""

    CANCELLED = "Cancelled"
    """By a user, or no build wants it any more: ``cancelled``, for good."""
    LEASE_LOST = "LeaseLost"
    """Somebody else owns it now: nothing is charged, nobody reads the outcome."""
    SHUTDOWN = "Shutdown"
    """Our own process ends: free retry elsewhere or later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What an executor offers at this moment."""

    slots_total: int
    slots_free: int
    systems: tuple[str, ...]
    features: tuple[str, ...] = ()
    """Features that it has; a step may ask for any of them."""
    mandatory_features: tuple[str, ...] = ()
    """It takes only steps that ask for all of these."""
    sandbox: str = "None"
    """``Nix``, ``None`` or ``Pod``: which one is in force, as probed, not as wished."""
    problem: str = ""
    """Why it has no slots at all, for people; empty while it can work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRef:
    """One attempt."""

    step_id: StepId
    attempt: int


class Executor(Protocol):
    """Where steps run. See the module for the whole contract."""

    @property
    def name(self) -> str:
        """Stable name for people, rows and metrics: ``local``, ``pod``, or the SSH builder's."""
        ...

    async def capacity(self) -> Capacity:
        """What may be claimed for it now; zero free slots while it can't work at all."""
        ...

    def start(self, orders: Sequence[StepOrder]) -> AsyncGenerator[StepEvent, None]:
        """Run a batch and yield its events until each order has ended.

        Orders beyond the free slots wait inside; they are never refused.
        """
        ...

    async def cancel(self, ref: StepRef, reason: StopReason) -> bool:
        """Stop one attempt; its ``StepEnded`` still comes through its stream.

        Returns False when that attempt does not run here (it ended, or never came); that is fine.
        """
        ...

    async def adopt(self) -> tuple[StepRef, ...]:
        """Once, before the first ``start`` of this process: face what an earlier life left behind.

        Ends what can't be followed any more, so that no build runs unseen, and returns the attempts
        that still run and report by themselves (pods do, local processes die with their parent);
        their leases are renewed instead of being requeued. Raises nothing for things already gone.
        """
        ...
