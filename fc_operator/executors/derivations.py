"""The little that an executor reads from a .drv file: its outputs, whether it is fixed, its inputs.

The planner parses derivations whole; this is what can be had from the text in one look.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from fc_operator.model.ids import DrvPath

_OUTPUT = re.compile(rb'\("([^"]*)","([^"]*)","([^"]*)","([^"]*)"\)')


@dataclass(frozen=True, slots=True)
class DrvFacts:
    """What the text of a .drv says."""

    outputs: dict[str, str]
    """Path by output name; empty where only the build tells it."""
    is_fixed_output: bool
    text: bytes

    def needs(self, drv_path: DrvPath) -> bool:
        """Whether ``drv_path`` is among its direct input derivations."""
        return f'("{drv_path}",['.encode() in self.text


def parse(text: bytes) -> DrvFacts:
    """Facts of ``text``; of a text that is no derivation, none."""
    start = text.find(b"[(")
    end = text.find(b"],[", start)
    found = _OUTPUT.findall(text[start:end]) if 0 <= start < end else []
    return DrvFacts(
        outputs={name.decode(): path.decode() for name, path, _, _ in found},
        is_fixed_output=any(algo and digest for _, _, algo, digest in found),
        text=text,
    )


def read(drv_path: DrvPath) -> DrvFacts:
    """Facts of the file; none when it can't be read (Nix will say why in its own words)."""
    try:
        return parse(Path(drv_path).read_bytes())
    except OSError:
        return parse(b"")
