"""What an evaluator says about a job: one row per attribute, in any order.

The shape follows the lines of nix-eval-jobs, of which only ``attrPath`` is sure to be there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fc_operator.model.ids import DrvPath, StorePath


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMeta:
    """The wanted part of a job's ``meta`` (reference: Hydra's manual, jobs' meta attributes)."""

    description: str = ""
    homepage: str = ""
    license: str = ""
    maintainers: str = ""
    timeout_s: int | None = None
    max_silent_s: int | None = None
    scheduling_priority: int | None = None
    is_channel: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One attribute that is a derivation."""

    attr_path: tuple[str, ...]
    """Its identity inside the evaluation."""
    name: str
    """The derivation's name, with version."""
    system: str
    drv_path: DrvPath
    outputs: dict[str, StorePath | None] = field(default_factory=dict)
    """Output name to path; None where the path is known only after the build."""
    meta: JobMeta = field(default_factory=JobMeta)
    is_aggregate: bool = False
    constituents: tuple[DrvPath, ...] = ()
    """Aggregates: constituents given as derivations."""
    named_constituents: tuple[str, ...] = ()
    """Aggregates: constituents given as job names or globs."""
    glob_constituents: bool = False
    """Whether ``named_constituents`` are globs over job names."""
    input_drvs: dict[DrvPath, tuple[str, ...]] | None = None
    """Direct input derivations with the outputs used, where the evaluator told; else None."""
    required_features: tuple[str, ...] | None = None
    cache_status: str | None = None
    """``local``, ``cached``, ``notBuilt``, or None where the evaluator didn't look."""
    needed_builds: tuple[DrvPath, ...] | None = None
    """All that must be built for this job, dependencies first, where the evaluator looked."""

    @property
    def job_name(self) -> str:
        """The dotted form of ``attr_path``, parts with dots in quotes; unique because paths are."""
        return dotted(self.attr_path)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """One attribute that failed; ``attr_path`` is empty when the root itself failed."""

    attr_path: tuple[str, ...]
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """What scheduling needs of a .drv file (ATerm ``Derive(...)``)."""

    drv_path: DrvPath
    name: str
    system: str
    outputs: dict[str, StorePath | None]
    input_drvs: dict[DrvPath, tuple[str, ...]]
    input_srcs: tuple[StorePath, ...] = ()
    required_features: tuple[str, ...] = ()
    is_fixed_output: bool = False
    prefer_local: bool = False
    builder: str = ""
    args: tuple[str, ...] = ()
    env: dict[str, Any] = field(default_factory=dict)


def dotted(attr_path: tuple[str, ...]) -> str:
    """``("a", "b.c")`` gives ``a."b.c"``, as nix-eval-jobs writes ``attr``.

    Different paths have different names: a part with a dot or a quote in it is quoted as Nix does.
    """
    return ".".join(
        _quoted(part) if not part or {".", '"'} & set(part) else part for part in attr_path
    )


def _quoted(part: str) -> str:
    escaped = part.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
