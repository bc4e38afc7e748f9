"""What is to be evaluated: a checkout, an expression or a flake's attribute, and its arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fc_operator.model.ids import CommitId, StorePath


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A checked-out revision on disk."""

    path: Path
    """Its folder; for a path input it may be a file."""
    revision: CommitId | None = None
    rev_count: int | None = None
    last_modified: int | None = None
    """Seconds since 1970 of its newest file; what a flake calls its last modification."""
    nar_hash: str = ""
    """``sha256-<base64>`` of the folder; flakes need it, because it locks a reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One resolved input of a jobset."""

    name: str
    type: str
    """git, string, boolean, path or build."""
    value: str = ""
    """The text of a string or boolean; the job's derivation of a build."""
    tree: Tree | None = None
    """git: the checkout. path: where it lies."""
    store_path: StorePath | None = None
    """git and build: its content in the store."""
    version: str = ""
    """build: the version part of the derivation's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """All that an evaluator needs; the same for every evaluator and on every machine."""

    source: Tree
    expression: str
    """Legacy: a file below the source. Flake: an attribute, empty for hydraJobs, else checks."""
    is_flake: bool
    arguments: tuple[Argument, ...] = ()
    systems: tuple[str, ...] = ()
    """Only jobs of these; empty means all."""
    allow_import_from_derivation: bool = False
    allowed_uris: tuple[str, ...] = ()
    """Flake: what its lock file may make Nix fetch, see ``locks``."""
    timeout_s: float = 3600
    work_dir: Path
    """An existing folder of this evaluation alone, outside the source."""
    roots_dir: Path
    """Links that keep the derivations from being collected; below the store's gcroots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Who evaluates; part of the key."""

    evaluator: str
    """``nix-eval-jobs`` or ``walker``."""
    version: str
    """For people: the version of the evaluator and, for the walker, of its Nix."""
