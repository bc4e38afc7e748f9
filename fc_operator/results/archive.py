"""Finished logs in the object store: zstd frames of 64 KiB and a seek table, read by range.

Memory stays constant whatever the log's size: writing holds one frame and one upload part, reading
one frame and the table (8 bytes per 64 KiB of log).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from fc_operator.clients.objects import ObjectStore
from fc_operator.errors import ProtocolError
from fc_operator.kit import compression
from fc_operator.model.ids import StepId

_TABLE_BYTES_MAX = 64 * 1024 * 1024
_FIRST_LOOK_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedLog:
    """What was written."""

    key: str
    size_bytes: int
    """Size of the log itself."""
    stored_bytes: int
    lines: int


def key_of(step_id: StepId, attempt: int) -> str:
    """Where the log of an attempt lies; each attempt has its own, so a restart hides nothing."""
    return f"logs/{step_id}/{attempt}.log.zst"


class Encoding:
    """A log on its way into the archive's format; ``table`` and ``lines`` are whole at its end."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.table = compression.SeekTable()
        self.lines = 0

    async def parts(self) -> AsyncIterator[bytes]:
        """The archive's bytes: frames, then the table."""
        waiting = bytearray()
        last = b"\n"
        async for chunk in self._chunks:
            self.lines += chunk.count(b"\n")
            last = chunk[-1:] or last
            waiting += chunk
            while len(waiting) >= compression.FRAME_BYTES:
                yield self._frame(bytes(waiting[: compression.FRAME_BYTES]))
                del waiting[: compression.FRAME_BYTES]
        if waiting:
            yield self._frame(bytes(waiting))
        self.lines += last != b"\n"
        yield self.table.encode()

    def _frame(self, data: bytes) -> bytes:
        stored = compression.compress_frame(data)
        self.table.append(len(stored), len(data))
        return stored


def encode(chunks: AsyncIterator[bytes]) -> Encoding:
    """Begin to encode ``chunks``; iterate over ``parts()``, then read ``table`` and ``lines``."""
    return Encoding(chunks)


async def write(objects: ObjectStore, key: str, chunks: AsyncIterator[bytes]) -> ArchivedLog:
    """Archive a log; it appears whole or not at all, and writing it again replaces it.

    Raises:
        UnavailableError: the object store failed; the chunks are still needed.
    """
    encoding = encode(chunks)
    stored = await objects.put_stream(key, encoding.parts())
    return ArchivedLog(
        key=key,
        size_bytes=encoding.table.size_bytes,
        stored_bytes=stored,
        lines=encoding.lines,
    )


async def open_table(objects: ObjectStore, key: str) -> compression.SeekTable:
    """The seek table of an archived log; its ``size_bytes`` is the log's.

    Raises:
        NotFoundError: there is no such log.
        ProtocolError: the object is no archived log.
    """
    size = (await objects.head(key)).size_bytes
    end = await objects.get_range(key, max(0, size - _FIRST_LOOK_BYTES), size)
    try:
        needed = compression.SeekTable.table_bytes(end[-compression.FOOTER_BYTES :])
        if needed > min(size, _TABLE_BYTES_MAX):
            raise ProtocolError(f"{key} has a seek table larger than itself")
        if needed > len(end):
            end = await objects.get_range(key, size - needed, size)
        return compression.SeekTable.decode(end[-needed:])
    except compression.CompressionError as error:
        raise ProtocolError(f"{key} is no archived log: {error}") from error


async def read_range(
    objects: ObjectStore,
    key: str,
    start: int,
    end: int | None = None,
    *,
    table: compression.SeekTable | None = None,
) -> AsyncIterator[bytes]:
    """Bytes ``[start, end)`` of the log, in pieces of at most a frame; None is its end.

    Who reads one log often passes its ``table``.

    Raises:
        NotFoundError: there is no such log.
        ProtocolError: it is damaged.
    """
    table = table or await open_table(objects, key)
    end = table.size_bytes if end is None else min(end, table.size_bytes)
    start = max(0, start)
    if start >= end:
        return
    for frame in table.covering(start, end):
        stored = await objects.get_range(
            key, frame.stored_start, frame.stored_start + frame.stored_bytes
        )
        try:
            data = compression.decompress_frame(stored)
        except compression.CompressionError as error:
            raise ProtocolError(f"{key} is damaged: {error}") from error
        yield data[max(0, start - frame.start) : end - frame.start]
