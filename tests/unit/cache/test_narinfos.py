"""Narinfos: what is written is read back, and nothing is understood in two ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.cache import hashes, narinfos
from fc_operator.cache.narinfos import Narinfo
from fc_operator.errors import InvalidError

DIGITS = "0123456789abcdfghijklmnpqrsvwxyz"
STORE = "/nix/store"
GOOD = {
    "StorePath": f"{STORE}/{'a' * 32}-hello-2.12",
    "URL": f"nar/{'1' * 52}.nar.zst",
    "Compression": "zstd",
    "FileHash": f"sha256:{'1' * 52}",
    "FileSize": "100",
    "NarHash": f"sha256:{'0' * 52}",
    "NarSize": "200",
    "References": f"{'b' * 32}-glibc {'a' * 32}-hello-2.12",
    "Deriver": f"{'c' * 32}-hello-2.12.drv",
}


def text(**changed) -> bytes:
    lines = {k: v for k, v in (GOOD | changed).items() if v is not None}
    return "".join(f"{name}: {value}\n" for name, value in lines.items()).encode()


def test_a_narinfo_of_nix_is_understood():
    info = narinfos.parse(text(), store_dir=STORE)
    assert info.hash_part == "a" * 32
    assert info.references == (f"{'a' * 32}-hello-2.12", f"{'b' * 32}-glibc")
    assert info.deriver == GOOD["Deriver"]
    assert (info.nar_size_bytes, info.file_size_bytes) == (200, 100)


def test_what_may_be_left_out():
    info = narinfos.parse(
        text(FileHash=None, FileSize=None, References="", Deriver="unknown-deriver"),
        store_dir=STORE,
    )
    assert (info.file_hash, info.file_size_bytes, info.references, info.deriver) == (
        None, None, (), None,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["StorePath", "URL", "NarHash", "NarSize"])
def test_what_may_not_be_left_out(name):
    with pytest.raises(InvalidError, match=name):
        narinfos.parse(text(**{name: None}), store_dir=STORE)


@pytest.mark.parametrize(
    "changed",
    [
        {"StorePath": f"/gnu/store/{'a' * 32}-hello"},
        {"StorePath": f"{STORE}/{'a' * 31}-hello"},
        {"StorePath": f"{STORE}/{'e' * 32}-hello"},  # no digit of Nix's
        {"StorePath": f"{STORE}/{'a' * 32}-"},
        {"StorePath": f"{STORE}/{'a' * 32}-.hidden"},
        {"StorePath": f"{STORE}/{'a' * 32}-{'n' * 212}"},
        {"URL": f"nar/{'1' * 52}.nar.gz"},
        {"URL": f"nar/{'1' * 51}.nar.zst"},
        {"URL": f"/nar/{'1' * 52}.nar.zst"},
        {"Compression": "xz"},
        {"Compression": None},
        {"NarHash": "md5:" + "0" * 32},
        {"NarHash": "0" * 64},
        {"NarSize": "0"},
        {"NarSize": "-1"},
        {"NarSize": "1e3"},
        {"NarSize": "²"},
        {"References": "hello"},
        {"References": f"{'b' * 32}-x {'b' * 32}-x"},
        {"Deriver": f"{'c' * 32}-hello"},
        {"Sig": "no-signature"},
        {"Unknown": "x"},
    ],
)
def test_what_can_not_be_is_refused(changed):
    with pytest.raises(InvalidError):
        narinfos.parse(text(**changed), store_dir=STORE)


def test_a_field_twice_a_line_that_is_none_and_a_novel_are_refused():
    for data in (
        text() + b"NarSize: 300\n",
        text() + b"\n",
        text() + b"no line\n",
        text() + b"CA:x\n",
        text().replace(b"hello", b"h\xc3\xa4llo"),
        text() + b"#" * narinfos.BYTES_MAX,
        b"",
    ):
        with pytest.raises(InvalidError):
            narinfos.parse(data, store_dir=STORE)


_PARTS = st.text(DIGITS, min_size=32, max_size=32)
_NAMES = st.from_regex(r"[0-9A-Za-z+_?=-][0-9A-Za-z+._?=-]{0,30}", fullmatch=True)
_BASES = st.builds("{}-{}".format, _PARTS, _NAMES)
_HASHES = st.binary(min_size=32, max_size=32).map(hashes.sha256_text)
_SIZES = st.integers(1, 10**17)


@given(
    st.builds(
        Narinfo,
        store_path=_BASES.map(lambda base: f"{STORE}/{base}"),
        url=_HASHES.map(lambda text: f"nar/{text[7:]}.nar.zst"),
        compression=st.just("zstd"),
        nar_hash=_HASHES,
        nar_size_bytes=_SIZES,
        file_hash=_HASHES,
        file_size_bytes=_SIZES,
        references=st.lists(_BASES, unique=True, max_size=5).map(lambda all_: tuple(sorted(all_))),
        deriver=st.none() | _BASES.map(lambda base: f"{base}.drv"),
        content_address=st.none() | _HASHES.map(lambda text: f"fixed:r:{text}"),
    )
)
def test_what_is_rendered_is_read_back(info):
    assert narinfos.parse(narinfos.render(info), store_dir=STORE) == info


@given(st.binary(max_size=300))
def test_anything_else_is_refused_and_breaks_nothing(data):
    with pytest.raises(InvalidError):
        narinfos.parse(data, store_dir=STORE)
