"""A machine over SSH: who it must be, how we log in, commands on as few connections as it allows.

The host key is pinned: nothing is said to a host that shows another one, our key least of all.
No configuration file, agent, password or forwarding of the machine that we run on takes part.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fc_operator.errors import (
    InvalidError,
    LimitReachedError,
    PrerequisiteError,
    SecretError,
    UnavailableError,
)
from fc_operator.kit import logs
from fc_operator.kit.processes import Finished, Limits

if TYPE_CHECKING:
    import asyncssh

_log = logs.get_logger()

_URI = re.compile(
    r"(?:ssh://)?(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?:\[(?P<literal>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*))"
    r"(?::(?P<port>[0-9]{1,5}))?/?"
)
_BARE_KEY = re.compile(r"(ssh-|ecdsa-|sk-)\S+ [A-Za-z0-9+/]+={0,3}( .*)?")
_CONNECT_S = 15.0
_KEEPALIVE_S = 10
_KEEPALIVES_LOST = 3
"""A host that says nothing for half a minute is gone."""
_SESSIONS_MAX = 9
"""Commands at once on one connection: sshd takes 10 unless it is told otherwise."""
_PIECE_BYTES = 256 * 1024
_LIMITS = Limits(timeout_s=60, output_bytes=64 * 1024 * 1024)
LINE_BYTES_MAX = 64 * 1024 * 1024


class HostKeyError(PrerequisiteError):
    """The host showed another key than the pinned one, or none is pinned."""


class LoginError(PrerequisiteError):
    """The host does not take our key for this user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a builder is."""

    host: str
    port: int = 22
    user: str = "root"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A host, who it must be and how we prove who we are."""

    address: Address
    host_key: str
    """A public key, or a whole known_hosts line."""


def parse_uri(uri: str) -> Address:
    """The address in ``ssh://user@host:port``.

    Raises:
        InvalidError: it is none.
    """
    found = _URI.fullmatch(uri)
    if found is None or int(found["port"] or 22) not in range(1, 65536):
        raise InvalidError(f"{uri!r} is no address such as ssh://user@host:port")
    return Address(
        host=found["literal"] or found["host"],
        port=int(found["port"] or 22),
        user=found["user"] or "root",
    )


def _trusted(target: Target) -> list[Any]:
    """The keys that the host may show.

    Raises:
        HostKeyError: none is given, or the line is not about this host.
    """
    import asyncssh

    line = target.host_key.strip()
    if not line:
        raise HostKeyError(
            f"no host key is pinned for {target.address}",
            hint="see it with `fc builder pin NAME`, and set publicHostKey",
        )
    try:
        if _BARE_KEY.fullmatch(line):
            return [asyncssh.import_public_key(line)]
        address = target.address
        keys = list(
            asyncssh.import_known_hosts(f"{line}\n").match(
                address.host, "", None if address.port == 22 else address.port
            )[0]
        )
    except (asyncssh.KeyImportError, ValueError) as error:
        raise HostKeyError(f"the pinned host key can't be read: {error}") from error
    if not keys:
        raise HostKeyError(
            f"the pinned known_hosts line is not about {target.address}",
            hint="pin the bare key, or name the host as [host]:port in the line",
        )
    return keys


def same_host_key(pinned: str, shown: str) -> bool:
    """Whether ``pinned`` (a key or a known_hosts line) holds the key ``shown``."""
    return bool(shown.split()) and shown.split()[1] in pinned.split()


async def fetch_host_key(address: Address) -> tuple[str, str]:
    """The key that a host shows to a stranger, and its fingerprint; nothing is trusted by it.

    Raises:
        UnavailableError: it does not answer.
    """
    import asyncssh

    try:
        async with asyncio.timeout(_CONNECT_S):
            key = await asyncssh.get_server_host_key(address.host, address.port, config=None)
    except (OSError, TimeoutError, asyncssh.Error) as error:
        raise UnavailableError(f"{address} does not answer: {_words(error)}") from error
    if key is None:
        raise UnavailableError(f"{address} shows no host key")
    line = key.export_public_key("openssh").decode().strip()
    return " ".join(line.split()[:2]), key.get_fingerprint()


