"""Async parts of the product that run beside synchronous tests, within the cluster's network."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import uuid
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

from fc_operator.app import demo
from fc_operator.clients.git_server import GitServer
from fc_operator.store.embedded import EmbeddedPostgres
from tests.cluster import parts

T = TypeVar("T")
_PASSWORD = "only-for-tests"


class Loop:
    """An event loop in a thread; the thread is in the network namespace of who made it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 120) -> T:
        """The result of ``work``."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Postgres:
    """The project's own PostgreSQL on the node's address, for pods and for tests alike."""

    def __init__(self, loop: Loop, *, port: int = 5432) -> None:
        self._loop = loop
        self._port = port
        self._dir = Path(tempfile.mkdtemp(prefix="fc-cluster-postgres-"))
        self._dir.chmod(0o755)
        self._server = EmbeddedPostgres(
            self._dir,
            extra_settings={
                "fsync": "off",
                "full_page_writes": "off",
                "synchronous_commit": "off",
                "listen_addresses": parts.HOST,
                "port": str(port),
                "max_connections": "300",
                "password_encryption": "scram-sha-256",
            },
        )
        loop.run(self._start())

    async def _start(self) -> None:
        await self._server.start()
        with (self._server.data_dir / "pg_hba.conf").open("a") as file:
            file.write("host all all 10.0.0.0/8 scram-sha-256\n")
        await self._admin(f"ALTER ROLE fc PASSWORD '{_PASSWORD}'", "SELECT pg_reload_conf()")

    async def _admin(self, *statements: str) -> None:
        url = f"postgresql://fc@/postgres?host={self._server.socket_dir}&port={self._port}"
        connection = await asyncpg.connect(url)
        try:
            for each in statements:
                await connection.execute(each)
        finally:
            await connection.close()

    def create(self) -> str:
        """The URL of a new, empty database; the same from pods and from here."""
        name = f"t_{uuid.uuid4().hex[:12]}"
        self._loop.run(self._admin(f"CREATE DATABASE {name}"))
        return f"postgresql://fc:{_PASSWORD}@{parts.HOST}:{self._port}/{name}"

    def drop(self, url: str) -> None:
        """Drop a database, whoever still uses it."""
        name = url.rpartition("/")[2]
        self._loop.run(self._admin(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))

    def close(self) -> None:
        """Stop it and remove its data."""
        self._loop.run(self._server.stop())
        for each in (self._dir, self._server.data_dir, self._server.socket_dir):
            shutil.rmtree(each, ignore_errors=True)


class GitHost:
    """A git host in the cluster's network: ``http://machine.test:<port>/<repository>.git``."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._dir = Path(tempfile.mkdtemp(prefix="fc-cluster-git-"))
        self._server = GitServer(self._dir, host=parts.HOST)
        loop.run(self._server.start())

    @property
    def host(self) -> str:
        """Name and port, as ``git.allowed_hosts`` wants them."""
        return f"{parts.MACHINE}:{self._server.port}"

    @property
    def url(self) -> str:
        """What comes before ``/<repository>.git``, for pods."""
        return f"http://{self.host}"

    def commit(self, repository: str, files: Mapping[str, bytes]) -> str:
        """Bring the branch main of a repository to ``files``; returns the commit."""
        return str(self._loop.run(demo.commit(self._dir / f"{repository}.git", files)))

    def serve_demo(self) -> dict[str, str]:
        """Make the demo's repositories; returns the newest commit of each."""
        folder = demo.default_folder()
        made = {
            source.name: self.commit(source.name, demo.files_of(source, {}))
            for source in sorted((folder / "sources").iterdir())
        }
        made["config"] = self.commit(
            "config", demo.files_of(folder / "manifests", self.replacements())
        )
        return made

    def replacements(self) -> dict[str, str]:
        """From the addresses in ``config/demo`` to those here."""
        return {f"http://127.0.0.1:{demo.GIT_PORT}/": f"{self.url}/"}

    def close(self) -> None:
        """Stop it and remove its repositories."""
        self._loop.run(self._server.stop())
        shutil.rmtree(self._dir, ignore_errors=True)
