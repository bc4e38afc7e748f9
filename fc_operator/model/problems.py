"""What is wrong with a manifest, said to the person who wrote it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Problem:
    """One mistake; sorts by file and line."""

    path: str = ""
    """The file, relative to its source; empty where there is none."""
    line: int = 0
    """Counted from 1; 0 where there is no file."""
    field: str = ""
    """Such as ``spec.inputs[0].type``; empty when the whole document is meant."""
    kind: str = ""
    name: str = ""
    message: str
    hint: str = ""
    """What would be right, where we can tell."""

    def __str__(self) -> str:
        place = f"{self.path}:{self.line}: " if self.path else ""
        who = f"{self.kind} {self.name}: " if self.kind and self.name else ""
        what = f"{self.field}: " if self.field else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{who}{what}{self.message}{hint}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)