def _words(error: BaseException) -> str:
    return str(error) or ("no answer in time" if isinstance(error, TimeoutError) else repr(error))


class RemoteProcess:
    """A command on the other machine. Its streams have to be read, or it will wait for us."""

    def __init__(self, inner: asyncssh.SSHClientProcess[bytes], where: str) -> None:
        self._inner = inner
        self._where = where

    async def write(self, data: bytes) -> None:
        """Send to its standard input; waits while it does not read.

        Raises:
            UnavailableError: the connection broke, or it reads no more.
        """
        with _broken(self._where):
            self._inner.stdin.write(data)
            await self._inner.stdin.drain()

    def end_input(self) -> None:
        """Nothing more will be written."""
        with contextlib.suppress(OSError):
            self._inner.stdin.write_eof()

    async def read(self, name: str = "stdout") -> bytes:
        """The next piece of a stream; empty at its end.

        Raises:
            UnavailableError: the connection broke.
        """
        stream = self._inner.stdout if name == "stdout" else self._inner.stderr
        with _broken(self._where):
            return await stream.read(_PIECE_BYTES)

    async def lines(self, name: str = "stderr") -> AsyncIterator[bytes]:
        """Lines without their newline; the last one may have lacked it.

        Raises:
            UnavailableError: the connection broke.
            LimitReachedError: a line is longer than 64 MiB.
        """
        rest: list[bytes] = []
        size = 0
        while piece := await self.read(name):
            first, *more = piece.split(b"\n")
            rest.append(first)
            size += len(first)
            if size > LINE_BYTES_MAX:
                raise LimitReachedError("a line of output is longer than 64 MiB", limit="output")
            if more:
                yield b"".join(rest)
                for line in more[:-1]:
                    yield line
                rest, size = [more[-1]], len(more[-1])
        if size:
            yield b"".join(rest)

    async def wait(self) -> int:
        """Its exit code, negative for a signal.

        Raises:
            UnavailableError: the connection broke before it ended.
        """
        with _broken(self._where):
            await self._inner.wait_closed()
        code = self._inner.returncode
        if code is None:
            raise UnavailableError(f"the connection to {self._where} broke")
        return code

    def close(self) -> None:
        """Close its streams; it ends by that when it heeds its input."""
        self._inner.close()


@contextlib.contextmanager
def _broken(where: str) -> Any:
    import asyncssh

    try:
        yield
    except (asyncssh.Error, OSError) as error:
        raise UnavailableError(f"the connection to {where} broke: {_words(error)}") from error


class _Connection:
    """One connection, and how many commands run on it."""

    def __init__(self, inner: asyncssh.SSHClientConnection) -> None:
        self.inner = inner
        self.sessions = 0


ReadKey = Callable[[], Awaitable[bytes]]
"""Reads the private key to log in with; asked for each connection, so that it may be rotated."""


