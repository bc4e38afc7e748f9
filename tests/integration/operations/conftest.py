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
from fc_operator.errors import UnavailableError
from fc_operator.evaluator import roots
from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import DrvPath, Owner, StorePath
from fc_operator.model.jobs import JobMeta, JobRow
from fc_operator.model.outcomes import Harvest, Outcome, OutputInfo, Retry
from fc_operator.model.statuses import OUTPUTS_VALID, BuildStatus, EvaluationStatus
from fc_operator.model.tasks import StepEnded
from fc_operator.operations import steps
from fc_operator.operations.ingest import Ingest
from fc_operator.operations.steps import StepResult
from fc_operator.queue import claims
from fc_operator.queue.offers import Offer
from fc_operator.settings import BuildSettings, NixSettings, QueueSettings
from fc_operator.store.claims import Lease


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
        for patience in range(5):
            try:
                async with self.database.session() as connection:
                    return await connection.fetch(statement, *args)
            except UnavailableError:
                # A test that cuts sessions cuts those of its own questions too.
                if patience == 4:
                    raise
        return None

    async def one(self, statement, *args):
        rows = await self.sql(statement, *args)
        return rows[0][0] if rows else None

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
            attr_path=tuple(name.split(".")),
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

    async def invariants(self):
        """What must hold whenever no transaction is open; a list of what does not."""
        broken = {
            "blockers are counted right": """
                SELECT s.id FROM steps s WHERE s.status = 'pending' AND NOT s.check_mode AND s.blockers <> (
                    SELECT count(*) FROM step_edges e JOIN steps n ON n.id = e.needs_step_id
                    WHERE e.step_id = s.id AND NOT fc_outputs_valid(n.status, n.check_mode))""",
            "what is ready is queued, and nothing else": """
                SELECT s.id FROM steps s LEFT JOIN ready_steps r ON r.step_id = s.id
                WHERE (s.status = 'pending' AND (s.blockers = 0 OR s.check_mode)
                    AND s.not_before IS NULL) <> (r.step_id IS NOT NULL)""",
            "what runs has a lease, and nothing else": """
                SELECT s.id FROM steps s LEFT JOIN leases l
                    ON l.step_id = s.id AND l.attempt = s.attempt
                WHERE (s.status = 'running') <> (l.step_id IS NOT NULL)""",
            "live builds follow their step": """
                SELECT b.id FROM builds b LEFT JOIN steps s ON s.id = b.step_id
                WHERE b.status IN ('pending', 'running') AND b.status IS DISTINCT FROM s.status""",
            "nothing waits for what has failed": """
                SELECT s.id FROM steps s JOIN step_edges e ON e.step_id = s.id
                JOIN steps n ON n.id = e.needs_step_id
                WHERE s.status IN ('pending', 'running') AND n.status NOT IN ('pending', 'running')
                    AND NOT fc_outputs_valid(n.status, n.check_mode)""",
            "what waits is wanted": """
                SELECT s.id FROM steps s WHERE s.status = 'pending' AND NOT EXISTS (
                    SELECT FROM builds b WHERE b.step_id = s.id AND b.status IN ('pending', 'running')
                ) AND NOT EXISTS (SELECT FROM step_edges e JOIN steps d ON d.id = e.step_id
                    WHERE e.needs_step_id = s.id AND d.status IN ('pending', 'running'))""",
            "every ended attempt of a build is in its history once": """
                SELECT a.step_id FROM attempts a LEFT JOIN build_steps h
                    ON h.step_id = a.step_id AND h.attempt = a.attempt AND h.build_id = a.build_id
                WHERE a.build_id IS NOT NULL AND a.ended_at IS NOT NULL
                GROUP BY a.step_id, a.attempt HAVING count(h.id) <> 1""",
            "evaluations end with their last build": """
                SELECT e.id FROM evaluations e WHERE e.status NOT IN ('pending', 'running')
                    AND (e.builds_ended_at IS NULL) <> EXISTS (SELECT FROM builds b
                        WHERE b.evaluation_id = e.id AND b.status IN ('pending', 'running'))""",
            "tasks live as long as their leases": """
                SELECT t.id FROM tasks t WHERE t.kind = 'steps' AND (t.state = 'live') <>
                    EXISTS (SELECT FROM leases l WHERE l.task_id = t.id)""",
        }
        return [name for name, query in broken.items() if await self.sql(query)]

    async def statuses(self, fence) -> dict[str, str]:
        return {name: build["status"] for name, build in (await self.builds(fence)).items()}


