"""A builder over SSH, as where a step is built: inputs there, Nix there, outputs back."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from fc_operator.clients import nix_exports, registrations
from fc_operator.clients.nix import Nix
from fc_operator.clients.ssh import Link, RemoteProcess
from fc_operator.errors import (
    FcError,
    LimitReachedError,
    PrerequisiteError,
    ProtocolError,
    UnavailableError,
)
from fc_operator.executors import log_format, ssh_scripts
from fc_operator.executors.process_tree import Usage
from fc_operator.kit import logs, processes
from fc_operator.model.ids import DrvPath, StorePath
from fc_operator.model.outcomes import OutputInfo

_log = logs.get_logger()
_ASK = processes.Limits(timeout_s=120, output_bytes=64 * 1024 * 1024)
_SHORT = processes.Limits(timeout_s=15, output_bytes=1024 * 1024)
_BEGIN_S = 60


class CopyError(PrerequisiteError):
    """A store refused what the other one sent."""


class RemoteBuild:
    """A Nix process on a builder. See ``realisation.Running``."""

    def __init__(self, link: Link, process: RemoteProcess, nonce: str, group: int) -> None:
        self._link = link
        self._process = process
        self._nonce = nonce
        self._group = group
        self._usage = Usage(0, 0)
        self._code: int | None = None
        self._ended = asyncio.Event()
        self._broke: UnavailableError | None = None
        self._tasks = [asyncio.create_task(each) for each in (self._beat(), self._watch())]
        self._source: AsyncIterator[bytes] | None = None

    def follow(self, lines: AsyncIterator[bytes]) -> None:
        """``lines`` are what comes on its standard error from here on."""
        self._source = lines

    async def lines(self) -> AsyncIterator[bytes]:
        """See ``Running.lines``."""
        assert self._source is not None
        try:
            async for line in self._source:
                mark = ssh_scripts.parse_mark(line, self._nonce)
                if isinstance(mark, ssh_scripts.Ended):
                    self._code = mark.code
                    break
                if line:  # not the newline that stands before the mark
                    yield line
        except UnavailableError as error:
            self._broke = error
            raise
        finally:
            self._ended.set()

    async def wait(self) -> int:
        """See ``Running.wait``."""
        await self._ended.wait()
        if self._broke is not None:
            raise self._broke
        if self._code is None:
            raise UnavailableError(f"the connection to {self._link.target.address} broke")
        return self._code

    async def stop(self, why: str, grace_s: float) -> None:
        """See ``Running.stop``."""
        if self._ended.is_set():
            return
        _log.info("executors.remote_build_stopped", why=why, group=self._group)
        # Without a connection it ends by itself: its input has ended.
        with contextlib.suppress(FcError):
            await self._signal("TERM")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_s):
                    await self._ended.wait()
                    return
            await self._signal("KILL")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._ended.wait()
                return
        # We can't reach it; it hears no more of us, and ends by that.
        self._process.close()

    async def _signal(self, name: str) -> None:
        await self._link.run(ssh_scripts.kill(name, self._group), limits=_SHORT)

    def usage(self) -> Usage:
        """See ``Running.usage``; seen every other second."""
        return self._usage

    async def _beat(self) -> None:
        with contextlib.suppress(UnavailableError):
            while True:
                await self._process.write(b"beat\n")
                await asyncio.sleep(ssh_scripts.BEAT_S)

    async def _watch(self) -> None:
        sample: list[str] = []
        with contextlib.suppress(UnavailableError, LimitReachedError):
            async for line in self._process.lines("stdout"):
                if line:
                    sample.append(line.decode("ascii", "replace"))
                else:
                    self._usage = ssh_scripts.parse_sample(sample)
                    sample.clear()

    async def close(self) -> None:
        """Let go of its folder and its roots there."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._process.end_input()
        # It removes its folder; a builder that is slow about it must not hold us.
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(5):
                while await self._process.read("stderr"):
                    pass


