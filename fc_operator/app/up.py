"""`fc up`: everything of one machine in one process, PostgreSQL included unless a URL is given."""

from __future__ import annotations

from fc_operator.app import scheduler, wiring
from fc_operator.app.server import web_service
from fc_operator.app.state import StateDirectory
from fc_operator.kit.services import Service, Supervisor
from fc_operator.settings import Settings
from fc_operator.store import migrations
from fc_operator.store.embedded import EmbeddedPostgres


class Up:
    """The whole product. Whatever ends it, a second start goes on where it was."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state = StateDirectory(settings.state.dir)
        self._supervisor = Supervisor([])
        self._parts: wiring.Parts | None = None
        self._postgres: EmbeddedPostgres | None = None
        self.url = ""
        """Where the HTTP service answers, once started."""

    async def start(self) -> None:
        """Bring everything up; when that fails nothing is left running.

        Raises:
            FcError: the state directory is in use, PostgreSQL does not start or answer, its schema
                is newer than this program, or the address is taken.
        """
        self._state.acquire()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        url = self._settings.database.url
        if not url:
            self._postgres = EmbeddedPostgres(self._state.path)
            await self._postgres.start()
            url = self._postgres.url
        await migrations.migrate(url)
        self._parts = await wiring.open_parts(
            self._settings, self._state, url, "fc up", makes_pods=True
        )
        uses_cache = self._settings.cache.enabled == "Always"
        cache = wiring.binary_cache(self._parts) if uses_cache else None
        web = web_service(self._parts, cache)
        if cache is not None:
            self._parts = wiring.use_cache(self._parts, cache, f"{web.bind()}/cache")
        services: list[Service] = [
            self._parts.listener,
            web,
            *await scheduler.services(self._parts),
        ]
        self._supervisor = Supervisor(services)
        await self._supervisor.start()
        self.url = web.url

    async def stop(self) -> None:
        """Bring everything down; what was running is given back and goes on at the next start."""
        await self._supervisor.stop()
        if self._parts is not None:
            await self._parts.close()
        if self._postgres is not None:
            await self._postgres.stop()
        self._state.release()
