"""zstd in independent frames, with the table that lets a reader begin anywhere.

The result is a plain ``.zst`` file: the table is a skippable frame at its end, as in zstd's
seekable format (magic numbers and layout from its specification), so ``zstd -d`` reads it too.
"""

from __future__ import annotations

import bisect
import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import zstandard

FRAME_BYTES = 64 * 1024
FOOTER_BYTES = 9
_SKIPPABLE_MAGIC = 0x184D2A5E
_SEEKABLE_MAGIC = 0x8F92EAB1
_LEVEL = 3


class CompressionError(Exception):
    """The bytes are not what the format says."""


def compress_frame(data: bytes) -> bytes:
    """One frame that says its own size."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def decompress_frame(data: bytes, size_max: int = 16 * 1024 * 1024) -> bytes:
    """The content of one frame.

    Raises:
        CompressionError: damaged, or larger than ``size_max``.
    """
    try:
        if zstandard.get_frame_parameters(data).content_size > size_max:
            raise CompressionError(f"a frame is larger than {size_max} bytes")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=size_max)
    except zstandard.ZstdError as error:
        raise CompressionError(f"damaged zstd frame: {error}") from error


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one frame lies, in the file and in what was compressed."""

    stored_start: int
    stored_bytes: int
    start: int
    size_bytes: int


class SeekTable:
    """All frames of a file, in order."""

    def __init__(self, sizes: Sequence[tuple[int, int]] = ()) -> None:
        """``sizes``: (stored, original) bytes of each frame."""
        self._stored = [0, *itertools.accumulate(stored for stored, _ in sizes)]
        self._plain = [0, *itertools.accumulate(plain for _, plain in sizes)]

    def append(self, stored_bytes: int, size_bytes: int) -> None:
        """Add the next frame."""
        self._stored.append(self._stored[-1] + stored_bytes)
        self._plain.append(self._plain[-1] + size_bytes)

    @property
    def size_bytes(self) -> int:
        """Size of the whole content."""
        return self._plain[-1]

    @property
    def frames(self) -> int:
        """How many frames there are."""
        return len(self._plain) - 1

    def covering(self, start: int, end: int) -> Iterable[Frame]:
        """Frames that hold bytes of ``[start, end)``."""
        index = max(0, bisect.bisect_right(self._plain, start) - 1)
        while index < self.frames and self._plain[index] < end:
            yield Frame(
                self._stored[index],
                self._stored[index + 1] - self._stored[index],
                self._plain[index],
                self._plain[index + 1] - self._plain[index],
            )
            index += 1

    def encode(self) -> bytes:
        """The skippable frame that ends the file."""
        entries = b"".join(
            struct.pack("<II", stored, plain)
            for stored, plain in zip(
                (b - a for a, b in itertools.pairwise(self._stored)),
                (b - a for a, b in itertools.pairwise(self._plain)),
                strict=True,
            )
        )
        footer = struct.pack("<IBI", self.frames, 0, _SEEKABLE_MAGIC)
        return struct.pack("<II", _SKIPPABLE_MAGIC, len(entries) + len(footer)) + entries + footer

    @staticmethod
    def table_bytes(footer: bytes) -> int:
        """Size of the skippable frame, from the last ``FOOTER_BYTES`` of a file.

        Raises:
            CompressionError: the file does not end with a table.
        """
        if len(footer) != FOOTER_BYTES:
            raise CompressionError("too short for a seek table")
        frames, descriptor, magic = cast("tuple[int, int, int]", struct.unpack("<IBI", footer))
        if magic != _SEEKABLE_MAGIC or descriptor != 0:
            raise CompressionError("no seek table at the end")
        return 8 + frames * 8 + FOOTER_BYTES

    @classmethod
    def decode(cls, data: bytes) -> SeekTable:
        """The table of a skippable frame.

        Raises:
            CompressionError: it is none.
        """
        size = cls.table_bytes(data[-FOOTER_BYTES:])
        if size != len(data) or struct.unpack_from("<II", data) != (_SKIPPABLE_MAGIC, size - 8):
            raise CompressionError("the seek table is damaged")
        return cls(list(struct.iter_unpack("<II", data[8:-FOOTER_BYTES])))
