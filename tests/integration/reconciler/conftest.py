"""A door of its own for each test: YAML in, reports and rows out."""

from __future__ import annotations

import contextlib

import pytest

from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.sources import Source
from fc_operator.operations import manifests as operations
from fc_operator.settings import ConfigSettings
from fc_operator.spec import manifests

HEAD = "apiVersion: fc-operator.dev/v1alpha1\n"


def project(name: str, spec: str = "") -> str:
    return (
        f"{HEAD}kind: Project\nmetadata: {{name: {name}}}\n"
        f"spec:\n  repositoryUrl: https://git.example.org/{name}.git\n{_indented(spec)}"
    )


def jobset(name: str, of: str = "demo", spec: str = "", metadata: str = "") -> str:
    return (
        f"{HEAD}kind: Jobset\nmetadata: {{name: {of}-{name}{metadata}}}\n"
        f"spec:\n  name: {name}\n  projectRef: {{name: {of}}}\n{_indented(spec)}"
    )


def _indented(spec: str) -> str:
    return "".join(f"  {line}\n" for line in spec.strip("\n").split("\n") if line)


class Door:
    """Applies YAML files as one source after the other says them."""

    def __init__(self, database, folder):
        self.database = database
        self.folder = folder
        self.config = ConfigSettings()
        self.cipher = Cipher(bytes(32))
        self.keyring = operations.Keyring(DirectorySecrets(folder), self.cipher)
        self.revision = 0

    def secret(self, name, **values):
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        for key, value in values.items():
            (self.folder / name / key).write_text(value)

    async def sync(self, *files, source="team", kind="ConfigRepository", complete=True, **options):
        self.revision += 1
        named = {f"{nr}.yaml": text.encode() for nr, text in enumerate(files) if text}
        return await operations.apply(
            self.database,
            Source(kind, source),
            manifests.parse(named),
            keyring=self.keyring,
            config=self.config,
            revision=options.pop("revision", f"r{self.revision}"),
            complete=complete,
            **options,
        )

    async def plan(self, *files, source="team", kind="ConfigRepository", **options):
        named = {f"{nr}.yaml": text.encode() for nr, text in enumerate(files) if text}
        return await operations.plan(
            self.database,
            Source(kind, source),
            manifests.parse(named),
            keyring=self.keyring,
            config=self.config,
            **options,
        )

    async def rows(self, sql, *arguments):
        async with self.database.session() as connection:
            return [tuple(row) for row in await connection.fetch(sql, *arguments)]

    async def value(self, sql, *arguments):
        async with self.database.session() as connection:
            return await connection.fetchval(sql, *arguments)

    async def run(self, sql, *arguments):
        async with self.database.session() as connection:
            await connection.execute(sql, *arguments)

    async def ready(self, identity, source="team"):
        """Status, reason and message of an object's Ready condition."""
        conditions = await self.value(
            "SELECT conditions FROM managed_resources WHERE identity = $1 AND source_name = $2",
            identity,
            source,
        )
        found = next(each for each in conditions if each["type"] == "Ready")
        return found["status"], found["reason"], found["message"]

    async def written(self):
        """Rows written to any table of this database so far."""
        async with contextlib.AsyncExitStack() as stack:
            # Every session of the pool tells what it wrote; each else does so once a second.
            for _ in range(self.database._pool.get_max_size()):
                session = await stack.enter_async_context(self.database.session())
                await session.execute("SELECT pg_stat_force_next_flush()")
        return await self.value(
            "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::int FROM pg_stat_user_tables"
        )


@pytest.fixture
def door(database, tmp_path):
    return Door(database, tmp_path / "secrets")


@pytest.fixture
def make():
    """Writers of manifests."""

    class Make:
        project = staticmethod(project)
        jobset = staticmethod(jobset)
        head = HEAD

    return Make
