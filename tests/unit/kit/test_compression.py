"""Seekable zstd: any place can be read, plain zstd reads it too, damage is one clear error."""

import itertools
import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.kit import compression
from fc_operator.kit.compression import CompressionError, SeekTable

parts = st.lists(st.binary(min_size=1, max_size=200), max_size=12)


def packed(pieces: list[bytes]) -> tuple[bytes, SeekTable]:
    """A whole file of one frame per piece, and its table."""
    frames = [compression.compress_frame(piece) for piece in pieces]
    table = SeekTable(
        [(len(frame), len(piece)) for frame, piece in zip(frames, pieces, strict=True)]
    )
    return b"".join(frames) + table.encode(), table


@given(parts)
def test_a_table_is_read_back_and_plain_zstd_reads_the_file(pieces):
    data, table = packed(pieces)
    size = SeekTable.table_bytes(data[-compression.FOOTER_BYTES :])
    found = SeekTable.decode(data[-size:])
    assert (found.frames, found.size_bytes) == (len(pieces), sum(map(len, pieces)))
    assert found.encode() == table.encode()
    with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
        assert reader.read() == b"".join(pieces)


@given(parts, st.integers(0, 2_500), st.integers(0, 2_500))
def test_the_frames_of_a_range_hold_exactly_its_bytes(pieces, start, length):
    data, table = packed(pieces)
    whole = b"".join(pieces)
    frames = list(table.covering(start, start + length))
    text = b"".join(
        compression.decompress_frame(data[f.stored_start : f.stored_start + f.stored_bytes])
        for f in frames
    )
    if frames:
        offset = start - frames[0].start
        assert text[offset : offset + length] == whole[start : start + length]
        assert all(a.start + a.size_bytes == b.start for a, b in itertools.pairwise(frames))
        assert frames[-1].start < start + length
    else:
        assert whole[start : start + length] == b""


def test_a_table_grows_by_appending():
    table = SeekTable()
    assert (table.frames, table.size_bytes) == (0, 0)
    table.append(10, 100)
    table.append(20, 50)
    assert (table.frames, table.size_bytes) == (2, 150)
    (second,) = table.covering(100, 150)
    assert (second.stored_start, second.stored_bytes, second.start, second.size_bytes) == (
        10,
        20,
        100,
        50,
    )


def test_c04_a_frame_that_would_grow_too_large_is_refused_before_it_does():
    bomb = compression.compress_frame(b"\0" * 50_000_000)
    assert len(bomb) < 10_000
    with pytest.raises(CompressionError, match="larger than"):
        compression.decompress_frame(bomb)
    assert len(compression.decompress_frame(bomb, size_max=50_000_000)) == 50_000_000


def test_c04_a_frame_that_hides_its_size_is_refused_too():
    hidden = zstandard.ZstdCompressor(write_content_size=False).compress(b"\0" * 1_000_000)
    with pytest.raises(CompressionError):
        compression.decompress_frame(hidden, size_max=1_000)


@given(st.binary(max_size=100))
def test_damaged_bytes_are_one_clear_error(data):
    for read in (compression.decompress_frame, SeekTable.decode, SeekTable.table_bytes):
        try:
            read(data)
        except CompressionError:
            continue


def test_a_flipped_byte_is_noticed():
    frame = bytearray(compression.compress_frame(b"hello world, hello world"))
    frame[-1] ^= 0xFF
    with pytest.raises(CompressionError):
        compression.decompress_frame(bytes(frame))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        b"\0" * 9,
        SeekTable([(1, 1)]).encode()[1:],
        SeekTable([(1, 1)]).encode() + b"\0",
        b"\0\0\0\0" + SeekTable([(1, 1)]).encode()[4:],
        struct.pack("<IBI", 0xFFFFFFFF, 0, 0x8F92EAB1),
        SeekTable([(1, 1)]).encode()[:-5] + b"\x80" + SeekTable([(1, 1)]).encode()[-4:],
    ],
)
def test_what_is_no_table_is_refused(data):
    with pytest.raises(CompressionError):
        SeekTable.decode(data)
