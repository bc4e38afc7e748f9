"""The sync service as `fc up` runs it, on a real database, real git and real directories."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from fc_operator.clients.git import Git
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.intake.repos import RepositorySyncService, ensure_bootstrap
from fc_operator.kit.ciphers import Cipher
from fc_operator.operations.manifests import Keyring
from fc_operator.settings import ConfigSettings, GitSettings
from fc_operator.store.listener import Listener

HEAD = "apiVersion: fc-operator.dev/v1alpha1\n"


def project(name, spec=""):
    return (
        f"{HEAD}kind: Project\nmetadata: {{name: {name}}}\n"
        f"spec: {{repositoryUrl: 'https://git.example.org/{name}.git'{spec}}}\n"
    )


def jobset(name, of="demo", spec=""):
    return (
        f"{HEAD}kind: Jobset\nmetadata: {{name: {of}-{name}}}\n"
        f"spec: {{name: {name}, projectRef: {{name: {of}}}{spec}}}\n"
    )


async def flush_statistics(database):
    """Have every session of the pool tell what it wrote; each else tells about once a second."""
    async with contextlib.AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(database.session())
            for _ in range(database._pool.get_max_size())
        ]
        for session in sessions:
            await session.execute("SELECT pg_stat_force_next_flush()")


class Intake:
    """Services and what they left in the database."""

    def __init__(self, database, listener, hosts, folder):
        self.database = database
        self.listener = listener
        self.folder = folder
        self.git = Git(
            GitSettings(allowed_schemes=("https", "http"), allowed_hosts=hosts), folder / "mirrors"
        )
        self.keyring = Keyring(DirectorySecrets(folder / "secrets"), Cipher(bytes(32)))
        self.config = ConfigSettings(prune_grace_s=3600)
        self.services = []

    async def bootstrap(self, source, **settings):
        settings = {"interval_s": 3600, **settings}
        return await ensure_bootstrap(self.database, ConfigSettings(source=str(source), **settings))

    async def start(self, **options):
        service = RepositorySyncService(
            self.database, self.listener, self.git, self.keyring, self.config, **options
        )
        self.services.append(service)
        await service.start()
        return service

    async def rows(self, sql, *arguments):
        async with self.database.session() as connection:
            return [tuple(row) for row in await connection.fetch(sql, *arguments)]

    async def value(self, sql, *arguments):
        found = await self.rows(sql, *arguments)
        return found[0][0] if found else None

    async def run(self, sql, *arguments):
        async with self.database.session() as connection:
            await connection.execute(sql, *arguments)

    async def until(self, sql, expected, *arguments, timeout_s=15):
        """Wait until the value of a query is ``expected``."""
        found = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (found := await self.value(sql, *arguments)) != expected:
                    await asyncio.sleep(0.02)
        assert found == expected

    async def condition(self, type_="Ready", name="_bootstrap"):
        conditions = await self.value(
            "SELECT conditions FROM config_repositories WHERE name = $1", name
        )
        return next((each for each in conditions if each["type"] == type_), None)

    async def until_ready(self, status, reason, name="_bootstrap"):
        sql = (
            "SELECT c ->> 'status' || ' ' || (c ->> 'reason') FROM config_repositories,"
            " jsonb_array_elements(conditions) c WHERE name = $1 AND c ->> 'type' = 'Ready'"
        )
        await self.until(sql, f"{status} {reason}", name)
        return (await self.condition(name=name))["message"]

    async def sync(self, name="_bootstrap"):
        """Ask for a sync and wait for its end."""
        from fc_operator.operations.sources import request_sync

        await request_sync(self.database, name)
        await self.until(
            "SELECT next_sync_at > now() AND lease_owner IS NULL FROM config_repositories"
            " WHERE name = $1",
            True,
            name,
        )

    async def written(self):
        """Rows written so far, but for the leases of config repositories."""
        await flush_statistics(self.database)
        return await self.value(
            "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::int FROM pg_stat_user_tables"
            " WHERE relname <> 'config_repositories'"
        )

    async def stop(self):
        for service in self.services:
            await service.stop()


@pytest.fixture
async def intake(database, git_host, tmp_path):
    listener = Listener(database)
    await listener.start()
    intake = Intake(database, listener, (git_host.listed,), tmp_path)
    yield intake
    await intake.stop()
    await listener.stop()
