"""Evaluators on a private Nix store, and a whole world: git host, database, both services."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest

from fc_operator.clients.git import Git
from fc_operator.clients.nix import Nix
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.errors import UnavailableError
from fc_operator.evaluator import roots
from fc_operator.evaluator.find import Evaluators
from fc_operator.evaluator.requests import EvaluationRequest, Tree
from fc_operator.evaluator.walker import Walker
from fc_operator.operations.ingest import Ingest
from fc_operator.scheduler.evaluate import CheckService, EvaluationService
from fc_operator.settings import (
    BuildSettings,
    EvaluationSettings,
    GitSettings,
    NixSettings,
    QueueSettings,
)
from fc_operator.store.listener import Listener

SYSTEM = "x86_64-linux"
DRV = f"""name: derivation {{
  inherit name; system = "{SYSTEM}"; builder = "/bin/sh"; args = [ "-c" "echo x > $out" ]; }}"""


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_shared = load(
    "executors_conftest",
    Path(__file__).parents[2] / "conformance" / "executors" / "conftest.py",
)
nix = _shared.nix


class Bench:
    """Evaluates Nix text with one evaluator."""

    def __init__(self, nix, folder: Path) -> None:
        self.nix = nix
        self.folder = folder
        self.source = folder / "source"
        self.source.mkdir(parents=True)
        self.work = folder / "work"
        self.work.mkdir()
        self.home = folder / "home"
        self.home.mkdir()
        self.roots = nix.dir / "var" / "gcroots" / "fc" / folder.parent.name
        self.settings = EvaluationSettings()
        self.make = Walker
        self.env = dict(nix.env)

    def evaluator(self):
        return self.make(
            nix=NixSettings(store_dir=str(self.nix.store_dir)),
            evaluation=self.settings,
            env=self.env,
            home=self.home,
        )

    def write(self, name: str, text: str) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def request(self, text: str | None = None, **more) -> EvaluationRequest:
        if text is not None:
            self.write("release.nix", f"{{ ... }}@given: let drv = {DRV}; in {text}")
        fields = {
            "source": Tree(path=self.source),
            "expression": "release.nix",
            "is_flake": False,
            "work_dir": self.work,
            "roots_dir": self.roots,
            "timeout_s": 60,
        }
        return EvaluationRequest(**(fields | more))

    async def batches(self, request):
        return [batch async for batch in self.evaluator().evaluate(request)]

    async def jobs(self, text: str | None = None, **more):
        """Rows by job name and messages of errors by attribute path."""
        batches = await self.batches(self.request(text, **more))
        rows = {row.job_name: row for batch in batches for row in batch.rows}
        errors = {".".join(e.attr_path): e.message for batch in batches for e in batch.errors}
        assert sum(len(b.rows) for b in batches) == len(rows)
        return rows, errors

    def read_drv(self, row) -> str:
        return Path(row.drv_path).read_text()


@pytest.fixture
def bench(nix, tmp_path):
    return Bench(nix, tmp_path / "bench")


def processes_with(word: str) -> list[int]:
    """Processes whose arguments or environment hold ``word``, ourselves aside."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if word.encode() in text and b"nix" in text:
                    found.append(int(entry.name))
    return found


