"""Decompression in bounded memory: whole files, and whatever is no whole file."""

from __future__ import annotations

import bz2
import io
import lzma
import random

import pytest
import zstandard

from fc_operator.kit.compression import CompressionError, Compressor, Decompressor

DATA = random.Random(1).randbytes(300_000) + bytes(700_000)


def ours(data):
    compressor = Compressor()
    half = len(data) // 2
    return compressor.add(data[:half]) + compressor.add(data[half:]) + compressor.finish()


MAKERS = {
    "zstd": ours,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
    "none": bytes,
}


def read(name, packed, size=65536):
    reader = Decompressor(name, io.BytesIO(packed))
    found = []
    while piece := reader.read(size):
        assert len(piece) <= size
        found.append(piece)
    return b"".join(found)


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_is_read_in_pieces_that_are_never_larger_than_asked(name):
    assert read(name, MAKERS[name](DATA)) == DATA
    assert read(name, MAKERS[name](DATA), size=1000) == DATA


@pytest.mark.parametrize("name", ["zstd", "xz", "bzip2"])
def test_several_streams_are_one_file(name):
    assert read(name, MAKERS[name](b"one") + MAKERS[name](b"two")) == b"onetwo"


@pytest.mark.parametrize("name", ["zstd", "xz", "bzip2"])
def test_half_a_file_is_an_error(name):
    """Also one that lacks only its checksum, which the library itself takes for whole."""
    packed = MAKERS[name](DATA)
    for bad in (packed[:-1], packed[:-4], packed[: len(packed) // 2], packed[:3]):
        with pytest.raises(CompressionError):
            read(name, bad)
    with pytest.raises(CompressionError):
        read(name, packed + b"more")


def test_frames_with_and_without_size_and_checksum_have_their_ends():
    for level in (1, 3, 19):
        for sized in (True, False):
            for checked in (True, False):
                packed = zstandard.ZstdCompressor(
                    level=level, write_content_size=sized, write_checksum=checked
                ).compress(DATA[290_000:320_000])
                assert read("zstd", packed) == DATA[290_000:320_000]
                for cut in (1, 2, 5, 100):
                    with pytest.raises(CompressionError):
                        read("zstd", packed[:-cut])


def test_a_skippable_frame_is_skipped():
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    assert read("zstd", skipped + ours(b"one") + skipped) == b"one"
    with pytest.raises(CompressionError):
        read("zstd", ours(b"one") + skipped[:-1])


def test_a_window_beyond_ours_is_refused():
    with pytest.raises(CompressionError):
        read("zstd", b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00")
    with pytest.raises(CompressionError):
        Decompressor("gzip", io.BytesIO(b""))
