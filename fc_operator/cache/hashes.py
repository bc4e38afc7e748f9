"""Hashes as Nix writes them: base 16, its own base 32, base 64 after ``sha256-``."""

from __future__ import annotations

import base64
import binascii

from fc_operator.clients.registrations import nix32
from fc_operator.errors import InvalidError

DIGEST_BYTES = {"md5": 16, "sha1": 20, "sha256": 32, "sha512": 64}
_DIGITS = "0123456789abcdfghijklmnpqrsvwxyz"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}


def from_nix32(text: str, size_bytes: int) -> bytes:
    """The ``size_bytes`` that ``text`` writes.

    Raises:
        InvalidError: it has another length or digits that are none.
    """
    if len(text) != (size_bytes * 8 - 1) // 5 + 1:
        raise InvalidError(f"{text[:80]!r} is no hash of {size_bytes} bytes in base 32")
    number = 0
    try:
        for digit in text:
            number = number << 5 | _VALUES[digit]
        return number.to_bytes(size_bytes, "little")
    except (KeyError, OverflowError) as error:
        raise InvalidError(f"{text[:80]!r} is no hash in base 32") from error


def parse(text: str) -> tuple[str, bytes]:
    """(algorithm, digest) of ``algorithm:digest`` in any of Nix's spellings.

    Raises:
        InvalidError: it is none of them.
    """
    algorithm, separator, digest = text.partition(":")
    if not separator:
        algorithm, separator, digest = text.partition("-")
    size = DIGEST_BYTES.get(algorithm)
    if size is None or not separator:
        raise InvalidError(f"{text[:80]!r} is no hash")
    if len(digest) == 2 * size:
        try:
            return algorithm, bytes.fromhex(digest)
        except ValueError as error:
            raise InvalidError(f"{text[:80]!r} is no hash in base 16") from error
    if len(digest) == (size * 8 - 1) // 5 + 1:
        return algorithm, from_nix32(digest, size)
    try:
        decoded = base64.b64decode(digest, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidError(f"{text[:80]!r} is no hash in base 64") from error
    if len(decoded) != size:
        raise InvalidError(f"{text[:80]!r} is no {algorithm}")
    return algorithm, decoded


def sha256_text(digest: bytes) -> str:
    """``sha256:<nix32>``."""
    return f"sha256:{nix32(digest)}"


def compress(digest: bytes, size_bytes: int) -> bytes:
    """Nix's folding of a long hash into a short one, as store paths have it."""
    folded = bytearray(size_bytes)
    for place, byte in enumerate(digest):
        folded[place % size_bytes] ^= byte
    return bytes(folded)
