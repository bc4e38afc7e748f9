"""NARs on their way in: received, unpacked, read and hashed while they are being stored.

The bytes go to the object store as they come; a thread beside it reads them as a NAR. The last
piece is handed over only when all of it turned out right, so what is wrong never becomes an object.
What comes as zstd is kept as it is, everything else is compressed anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from fc_operator.cache import hashes, nars
from fc_operator.clients.registrations import nix32
from fc_operator.errors import InvalidError
from fc_operator.kit.compression import CompressionError, Compressor, Decompressor

T = TypeVar("T")
_WAITING_BYTES_MAX = 4 * 1024 * 1024

Store = Callable[[AsyncIterator[bytes]], Awaitable[object]]
"""Writes the pieces it is given as one object; nothing where they end by an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """What was received, stored and found right."""

    nar_hash: str
    """``sha256:<nix32>``."""
    nar_size_bytes: int
    flat_hash: str | None
    upload_hash: str
    """Nix32 of the sha256 of the file as it came."""
    file_hash: str
    """The same of the file as it is stored."""
    file_size_bytes: int


class _GivenUpError(Exception):
    """Nobody waits for the rest."""


class _Pipe:
    """Bytes from the event loop to a thread, few at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._room.set()
        self._changed = threading.Condition()
        self._pieces: deque[bytes] = deque()
        self._waiting = 0
        self._closed = False
        self._given_up = False

    async def put(self, data: bytes) -> None:
        """Hand over, and wait while too much is waiting."""
        await self._room.wait()
        with self._changed:
            self._pieces.append(data)
            self._waiting += len(data)
            if self._waiting > _WAITING_BYTES_MAX:
                self._room.clear()
            self._changed.notify()

    def close(self) -> None:
        """All has come."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def give_up(self) -> None:
        """Let the thread end, and whoever waits for room go on."""
        with self._changed:
            self._given_up = True
            self._changed.notify()
        self._room.set()

    def read(self, size: int, /) -> bytes:
        """For the thread: some bytes; none at the end."""
        with self._changed:
            while not (self._pieces or self._closed or self._given_up):
                self._changed.wait()
            if self._given_up:
                raise _GivenUpError
            if not self._pieces:
                return b""
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            self._waiting -= len(piece)
            is_low = self._waiting <= _WAITING_BYTES_MAX // 2
        if is_low and not self._room.is_set():
            self._loop.call_soon_threadsafe(self._room.set)
        return piece


class _Hashed:
    """Passes bytes on, and remembers their hash."""

    def __init__(self, source: nars.Readable) -> None:
        self._source = source
        self.sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self.sha256.update(data)
        return data


class _Recompressed:
    """Passes bytes on, and compresses them anew on the way."""

    def __init__(self, source: nars.Readable, out: deque[bytes]) -> None:
        self._source = source
        self._out = out
        self._compressor = Compressor()
        self.sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        packed = self._compressor.add(data) if data else self._compressor.finish()
        if packed:
            self.sha256.update(packed)
            self._out.append(packed)
        return data


