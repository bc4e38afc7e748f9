"""Signatures of store paths: keys in Nix's format, of which two or more may sign side by side.

A key is rotated without a break: add the new one beside the old, let clients trust both, take the
old one out. Paths are signed when they are asked for, so that all of them carry the signatures of
the present keys and of no others.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fc_operator.errors import SettingsError
from fc_operator.kit.ciphers import Ed25519Key, verify_ed25519

_NAME = re.compile(r"[^\s:]{1,200}", re.ASCII)
_SEED_BYTES = 32


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret key with the name under which clients know its public half."""

    name: str
    key: Ed25519Key = field(repr=False)

    @property
    def public(self) -> str:
        """``name:base64``, as it stands in ``trusted-public-keys``."""
        return f"{self.name}:{base64.b64encode(self.key.public_bytes).decode()}"

    @property
    def secret(self) -> str:
        """``name:base64``, as Nix and our settings take it."""
        return f"{self.name}:{base64.b64encode(self.key.seed + self.key.public_bytes).decode()}"

    def sign(self, fingerprint: bytes) -> str:
        """A ``Sig`` of a narinfo."""
        return f"{self.name}:{base64.b64encode(self.key.sign(fingerprint)).decode()}"


def parse_secret_key(text: str) -> SigningKey:
    """A key of the settings.

    Raises:
        SettingsError: it is not in Nix's format; the text itself is never repeated.
    """
    name, colon, encoded = text.strip().partition(":")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not colon or _NAME.fullmatch(name) is None or len(data) != 2 * _SEED_BYTES:
        raise SettingsError(
            "a signing key of the binary cache is not name:base64 of 64 bytes",
            hint="`fc cache new-key NAME` makes one",
        )
    key = Ed25519Key(data[:_SEED_BYTES])
    if key.public_bytes != data[_SEED_BYTES:]:
        raise SettingsError(
            f"the two halves of the signing key {name} do not belong together",
            hint="`fc cache new-key NAME` makes one",
        )
    return SigningKey(name, key)


def load(texts: Iterable[str], files: Iterable[str], *, seed: bytes) -> tuple[SigningKey, ...]:
    """The keys of the settings, or, without any, the one that ``seed`` makes.

    Raises:
        SettingsError: one is not in Nix's format, can't be read, or has the name of another.
    """
    written = [*texts]
    for file in files:
        try:
            written.append(Path(file).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"the signing key file {file} can't be read: {error}") from error
    keys = tuple(map(parse_secret_key, written)) or (from_seed(seed),)
    if len({key.name for key in keys}) != len(keys):
        raise SettingsError("two signing keys of the binary cache have the same name")
    return keys


def from_seed(seed: bytes, *, prefix: str = "fc") -> SigningKey:
    """A key whose name tells keys of one installation from those of others."""
    key = Ed25519Key(seed)
    return SigningKey(f"{prefix}-{key.public_bytes[:4].hex()}-1", key)


class TrustedKeys:
    """Public keys whose signatures count."""

    def __init__(self, keys: Iterable[str]) -> None:
        """``keys`` are ``name:base64`` each.

        Raises:
            SettingsError: one of them is not.
        """
        self._keys: dict[str, bytes] = {}
        for text in keys:
            name, _, encoded = text.strip().partition(":")
            try:
                data = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                data = b""
            if not name or len(data) != 32:
                raise SettingsError(f"{text[:80]!r} is no public key such as name:base64")
            self._keys[name] = data

    def good(self, signatures: Iterable[str], fingerprint: bytes) -> tuple[str, ...]:
        """Those of ``signatures`` that one of the keys made over ``fingerprint``."""
        found = []
        for signature in signatures:
            name, _, encoded = signature.partition(":")
            public = self._keys.get(name)
            if public is None:
                continue
            try:
                data = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                continue
            if verify_ed25519(public, data, fingerprint):
                found.append(signature)
        return tuple(dict.fromkeys(found))
