"""This machine, as where a step is built."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from fc_operator.clients import registrations
from fc_operator.errors import ProtocolError
from fc_operator.executors import log_format, process_tree
from fc_operator.executors.process_tree import Usage
from fc_operator.kit import processes
from fc_operator.model.outcomes import OutputInfo


class LocalProcess:
    """A Nix process of ours. See ``realisation.Running``."""

    def __init__(self, process: processes.Process) -> None:
        self._process = process
        self._links = asyncio.create_task(_drain(process))

    def lines(self) -> AsyncIterator[bytes]:
        """See ``Running.lines``."""
        return self._process.lines("stderr")

    async def wait(self) -> int:
        """See ``Running.wait``."""
        return await self._process.wait()

    async def stop(self, why: str, grace_s: float) -> None:
        """See ``Running.stop``."""
        await self._process.stop(why, grace_s=grace_s)
        await self._links

    def usage(self) -> Usage:
        """See ``Running.usage``."""
        return process_tree.usage(self._process.pid)


class LocalMachine:
    """See ``realisation.Machine``; what is built here is here."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    async def start(self, argv: Sequence[str], root: Path) -> LocalProcess:
        """See ``Machine.start``."""
        words = [*argv, "--add-root", str(root)]
        process = await processes.start(words, env=self._env, death_signal=signal.SIGTERM)
        return LocalProcess(process)

    async def sweep(self, outputs: Mapping[str, str]) -> None:
        """See ``Machine.sweep``."""
        await asyncio.to_thread(process_tree.end_builders, tuple(outputs.values()))

    async def describe(self, roots: Mapping[str, Path]) -> list[OutputInfo]:
        """See ``Machine.describe``."""
        paths = {name: str(link.readlink()) for name, link in roots.items()}
        finished = await processes.run(
            ["nix-store", "--dump-db", *paths.values()],
            env=self._env,
            limits=processes.Limits(timeout_s=120, output_bytes=64 * 1024 * 1024),
        )
        if finished.code != 0:
            words = log_format.strip_ansi(finished.stderr.decode("utf-8", "replace")).strip()
            raise ProtocolError(f"nix-store --dump-db failed: {words}")
        known = registrations.parse_registrations(finished.stdout.decode())
        return registrations.describe(paths, known)

    async def bring(self, outputs: Sequence[OutputInfo], roots: Mapping[str, Path]) -> None:
        """See ``Machine.bring``; Nix made the roots already."""


async def _drain(process: processes.Process) -> None:
    # Root links; we know their names. Read only so that Nix never waits for us.
    stream = process.inner.stdout
    while stream is not None and await stream.read(65536):
        pass
