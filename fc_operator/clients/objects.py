"""The object store: a local folder, S3, GCS or Azure, behind one face (obstore).

An object appears whole or not at all: local objects are written aside and renamed, then forced to
disk before ``put`` returns; buckets do so by themselves.
"""

from __future__ import annotations

import contextlib
import os
from asyncio import to_thread
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import obstore
from obstore import exceptions
from obstore.store import LocalStore, from_url

from fc_operator.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    SecretError,
    SettingsError,
    UnavailableError,
)

_PART_BYTES = 8 * 1024 * 1024
_DENIED = (exceptions.UnauthenticatedError, exceptions.PermissionDeniedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What the store knows of an object."""

    key: str
    size_bytes: int
    modified_at: datetime
    etag: str | None = None


@contextlib.contextmanager
def _our_errors(key: str) -> Iterator[None]:
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        raise NotFoundError(f"no object {key}") from error
    except exceptions.AlreadyExistsError as error:
        raise ConflictError(f"object {key} exists") from error
    except (exceptions.InvalidPathError, ValueError) as error:
        raise InvalidError(f"bad object key {key!r}") from error
    except _DENIED as error:
        raise SecretError(
            f"the object store refuses us: {error}",
            hint="see state.objects_url and its credentials",
        ) from error
    except (exceptions.BaseError, OSError) as error:
        raise UnavailableError(f"the object store failed on {key}: {error}") from error


class ObjectStore:
    """Objects by key. Keys are relative paths with ``/``; they are never built from raw input."""

    def __init__(self, store: Any, folder: Path | None) -> None:
        self._store = store
        self._folder = folder

    @classmethod
    def open(cls, where: str | Path, options: Mapping[str, str] | None = None) -> ObjectStore:
        """Open ``s3://…``, ``gs://…``, ``az://…`` or a folder, which is made if it is missing.

        ``options`` are the backend's own (region, endpoint, credentials).

        Raises:
            SettingsError: the address or an option is not understood.
        """
        text = str(where)
        try:
            if "://" not in text or text.startswith("file://"):
                folder = Path(text.removeprefix("file://")).absolute()
                folder.mkdir(parents=True, exist_ok=True)
                return cls(LocalStore(str(folder)), folder)
            config: Any = dict(options or {})
            return cls(from_url(text, config=config), None)
        except (exceptions.BaseError, ValueError, TypeError, OSError) as error:
            raise SettingsError(f"can't open the object store {text}: {error}") from error

    async def put(self, key: str, data: bytes) -> None:
        """Write a whole object; an older one under this key is replaced.

        Raises:
            UnavailableError: disk full, or no answer; the older object, if any, is untouched.
        """
        with _our_errors(key):
            await obstore.put_async(self._store, key, data)
        await self._force_to_disk(key)

    async def put_stream(self, key: str, parts: AsyncIterator[bytes]) -> int:
        """Write an object from ``parts`` in constant memory; returns its size.

        When ``parts`` raises, its error goes through and no object appears.

        Raises:
            UnavailableError: as in ``put``.
        """
        size = 0
        waiting = bytearray()
        whole: list[bytes] = []

        async def pieces() -> AsyncGenerator[bytes, None]:
            nonlocal size
            async for part in parts:
                size += len(part)
                waiting.extend(part)
                if len(waiting) >= _PART_BYTES:
                    yield bytes(waiting)
                    waiting.clear()
            if waiting:
                yield bytes(waiting)

        source = pieces()
        try:
            # A small object needs no multipart upload.
            async for piece in source:
                whole.append(piece)
                if len(whole) > 1:
                    break
            if len(whole) <= 1:
                with _our_errors(key):
                    await obstore.put_async(self._store, key, b"".join(whole))
            else:
                with _our_errors(key):
                    opened = obstore.open_writer_async(
                        self._store, key, buffer_size=_PART_BYTES, max_concurrency=2
                    )
                async with _finished([opened], key) as writer:
                    del opened
                    for piece in whole:
                        with _our_errors(key):
                            await writer[0].write(piece)
                    whole.clear()
                    async for piece in source:
                        with _our_errors(key):
                            await writer[0].write(piece)
        finally:
            await source.aclose()
        await self._force_to_disk(key)
        return size

    async def get(self, key: str) -> bytes:
        """A whole (small) object.

        Raises:
            NotFoundError: there is none.
        """
        with _our_errors(key):
            found = await obstore.get_async(self._store, key)
            return bytes(await found.bytes_async())

    async def get_range(self, key: str, start: int, end: int) -> bytes:
        """Bytes ``[start, end)``; fewer where the object ends earlier.

        Raises:
            NotFoundError: there is no such object.
        """
        if end <= start:
            return b""
        with _our_errors(key):
            return bytes(await obstore.get_range_async(self._store, key, start=start, end=end))

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        """A whole object in pieces.

        Raises:
            NotFoundError: there is none.
        """
        with _our_errors(key):
            found = await obstore.get_async(self._store, key)
            async for piece in found.stream(min_chunk_size=1024 * 1024):
                yield bytes(piece)

    async def head(self, key: str) -> ObjectInfo:
        """What is known of an object.

        Raises:
            NotFoundError: there is none.
        """
        with _our_errors(key):
            return _info(await obstore.head_async(self._store, key))

    async def delete(self, key: str) -> None:
        """Remove an object; one that is gone already is fine."""
        with contextlib.suppress(NotFoundError), _our_errors(key):
            await obstore.delete_async(self._store, key)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects below ``prefix``, which ends at a ``/``, in no certain order."""
        with _our_errors(prefix):
            async for batch in obstore.list(self._store, prefix=prefix or None):
                for meta in batch:
                    yield _info(meta)

    async def _force_to_disk(self, key: str) -> None:
        if self._folder is not None:
            with _our_errors(key):
                await to_thread(_fsync, self._folder / key)


@contextlib.asynccontextmanager
async def _finished(writer: list[Any], key: str) -> AsyncIterator[list[Any]]:
    """Close a writer after success; after an error let go of it, which takes its parts back.

    It is the one item of a list, since the traceback of the error holds all variables for longer.
    """
    try:
        yield writer
        with _our_errors(key):
            await writer[0].close()
    finally:
        writer.clear()


def _fsync(path: Path) -> None:
    for name in (path, path.parent):
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _info(meta: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        key=meta["path"],
        size_bytes=meta["size"],
        modified_at=meta["last_modified"],
        etag=meta.get("e_tag"),
    )
