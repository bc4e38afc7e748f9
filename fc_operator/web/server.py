"""The HTTP service: Sanic inside the running event loop, started and stopped like any duty."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from sanic import Sanic

from fc_operator.clients.objects import ObjectStore
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import PrerequisiteError
from fc_operator.kit import logs, metrics
from fc_operator.kit.ciphers import Cipher
from fc_operator.operations.cache import BinaryCache
from fc_operator.settings import Settings
from fc_operator.store.database import Database
from fc_operator.store.listener import Listener
from fc_operator.web import application, route_table
from fc_operator.web.context import Context
from fc_operator.web.identity import Identities
from fc_operator.web.measures import Measures

_log = logs.get_logger()
_STOP_S = 2.0


class WebService:
    """A service (see ``kit.services``) that answers on ``settings.web``'s host and port."""

    name = "web"

    def __init__(
        self,
        *,
        database: Database,
        listener: Listener,
        objects: ObjectStore,
        secrets: Secrets,
        cipher: Cipher,
        settings: Settings,
        registry: metrics.Registry | None = None,
        cache: BinaryCache | None = None,
    ) -> None:
        """``registry``: where this process counts; what others count there is served too."""
        self._settings = settings.web
        self.measures = Measures(registry or metrics.Registry())
        self.context = Context(
            database=database,
            listener=listener,
            objects=objects,
            secrets=secrets,
            cipher=cipher,
            settings=settings,
            identities=Identities(database, settings.web),
            measures=self.measures,
            cache=cache,
        )
        self.app: Sanic[Any, Any] | None = None
        self._server: Any = None
        self._listening: socket.socket | None = None
        self.url = ""
        """Where it answers, once started; with ``public_url`` set, that."""

    def bind(self) -> str:
        """Take the address, if that was not done yet; who asks from now on waits for ``start``.

        Returns where this machine's own programs reach it.

        Raises:
            PrerequisiteError: the address is taken or not ours.
        """
        if self._listening is None:
            self._listening = _listen(self._settings.host, self._settings.port)
        return _url(self._settings.host, self._listening.getsockname()[1])

    async def start(self) -> None:
        """Listen and answer.

        Raises:
            PrerequisiteError: the address is taken or not ours.
        """
        if self._server is not None:
            return
        self.app = application.build(self.context, route_table.ROUTES, self.measures)
        own_url = self.bind()
        listening, self._listening = self._listening, None
        self.url = self._settings.public_url.rstrip("/") or own_url
        self._server = await self.app.create_server(sock=listening, return_asyncio_server=True)
        await self._server.startup()
        await self._server.before_start()
        await self._server.after_start()
        await self._server.start_serving()
        _log.info("web.started", url=self.url)

    async def stop(self) -> None:
        """Answer what was asked, for two seconds at most, and stop listening."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        server, self._server = self._server, None
        if server is None or self.app is None:
            return
        server.server.close()
        for stream in tuple(self.context.streams):
            stream.cancel()
        for connection in list(server.connections):
            connection.close_if_idle()
        deadline_s = asyncio.get_running_loop().time() + _STOP_S
        # Sanic has no event for its last connection.
        while server.connections and asyncio.get_running_loop().time() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        for connection in list(server.connections):
            connection.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await server.server.wait_closed()
        await server.before_stop()
        await server.after_stop()
        Sanic.unregister_app(self.app)
        self.app = None
        _log.info("web.stopped")


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; the port may be 0."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
        listening.setblocking(False)
    except OSError as error:
        raise PrerequisiteError(
            f"can't listen on {host} port {port}: {error.strerror or error}",
            hint="web.host and web.port choose another address; port 0 takes a free one",
        ) from error
    return listening


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"
