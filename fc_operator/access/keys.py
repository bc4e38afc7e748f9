"""API keys: ``fc_``, 256 random bits, a checksum. Only the SHA-256 is ever stored.

The prefix lets scanners find leaked keys; the checksum refuses typing errors and foreign tokens
without a look at the database. 256 random bits need no slow hash.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from dataclasses import dataclass

PREFIX = "fc_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_BYTES = 32
_BODY_DIGITS = 43
_CHECKSUM_DIGITS = 6
_SHOWN = len(PREFIX) + 8
_LENGTH = len(PREFIX) + _BODY_DIGITS + _CHECKSUM_DIGITS


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key at the only moment when its text is known."""

    text: str
    shown: str
    """Its first characters, by which people tell keys apart."""
    hash: str

    def __repr__(self) -> str:
        return f"NewKey({self.shown}…)"


def make() -> NewKey:
    """A fresh key."""
    body = _base62(int.from_bytes(secrets.token_bytes(_RANDOM_BYTES)), _BODY_DIGITS)
    text = PREFIX + body + _checksum(body)
    return NewKey(text, text[:_SHOWN], hash_key(text))


def hash_key(text: str) -> str:
    """What is stored and looked up."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_well_formed(text: str) -> bool:
    """Whether ``text`` can be a key at all."""
    if len(text) != _LENGTH or not text.startswith(PREFIX) or not text.isascii():
        return False
    body, checksum = text[len(PREFIX) : -_CHECKSUM_DIGITS], text[-_CHECKSUM_DIGITS:]
    return checksum == _checksum(body)


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECKSUM_DIGITS)


def _base62(number: int, digits: int) -> str:
    out = ""
    for _ in range(digits):
        number, digit = divmod(number, len(_ALPHABET))
        out = _ALPHABET[digit] + out
    return out
