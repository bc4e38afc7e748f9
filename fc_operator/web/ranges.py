"""``Range`` of one part (RFC 9110): which bytes of a body are wanted."""

from __future__ import annotations

import re

_ONE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)


class UnsatisfiableError(Exception):
    """The range begins after the end: 416."""


def parse(header: str | None, size: int) -> tuple[int, int] | None:
    """``[start, end)`` of a body of ``size`` bytes, or None for all of it.

    What is no range of one part is ignored, as the RFC allows.

    Raises:
        UnsatisfiableError: nothing of it is there.
    """
    match = _ONE.fullmatch(header.strip()) if header else None
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        wanted = int(last)
        if wanted == 0 or size == 0:
            raise UnsatisfiableError
        return max(0, size - wanted), size
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    if start >= size:
        raise UnsatisfiableError
    return start, end