def fake_drv(name: str) -> DrvPath:
    digest = (name.encode().hex() + "0" * 32)[:32].replace("e", "g").replace("u", "v")
    return DrvPath(f"/nix/store/{digest}-{name}.drv")


@pytest.fixture
async def engine(database):
    """An engine whose Nix is never asked: rows tell everything."""
    client = Nix(NixSettings(), {"PATH": "/nonexistent"})
    return Engine(
        database, Ingest(database, client, BuildSettings(), roots_dir=Path("/nonexistent"))
    )


@pytest.fixture
async def nix_engine(database, nix):
    """An engine on a private, real Nix store."""
    client = Nix(NixSettings(store_dir=str(nix.store_dir)), nix.env)
    ingest = Ingest(database, client, BuildSettings(), roots_dir=roots.default_dir(nix.env))
    return Engine(database, ingest, nix=nix)


def as_json(value):
    return json.loads(value) if isinstance(value, str) else value


class Worker:
    """Claims steps and ends them as told, through the same operations as a dispatcher."""

    def __init__(self, engine, *, owner="worker", systems=("x86_64-linux",), **settings):
        self.engine = engine
        self.owner = Owner(owner)
        self.offer = Offer(systems=systems, features=("kvm",))
        self.queue = QueueSettings()
        self.builds = BuildSettings(**settings)
        self.held = {}

    async def claim(self, free=100):
        steps = await claims.claim(
            self.engine.database,
            self.offer,
            free,
            owner=self.owner,
            executor="test",
            settings=self.queue,
        )
        self.held |= {step.name: step for step in steps}
        return sorted(step.name for step in steps)

    async def end(self, *names, status=BuildStatus.SUCCEEDED, retry=Retry.NEVER, reason="", **more):
        """End held steps; the names of those that were accepted."""
        results = [self.result(self.held[name], status, retry, reason, **more) for name in names]
        finished = await steps.finish(self.engine.database, results, self.builds)
        return sorted(n for n in names if self.held[n].id in finished.accepted)

    @staticmethod
    def result(step, status, retry=Retry.NEVER, reason="", **more):
        harvest = Harvest()
        if status in OUTPUTS_VALID:
            outputs = tuple(
                OutputInfo(name=n, path=p, nar_hash="sha256:x", nar_size_bytes=10)
                for n, p in step.outputs.items()
            )
            harvest = Harvest(outputs=outputs, **more)
            more = {}
        outcome = Outcome(
            status=status, retry=retry, reason=reason or "Test", harvest=harvest, **more
        )
        return StepResult(
            lease=Lease(step_id=step.id, attempt=step.attempt, task_id=step.task_id),
            ended=StepEnded(step_id=step.id, attempt=step.attempt, outcome=outcome),
        )

    async def run_all(self, outcome_of=lambda _: BuildStatus.SUCCEEDED, limit=10_000):
        """Claim and end until nothing is ready; the order of the ends."""
        order = []
        while names := await self.claim():
            for name in names:
                await self.end(name, status=outcome_of(name))
            order += names
            assert len(order) <= limit
        return order


@pytest.fixture
def worker(engine):
    return Worker(engine)


@pytest.fixture
def engine_types():
    """For who makes engines without an event loop of pytest's."""
    return Engine, Worker
