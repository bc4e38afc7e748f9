"""The evaluation key: a hash of all that decides which jobs come out. Pure.

Two evaluations with one key have the same jobs, so the second takes over those of the first. It is
the hash of canonical JSON, so that no two inputs can run into each other (C10: the original hashed
words without separators, and forgot the expression and the mode).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from fc_operator.evaluator.requests import Versions
from fc_operator.model.evaluations import ResolvedInput
from fc_operator.model.ids import CommitId

_EDITION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Deciding:
    """All that decides; the project and the jobset do not, so that equal ones share their work."""

    commit: CommitId
    expression: str
    is_flake: bool
    inputs: Sequence[ResolvedInput] = ()
    systems: Sequence[str] = ()
    allow_import_from_derivation: bool = False
    trust: str = "trusted"
    """What nobody reviewed never shares with what is trusted (S19)."""
    versions: Versions
    store_dir: str = "/nix/store"


def key_of(deciding: Deciding) -> str:
    """SHA-256 in hex of the canonical JSON of ``deciding``."""
    content = {
        "edition": _EDITION,
        "commit": deciding.commit,
        "expression": deciding.expression,
        "flake": deciding.is_flake,
        "inputs": {
            given.name: {
                "type": given.type,
                "value": given.value,
                "revision": given.revision,
                "store_path": given.store_path,
            }
            for given in deciding.inputs
        },
        "systems": sorted(set(deciding.systems)),
        "allow_import_from_derivation": deciding.allow_import_from_derivation,
        "trust": deciding.trust,
        "evaluator": [deciding.versions.evaluator, deciding.versions.version],
        "store_dir": deciding.store_dir,
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
