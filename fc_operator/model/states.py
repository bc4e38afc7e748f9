"""How declared objects stand: what their rows and the latest results say, for a status."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fc_operator.model.conditions import Condition
from fc_operator.model.desired import Kind
from fc_operator.model.resources import Place
from fc_operator.model.statuses import BuildStatus, EvaluationStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildCounts:
    """How the builds of one evaluation stand."""

    total: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    """Ended otherwise."""

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> BuildCounts:
        """From how many builds have which status."""
        queued = counts.get(BuildStatus.PENDING, 0)
        running = counts.get(BuildStatus.RUNNING, 0)
        total = sum(counts.values())
        good = counts.get(BuildStatus.SUCCEEDED, 0)
        return cls(
            total=total,
            queued=queued,
            running=running,
            succeeded=good,
            failed=total - queued - running - good,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestEvaluation:
    """What became of a jobset's newest evaluation, so far."""

    number: int
    commit: str
    status: EvaluationStatus
    message: str = ""
    """Why it failed, if it did."""
    errors: int = 0
    """Jobs that did not evaluate."""
    ended: bool = False
    """Whether all of its builds ended too."""
    builds: BuildCounts = field(default_factory=BuildCounts)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """How the syncs of a config repository go."""

    last_revision: str | None = None
    declared: int = 0
    """Objects that it owns."""
    conditions: tuple[Condition, ...] = ()
    """None before its first sync of what it says it is now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectState:
    """One declaration of a source, with what came of it."""

    kind: Kind
    namespace: str
    name: str
    identity: str
    owns: bool
    uid: str | None
    generation: int
    """The generation that the conditions speak of."""
    last_handled_request: str | None
    conditions: tuple[Condition, ...]
    pruning: bool = False
    evaluation: LatestEvaluation | None = None
    """Of a Jobset."""
    jobsets: int | None = None
    """Of a Project."""
    running: int | None = None
    """Builds on a RemoteBuilder."""
    source: SourceState | None = None
    """Of a ConfigRepository."""

    @property
    def place(self) -> Place:
        """What its source calls it."""
        return self.kind, self.namespace, self.name


def facts_of(kind: Kind, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of an :class:`ObjectState` that hang on its kind, from a row's JSON."""
    if not facts:
        return {}
    match kind:
        case "Jobset":
            return {"evaluation": _evaluation(facts)}
        case "Project":
            return {"jobsets": facts["jobsets"]}
        case "RemoteBuilder":
            return {"running": facts["running"]}
        case _:
            return {
                "source": SourceState(
                    last_revision=facts["last_revision"],
                    declared=facts["declared"],
                    conditions=tuple(Condition.from_dict(each) for each in facts["conditions"]),
                )
            }


def _evaluation(facts: Mapping[str, Any]) -> LatestEvaluation:
    return LatestEvaluation(
        number=facts["number"],
        commit=facts["commit_hash"],
        status=EvaluationStatus(facts["status"]),
        message=facts["message"] or "",
        errors=facts["errors"],
        ended=facts["ended"],
        builds=BuildCounts.of(facts["builds"] or {}),
    )