class Arrivals:
    """Receives NARs, at most ``together_max`` at once; others wait for their turn."""

    def __init__(self, *, together_max: int, nar_bytes_max: int) -> None:
        # Threads of their own: a slow sender must not hold up those that everybody uses.
        self._threads = ThreadPoolExecutor(together_max, thread_name_prefix="fc-cache")
        self._turns = asyncio.Semaphore(together_max)
        self._nar_bytes_max = nar_bytes_max

    def close(self) -> None:
        """Let the threads go, once nothing is received any more."""
        self._threads.shutdown(wait=False)

    async def receive(
        self,
        parts: AsyncIterator[bytes],
        *,
        compression_name: str,
        upload_hash: str | None,
        store: Store,
    ) -> Arrived:
        """Take in one file; ``upload_hash`` is what its name claims, None where nothing is claimed.

        Raises:
            InvalidError: the hash is another one, it is damaged, no NAR, or too large; no object
                was made.
            UnavailableError: the object store does not answer.
        """
        async with self._turns:
            reception = _Reception(compression_name, upload_hash, self._nar_bytes_max)
            reading = asyncio.get_running_loop().run_in_executor(self._threads, reception.read)
            reading.add_done_callback(lambda _: reception.pipe.give_up())
            try:
                async with aclosing(reception.stored(parts, reading)) as pieces:
                    await store(pieces)
            finally:
                reception.pipe.give_up()
                await asyncio.gather(reading, return_exceptions=True)
            return reception.result()

    async def read(self, parts: AsyncIterator[bytes], function: Callable[[nars.Readable], T]) -> T:
        """What ``function`` makes of a stored NAR, uncompressed, in a thread.

        Raises:
            InvalidError: it is damaged.
        """
        pipe = _Pipe()

        def run() -> T:
            try:
                return function(Decompressor("zstd", pipe))
            except CompressionError as error:
                raise InvalidError(f"a stored NAR is damaged: {error}") from error

        async with self._turns:
            reading = asyncio.get_running_loop().run_in_executor(self._threads, run)
            reading.add_done_callback(lambda _: pipe.give_up())
            try:
                async for part in parts:
                    if reading.done():
                        break
                    await pipe.put(part)
                pipe.close()
                return await asyncio.shield(reading)
            finally:
                pipe.give_up()
                await asyncio.gather(reading, return_exceptions=True)


class _Reception:
    """One file."""

    def __init__(self, compression_name: str, upload_hash: str | None, nar_bytes_max: int) -> None:
        self.pipe = _Pipe()
        self._compression = compression_name
        self._claimed = upload_hash
        self._nar_bytes_max = nar_bytes_max
        self._packed: deque[bytes] = deque()
        self._as_is = compression_name == "zstd"
        self._stored_bytes = 0
        self._upload_hash = ""
        self._file_hash = ""
        self._facts: nars.NarFacts | None = None

    def read(self) -> None:
        """In its thread: to the end of the NAR, which has to be the end of the file."""
        file = _Hashed(self.pipe)
        source: nars.Readable = Decompressor(self._compression, file)
        recompressed = None if self._as_is else _Recompressed(source, self._packed)
        try:
            # It ends where its source ends, so all of the file has been seen then.
            facts = nars.read(recompressed or source, size_max=self._nar_bytes_max)
        except CompressionError as error:
            raise InvalidError(f"the file is no {self._compression} of a NAR: {error}") from error
        self._upload_hash = nix32(file.sha256.digest())
        if self._claimed is not None and self._upload_hash != self._claimed:
            raise InvalidError("the file does not have the hash that its name says")
        kept = recompressed.sha256 if recompressed is not None else file.sha256
        self._file_hash = nix32(kept.digest())
        self._facts = facts

    async def stored(
        self, parts: AsyncIterator[bytes], reading: asyncio.Future[None]
    ) -> AsyncGenerator[bytes, None]:
        """What goes to the object store; ends by an error unless all is right."""
        async for part in parts:
            if reading.done():
                break
            await self.pipe.put(part)
            if self._as_is:
                self._stored_bytes += len(part)
                yield part
            else:
                for piece in self._drain():
                    yield piece
        self.pipe.close()
        try:
            await asyncio.shield(reading)
        except _GivenUpError as error:
            raise InvalidError("the upload was broken off") from error
        for piece in self._drain():
            yield piece

    def _drain(self) -> list[bytes]:
        pieces = []
        while self._packed:
            piece = self._packed.popleft()
            self._stored_bytes += len(piece)
            pieces.append(piece)
        return pieces

    def result(self) -> Arrived:
        assert self._facts is not None
        facts = self._facts
        return Arrived(
            nar_hash=hashes.sha256_text(facts.sha256),
            nar_size_bytes=facts.size_bytes,
            flat_hash=hashes.sha256_text(facts.flat_sha256) if facts.flat_sha256 else None,
            upload_hash=self._upload_hash,
            file_hash=self._file_hash,
            file_size_bytes=self._stored_bytes,
        )
