"""Serves git repositories of a folder over HTTP, to be read: what the demo has for a forge.

It speaks the smart protocol through git's own ``http-backend``, so that fetching from it is what
fetching from a real host is. Pushes are refused, and so is every name that is not a repository.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from aiohttp import web

from fc_operator.errors import HumanNeededError
from fc_operator.kit import processes

_READS = re.compile(r"/([A-Za-z0-9_][A-Za-z0-9_.-]*\.git)/(info/refs|git-upload-pack)")
_ANSWER_BYTES_MAX = 256 * 1024 * 1024
_REQUEST_BYTES_MAX = 4 * 1024 * 1024


class GitServer:
    """Read-only HTTP for the bare repositories ``<folder>/<name>.git``."""

    name = "git-server"

    def __init__(self, folder: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._folder = folder.resolve()
        self._host = host
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port in use, once started."""
        return self._port

    @property
    def url(self) -> str:
        """What comes before ``/<name>.git``."""
        return f"http://{self._host}:{self._port}"

    async def start(self) -> None:
        """Listen; port 0 takes a free one.

        Raises:
            HumanNeededError: the port is taken.
        """
        app = web.Application(client_max_size=_REQUEST_BYTES_MAX)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise HumanNeededError(
                f"{self._host}:{self._port} can't be listened on: {error.strerror}"
            ) from error
        self._runner = runner
        self._port = runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection; stopping twice is fine."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.Response:
        asked = _READS.fullmatch(request.path)
        service = request.query.get("service", "git-upload-pack")
        if asked is None or service != "git-upload-pack":
            raise web.HTTPForbidden(text="this server is only read from\n")
        if not (self._folder / asked[1]).is_dir():
            raise web.HTTPNotFound(text="no such repository\n")
        return await self._answer(request)

    async def _answer(self, request: web.Request) -> web.Response:
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_PROJECT_ROOT": str(self._folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            # The folder may belong to another user than the one who serves it.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "REMOTE_ADDR": request.remote or "",
        }
        try:
            done = await processes.run(
                ["git", "http-backend"],
                env=env,
                stdin=await request.read(),
                limits=processes.Limits(timeout_s=60, output_bytes=_ANSWER_BYTES_MAX),
            )
        except (OSError, processes.ProcessLimitError) as error:
            raise web.HTTPInternalServerError(text=f"git http-backend: {error}\n") from error
        return _response(done.stdout)


def _response(answer: bytes) -> web.Response:
    """A CGI answer as an HTTP response."""
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(
        line.split(": ", 1) for line in head.decode("latin-1").split("\r\n") if ": " in line
    )
    status = int(headers.pop("Status", "200" if headers else "502").split()[0])
    headers.pop("Content-Length", None)
    return web.Response(status=status, headers=headers, body=body)
