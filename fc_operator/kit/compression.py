"""zstd in independent frames, with the table that lets a reader begin anywhere.

The result is a plain ``.zst`` file: the table is a skippable frame at its end, as in zstd's
seekable format (magic numbers and layout from its specification), so ``zstd -d`` reads it too.
"""

from __future__ import annotations

import bisect
import bz2
import itertools
import lzma
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import zstandard

FRAME_BYTES = 64 * 1024
FOOTER_BYTES = 9
_SKIPPABLE_MAGIC = 0x184D2A5E
_SEEKABLE_MAGIC = 0x8F92EAB1
_LEVEL = 3
_READ_BYTES = 128 * 1024
_WINDOW_BYTES_MAX = 128 * 1024 * 1024


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


class Readable(Protocol):
    """Bytes, one after the other."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        ...


class Decompressor:
    """Reads what ``source`` holds compressed, never more at once than is asked for.

    ``compression`` is ``none``, ``zstd``, ``xz`` or ``bzip2``. However little a bomb's source is
    and however much it stands for, memory stays below what the window of an honest file takes.
    """

    def __init__(self, compression: str, source: Readable) -> None:
        self._read: Callable[[int], bytes]
        self._errors: tuple[type[Exception], ...] = ()
        match compression:
            case "none":
                self._read = source.read
            case "zstd":
                reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
                frames: Any = _WholeFrames(source)
                stream = reader.stream_reader(
                    frames, read_size=_READ_BYTES, read_across_frames=True
                )
                self._read = stream.read
                self._errors = (zstandard.ZstdError,)
            case "xz":
                self._read = _Stepwise(
                    lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * _WINDOW_BYTES_MAX),
                    source,
                ).read
                self._errors = (lzma.LZMAError, EOFError)
            case "bzip2":
                self._read = _Stepwise(bz2.BZ2Decompressor, source).read
                self._errors = (OSError, EOFError)
            case _:
                raise CompressionError(f"no compression of ours: {compression}")

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end.

        Raises:
            CompressionError: the source is damaged, ends early, or asks for too much memory.
        """
        try:
            return self._read(size)
        except self._errors as error:
            raise CompressionError(f"damaged: {error}") from error


class _WholeFrames:
    """A zstd source whose end is an error where it is not the end of a frame.

    The library takes half a frame for a short one, so the frames are walked here once more: by the
    sizes of their blocks, as RFC 8878 lays them out.
    """

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._head = bytearray()
        self._skip = 0
        self._in_frame = False
        self._is_last = False
        self._has_checksum = False

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        if data:
            self._walk(data)
        elif self._skip or self._head or self._in_frame:
            raise zstandard.ZstdError("it ends early")
        return data

    def _walk(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
            else:
                self._head.append(data[at])
                at += 1
                if self._in_frame:
                    self._block()
                else:
                    self._frame()
            if not self._skip and self._is_last:
                self._is_last = self._in_frame = False
                self._skip = 4 if self._has_checksum else 0

    def _frame(self) -> None:
        head = self._head
        if len(head) < 5:
            return
        magic = int.from_bytes(head[:4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:
            if len(head) < 8:
                return
            self._skip = int.from_bytes(head[4:8], "little")
        else:
            # What is no frame at all is told by the library.
            flags = head[4]
            single = flags >> 5 & 1
            size_bytes = (single, 2, 4, 8)[flags >> 6]
            self._skip = (1 - single) + (0, 1, 2, 4)[flags & 3] + size_bytes
            self._has_checksum = bool(flags >> 2 & 1)
            self._in_frame = True
        head.clear()

    def _block(self) -> None:
        head = self._head
        if len(head) < 3:
            return
        block = int.from_bytes(head, "little")
        self._is_last = bool(block & 1)
        self._skip = 1 if block >> 1 & 3 == 1 else block >> 3
        head.clear()


class _Stepwise:
    """xz and bzip2: several streams one after the other, each to its own end."""

    def __init__(self, make: Callable[[], Any], source: Readable) -> None:
        self._make = make
        self._source = source
        self._stream = make()
        self._waiting = b""
        self._begun = False

    def read(self, size: int, /) -> bytes:
        while True:
            if self._stream.eof:
                self._waiting = self._stream.unused_data or self._source.read(_READ_BYTES)
                if not self._waiting:
                    return b""
                self._stream = self._make()
            elif self._stream.needs_input and not self._waiting:
                self._waiting = self._source.read(_READ_BYTES)
                if not self._waiting:
                    raise EOFError("it ends early")
            given, self._waiting = self._waiting, b""
            out: bytes = self._stream.decompress(given, size)
            if out:
                return out


class Compressor:
    """Makes one zstd stream of pieces."""

    def __init__(self) -> None:
        self._stream = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()

    def add(self, data: bytes | memoryview) -> bytes:
        """What is ready to be stored, maybe nothing yet."""
        return self._stream.compress(data)

    def finish(self) -> bytes:
        """The rest."""
        return self._stream.flush()
