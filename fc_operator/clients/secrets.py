"""Secret values by reference: where a name and a key lead to bytes.

In a cluster a secret is a Kubernetes Secret (``clients.kube_secrets``). Outside of one it is a
folder, ``<dir>/<name>/<key>``, as a mounted Kubernetes Secret is one. Names are checked before they
are joined, and nothing is followed out of the folder: a link that leaves it is refused (kubelet's
own ``..data`` links stay inside).
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fc_operator.errors import SecretError

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,253}")
BYTES_MAX = 1024 * 1024
"""As large as a Kubernetes Secret may be."""


KEYS_MAX = 256
"""As many keys as we look at."""
_TURNS = 20
"""Looks at a folder that is turned while we read it."""


class Secrets(Protocol):
    """Reads secrets; values are never cached here, so that a rotation is seen at once."""

    async def values(self, namespace: str, name: str) -> Mapping[str, bytes]:
        """All values of a secret as they were at one moment, by key, in the order of the keys;
        each without the newline that editors add at its end.

        Raises:
            SecretError: there is no such secret, or it is unreadable or too large.
            UnavailableError: who keeps it does not answer; whether it is there is not known.
            UnreadError: this process reads no secrets.
        """
        ...

    async def read(self, namespace: str, name: str, key: str) -> bytes:
        """The value of one key.

        Raises:
            SecretError: the secret or its key is missing, unreadable or too large.
            UnavailableError: as for ``values``.
            UnreadError: as for ``values``.
        """
        ...


class UnreadError(SecretError):
    """This process reads no secrets, and says nothing of them; another one of ours does."""


class NoSecrets:
    """For processes that may read none, such as a server in a cluster."""

    async def values(self, namespace: str, name: str) -> Mapping[str, bytes]:
        """See ``Secrets.values``."""
        raise UnreadError(f"the secret {name} in namespace {namespace} is not read here")

    async def read(self, namespace: str, name: str, key: str) -> bytes:
        """See ``Secrets.read``."""
        return (await self.values(namespace, name))[key]


class DirectorySecrets:
    """Secrets as folders; outside a cluster there is one for all namespaces."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def values(self, namespace: str, name: str) -> Mapping[str, bytes]:
        """See ``Secrets.values``."""
        return await asyncio.to_thread(self._values, namespace, name)

    async def read(self, namespace: str, name: str, key: str) -> bytes:
        """See ``Secrets.read``."""
        return await asyncio.to_thread(self._read, namespace, name, key)

    def _read(self, namespace: str, name: str, key: str) -> bytes:
        folder = self._folder_of(namespace, name)
        check_key(key)
        try:
            return without_newline(_read_inside(folder, key))
        except FileNotFoundError as error:
            raise SecretError(
                f"the secret {name} has no key {key}", hint=f"write the value to {folder / key}"
            ) from error
        except OSError as error:
            raise SecretError(
                f"the key {key} of the secret {name} can't be read: {error.strerror or error}"
            ) from error

    def _values(self, namespace: str, name: str) -> Mapping[str, bytes]:
        folder = self._folder_of(namespace, name)
        for turn in range(_TURNS):
            try:
                here = _one_moment(folder)
                values = _read_all(here, name)
                if _one_moment(folder) == here:
                    break
            except FileNotFoundError as error:
                if turn == _TURNS - 1:
                    raise SecretError(f"the secret {name} is being removed") from error
            except OSError as error:
                raise SecretError(
                    f"the secret {name} can't be read: {error.strerror or error}"
                ) from error
        else:
            raise SecretError(f"the secret {name} never stays as it is")
        if sum(map(len, values.values())) > BYTES_MAX:
            raise SecretError(f"the secret {name} is larger than {BYTES_MAX} bytes")
        return values

    def _folder_of(self, namespace: str, name: str) -> Path:
        check_name(name)
        folder = self._folder / name
        if not folder.is_dir():
            raise SecretError(
                f"there is no secret {name} in namespace {namespace}",
                hint=f"make the folder {folder} with one file per key",
            )
        return folder


def is_key(key: str) -> bool:
    """Whether it can be a key of a secret; ``..data`` and its like are kubelet's own."""
    return bool(_KEY.fullmatch(key)) and key != "." and not key.startswith("..")


def check_key(key: str) -> None:
    """Return if it can be a key.

    Raises:
        SecretError: it can't.
    """
    if not is_key(key):
        raise SecretError(f"{key!r} is no key of a secret")


def check_name(name: str) -> None:
    """Return if it can be a secret's name.

    Raises:
        SecretError: it can't.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise SecretError(f"{name!r} is no name of a secret")


def without_newline(value: bytes) -> bytes:
    """The value without one line's end at its end."""
    return value.removesuffix(b"\n").removesuffix(b"\r")


def _one_moment(folder: Path) -> Path:
    """Where the values of one moment lie: kubelet turns a mounted secret by turning one link, and
    removes what it led to before.
    """
    home = folder.resolve(strict=True)
    if not (home / "..data").is_symlink():
        return home
    turned = (home / "..data").resolve(strict=True)
    if not turned.is_relative_to(home):
        raise PermissionError(13, "it is a link that leaves the secret's folder")
    return turned


def _read_all(here: Path, name: str) -> dict[str, bytes]:
    keys = sorted(entry.name for entry in here.iterdir() if entry.is_file() and is_key(entry.name))
    if len(keys) > KEYS_MAX:
        raise SecretError(f"the secret {name} has more than {KEYS_MAX} keys")
    return {key: without_newline(_read_inside(here, key)) for key in keys}


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
