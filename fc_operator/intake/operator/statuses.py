"""The status of an object, from what its rows say, and the way there from the one it has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

from fc_operator.intake.operator.objects import Seen
from fc_operator.model import conditions as terms
from fc_operator.model.conditions import Condition
from fc_operator.model.problems import Problem
from fc_operator.model.states import LatestEvaluation, ObjectState
from fc_operator.model.statuses import EvaluationStatus

_MESSAGE_MAX = 2_000
_OURS = frozenset(
    {terms.READY, terms.RECONCILING, terms.STALLED, terms.PASSING, "HistoryRewritten"}
)
"""Types of conditions that we write; those of others stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """An object that can't be understood although the API server took it: its last good state
    stays.
    """

    generation: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An object that could not be looked at: we try again, and say so if it is a new one."""

    generation: int
    message: str


Finding = ObjectState | Broken | Held


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that a person should be alerted to."""

    reason: str
    message: str


def render(
    finding: Finding, before: Mapping[str, Any], now: datetime, *, public_url: str = ""
) -> dict[str, Any]:
    """The whole status that an object should have; equal to ``before`` if nothing is new."""
    old = _conditions_of(before)
    match finding:
        case Broken():
            message = "; ".join(str(each) for each in finding.problems[:4])
            conditions = _stalled(
                old, terms.INVALID, f"the last good state stays; {message}", finding.generation, now
            )
            facts = _kept(before)
        case Held():
            conditions = _unknown(old, finding.message, finding.generation, now)
            facts = _kept(before)
        case _:
            conditions = _stated(finding, old, now)
            facts = _facts(finding, public_url)
    generation = finding.generation
    if isinstance(finding, Held):
        generation = before.get("observedGeneration", -1)
    others = [each for each in before.get("conditions") or () if each.get("type") not in _OURS]
    status = {
        "observedGeneration": generation,
        **facts,
        "conditions": [*(_written(each) for each in conditions), *others],
    }
    return {name: value for name, value in status.items() if value is not None}


