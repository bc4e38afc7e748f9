"""Where a plan meets what is there: which steps are new, which come back, what blocks.

Pure: given the locked states of the steps that exist, it says what has to be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from fc_operator.model.ids import DrvPath, StepId
from fc_operator.model.statuses import LIVE, OUTPUTS_VALID, BuildStatus
from fc_operator.planner.plans import PlannedStep


@dataclass(frozen=True, slots=True, kw_only=True)
class StepState:
    """A step that exists, as it was when its row was locked."""

    id: StepId
    status: BuildStatus
    outputs_valid: bool
    """Who needs it may go on: it ended well, or is only being checked."""
    finished_age_s: float | None = None
    root_cause: StepId | None = None
    root_cause_drv: DrvPath | None = None
    is_remembered: bool = False
    """Its own failure, or that of its root cause, is still in the failure cache."""


@dataclass(slots=True)
class Placement:
    """What has to be written."""

    new: dict[DrvPath, PlannedStep] = field(default_factory=dict)
    revived: dict[DrvPath, PlannedStep] = field(default_factory=dict)
    """Steps that ended in a way that no longer counts; they are pending again."""
    blockers: dict[DrvPath, int] = field(default_factory=dict)
    """Of each new and revived step."""
    failed: set[StepId] = field(default_factory=set)
    """Remembered failures among what is needed: their dependents fail at once."""


def place(
    steps: Sequence[PlannedStep],
    states: Mapping[DrvPath, StepState],
    *,
    asked: AbstractSet[DrvPath],
    asked_age_s: float,
) -> Placement:
    """Decide about ``steps``.

    ``asked`` are derivations of which Nix said ``asked_age_s`` seconds ago that they must be built;
    a success from before that has lost its outputs. Where an evaluator said it, a success counts.
    """
    placement = Placement()
    plan_drvs = {step.derivation.drv_path for step in steps}
    for step in steps:
        drv = step.derivation.drv_path
        state = states.get(drv)
        if state is None:
            placement.new[drv] = step
        elif _comes_back(state, plan_drvs, may_be_gone=drv in asked, age_s=asked_age_s):
            placement.revived[drv] = step
    for drv, step in (*placement.new.items(), *placement.revived.items()):
        count = 0
        for need in step.needs:
            state = states.get(need)
            done = state is not None and state.outputs_valid and need not in placement.revived
            count += not done
            if state is not None and need not in placement.revived and blocks(state):
                placement.failed.add(state.id)
        placement.blockers[drv] = count
    return placement


def _comes_back(
    state: StepState, plan_drvs: AbstractSet[DrvPath], *, may_be_gone: bool, age_s: float
) -> bool:
    if state.status in LIVE:
        return False
    if state.outputs_valid:
        return may_be_gone and (state.finished_age_s or 0) > age_s
    return not (
        state.is_remembered and (state.root_cause_drv is None or state.root_cause_drv in plan_drvs)
    )


def blocks(state: StepState) -> bool:
    """It has ended in a way that stops who needs it."""
    return state.status not in LIVE and not state.outputs_valid


def status_of_build(state: StepState) -> BuildStatus:
    """What a new build of a step shows."""
    is_own_failure = state.status not in LIVE | OUTPUTS_VALID and state.root_cause is None
    if is_own_failure and state.is_remembered:
        return BuildStatus.CACHED_FAILURE
    return state.status
