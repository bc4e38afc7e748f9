"""Secret values by reference: where a name and a key lead to bytes.

Outside a cluster a secret is a folder, ``<dir>/<name>/<key>``, as a mounted Kubernetes Secret is
one. Names are checked before they are joined, and nothing is followed out of the folder: a link
that leaves it is refused (kubelet's own ``..data`` links stay inside).
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from pathlib import Path
from typing import Protocol

from fc_operator.errors import SecretError

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,253}")
BYTES_MAX = 1024 * 1024
"""As large as a Kubernetes Secret may be."""


class Secrets(Protocol):
    """Reads secrets; values are never cached here, so that a rotation is seen at once."""

    async def read(self, namespace: str, name: str, key: str) -> bytes:
        """The value of one key, without the newline that editors add at its end.

        Raises:
            SecretError: the secret or its key is missing, unreadable or too large.
        """
        ...

    async def keys(self, namespace: str, name: str) -> tuple[str, ...]:
        """The keys of a secret, sorted.

        Raises:
            SecretError: there is no such secret, or it is unreadable.
        """
        ...


class DirectorySecrets:
    """Secrets as folders; outside a cluster there is one for all namespaces."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, namespace: str, name: str, key: str) -> bytes:
        """See ``Secrets.read``."""
        return await asyncio.to_thread(self._read, namespace, name, key)

    async def keys(self, namespace: str, name: str) -> tuple[str, ...]:
        """See ``Secrets.keys``."""
        return await asyncio.to_thread(self._keys, namespace, name)

    def _read(self, namespace: str, name: str, key: str) -> bytes:
        folder = self._folder_of(namespace, name)
        if not _KEY.fullmatch(key) or key.startswith(".."):
            raise SecretError(f"{key!r} is no key of a secret")
        try:
            return _read_inside(folder, key).removesuffix(b"\n").removesuffix(b"\r")
        except FileNotFoundError as error:
            raise SecretError(
                f"the secret {name} has no key {key}", hint=f"write the value to {folder / key}"
            ) from error
        except OSError as error:
            raise SecretError(
                f"the key {key} of the secret {name} can't be read: {error.strerror or error}"
            ) from error

    def _keys(self, namespace: str, name: str) -> tuple[str, ...]:
        folder = self._folder_of(namespace, name)
        try:
            found = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
        except OSError as error:
            raise SecretError(
                f"the secret {name} can't be read: {error.strerror or error}"
            ) from error
        return tuple(key for key in found if _KEY.fullmatch(key) and not key.startswith(".."))

    def _folder_of(self, namespace: str, name: str) -> Path:
        if not _NAME.fullmatch(name) or ".." in name:
            raise SecretError(f"{name!r} is no name of a secret")
        folder = self._folder / name
        if not folder.is_dir():
            raise SecretError(
                f"there is no secret {name} in namespace {namespace}",
                hint=f"make the folder {folder} with one file per key",
            )
        return folder


def _read_inside(folder: Path, key: str) -> bytes:
    """Reads a plain file that lies in ``folder``, wherever its links lead inside of it."""
    home = folder.resolve(strict=True)
    target = (home / key).resolve(strict=True)
    if not target.is_relative_to(home):
        raise PermissionError(13, "it is a link that leaves the secret's folder")
    # Resolved already: a link that appears now was swapped in, and is not followed.
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(13, "it is not a plain file")
        if status.st_size > BYTES_MAX:
            raise PermissionError(13, f"it is larger than {BYTES_MAX} bytes")
        return file.read(BYTES_MAX + 1)
