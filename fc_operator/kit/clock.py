"""Time as an argument: what reads a clock takes a ``Clock``, so that tests can turn it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Wall time for people, monotonic seconds for decisions."""

    def now(self) -> datetime:
        """The present in UTC, for records that people read; never for deciding about leases."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only ever grow; differences are all that counts."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """See ``Clock.now``."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """See ``Clock.monotonic_s``."""
        return time.monotonic()
