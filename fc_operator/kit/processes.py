"""Child processes in groups of their own: started, read line by line, limited, and killed whole.

The only place that starts processes (ruff bans it elsewhere). Every child leads a new session, so
that killing its group reaches what it forked; it never inherits our environment, only what the
caller names; it dies with us if the kernel can arrange that (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pwd
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LINE_BYTES_MAX = 64 * 1024 * 1024
_TERM_GRACE_S = 3.0


class ProcessLimitError(Exception):
    """A bound of ours ended the process; the message says which and how large it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one process; 0 means no bound."""

    timeout_s: float = 0
    memory_bytes: int = 0
    output_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a process ended. ``code`` is negative for a signal, as in ``subprocess``."""

    code: int
    stdout: bytes
    stderr: bytes
    wall_s: float
    peak_memory_bytes: int = 0


@dataclass(slots=True)
class Process:
    """A running child that leads its own process group."""

    inner: asyncio.subprocess.Process
    started_s: float
    killed_because: str = ""
    _lines_seen: dict[str, int] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """Process id, which is the group id too."""
        return self.inner.pid

    async def lines(self, name: str = "stdout") -> AsyncIterator[bytes]:
        """Lines of ``stdout`` or ``stderr`` without their newline, up to 64 MiB each.

        The last line may lack its newline. The pipe ends when every holder of it has closed it; a
        grandchild that keeps it open ends with the group.
        """
        stream = self.inner.stdout if name == "stdout" else self.inner.stderr
        if stream is None:
            return
        while True:
            try:
                line = await stream.readuntil(b"\n")
            except asyncio.IncompleteReadError as rest:
                if rest.partial:
                    yield rest.partial
                return
            except asyncio.LimitOverrunError as error:
                self.kill("a line of its output is longer than 64 MiB")
                raise ProcessLimitError("a line of output is longer than 64 MiB") from error
            yield line[:-1]

    def kill(self, why: str, sig: signal.Signals = signal.SIGKILL) -> None:
        """Signal the whole group; remembers the first reason in ``killed_because``."""
        self.killed_because = self.killed_because or why
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.inner.pid, sig)

    async def stop(self, why: str, grace_s: float = _TERM_GRACE_S) -> int:
        """SIGTERM the group, SIGKILL what is left after ``grace_s``; returns the exit code."""
        self.kill(why, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.inner.wait()
        except TimeoutError:
            pass
        # Also when the leader is gone: its children may have outlived it.
        self.kill(why)
        return await self.inner.wait()

    async def wait(self) -> int:
        """Wait for the leader and then end whatever of its group is left; returns the exit code."""
        code = await self.inner.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.inner.pid, signal.SIGKILL)
        return code


def _die_with_parent(
    memory_bytes: int, death_signal: signal.Signals = signal.SIGKILL
) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:  # the parent died in between
                os._exit(1)
        if memory_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))

    return prepare


async def start(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: bool = False,
    memory_bytes: int = 0,
    merge_stderr: bool = False,
    user: pwd.struct_passwd | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> Process:
    """Start ``argv`` in a process group of its own with exactly ``env`` as its environment.

    ``user`` is whom it runs as, with that user's group and no others; None is ourselves.
    ``death_signal`` is what it gets when we die: a program that has children in other groups to
    clean up (Nix) needs a signal that it can handle.

    Raises:
        OSError: the program or ``cwd`` does not exist, or may not be run.
    """
    words = [os.fspath(word) for word in argv]
    as_user: dict[str, Any] = (
        {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    )
    inner = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT if merge_stderr else asyncio.subprocess.PIPE,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
        limit=_LINE_BYTES_MAX,
        preexec_fn=_die_with_parent(memory_bytes, death_signal),
        **as_user,
    )
    return Process(inner=inner, started_s=time.monotonic())


async def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: bytes | None = None,
    user: pwd.struct_passwd | None = None,
    limits: Limits = Limits(timeout_s=60, output_bytes=64 * 1024 * 1024),
) -> Finished:
    """Run ``argv`` to its end within ``limits`` and return what it printed.

    The exit code is the caller's to judge.

    Raises:
        OSError: the program or ``cwd`` does not exist, or may not be run.
        ProcessLimitError: it ran too long or printed too much; its group has been killed.
    """
    process = await start(
        argv,
        env=env,
        cwd=cwd,
        stdin=stdin is not None,
        memory_bytes=limits.memory_bytes,
        user=user,
    )
    name = os.path.basename(os.fspath(argv[0]))  # noqa: PTH119 - argv[0] may be a bare name
    budget = limits.output_bytes or sys.maxsize
    seen = 0

    async def read(stream: asyncio.StreamReader | None) -> bytes:
        nonlocal seen
        parts: list[bytes] = []
        while stream is not None and (part := await stream.read(65536)):
            seen += len(part)
            if seen > budget:
                process.kill(f"printed more than {budget} bytes")
                break
            parts.append(part)
        return b"".join(parts)

    async def feed() -> None:
        if process.inner.stdin is not None and stdin is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.inner.stdin.write(stdin)
                await process.inner.stdin.drain()
            process.inner.stdin.close()

    async def leader() -> int:
        # Reap the group as soon as the leader ends, so that a grandchild that holds
        # the pipe open can't keep us reading.
        return await process.wait()

    try:
        async with asyncio.timeout(limits.timeout_s or None):
            out, err, _, code = await asyncio.gather(
                read(process.inner.stdout), read(process.inner.stderr), feed(), leader()
            )
    except TimeoutError:
        await process.stop(f"ran longer than {limits.timeout_s:g} s")
        raise ProcessLimitError(f"{name} ran longer than {limits.timeout_s:g} s") from None
    except BaseException:
        process.kill("the caller stopped waiting")
        await process.inner.wait()
        raise
    if process.killed_because:
        raise ProcessLimitError(f"{name} {process.killed_because}")
    return Finished(code=code, stdout=out, stderr=err, wall_s=time.monotonic() - process.started_s)
