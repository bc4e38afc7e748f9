"""The text of a narinfo: what a binary cache says of one store path. Pure.

One ``Name: value`` per line. Ours is strict where Nix is lenient: a field twice, a line that is
none, a name that can't be one are refused, since two readers must never understand two things.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fc_operator.cache import hashes
from fc_operator.errors import InvalidError

HASH_PART = re.compile(r"[0-9a-df-np-sv-z]{32}", re.ASCII)
BASE_NAME = re.compile(r"[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+_?=-][0-9A-Za-z+._?=-]{0,210}", re.ASCII)
NAR_NAME = re.compile(r"([0-9a-df-np-sv-z]{52})\.nar(?:\.(xz|bz2|zst))?", re.ASCII)
"""The file of a NAR: the hash of the file as it was uploaded, and how it is compressed."""
COMPRESSION_OF = {None: "none", "": "none", "xz": "xz", "bz2": "bzip2", "zst": "zstd"}
BYTES_MAX = 1024 * 1024
_URL = re.compile(rf"nar/{NAR_NAME.pattern}", re.ASCII)
_SIGNATURE = re.compile(r"[^\s:]{1,200}:[A-Za-z0-9+/]{86}==", re.ASCII)
_SIZE = re.compile(r"[0-9]{1,18}", re.ASCII)
_REFERENCES_MAX = 10_000
_SIGNATURES_MAX = 50
_UNKNOWN_DERIVER = "unknown-deriver"
_FIELDS = frozenset(
    {
        *("StorePath", "URL", "Compression", "FileHash", "FileSize", "NarHash", "NarSize"),
        *("References", "Deriver", "System", "Sig", "CA"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Narinfo:
    """One store path in a cache."""

    store_path: str
    url: str
    """Where the NAR is, relative to the cache: ``nar/<hash of the file>.nar.zst``."""
    compression: str
    nar_hash: str
    """``sha256:<nix32>``, of the NAR itself."""
    nar_size_bytes: int
    file_hash: str | None = None
    """``sha256:<nix32>``, of the compressed file."""
    file_size_bytes: int | None = None
    references: tuple[str, ...] = ()
    """Base names, sorted."""
    deriver: str | None = None
    """Base name of the .drv."""
    signatures: tuple[str, ...] = ()
    content_address: str | None = None

    @property
    def hash_part(self) -> str:
        """The 32 digits by which a cache names a path."""
        return hash_part_of(self.store_path)


def hash_part_of(store_path: str) -> str:
    """The 32 digits of a store path."""
    return store_path.rsplit("/", 1)[-1][:32]


def is_base_name(text: str) -> bool:
    """Whether ``text`` can be the last component of a store path."""
    return BASE_NAME.fullmatch(text) is not None


def parse(data: bytes, *, store_dir: str) -> Narinfo:
    """The narinfo that ``data`` is.

    Raises:
        InvalidError: it is none, or says something impossible; the message names the field.
    """
    if len(data) > BYTES_MAX:
        raise InvalidError(f"a narinfo has {BYTES_MAX} bytes at most")
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidError("a narinfo is ASCII") from error
    if lines[-1] == "":
        lines.pop()
    fields: dict[str, str] = {}
    signatures: list[str] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name not in _FIELDS or (value and not value.startswith(" ")):
            raise InvalidError(f"the line {line[:80]!r} is no field of a narinfo")
        value = value[1:]
        if name == "Sig":
            signatures.append(value)
        elif name in fields:
            raise InvalidError(f"{name} is given twice")
        else:
            fields[name] = value
    missing = [name for name in ("StorePath", "URL", "NarHash", "NarSize") if name not in fields]
    if missing:
        raise InvalidError(f"the narinfo has no {' and no '.join(missing)}")
    return _checked(fields, signatures, store_dir)


def _checked(fields: dict[str, str], signatures: list[str], store_dir: str) -> Narinfo:
    store_path = fields["StorePath"]
    folder, _, name = store_path.rpartition("/")
    if folder != store_dir.rstrip("/") or not is_base_name(name):
        raise InvalidError(f"StorePath {store_path[:300]!r} is no path of the store {store_dir}")
    match = _URL.fullmatch(fields["URL"])
    if match is None:
        raise InvalidError(f"URL {fields['URL'][:200]!r} is no NAR of this cache")
    compression = COMPRESSION_OF[match[2]]
    if fields.get("Compression", "bzip2") != compression:
        raise InvalidError("Compression is not what the name of the file says")
    references = fields.get("References", "").split()
    if len(references) > _REFERENCES_MAX or not all(map(is_base_name, references)):
        raise InvalidError("References are no base names of store paths")
    if len(set(references)) != len(references):
        raise InvalidError("References name a path twice")
    deriver = fields.get("Deriver") or None
    if deriver == _UNKNOWN_DERIVER:
        deriver = None
    if deriver is not None and not (is_base_name(deriver) and deriver.endswith(".drv")):
        raise InvalidError("Deriver is no base name of a derivation")
    if len(signatures) > _SIGNATURES_MAX or not all(map(_SIGNATURE.fullmatch, signatures)):
        raise InvalidError("Sig is no signature")
    return Narinfo(
        store_path=store_path,
        url=fields["URL"],
        compression=compression,
        nar_hash=_sha256(fields["NarHash"], "NarHash"),
        nar_size_bytes=_size(fields["NarSize"], "NarSize"),
        file_hash=_sha256(fields["FileHash"], "FileHash") if fields.get("FileHash") else None,
        file_size_bytes=_size(fields["FileSize"], "FileSize") if fields.get("FileSize") else None,
        references=tuple(sorted(references)),
        deriver=deriver,
        signatures=tuple(signatures),
        content_address=fields.get("CA") or None,
    )


def _sha256(text: str, field: str) -> str:
    algorithm, digest = hashes.parse(text)
    if algorithm != "sha256":
        raise InvalidError(f"{field} is no sha256")
    return hashes.sha256_text(digest)


def _size(text: str, field: str) -> int:
    if _SIZE.fullmatch(text) is None or int(text) == 0:
        raise InvalidError(f"{field} is no size")
    return int(text)


def render(info: Narinfo) -> bytes:
    """The text that clients read."""
    lines = [
        f"StorePath: {info.store_path}",
        f"URL: {info.url}",
        f"Compression: {info.compression}",
    ]
    if info.file_hash is not None:
        lines += [f"FileHash: {info.file_hash}", f"FileSize: {info.file_size_bytes}"]
    lines += [
        f"NarHash: {info.nar_hash}",
        f"NarSize: {info.nar_size_bytes}",
        f"References: {' '.join(info.references)}",
    ]
    if info.deriver is not None:
        lines.append(f"Deriver: {info.deriver}")
    lines += [f"Sig: {signature}" for signature in info.signatures]
    if info.content_address is not None:
        lines.append(f"CA: {info.content_address}")
    return "\n".join(lines).encode() + b"\n"


def fingerprint(
    store_path: str, nar_hash: str, nar_size_bytes: int, references: Sequence[str]
) -> bytes:
    """What a signature of a path signs; ``references`` are base names."""
    folder = store_path.rpartition("/")[0]
    full = ",".join(sorted(f"{folder}/{name}" for name in references))
    return f"1;{store_path};{nar_hash};{nar_size_bytes};{full}".encode()
