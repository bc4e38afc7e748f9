"""Encryption of small values at rest: AES-256-GCM with a key of the installation; signatures.

The context of a value is bound to it, so that a ciphertext copied into another row does not open
there. A ciphertext begins with a version byte; keys are 32 random bytes.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
_VERSION = b"\x01"


class CipherError(Exception):
    """A key is malformed, or a ciphertext does not open with this key in this context."""


class Cipher:
    """Encrypts and decrypts under one key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise CipherError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
        self._aead = AESGCM(key)
        self._key = key

    def derive(self, purpose: str) -> bytes:
        """32 bytes that only who has the key can know, other ones for each ``purpose``."""
        return hmac.new(self._key, f"derive/{purpose}".encode(), hashlib.sha256).digest()

    def encrypt(self, plain: bytes, *, context: str) -> bytes:
        """The ciphertext of ``plain``, different each time, which opens in ``context`` only."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._aead.encrypt(nonce, plain, context.encode())

    def decrypt(self, data: bytes, *, context: str) -> bytes:
        """What was encrypted.

        Raises:
            CipherError: another key or context made it, or it was changed.
        """
        if data[:1] != _VERSION or len(data) < 1 + _NONCE_BYTES + 16:
            raise CipherError("this is no ciphertext of ours")
        nonce, sealed = data[1 : 1 + _NONCE_BYTES], data[1 + _NONCE_BYTES :]
        try:
            return self._aead.decrypt(nonce, sealed, context.encode())
        except InvalidTag as error:
            raise CipherError(
                "it does not open: made with another key, for another object, or changed"
            ) from error


def decode_key(text: str) -> bytes:
    """A key from base64 text, as settings hold it.

    Raises:
        CipherError: it is not 32 bytes in base64.
    """
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CipherError("a key is 32 bytes in base64") from error
    if len(key) != KEY_BYTES:
        raise CipherError(f"a key has {KEY_BYTES} bytes, not {len(key)}")
    return key


def load_or_make_key(path: Path) -> bytes:
    """The key kept at ``path``; made (mode 0600) when there is none, once if several start at once.

    Raises:
        CipherError: what stands there is no key.
        OSError: it can't be read or written.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            # A link appears whole or not at all, and never replaces the key of another process.
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        finally:
            aside.unlink()
    return decode_key(path.read_text())


class Ed25519Key:
    """A key pair that signs, from its 32 secret bytes."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise CipherError(f"a seed has {KEY_BYTES} bytes, not {len(seed)}")
        self.seed = seed
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_bytes = self._private.public_key().public_bytes_raw()

    @classmethod
    def make(cls) -> Ed25519Key:
        """A fresh key."""
        return cls(os.urandom(KEY_BYTES))

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature; the same for the same message."""
        return self._private.sign(message)


def verify_ed25519(public_bytes: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the key with these public bytes signed ``message`` so."""
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
