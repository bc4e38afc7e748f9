"""A log's bytes wherever they are: in chunks while they are fresh, then in the archive.

The archive is written before the chunks go, and both are found by the same look at the attempt, so
a reader that finds no more chunks looks again and goes on in the archive at the same byte.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from fc_operator.errors import UnavailableError
from fc_operator.results import archive
from fc_operator.store.pages import logs
from fc_operator.store.pages.logs import LogState
from fc_operator.web.context import Context

_TAIL_BLOCK_BYTES = 64 * 1024
_TAIL_BYTES_MAX = 8 * 1024 * 1024


async def read(web: Context, log: LogState, start: int, end: int) -> AsyncIterator[bytes]:
    """Bytes ``[start, end)`` of a log, in pieces of at most 64 KiB or a chunk."""
    assert log.step_id is not None
    assert log.attempt is not None
    position = start
    while position < end:
        if log.key is not None:
            async for piece in archive.read_range(web.objects, log.key, position, end):
                position += len(piece)
                yield piece
            if position < end:
                raise UnavailableError("the archived log is shorter than its attempt says")
            return
        async with web.database.session() as connection:
            chunks = await logs.list_chunks(connection, log.step_id, log.attempt, position)
            again = (
                None if chunks else await logs.fetch_of_step(connection, log.step_id, log.attempt)
            )
        if not chunks:
            if again is None or again.key is None:
                raise UnavailableError("the log is gone")
            log = again
            continue
        for offset, data in chunks:
            piece = data[max(0, position - offset) : max(0, end - offset)]
            if piece:
                position = max(position, offset) + len(piece)
                yield piece


async def find_tail(web: Context, log: LogState, lines: int) -> int:
    """Where the last ``lines`` lines begin; looks back 8 MiB at most."""
    end = log.size_bytes
    position = end
    wanted = lines
    first = True
    while position > 0 and end - position < _TAIL_BYTES_MAX:
        start = max(0, position - _TAIL_BLOCK_BYTES)
        block = b"".join([piece async for piece in read(web, log, start, position)])
        stop = len(block)
        if first and block.endswith(b"\n"):
            stop -= 1
        first = False
        while (found := block.rfind(b"\n", 0, stop)) >= 0:
            wanted -= 1
            if wanted == 0:
                return start + found + 1
            stop = found
        position = start
    return position
