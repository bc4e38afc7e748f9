"""Child processes in groups of their own: started, read line by line, limited, and killed whole.

The only place that starts processes (ruff bans it elsewhere). Every child leads a new session, so
that killing its group reaches what it forked; it never inherits our environment, only what the
caller names; it dies with us if the kernel can arrange that (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import pwd
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from fc_operator.kit import confine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_LINE_BYTES_MAX = 64 * 1024 * 1024
_TERM_GRACE_S = 3.0
_PIPE_GRACE_S = 1.0
"""How long a pipe stays open after its leader's end when somebody outside of the group holds it."""


class ProcessLimitError(Exception):
    """A bound of ours ended the process; the message says which and how large it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one process; 0 means no bound."""

    timeout_s: float = 0
    output_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a process ended. ``code`` is negative for a signal, as in ``subprocess``."""

    code: int
    stdout: bytes
    stderr: bytes
    wall_s: float


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Tells the end of the leader from the end of its pipes.

    asyncio's own ``Process.wait`` waits for both, and a grandchild can hold a pipe open for ever.
    When the leader ends, the rest of its group is killed at once, and a pipe that somebody outside
    of the group still holds is closed a moment later, so that readers come to an end too.
    """

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self.ended = asyncio.Event()
        self.read_out = asyncio.Event()
        """Both pipes have come to their end."""
        self._open: set[int] = set()
        self._timers = loop
        self._child: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._child = transport
        self._open = {number for number in (1, 2) if self._child.get_pipe_transport(number)}
        super().connection_made(transport)

    def process_exited(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.get_pid(), signal.SIGKILL)
        self.ended.set()
        self._timers.call_later(_PIPE_GRACE_S, self._close_when_read)
        super().process_exited()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        super().pipe_connection_lost(fd, exc)
        self._open.discard(fd)
        if not self._open:
            self.read_out.set()

    def close(self) -> None:
        """Close all pipes; what was read from them before can still be had."""
        self._child.close()

    def _close_when_read(self) -> None:
        for number in (1, 2):
            pipe = self._child.get_pipe_transport(number)
            if pipe is not None and not pipe.is_closing() and not pipe.is_reading():
                # Our own reader is behind: what the pipe holds is still wanted.
                self._timers.call_later(_PIPE_GRACE_S, self._close_when_read)
                return
        self.close()


@dataclass(slots=True)
class Process:
    """A running child that leads its own process group."""

    inner: asyncio.subprocess.Process
    started_s: float
    _protocol: _Protocol
    killed_because: str = ""

    @property
    def pid(self) -> int:
        """Process id, which is the group id too."""
        return self.inner.pid

    async def lines(self, name: str = "stdout") -> AsyncIterator[bytes]:
        """Lines of ``stdout`` or ``stderr`` without their newline, up to 64 MiB each.

        The last line may lack its newline. The pipe ends soon after the leader, whoever else holds
        it: what is left of the group is killed, and others are not waited for.
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
        if self._protocol.ended.is_set():
            return  # nothing of the group is left, and its number may be somebody else's by now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.inner.pid, sig)

    async def stop(self, why: str, grace_s: float = _TERM_GRACE_S) -> int:
        """SIGTERM the group, SIGKILL what is left after ``grace_s``; returns the exit code.

        Its pipes are at their end then too, so that the event loop may be closed next.
        """
        self.kill(why, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                code = await self.wait()
        except TimeoutError:
            self.kill(why)
            code = await self.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PIPE_GRACE_S):
                await self._protocol.read_out.wait()
        self.close()
        return code

    async def wait(self) -> int:
        """Wait for the leader; returns its exit code. What is left of its group ends with it."""
        await self._protocol.ended.wait()
        code = self.inner.returncode
        assert code is not None
        return code

    def close(self) -> None:
        """Close our ends of its pipes, once it has ended and nothing more is wanted of them."""
        self._protocol.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a process and all that it starts may see of the file system; see ``kit.confine``."""

    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    """To be read too."""


@cache
def can_confine() -> bool:
    """Whether this kernel can confine processes; where not, ``Confinement`` is not to be used."""
    return sys.platform == "linux" and confine.version() >= confine.VERSION_MIN


