"""Conditions as kstatus, kubectl wait and Helm read them.

``Ready`` is always there once an object was looked at; ``Reconciling`` and ``Stalled`` only while
true. A reason is one CamelCase word out of the constants here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal

Status = Literal["True", "False", "Unknown"]

READY: Final = "Ready"
RECONCILING: Final = "Reconciling"
STALLED: Final = "Stalled"
PASSING: Final = "Passing"
"""Of a jobset, beside the others: whether all of its last evaluation is good."""

RECONCILED: Final = "Reconciled"
PROGRESSING: Final = "Progressing"
PROGRESSING_WITH_RETRY: Final = "ProgressingWithRetry"
SUSPENDED: Final = "Suspended"
INVALID: Final = "Invalid"
OWNED_BY_OTHER: Final = "OwnedByOther"
REFERENCE_NOT_FOUND: Final = "ReferenceNotFound"
REFERENCE_NOT_PERMITTED: Final = "ReferenceNotPermitted"
NOT_PERMITTED: Final = "NotPermitted"
SECRET_NOT_FOUND: Final = "SecretNotFound"  # noqa: S105 - a reason, not a secret
SOURCE_UNREACHABLE: Final = "SourceUnreachable"
SOURCE_INVALID: Final = "SourceInvalid"
SOURCE_EMPTY: Final = "SourceEmpty"
PRUNE_NEEDS_CONFIRMATION: Final = "PruneNeedsConfirmation"
PRUNING: Final = "Pruning"
EVALUATION_FAILED: Final = "EvaluationFailed"
PREREQUISITE_MISSING: Final = "PrerequisiteMissing"
INTERNAL: Final = "Internal"
TARGET_NOT_ALLOWED: Final = "TargetNotAllowed"
TEMPLATE_NOT_ALLOWED: Final = "TemplateNotAllowed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One aspect of an object's state."""

    type: str
    status: Status
    reason: str
    message: str = ""
    observed_generation: int = -1
    last_transition_time: datetime | None = None
    """Timezone-aware; set by :func:`with_condition`."""

    def as_dict(self) -> dict[str, Any]:
        """As Kubernetes writes it."""
        at = self.last_transition_time
        return {
            "type": self.type,
            "status": self.status,
            "observedGeneration": self.observed_generation,
            "lastTransitionTime": at.strftime("%Y-%m-%dT%H:%M:%SZ") if at else None,
            "reason": self.reason,
            "message": self.message,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Condition:
        """Reads what :meth:`as_dict` wrote."""
        at = data.get("lastTransitionTime")
        return cls(
            type=data["type"],
            status=data["status"],
            reason=data["reason"],
            message=data.get("message", ""),
            observed_generation=data.get("observedGeneration", -1),
            last_transition_time=datetime.fromisoformat(at) if at else None,
        )


def with_condition(
    conditions: Iterable[Condition], new: Condition, now: datetime
) -> tuple[Condition, ...]:
    """The conditions with ``new`` in its place; its time is ``now`` only if the status flips."""
    kept = list(conditions)
    for index, old in enumerate(kept):
        if old.type == new.type:
            same = old.status == new.status and old.last_transition_time is not None
            kept[index] = replace(
                new, last_transition_time=old.last_transition_time if same else now
            )
            return tuple(kept)
    return (*kept, replace(new, last_transition_time=now))


def without_condition(conditions: Iterable[Condition], type_: str) -> tuple[Condition, ...]:
    """The conditions without those of a type; Reconciling and Stalled go when they end."""
    return tuple(condition for condition in conditions if condition.type != type_)


def find(conditions: Iterable[Condition], type_: str) -> Condition | None:
    """The condition of a type, if there is one."""
    return next((condition for condition in conditions if condition.type == type_), None)
