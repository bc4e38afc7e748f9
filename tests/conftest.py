"""Fixtures that every suite shares: a real PostgreSQL, a database of its own per test."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
import uuid
from pathlib import Path

import asyncpg
import pytest

from fc_operator.store import migrations
from fc_operator.store.database import Database
from fc_operator.store.embedded import EmbeddedPostgres

# Before anybody imports it: the cluster's tests run it, too.
pytest.register_assert_rewrite("tests.conformance.secrets.suite")

_FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


class PostgresServer:
    """The embedded server in a thread of its own, so that it outlives each test's event loop."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="fc-tests-"))
        self.dir.chmod(0o755)
        self.server = EmbeddedPostgres(self.dir, extra_settings=_FAST)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.call(self.server.start())
        self.call(self._make_template())

    def call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def url(self, name: str) -> str:
        return self.server.url.replace("/fc?", f"/{name}?")

    async def _admin(self, sql: str) -> None:
        connection = await asyncpg.connect(self.url("postgres"))
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def _make_template(self) -> None:
        await self._admin("CREATE DATABASE fc_template")
        await migrations.migrate(self.url("fc_template"))

    def create(self, template: str = "fc_template") -> str:
        """A new database, a copy of ``template``; returns its name."""
        name = f"t_{uuid.uuid4().hex[:16]}"
        self.call(self._admin(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY"))
        return name

    def drop(self, name: str) -> None:
        self.call(self._admin(f"DROP DATABASE {name} WITH (FORCE)"))

    def close(self) -> None:
        self.call(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        shutil.rmtree(self.dir, ignore_errors=True)
        shutil.rmtree(self.server.data_dir, ignore_errors=True)
        shutil.rmtree(self.server.socket_dir, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _one_outer_loop():
    """pytest-asyncio asks for a current loop and makes one that nobody closes; give it ours."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture(scope="session")
def postgres():
    server = PostgresServer()
    yield server
    server.close()


def share_build_users(state_dir: Path) -> Path:
    """Let a private Nix take its build users from the machine's pool; returns ``state_dir``.

    Nix kills every process of a build user before and after a build. Two stores with a pool each
    would take the same user at once, and end each other's builds with "signal 9".
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    pool = Path("/nix/var/nix/userpool")
    if os.geteuid() == 0:
        pool.mkdir(parents=True, exist_ok=True)
        (state_dir / "userpool").symlink_to(pool)
    return state_dir


@pytest.fixture(scope="session")
def shared_build_users():
    """``share_build_users``, for suites that make a store of their own."""
    return share_build_users


@pytest.fixture
def database_url(postgres):
    """The URL of a migrated, empty database of this test alone."""
    name = postgres.create()
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
def empty_database_url(postgres):
    """The URL of a database without any schema."""
    name = postgres.create("template0")
    yield postgres.url(name)
    postgres.drop(name)


@pytest.fixture
async def database(database_url):
    """An open ``Database`` on ``database_url``."""
    database = await Database.open(database_url, size=6)
    yield database
    await database.close()