def hide_memory() -> None:
    """Let nobody read our memory and our environment but root, other processes of our own user
    included, where the kernel can; what we start is not concerned.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _confined(words: list[str], confinement: Confinement) -> list[str]:
    rules = [word for path in confinement.readable for word in ("-r", path)]
    rules += [word for path in confinement.writable for word in ("-w", path)]
    return [sys.executable, "-I", "-S", confine.__file__, *rules, "--", *words]


@cache
def _setpriv() -> str | None:
    return shutil.which("setpriv", path="/usr/bin:/bin") if sys.platform == "linux" else None


def _wrapped(words: list[str], death_signal: signal.Signals) -> list[str] | None:
    """``words`` behind util-linux's setpriv, which does what ``_prepare`` does; None without it.

    With code of ours between fork and exec all our memory's tables are copied first: 8 ms at
    120 MB, in which the event loop stands still. This way it is a third of a millisecond.
    """
    setpriv = _setpriv()
    return [setpriv, "--pdeathsig", death_signal.name, "--", *words] if setpriv else None


def _check_runnable(program: str, env: Mapping[str, str], cwd: Path | None) -> str:
    """Find out before the start what the kernel would have said of the program itself; where it is.

    Raises:
        OSError: the program or ``cwd`` does not exist, or may not be run.
    """
    place = shutil.which(program, path=env.get("PATH", os.defpath))
    if place is None:
        there = os.path.lexists(program)
        number = errno.EACCES if there else errno.ENOENT
        raise OSError(number, os.strerror(number), program)
    if cwd is not None and not cwd.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(cwd))
    return place


def _prepare(death_signal: signal.Signals, user: pwd.struct_passwd | None) -> Callable[[], None]:
    """What the child does between fork and exec, where ``_wrapped`` can't.

    The user is changed here and not by the library, since uvloop does not know how; and before
    PR_SET_PDEATHSIG, since the kernel forgets that signal when the user changes.
    """
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:
        if user is not None:
            os.setgroups([])
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        if libc is not None:
            libc.prctl(_PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:  # the parent died in between
                os._exit(1)

    return prepare


async def start(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: bool = False,
    merge_stderr: bool = False,
    user: pwd.struct_passwd | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
    confinement: Confinement | None = None,
) -> Process:
    """Start ``argv`` in a process group of its own with exactly ``env`` as its environment.

    ``user`` is whom it runs as, with that user's group and no others; None is ourselves.
    ``death_signal`` is what it gets when we die: a program that has children in other groups to
    clean up (Nix) needs a signal that it can handle. ``confinement`` is for kernels that
    ``can_confine``.

    Raises:
        OSError: the program or ``cwd`` does not exist, or may not be run.
    """
    words = [os.fspath(word) for word in argv]
    place = _check_runnable(words[0], env, cwd)
    if confinement is not None:
        words = _confined([place, *words[1:]], confinement)
    wrapped = _wrapped(words, death_signal) if user is None else None
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.subprocess_exec(
        lambda: _Protocol(_LINE_BYTES_MAX, loop),
        *(wrapped or words),
        stdin=asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT if merge_stderr else asyncio.subprocess.PIPE,
        env=dict(env),
        cwd=cwd,
        start_new_session=True,
        preexec_fn=None if wrapped else _prepare(death_signal, user),
    )
    inner = asyncio.subprocess.Process(transport, protocol, loop)
    return Process(inner=inner, started_s=time.monotonic(), _protocol=protocol)


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

    try:
        async with asyncio.timeout(limits.timeout_s or None):
            out, err, _, code = await asyncio.gather(
                read(process.inner.stdout), read(process.inner.stderr), feed(), process.wait()
            )
    except TimeoutError:
        await process.stop(f"ran longer than {limits.timeout_s:g} s")
        raise ProcessLimitError(f"{name} ran longer than {limits.timeout_s:g} s") from None
    except BaseException:
        process.kill("the caller stopped waiting")
        await process.wait()
        raise
    finally:
        process.close()
    if process.killed_because:
        raise ProcessLimitError(f"{name} {process.killed_because}")
    return Finished(code=code, stdout=out, stderr=err, wall_s=time.monotonic() - process.started_s)
