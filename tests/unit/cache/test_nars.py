"""NARs: all that Nix writes is read, and nothing else."""

from __future__ import annotations

import hashlib
import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.cache import nars
from fc_operator.errors import InvalidError


def text(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


def texts(*words: bytes) -> bytes:
    return b"".join(map(text, words))


def write(tree) -> bytes:
    """A NAR of ``tree``: bytes are a file, a pair (bytes, True) an executable one, text a link."""
    return text(b"nix-archive-1") + _node(tree)


def _node(tree) -> bytes:
    match tree:
        case bytes():
            inner = texts(b"regular", b"contents", tree)
        case (content, True):
            inner = texts(b"regular", b"executable", b"", b"contents", content)
        case str():
            inner = texts(b"symlink", b"target", tree.encode())
        case dict():
            inner = text(b"directory") + b"".join(
                texts(b"entry", b"(", b"name", name, b"node") + _node(tree[name]) + text(b")")
                for name in sorted(tree)
            )
    return texts(b"(", b"type") + inner + text(b")")


class Slow(io.BytesIO):
    """Gives pieces of all sizes."""

    def __init__(self, data: bytes, dice: random.Random) -> None:
        super().__init__(data)
        self.dice = dice

    def read(self, size=-1, /):
        return super().read(self.dice.randint(1, max(1, min(size, 40))))


_FILES = st.binary(max_size=60) | st.tuples(st.binary(max_size=60), st.just(True))
_LINKS = st.text("abc/.", min_size=1, max_size=20)
_NAMES = st.binary(min_size=1, max_size=8).filter(
    lambda name: name not in {b".", b".."} and b"/" not in name and b"\0" not in name
)
TREES = st.recursive(
    _FILES | _LINKS, lambda inner: st.dictionaries(_NAMES, inner, max_size=4), max_leaves=12
)


@given(TREES, st.integers(0, 1000))
def test_every_tree_is_read_whatever_the_pieces(tree, seed):
    data = write(tree)
    contents = []
    facts = nars.read(
        Slow(data, random.Random(seed)),
        size_max=len(data),
        content=lambda p: contents.append(bytes(p)),
    )
    assert facts.sha256 == hashlib.sha256(data).digest()
    assert facts.size_bytes == len(data)
    flat = hashlib.sha256(tree).digest() if isinstance(tree, bytes) else None
    assert facts.flat_sha256 == flat
    if isinstance(tree, bytes):
        assert b"".join(contents) == tree


@given(TREES, st.data())
def test_a_changed_byte_of_its_frame_is_refused_or_gives_another_hash(tree, data):
    nar = bytearray(write(tree))
    place = data.draw(st.integers(0, len(nar) - 1))
    nar[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        facts = nars.read(io.BytesIO(nar), size_max=len(nar))
    except InvalidError:
        return
    assert facts.sha256 != hashlib.sha256(write(tree)).digest()


@given(TREES, st.data())
def test_what_is_cut_off_or_goes_on_is_refused(tree, data):
    nar = write(tree)
    cut = data.draw(st.integers(0, len(nar) - 1))
    for bad in (nar[:cut], nar + bytes(8), nar + nar):
        with pytest.raises(InvalidError):
            nars.read(io.BytesIO(bad), size_max=len(bad))


@given(st.binary(max_size=200))
def test_anything_else_is_refused_and_breaks_nothing(data):
    with pytest.raises(InvalidError):
        nars.read(io.BytesIO(data), size_max=1000)


def test_limits_of_size_depth_and_names():
    nar = write({b"a": b"x" * 1000})
    with pytest.raises(InvalidError, match="larger than"):
        nars.read(io.BytesIO(nar), size_max=len(nar) - 1)
    deep = b"x"
    for _ in range(600):
        deep = {b"d": deep}
    head = text(b"nix-archive-1")
    opening = texts(b"(", b"type", b"directory", b"entry", b"(", b"name", b"d", b"node")
    with pytest.raises(InvalidError, match="nested"):
        nars.read(io.BytesIO(head + opening * 600), size_max=10**6)
    huge = head + texts(b"(", b"type") + (2**62).to_bytes(8, "little")
    with pytest.raises(InvalidError, match="too long"):
        nars.read(io.BytesIO(huge), size_max=10**6)


def test_a_listing_has_sizes_offsets_and_links():
    tree = {b"bin": {b"tool": (b"#!", True)}, b"link": "bin/tool", b"text": b"hello"}
    nar = write(tree)
    root = nars.listing(io.BytesIO(nar), size_max=len(nar), entries_max=10)["root"]
    tool = root["entries"]["bin"]["entries"]["tool"]
    assert tool["executable"] is True
    assert nar[tool["narOffset"] :][: tool["size"]] == b"#!"
    assert root["entries"]["link"] == {"type": "symlink", "target": "bin/tool"}
    plain = root["entries"]["text"]
    assert nar[plain["narOffset"] :][: plain["size"]] == b"hello"
    with pytest.raises(InvalidError, match="more than 2"):
        nars.listing(io.BytesIO(nar), size_max=len(nar), entries_max=2)
