"""Delays between tries: exponential, capped, with jitter from a given source of randomness."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """``base_s * factor ** (n - 1)`` up to ``cap_s``, plus up to ``jitter`` of it."""

    base_s: float
    factor: float = 2.0
    cap_s: float = 300.0
    jitter: float = 0.2

    def delay_s(self, tries: int, rng: random.Random | None = None) -> float:
        """Seconds to wait after the ``tries``-th failure in a row (1 is the first)."""
        exponent = min(max(tries, 1) - 1, 64)
        plain_s = min(self.cap_s, self.base_s * self.factor**exponent)
        spread = (rng or random).random()
        return plain_s * (1 + self.jitter * spread)
