"""An engine to test: a private Nix store, and projects, jobsets and evaluations in a database."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from fc_operator.clients.nix import Nix
from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import DrvPath, StorePath
from fc_operator.model.jobs import JobMeta, JobRow
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.operations.ingest import Ingest
from fc_operator.settings import BuildSettings, NixSettings


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
nix, make_local = _shared.nix, _shared.make_local


@dataclass
class Engine:
    """What tests say to the database, in few words."""

    database: object
    ingest: Ingest
    nix: object = None

    async def sql(self, statement, *args):
        async with self.database.session() as connection:
            return await connection.fetch(statement, *args)

    async def one(self, statement, *args):
        async with self.database.session() as connection:
            return await connection.fetchval(statement, *args)

    async def jobset(self, name="main", *, project="demo", **columns) -> UUID:
        project_id = await self.one(
            "INSERT INTO projects (name, repository_url) VALUES ($1, 'https://example.org/x.git') "
            "ON CONFLICT (name) DO UPDATE SET description = '' RETURNING id",
            project,
        )
        row = {"project_id": project_id, "name": name, "nix_expression": "release.nix"} | columns
        marks = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        return await self.one(
            f"INSERT INTO jobsets ({', '.join(row)}) VALUES ({marks}) RETURNING id", *row.values()
        )

    async def evaluation(self, jobset_id, *, commit=None, **columns) -> EvaluationFence:
        """A running evaluation, held by a live task."""
        row = {
            "jobset_id": jobset_id,
            "commit_hash": commit or uuid4().hex + "00000000",
            "status": "running",
        } | columns
        marks = ", ".join(f"${n}" for n in range(1, len(row) + 1))
        evaluation_id = await self.one(
            f"INSERT INTO evaluations ({', '.join(row)}) VALUES ({marks}) RETURNING id",
            *row.values(),
        )
        task_id = await self.one(
            "INSERT INTO tasks (kind, evaluation_id, owner, expires_at) "
            "VALUES ('evaluation', $1, 'test', now() + interval '1 hour') RETURNING id",
            evaluation_id,
        )
        await self.sql("UPDATE evaluations SET task_id = $2 WHERE id = $1", evaluation_id, task_id)
        return EvaluationFence(evaluation_id=evaluation_id, task_id=task_id)

    async def evaluate(self, jobset_id, rows, errors=(), **columns) -> EvaluationFence:
        """One whole evaluation of ``rows``."""
        fence = await self.evaluation(jobset_id, **columns)
        await self.ingest.add(fence, rows, list(errors))
        await self.ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
        return fence

    def row(self, name: str, drv: str, **more) -> JobRow:
        """A job for a real .drv, as the walker tells it."""
        text = Path(drv).read_text()
        end = text.index("],[")
        outputs = {
            part.split('"')[0]: StorePath(part.split('"')[2]) for part in text[:end].split('("')[1:]
        }
        return JobRow(
            attr_path=tuple(name.split(".")),
            name=Path(drv).name[33:-4],
            system=_shared.own_system(),
            drv_path=DrvPath(drv),
            outputs=outputs,
            **more,
        )

    @staticmethod
    def told(
        name: str, *needs: str, system="x86_64-linux", features=(), meta=None, **more
    ) -> JobRow:
        """A job that an evaluator with cache status told of; its .drv exists only by name."""
        return JobRow(
            attr_path=(name,),
            name=name,
            system=system,
            drv_path=fake_drv(name),
            outputs={"out": StorePath(str(fake_drv(name)).removesuffix(".drv"))},
            input_drvs={fake_drv(need): ("out",) for need in needs},
            required_features=tuple(features),
            cache_status="notBuilt",
            needed_builds=tuple(fake_drv(need) for need in needs),
            meta=meta or JobMeta(),
            **more,
        )

    async def builds(self, fence) -> dict[str, dict]:
        rows = await self.sql("SELECT * FROM builds WHERE evaluation_id = $1", fence.evaluation_id)
        return {row["job_name"]: dict(row) for row in rows}

    async def steps(self) -> dict[str, dict]:
        return {row["name"]: dict(row) for row in await self.sql("SELECT * FROM steps")}

    async def statuses(self, fence) -> dict[str, str]:
        return {name: build["status"] for name, build in (await self.builds(fence)).items()}


def fake_drv(name: str) -> DrvPath:
    digest = (name.encode().hex() + "0" * 32)[:32].replace("e", "g").replace("u", "v")
    return DrvPath(f"/nix/store/{digest}-{name}.drv")


@pytest.fixture
async def engine(database):
    """An engine whose Nix is never asked: rows tell everything."""
    settings = BuildSettings()
    return Engine(
        database, Ingest(database, Nix(NixSettings(), {"PATH": "/nonexistent"}), settings)
    )


@pytest.fixture
async def nix_engine(database, nix):
    """An engine on a private, real Nix store."""
    settings = BuildSettings()
    client = Nix(NixSettings(store_dir=str(nix.store_dir)), nix.env)
    return Engine(database, Ingest(database, client, settings), nix=nix)


def as_json(value):
    return json.loads(value) if isinstance(value, str) else value