class Link:
    """The way to one builder: connects when it is first needed, again when that broke.

    Commands share one connection until it has as many as sshd takes; then there is a second one.
    """

    def __init__(self, target: Target, read_key: ReadKey) -> None:
        self.target = target
        self._read_key = read_key
        self._connections: list[_Connection] = []
        self._connecting = asyncio.Lock()

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._connections)

    async def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        limits: Limits = _LIMITS,
    ) -> Finished:
        """Run a command to its end; its exit code is the caller's to judge.

        Raises:
            UnavailableError: the host does not answer or the connection broke.
            LimitReachedError: it ran too long or printed too much.
            HostKeyError, LoginError, SecretError: see ``start``.
        """
        started_s = time.monotonic()
        try:
            async with asyncio.timeout(limits.timeout_s or None), self.started(command) as process:
                seen = 0

                async def read(name: str) -> bytes:
                    nonlocal seen
                    parts = []
                    while part := await process.read(name):
                        seen += len(part)
                        if limits.output_bytes and seen > limits.output_bytes:
                            raise LimitReachedError(
                                f"{self.target.address} printed too much", limit="output"
                            )
                        parts.append(part)
                    return b"".join(parts)

                async def feed() -> None:
                    # A command that reads no more says why itself.
                    with contextlib.suppress(UnavailableError):
                        for start in range(0, len(stdin), _PIECE_BYTES):
                            await process.write(stdin[start : start + _PIECE_BYTES])
                    process.end_input()

                out, err, _ = await asyncio.gather(read("stdout"), read("stderr"), feed())
                code = await process.wait()
        except TimeoutError as error:
            raise LimitReachedError(
                f"{self.target.address} did not answer within {limits.timeout_s:g} s", limit="time"
            ) from error
        return Finished(code=code, stdout=out, stderr=err, wall_s=time.monotonic() - started_s)

    @contextlib.asynccontextmanager
    async def started(self, command: str) -> AsyncIterator[RemoteProcess]:
        """Start a command; it is closed at the end of the block.

        Raises:
            UnavailableError: the host does not answer, or takes no more commands.
            HostKeyError: it is not who it should be.
            LoginError: it does not let us in.
            SecretError: our key is missing or unreadable.
        """
        import asyncssh

        connection = await self._free()
        try:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    inner = await connection.inner.create_process(
                        command, encoding=None, env=(), send_env=()
                    )
            except (asyncssh.Error, OSError, TimeoutError) as error:
                raise UnavailableError(
                    f"{self.target.address} starts no command: {_words(error)}"
                ) from error
            process = RemoteProcess(inner, str(self.target.address))
            try:
                yield process
            finally:
                process.close()
                with contextlib.suppress(TimeoutError, asyncssh.Error, OSError):
                    async with asyncio.timeout(5):
                        await inner.wait_closed()
        finally:
            connection.sessions -= 1

    async def _free(self) -> _Connection:
        async with self._connecting:
            self._connections = [one for one in self._connections if not one.inner.is_closed()]
            for one in self._connections:
                if one.sessions < _SESSIONS_MAX:
                    one.sessions += 1
                    return one
            one = _Connection(await self._connect())
            one.sessions = 1
            self._connections.append(one)
            return one

    async def _connect(self) -> asyncssh.SSHClientConnection:
        import asyncssh

        address = self.target.address
        trusted = _trusted(self.target)
        try:
            key = asyncssh.import_private_key(await self._read_key())
        except (asyncssh.KeyImportError, ValueError) as error:
            raise SecretError(f"the key for {address} is no private key: {error}") from error
        try:
            async with asyncio.timeout(_CONNECT_S):
                connection = await asyncssh.connect(
                    address.host,
                    address.port,
                    username=address.user,
                    client_keys=[key],
                    known_hosts=(trusted, [], []),
                    config=None,
                    agent_path=None,
                    agent_forwarding=False,
                    password=None,
                    preferred_auth="publickey",
                    gss_host=None,
                    keepalive_interval=_KEEPALIVE_S,
                    keepalive_count_max=_KEEPALIVES_LOST,
                )
        except asyncssh.HostKeyNotVerifiable as error:
            raise HostKeyError(
                f"{address} shows another host key than the pinned one: {error}",
                hint="if its key was changed on purpose, `fc builder pin NAME` shows the new one",
            ) from error
        except asyncssh.KeyExchangeFailed as error:
            raise HostKeyError(
                f"{address} has no host key of the pinned kind: {error}",
                hint="`fc builder pin NAME` shows the one that it has",
            ) from error
        except asyncssh.PermissionDenied as error:
            raise LoginError(
                f"{address} does not take our key: {error}",
                hint="add the public key of sshKeySecretRef to its authorized_keys",
            ) from error
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise UnavailableError(f"{address} does not answer: {_words(error)}") from error
        _log.info("clients.ssh_connected", address=str(address))
        return connection

    async def close(self) -> None:
        """Close all connections; what runs on them notices."""
        connections, self._connections = self._connections, []
        for one in connections:
            one.inner.close()
        for one in connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await one.inner.wait_closed()
