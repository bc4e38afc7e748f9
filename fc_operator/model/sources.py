"""Where declarations come from. The reconciler compares sources, it can't know what they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

SourceKind = Literal["ConfigRepository", "Kubernetes", "Apply", "InRepository"]
CONFIG_REPOSITORY: Final = "ConfigRepository"
KUBERNETES: Final = "Kubernetes"
APPLY: Final = "Apply"
IN_REPOSITORY: Final = "InRepository"


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """One owner of declarations."""

    kind: SourceKind
    name: str
    """The config repository's name, the cluster's install name, the applying key's name."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"
