"""The smallest HTTP service that a kubelet's probes need; for processes that serve nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

Check = Callable[[], str]
"""Why something is wrong; empty if nothing is."""

_HEAD_BYTES_MAX = 8 * 1024
_PATIENCE_S = 5.0


class HealthService:
    """A service (see ``kit.services``) that answers some paths: 200, or 503 with a reason."""

    name = "health"

    def __init__(self, host: str, port: int, checks: Mapping[str, Check]) -> None:
        """``checks`` by path, such as ``/healthz``."""
        self._host = host
        self._port = port
        self._checks = dict(checks)
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens; 0 before it does."""
        if self._server is None:
            return 0
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def start(self) -> None:
        """See ``Service.start``.

        Raises:
            OSError: the address is taken.
        """
        self._server = await asyncio.start_server(
            self._answer, self._host, self._port, limit=_HEAD_BYTES_MAX
        )

    async def stop(self) -> None:
        """See ``Service.stop``."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
            await server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            async with asyncio.timeout(_PATIENCE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._respond(head))
                await writer.drain()
        writer.close()

    def _respond(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split()
        path = words[1].decode(errors="replace").partition("?")[0] if len(words) == 3 else ""
        check = self._checks.get(path)
        if len(words) != 3 or words[0] not in {b"GET", b"HEAD"}:
            status, text = "405 Method Not Allowed", "GET only"
        elif check is None:
            status, text = "404 Not Found", "no such check"
        else:
            trouble = check()
            status, text = ("503 Service Unavailable", trouble) if trouble else ("200 OK", "ok")
        body = f"{text}\n".encode()
        shown = b"" if words[:1] == [b"HEAD"] else body
        return (
            f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode() + shown
