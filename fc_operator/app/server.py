"""`fc server`: the HTTP service by itself, stateless, on a database that others share."""

from __future__ import annotations

from dataclasses import replace

from fc_operator.app import wiring
from fc_operator.app.state import StateDirectory
from fc_operator.app.wiring import Parts
from fc_operator.kit.services import Service, Supervisor
from fc_operator.operations.cache import BinaryCache
from fc_operator.settings import Settings
from fc_operator.web.server import WebService


def web_service(parts: Parts, cache: BinaryCache | None = None) -> WebService:
    """The HTTP service, from its parts; with the binary cache where one is given."""
    return WebService(
        database=parts.database,
        listener=parts.listener,
        objects=parts.objects,
        secrets=parts.secrets,
        cipher=parts.cipher,
        settings=parts.settings,
        cache=cache,
    )


class Server:
    """Listener and HTTP service."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._supervisor: Supervisor | None = None
        self._parts: Parts | None = None
        self.url = ""
        """Where it answers, once started."""

    async def start(self) -> None:
        """See ``Program.start``.

        Raises:
            FcError: no database is set, it does not answer, its schema is not ours, or the address
                is taken.
        """
        url = wiring.database_url(self._settings)
        state = StateDirectory(self._settings.state.dir)
        self._parts = await wiring.open_parts(self._settings, state, url, "fc server")
        if self._settings.cache.enabled != "Never":
            self._parts = replace(self._parts, cache=wiring.binary_cache(self._parts))
        web = web_service(self._parts, self._parts.cache)
        services: list[Service] = [self._parts.listener, web]
        self._supervisor = Supervisor(services)
        await self._supervisor.start()
        self.url = web.url

    async def stop(self) -> None:
        """See ``Program.stop``."""
        if self._supervisor is not None:
            await self._supervisor.stop()
        if self._parts is not None:
            await self._parts.close()
