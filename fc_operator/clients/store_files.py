"""Files of the Nix store on this machine, for whoever downloads a product.

A path that a build named is a claim. What is opened lies below a store path of the one store
folder, after every symlink has been followed, and is a regular file; a symlink out of the store, a
``..``, the store's own bookkeeping (``.links``), a device or a socket is refused as not there.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from fc_operator.errors import NotFoundError

_STORE_NAME = re.compile(r"[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+._?=-]{1,211}", re.ASCII)
_PIECE_BYTES = 256 * 1024
_INDEX = "index.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFile:
    """A regular file that was opened."""

    descriptor: int
    size_bytes: int
    name: str

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes ``[start, end)`` in pieces; closes the file at the end, however it comes."""
        try:
            while start < end:
                piece = await asyncio.to_thread(
                    os.pread, self.descriptor, min(_PIECE_BYTES, end - start), start
                )
                if not piece:
                    return
                start += len(piece)
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Give the descriptor back, for who does not read."""
        os.close(self.descriptor)


async def open_file(store_dir: str, path: str, below: str, default: str) -> StoreFile:
    """The file ``below`` a product's ``path``; the product itself where ``below`` is empty.

    ``default`` is what a folder stands for (``index.html`` where it is empty).

    Raises:
        NotFoundError: it is not there, or not inside the store.
    """
    return await asyncio.to_thread(_open, store_dir, path, below, default)


def _open(store_dir: str, path: str, below: str, default: str) -> StoreFile:
    parts = [part for part in below.split("/") if part]
    if ".." in parts or "\0" in path + below or not is_store_path(store_dir, path):
        raise NotFoundError("no such file in the product")
    wanted = Path(path, *parts)
    try:
        real = wanted.resolve(strict=True)
        if real.is_dir():
            wanted = wanted / (default if default and not parts else _INDEX)
            real = wanted.resolve(strict=True)
        if not is_store_path(store_dir, str(real)):
            raise NotFoundError("no such file in the product")
        # The store never changes what is valid; the last component is held all the same.
        descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError, ValueError) as error:
        raise NotFoundError(
            "no such file in the product",
            hint="it may have been garbage-collected, or lie on another machine",
        ) from error
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise NotFoundError("no such file in the product")
    return StoreFile(descriptor=descriptor, size_bytes=info.st_size, name=wanted.name)


def is_store_path(store_dir: str, path: str) -> bool:
    """Whether ``path`` is a store path or lies below one, by its spelling alone."""
    prefix = store_dir.rstrip("/") + "/"
    if not path.startswith(prefix):
        return False
    first, *rest = path[len(prefix) :].split("/")
    return _STORE_NAME.fullmatch(first) is not None and ".." not in rest
