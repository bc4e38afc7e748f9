"""Paths that their own content names (``CA`` of a narinfo): nobody has to be trusted for those.

``text:sha256:…`` are .drv files and ``builtins.toFile``, ``fixed:…`` flat files and
``fixed:r:…`` whole trees, such as sources and what fixed-output derivations fetch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from fc_operator.cache import hashes
from fc_operator.clients.registrations import nix32
from fc_operator.errors import InvalidError

_PATH_HASH_BYTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentAddress:
    """What a path claims to be named after."""

    method: str
    """``text``, ``flat`` (of one file's content) or ``recursive`` (of the NAR)."""
    algorithm: str
    digest: bytes

    @property
    def of_nar(self) -> bool:
        """Whether the hash is of the whole NAR rather than of the content of one file."""
        return self.method == "recursive"


def parse(text: str) -> ContentAddress:
    """The content address that ``text`` writes.

    Raises:
        InvalidError: it is none that we know.
    """
    kind, _, rest = text.partition(":")
    if kind == "text":
        method = "text"
    elif kind == "fixed":
        method = "recursive" if rest.startswith("r:") else "flat"
        rest = rest.removeprefix("r:")
    else:
        raise InvalidError(f"CA {text[:80]!r} is no content address that we know")
    algorithm, digest = hashes.parse(rest)
    if method == "text" and algorithm != "sha256":
        raise InvalidError("a text is named after a sha256")
    return ContentAddress(method=method, algorithm=algorithm, digest=digest)


def path_of(
    address: ContentAddress, name: str, references: Sequence[str], *, store_dir: str
) -> str:
    """The one store path that a content has; ``references`` are base names.

    Raises:
        InvalidError: such content can't have these references.
    """
    full = sorted(f"{store_dir}/{reference}" for reference in references)
    if address.method == "text":
        return _make(":".join(["text", *full]), address.digest, name, store_dir)
    if address.of_nar and address.algorithm == "sha256":
        return _make(":".join(["source", *full]), address.digest, name, store_dir)
    if full:
        raise InvalidError("such a fixed output has no references")
    method = "r:" if address.of_nar else ""
    inner = f"fixed:out:{method}{address.algorithm}:{address.digest.hex()}:".encode()
    return _make("output:out", hashlib.sha256(inner).digest(), name, store_dir)


def _make(kind: str, digest: bytes, name: str, store_dir: str) -> str:
    text = f"{kind}:sha256:{digest.hex()}:{store_dir}:{name}".encode()
    part = nix32(hashes.compress(hashlib.sha256(text).digest(), _PATH_HASH_BYTES))
    return f"{store_dir}/{part}-{name}"