def operations(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The JSON patch of ``/status`` that makes ``before`` into ``after``; empty if they agree."""
    steps = [
        {"op": "add", "path": f"/status/{name}", "value": value}
        for name, value in after.items()
        if before.get(name) != value
    ]
    steps += [{"op": "remove", "path": f"/status/{name}"} for name in before if name not in after]
    if steps and not before:
        steps.insert(0, {"op": "add", "path": "/status", "value": {}})
    return steps


def notices(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Notice]:
    """What is new in ``after`` and needs a person; nothing that was said already."""
    told = {(each.type, each.status, each.reason) for each in _conditions_of(before)}
    return [
        Notice(reason=each.reason, message=each.message)
        for each in _conditions_of(after)
        if _needs_person(each) and (each.type, each.status, each.reason) not in told
    ]


def _needs_person(condition: Condition) -> bool:
    match condition.type:
        case terms.STALLED:
            return condition.status == "True"
        case terms.PASSING:
            return condition.status == "False"
        case terms.READY:
            return condition.status == "False" and condition.reason == terms.SECRET_NOT_FOUND
        case _:
            return False


def is_gone(finding: Finding | None) -> bool:
    """Whether the declaration is known to be on its way out, so that the object may go."""
    return finding is None or (isinstance(finding, ObjectState) and finding.pruning)


def describes(finding: Finding, object_: Seen) -> bool:
    """Whether a finding speaks of this object, and not of an earlier one of its name."""
    if isinstance(finding, ObjectState):
        return finding.uid in {None, object_.uid} and not finding.pruning
    return True


# Conditions ---------------------------------------------------------------------------------


def _stated(state: ObjectState, old: Sequence[Condition], now: datetime) -> list[Condition]:
    conditions = _declared(state, old, now)
    if state.kind == "Jobset" and state.owns:
        passing = _passing(state.evaluation, state.generation)
        kept = [each for each in old if each.type == terms.PASSING]
        conditions += terms.with_condition(kept, passing, now)
    return conditions


def _declared(state: ObjectState, old: Sequence[Condition], now: datetime) -> list[Condition]:
    """What the reconciler says; of a config repository in force also how its syncs go."""
    ready = terms.find(state.conditions, terms.READY)
    source = state.source
    if source is None or ready is None or ready.status != "True":
        return _at(state.conditions, state.generation)
    if ready.reason == terms.SUSPENDED:
        return _at([ready], state.generation)
    if source.conditions:
        return _at(source.conditions, state.generation)
    return _unknown(old, "its source was not read yet", state.generation, now)


def _at(conditions: Iterable[Condition], generation: int) -> list[Condition]:
    return [replace(each, observed_generation=generation) for each in conditions]


def _passing(evaluation: LatestEvaluation | None, generation: int) -> Condition:
    """Whether all that the newest evaluation asked for is good, as far as it is known."""

    def say(status: terms.Status, reason: str, message: str) -> Condition:
        return Condition(
            type=terms.PASSING,
            status=status,
            reason=reason,
            message=message[:_MESSAGE_MAX],
            observed_generation=generation,
        )

    if evaluation is None:
        return say("Unknown", "NotEvaluated", "there is no evaluation yet")
    name, builds = f"evaluation {evaluation.number}", evaluation.builds
    match evaluation.status:
        case EvaluationStatus.FAILED | EvaluationStatus.TIMED_OUT:
            return say("False", terms.EVALUATION_FAILED, f"{name}: {evaluation.message}")
        case EvaluationStatus.CANCELLED:
            return say("Unknown", "Cancelled", f"{name} was cancelled")
        case _:
            pass
    wrong = []
    if builds.failed:
        wrong.append(f"{builds.failed} of {builds.total} builds failed")
    if evaluation.errors:
        wrong.append(f"{evaluation.errors} jobs did not evaluate")
    if wrong:
        reason = "BuildsFailed" if builds.failed else "JobsFailed"
        return say("False", reason, f"{name}: {', '.join(wrong)}")
    if evaluation.status != EvaluationStatus.COMPLETED:
        return say("Unknown", "Evaluating", f"{name} goes on")
    if not evaluation.ended:
        return say("Unknown", "Building", f"{name} is being built")
    return say("True", "Succeeded", f"{name}: all {builds.succeeded} builds are good")


def _stalled(
    old: Sequence[Condition], reason: str, message: str, generation: int, now: datetime
) -> list[Condition]:
    ready = Condition(
        type=terms.READY,
        status="False",
        reason=reason,
        message=message[:_MESSAGE_MAX],
        observed_generation=generation,
    )
    also = replace(ready, type=terms.STALLED, status="True")
    return _renewed(old, (ready, also), now)


def _unknown(
    old: Sequence[Condition], message: str, generation: int, now: datetime
) -> list[Condition]:
    ready = Condition(
        type=terms.READY,
        status="Unknown",
        reason=terms.PROGRESSING,
        message=message[:_MESSAGE_MAX],
        observed_generation=generation,
    )
    also = replace(
        ready, type=terms.RECONCILING, status="True", reason=terms.PROGRESSING_WITH_RETRY
    )
    return _renewed(old, (ready, also), now)


def _renewed(old: Sequence[Condition], new: Sequence[Condition], now: datetime) -> list[Condition]:
    """``new`` with the times of those in ``old`` that say the same; Passing stays beside them."""
    found: list[Condition] = []
    for each in new:
        same = [known for known in old if known.type == each.type]
        found += terms.with_condition(same, each, now)
    return found + [each for each in old if each.type == terms.PASSING]


def _conditions_of(status: Mapping[str, Any]) -> tuple[Condition, ...]:
    return tuple(Condition.from_dict(each) for each in status.get("conditions") or ())


def _written(condition: Condition) -> dict[str, Any]:
    return {**condition.as_dict(), "message": condition.message[:_MESSAGE_MAX]}


# Facts --------------------------------------------------------------------------------------


def _kept(before: Mapping[str, Any]) -> dict[str, Any]:
    """What was said besides the conditions, which nothing new is known of."""
    return {
        name: value
        for name, value in before.items()
        if name not in {"conditions", "observedGeneration"}
    }


def _facts(state: ObjectState, public_url: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"lastHandledRequest": state.last_handled_request}
    if state.kind == "Project":
        facts["jobsets"] = state.jobsets if state.owns else None
        if public_url and state.owns:
            facts["url"] = f"{public_url}/projects/{quote(state.identity)}"
    elif state.kind == "Jobset":
        facts |= _results(state.evaluation)
        if public_url and state.owns:
            project, _, jobset = state.identity.partition("/")
            facts["url"] = f"{public_url}/projects/{quote(project)}/{quote(jobset)}"
    elif state.kind == "RemoteBuilder":
        facts["runningJobs"] = state.running if state.owns else None
    elif state.source is not None:
        facts["lastRevision"] = state.source.last_revision
        facts["declared"] = state.source.declared
    return facts


def _results(evaluation: LatestEvaluation | None) -> dict[str, Any]:
    if evaluation is None:
        return {}
    builds = evaluation.builds
    return {
        "lastRevision": evaluation.commit,
        "lastEvaluation": evaluation.number,
        "builds": {
            "total": builds.total,
            "queued": builds.queued,
            "running": builds.running,
            "succeeded": builds.succeeded,
            "failed": builds.failed,
        },
    }
