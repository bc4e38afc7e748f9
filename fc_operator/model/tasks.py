"""What executors get and what they yield."""

from __future__ import annotations

from dataclasses import dataclass, field

from fc_operator.model.ids import DrvPath, StepId, StorePath, TaskId
from fc_operator.model.outcomes import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOrder:
    """One claimed step, as an executor needs it. (step_id, attempt, task_id) is the fence."""

    step_id: StepId
    attempt: int
    task_id: TaskId
    drv_path: DrvPath
    name: str
    system: str
    required_features: tuple[str, ...] = ()
    outputs: dict[str, StorePath | None] = field(default_factory=dict)
    timeout_s: int = 36_000
    """Wall time of the build; 0 is no limit."""
    max_silent_s: int = 3_600
    """Longest time without a log line; 0 is no limit."""
    log_bytes_max: int = 64 * 1024 * 1024
    nar_bytes_max: int = 0
    """Largest allowed sum of output NARs; 0 is no limit."""
    check: bool = False
    """Rebuild valid outputs and compare (``--check``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """The executor has begun with a step: a process runs."""

    step_id: StepId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """A piece of a step's log, in order, whole lines where possible; ``offset`` counts bytes."""

    step_id: StepId
    attempt: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged:
    """The builder said which phase it is in; ``at_ms`` counts from the start of the attempt."""

    step_id: StepId
    attempt: int
    phase: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """The last event of a step."""

    step_id: StepId
    attempt: int
    outcome: Outcome
    log_bytes: int = 0
    log_lines: int = 0
    duration_ms: int = 0


StepEvent = StepStarted | LogChunk | PhaseChanged | StepEnded