class SshMachine:
    """One attempt's way to a builder. ``close`` it when the attempt is over.

    ``sending`` lets one attempt at a time look for what is missing there and send it, so that two
    do not send the same. ``nix`` is ours.
    """

    def __init__(self, link: Link, nix: Nix, sending: asyncio.Lock) -> None:
        self._link = link
        self._nix = nix
        self._sending = sending
        self._stack = AsyncExitStack()
        self._folder = ""

    async def send(self, drv_path: DrvPath) -> int:
        """Have there what building ``drv_path`` takes; how many paths were sent.

        Raises:
            UnavailableError: the connection broke, or our own Nix does not answer.
            CopyError: the builder's Nix refused them.
        """
        if not await self._nix.present([drv_path]):
            return 0  # Nix there says it in its own words
        paths = await nix_exports.needed(self._nix, drv_path)
        async with self._sending:
            gone = set(await self._invalid_there(paths))
            missing = [path for path in paths if path in gone]
            for some in nix_exports.portions(missing):
                await self.send_paths(some)
        return len(missing)

    async def _invalid_there(self, paths: Sequence[str]) -> list[str]:
        if not paths:
            return []
        finished = await self._link.run(
            ssh_scripts.invalid(), stdin=nix_exports.lines_of(paths), limits=_ASK
        )
        if finished.code != 0:
            raise PrerequisiteError(
                f"Nix on {self._link.target.address} does not say what it has: "
                f"{_end_of(finished.stderr)}",
                hint="is Nix installed there, and may this user use it?",
            )
        return finished.stdout.decode().split()

    async def send_paths(self, paths: Sequence[str]) -> None:
        """Register paths there; what they refer to must be there or among them.

        Raises: as ``send``.
        """
        async with self._link.started(ssh_scripts.take()) as process:
            said = asyncio.create_task(_all_of(process, "stderr"))
            heard = asyncio.create_task(_all_of(process, "stdout"))
            try:
                broke: UnavailableError | None = None
                try:
                    await nix_exports.send_export(self._nix, paths, process.write)
                except UnavailableError as error:
                    broke = error  # it may have refused what came, and says so
                process.end_input()
                code = await process.wait()
                words = _end_of(await said)
                if code != 0:
                    raise CopyError(
                        f"{self._link.target.address} refuses what it is sent: {words}",
                        hint=hint_for(words, self._link.target.address.user),
                    )
                if broke is not None:
                    raise broke
            finally:
                for task in (said, heard):
                    task.cancel()
                await asyncio.gather(said, heard, return_exceptions=True)

    async def start(self, argv: Sequence[str], root: Path) -> RemoteBuild:  # noqa: ARG002 - roots there are its own
        """See ``Machine.start``."""
        nonce = secrets.token_hex(8)
        process = await self._stack.enter_async_context(
            self._link.started(ssh_scripts.build(nonce, argv))
        )
        lines = process.lines("stderr")
        said: list[bytes] = []
        try:
            async with asyncio.timeout(_BEGIN_S):
                async for line in lines:
                    mark = ssh_scripts.parse_mark(line, nonce)
                    if isinstance(mark, ssh_scripts.Begun):
                        break
                    said.append(line)
                else:
                    raise PrerequisiteError(
                        f"{self._link.target.address} starts no build: {_end_of(b' '.join(said))}",
                        hint="its user needs a shell and a writable folder for temporary files",
                    )
        except TimeoutError as error:
            raise UnavailableError(f"{self._link.target.address} does not start a build") from error
        # Of a check the first call has the outputs that stay.
        self._folder = self._folder or mark.folder
        build = RemoteBuild(self._link, process, nonce, mark.group)
        build.follow(lines)
        self._stack.push_async_callback(build.close)
        return build

    async def sweep(self, outputs: Mapping[str, str]) -> None:
        """See ``Machine.sweep``."""
        marks = ssh_scripts.environment_marks(outputs)
        if marks:
            with contextlib.suppress(FcError):
                await self._link.run(ssh_scripts.sweep(), stdin=marks, limits=_SHORT)

    async def describe(self, roots: Mapping[str, Path]) -> list[OutputInfo]:  # noqa: ARG002 - see start
        """See ``Machine.describe``."""
        finished = await self._link.run(ssh_scripts.describe(self._folder), limits=_ASK)
        if finished.code != 0:
            raise UnavailableError(
                f"{self._link.target.address} lost the outputs: {_end_of(finished.stderr)}"
            )
        paths, dump = ssh_scripts.parse_description(finished.stdout.decode("utf-8", "replace"))
        return registrations.describe(paths, registrations.parse_registrations(dump))

    async def bring(self, outputs: Sequence[OutputInfo], roots: Mapping[str, Path]) -> None:
        """See ``Machine.bring``."""
        finished = await self._link.run(
            ssh_scripts.requisites([output.path for output in outputs]), limits=_ASK
        )
        if finished.code != 0:
            raise UnavailableError(
                f"{self._link.target.address} lost the outputs: {_end_of(finished.stderr)}"
            )
        closure = finished.stdout.decode().split()
        valid = await self._nix.valid(StorePath(path) for path in closure)
        for some in nix_exports.portions([path for path in closure if path not in valid]):
            await self._take(some)
        for output in outputs:
            link = roots.get(output.name)
            if link is None:
                raise UnavailableError(
                    f"{self._link.target.address} made an output of another name"
                )
            link.parent.mkdir(parents=True, exist_ok=True)
            await nix_exports.add_root(self._nix, output.path, link)
        here = await self._nix.registrations([output.path for output in outputs])
        for output in outputs:
            if here.get(output.path, ("", 0))[0] != output.nar_hash:
                raise ProtocolError(f"{output.path} is another one here than on the builder")

    async def _take(self, paths: Sequence[str]) -> None:
        async with self._link.started(ssh_scripts.give()) as process:
            said = asyncio.create_task(_all_of(process, "stderr"))
            try:
                with contextlib.suppress(UnavailableError):
                    await process.write(nix_exports.lines_of(paths))
                process.end_input()
                refused: UnavailableError | None = None
                try:
                    await nix_exports.take_export(self._nix, _pieces(process))
                except UnavailableError as error:
                    refused = error
                if refused is None and await process.wait() != 0:
                    raise UnavailableError(
                        f"{self._link.target.address} can't export: {_end_of(await said)}"
                    )
                if refused is not None:
                    raise refused
            finally:
                said.cancel()
                await asyncio.gather(said, return_exceptions=True)

    async def close(self) -> None:
        """Let go of everything there."""
        await self._stack.aclose()


def hint_for(words: str, user: str) -> str:
    """What to do about a store's refusal."""
    if "signature" in words or "trusted" in words or "privileged" in words:
        return f"add {user} to trusted-users in the builder's nix.conf"
    if "space left" in words:
        return "free space on the builder"
    if "not found" in words:
        return "install Nix on the builder"
    return "see the builder's nix.conf"


async def _pieces(process: RemoteProcess) -> AsyncIterator[bytes]:
    while piece := await process.read():
        yield piece


async def _all_of(process: RemoteProcess, name: str) -> bytes:
    kept = b""
    with contextlib.suppress(UnavailableError):
        while piece := await process.read(name):
            kept = (kept + piece)[-65536:]
    return kept


def _end_of(text: bytes) -> str:
    return log_format.strip_ansi(text.decode("utf-8", "replace")).strip()[-2000:]