class World:
    """A git host, a database and both services, as a user meets them."""

    def __init__(self, database, git_host, nix, folder: Path) -> None:
        self.database = database
        self.host = git_host
        self.nix = nix
        self.folder = folder
        self.repository = git_host.make("demo")
        self.listener = Listener(database)
        self.queue = QueueSettings(lease_s=6, heartbeat_s=1, margin_s=1, poll_s=0.5)
        self.evaluation = EvaluationSettings(timeout_s=60)
        self.nix_settings = NixSettings(store_dir=str(nix.store_dir))
        self.env = dict(nix.env)
        self.git = Git(
            GitSettings(allowed_schemes=("http",), allowed_hosts=(git_host.listed,)),
            folder / "mirrors",
        )
        self.secrets = DirectorySecrets(folder / "secrets")
        self.services = []

    def evaluators(self):
        return Evaluators(
            nix=self.nix_settings,
            evaluation=self.evaluation,
            env=self.env,
            home=self.folder / "home",
        )

    def checks(self, **more):
        return CheckService(
            database=self.database,
            listener=self.listener,
            git=self.git,
            secrets=self.secrets,
            evaluators=self.evaluators(),
            nix=self.nix_settings,
            evaluation=self.evaluation,
            queue=self.queue,
            **more,
        )

    def evaluations(self, name="work", **more):
        ingest = more.pop("ingest", None) or Ingest(
            self.database,
            Nix(self.nix_settings, self.nix.env),
            BuildSettings(),
            roots_dir=roots.default_dir(self.nix.env),
        )
        return EvaluationService(
            database=self.database,
            listener=self.listener,
            git=self.git,
            secrets=self.secrets,
            ingest=ingest,
            evaluators=self.evaluators(),
            nix=self.nix_settings,
            evaluation=self.evaluation,
            queue=self.queue,
            work_dir=self.folder / name,
            env=self.env,
            home=self.folder / "home",
            **more,
        )

    async def start(self, *services):
        for service in services or (self.checks(), self.evaluations()):
            await service.start()
            self.services.append(service)

    async def stop(self):
        for service in reversed(self.services):
            await service.stop()
        self.services.clear()

    # What tests say to the database
    async def sql(self, statement, *args):
        for patience in range(5):
            try:
                async with self.database.session() as connection:
                    return await connection.fetch(statement, *args)
            except UnavailableError:
                # The test that cuts sessions cuts its own ones too.
                if patience == 4:
                    raise
        return None

    async def one(self, statement, *args):
        rows = await self.sql(statement, *args)
        return rows[0][0] if rows else None

    async def jobset(self, name="main", *, inputs=(), project="demo", due=True, **columns) -> UUID:
        project_id = await self.one(
            "INSERT INTO projects (name, repository_url) VALUES ($1, $2) "
            "ON CONFLICT (name) DO UPDATE SET description = '' RETURNING id",
            project,
            self.repository.url,
        )
        row = {
            "project_id": project_id,
            "name": name,
            "nix_expression": "release.nix",
            "flake_mode": False,
            "check_interval": 3600,
        } | columns
        names = ", ".join(row)
        places = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        jobset_id = await self.one(
            f"INSERT INTO jobsets ({names}) VALUES ({places}) RETURNING id", *row.values()
        )
        if not due:
            await self.sql("UPDATE jobsets SET next_check_at = NULL WHERE id = $1", jobset_id)
        for input_name, type_, value in inputs:
            await self.sql(
                "INSERT INTO jobset_inputs (jobset_id, name, input_type, value) "
                "VALUES ($1, $2, $3, $4)",
                jobset_id,
                input_name,
                type_,
                value,
            )
        return jobset_id

    async def evaluations_of(self, jobset_id):
        return await self.sql(
            "SELECT * FROM evaluations WHERE jobset_id = $1 ORDER BY number", jobset_id
        )

    async def until(self, condition, *, seconds=20.0):
        """Wait until the awaited ``condition()`` is truthy; its value."""
        deadline = time.monotonic() + seconds
        while True:
            value = await condition()
            if value:
                return value
            if time.monotonic() > deadline:
                state = await self.sql(
                    "SELECT status, status_reason, error_message, attempt FROM evaluations"
                )
                looks = await self.sql("SELECT name, last_error, check_reason FROM jobsets")
                raise AssertionError(f"never came: {state} {looks}")
            await asyncio.sleep(0.02)

    async def ended(self, jobset_id, count=1):
        """The evaluations of a jobset once ``count`` of them have ended."""

        async def done():
            rows = await self.evaluations_of(jobset_id)
            ended = [r for r in rows if r["status"] not in {"pending", "running"}]
            return rows if len(ended) >= count else None

        return await self.until(done)

    def release(self, text: str, **more) -> str:
        """Commit a release.nix and perhaps other files."""
        files = {"release.nix": f"{{ ... }}@given: let drv = {DRV}; in {text}"}
        return self.repository.commit(files | more)


@pytest.fixture
async def world(database, git_host, nix, tmp_path):
    world = World(database, git_host, nix, tmp_path / "state")
    world.folder.mkdir()
    await world.listener.start()
    await world.listener.connected.wait()
    yield world
    await world.stop()
    await world.listener.stop()


def script(path: Path, text: str) -> Path:
    """A program on PATH."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path


def collect_garbage(nix) -> None:
    subprocess.run(["nix-store", "--gc"], env=nix.env, check=True, capture_output=True)
