"""Evaluations in pods: the real service, PostgreSQL, server and agents' client; the cluster is played,
pods being told what to do by each test.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fc_operator.access import tasks as tokens
from fc_operator.clients.git import Git
from fc_operator.clients.nix import Missing
from fc_operator.clients.objects import ObjectStore
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.clients.task_protocol import TaskClient
from fc_operator.errors import LeaseLostError, NotFoundError, UnavailableError
from fc_operator.evaluator.find import Evaluators
from fc_operator.kit.ciphers import Cipher
from fc_operator.model import work
from fc_operator.model.derivations import name_of
from fc_operator.model.jobs import Derivation, JobError
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.model.work import CheckoutReport, EvaluationReport, OpenRequest, Phase
from fc_operator.operations import evaluations as operations
from fc_operator.operations import tasks
from fc_operator.operations.ingest import Ingest
from fc_operator.scheduler.evaluate import EvaluationService
from fc_operator.scheduler.evaluation_pods import PodStream
from fc_operator.settings import (
    BuildSettings,
    EvaluationSettings,
    GitSettings,
    KubernetesSettings,
    NixSettings,
    QueueSettings,
    Settings,
    StateSettings,
    WebSettings,
)
from fc_operator.store.database import notify
from fc_operator.store.listener import TASKS, Listener
from fc_operator.web.server import WebService

_PATH = Path(__file__).parents[1] / "operations" / "conftest.py"
if "engine_conftest" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("engine_conftest", _PATH)
    sys.modules["engine_conftest"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["engine_conftest"])
_engine = sys.modules["engine_conftest"]
engine = _engine.engine

CIPHER = Cipher(b"k" * 32)
GIT = GitSettings(allowed_hosts=("git.example.org",))
DONE = EvaluationReport(
    status=EvaluationStatus.COMPLETED,
    evaluator="walker",
    evaluator_version="2.26",
    evaluation_ms=40,
)


class Pod:
    """An agent, one phase after the other."""

    def __init__(self, world, task_id) -> None:
        self.world, self.task_id = world, task_id
        self.seq = 0
        self.client: TaskClient | None = None
        self.work: work.EvaluationWork | None = None
        self.credentials: work.Credentials | None = None

    @contextlib.asynccontextmanager
    async def phase(self, phase):
        token = tokens.make(self.task_id)
        async with TaskClient(self.world.url, self.task_id, token.text) as client:
            opening = tasks.opening_token(CIPHER, self.task_id).text
            opened = await client.open(opening, OpenRequest(phase=phase, token_hash=token.hash))
            self.work, self.client = opened.work, client
            yield client

    async def fetch(self, **more):
        async with self.phase(Phase.FETCH) as client:
            self.credentials = await client.credentials()
            checkout = CheckoutReport(tree="t" * 40, subject="Say hello", author="Ada <a@b>", ms=7)
            await client.fetched(replace(checkout, **more))

    async def rows(self, *items):
        (body,) = work.bodies(map(work.row_to_json, items))
        assert await self.client.rows(self.seq, body) == self.seq + 1
        self.seq += 1

    async def evaluate(self, *batches, end=DONE):
        """A whole work phase."""
        async with self.phase(Phase.WORK) as client:
            for batch in batches:
                await self.rows(*batch)
            await client.end(end)


class World:
    """A scheduler and a server on one database, and a cluster that does as it is told."""

    def __init__(self, engine, folder) -> None:
        self.engine, self.database, self.folder = engine, engine.database, folder
        self.queue = QueueSettings(
            lease_s=6, agent_lease_s=6, heartbeat_s=1, margin_s=1, poll_s=0.2
        )
        self.listener = Listener(self.database)
        self.secrets = DirectorySecrets(folder / "secrets")
        self.services: list = []
        self.server: WebService | None = None
        self.pods: list[Pod] = []
        self.dismissed: list = []
        self.deadlines: list[int] = []
        self.running: list[asyncio.Task] = []
        self.scripts: list = []
        """What the pods do, one after the other; the last one for all that follow."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # The cluster

    async def launch(self, task_id, *, deadline_s=0):
        script = self.scripts[min(len(self.pods), len(self.scripts) - 1)]
        pod = Pod(self, task_id)
        self.pods.append(pod)
        self.deadlines.append(deadline_s)
        self.running.append(asyncio.create_task(script(pod)))

    async def dismiss(self, task_id):
        self.dismissed.append(task_id)

    async def end_pod(self, pod, reason, kind, message="said the cluster"):
        async with self.database.transaction() as connection:
            await connection.execute(
                "UPDATE tasks SET pod_phase = 'Failed', pod_ending = $2 WHERE id = $1",
                pod.task_id,
                {"reason": reason, "message": message, "class": kind},
            )
            await notify(connection, TASKS, str(pod.task_id))

    # The installation

    async def serve(self, port=0):
        self.server = WebService(
            database=self.database,
            listener=self.listener,
            objects=ObjectStore.open(self.folder / "objects"),
            secrets=self.secrets,
            cipher=CIPHER,
            settings=Settings(
                web=WebSettings(port=port), queue=self.queue, state=StateSettings(dir=self.folder)
            ),
        )
        await self.server.start()
        self.port = int(self.server.url.rpartition(":")[2])

    def scheduler(self, image="fc:1", **more) -> EvaluationService:
        evaluation = EvaluationSettings(fetch_timeout_s=30)
        nix = NixSettings()
        env = {"PATH": "/nonexistent"}
        git = Git(GIT, self.folder / "mirrors")
        ingest = Ingest(self.database, Told(), BuildSettings(), roots_dir=Path("/nonexistent"))
        stream = PodStream(
            database=self.database,
            listener=self.listener,
            secrets=self.secrets,
            cipher=CIPHER,
            git=git,
            ingest=ingest,
            launcher=self,
            nix=tasks.nix_work(nix, cache_url=f"{self.url}/cache", cache_public_keys=("fc:k",)),
            evaluation=evaluation,
            kubernetes=KubernetesSettings(image=image),
            queue=self.queue,
        )
        home = self.folder / "home"
        return EvaluationService(
            database=self.database,
            listener=self.listener,
            git=git,
            secrets=self.secrets,
            ingest=ingest,
            evaluators=Evaluators(nix=nix, evaluation=evaluation, env=env, home=home),
            nix=nix,
            evaluation=evaluation,
            queue=self.queue,
            work_dir=self.folder / "work",
            roots_dir=self.folder / "roots",
            env=env,
            home=home,
            stream=stream,
            **more,
        )

    async def start(self, *scripts, **more):
        self.scripts = list(scripts)
        service = self.scheduler(**more)
        await service.start()
        self.services.append(service)
        return service

    async def stop(self):
        for service in reversed(self.services):
            await service.stop()
        for task in self.running:
            task.cancel()
        told = await asyncio.gather(*self.running, return_exceptions=True)
        await self.server.stop()
        await self.listener.stop()
        broken = [error for error in told if isinstance(error, AssertionError)]
        assert not broken, broken

    # Questions

    async def evaluation(self, jobset_id=None, **columns):
        """A pending evaluation; its id."""
        if jobset_id is None:
            jobset_id = await self.engine.jobset()
        columns = {
            "commit_hash": "a" * 40,
            "jobset_id": jobset_id,
            "status": "pending",
        } | columns
        marks = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
        return await self.engine.one(
            f"INSERT INTO evaluations ({', '.join(columns)}) VALUES ({marks}) RETURNING id",
            *columns.values(),
        )

    async def row(self, evaluation_id):
        (row,) = await self.engine.sql("SELECT * FROM evaluations WHERE id = $1", evaluation_id)
        return row

    async def until(self, condition, *, within_s=30):
        deadline_s = time.monotonic() + within_s
        while not (value := await condition()):
            for task in self.running:
                if task.done() and not task.cancelled() and task.exception():
                    raise task.exception()
            assert time.monotonic() < deadline_s, await self.engine.sql(
                "SELECT status, status_reason, error_message, attempt FROM evaluations"
            )
            await asyncio.sleep(0.02)
        return value

    async def ended(self, evaluation_id):
        async def done():
            row = await self.row(evaluation_id)
            return row if row["status"] not in {"pending", "running"} else None

        return await self.until(done)

    async def jobs(self):
        rows = await self.engine.sql("SELECT job_name FROM builds ORDER BY job_name")
        return [row["job_name"] for row in rows]


class Told:
    """What is known of derivations where rows tell everything: they are all there, none is built."""

    store_dir = "/nix/store"

    async def missing(self, drv_paths):
        return Missing(will_build=tuple(drv_paths))

    async def derivations(self, drv_paths):
        return {
            drv: Derivation(
                drv_path=drv,
                name=name_of(drv),
                system="x86_64-linux",
                outputs={"out": drv.removesuffix(".drv")},
                input_drvs={},
            )
            for drv in drv_paths
        }

    async def registrations(self, paths):
        return {}

    async def add_roots(self, paths, link):
        pass

    async def present(self, paths):
        return True


@pytest.fixture
async def world(engine, tmp_path):
    world = World(engine, tmp_path)
    await world.listener.start()
    await world.listener.connected.wait()
    await world.serve()
    yield world
    await world.stop()


async def gone(call):
    """An agent is told that its task is over."""
    with pytest.raises(LeaseLostError):
        await call


async def until_gone(client):
    """Live until the task is over."""
    with contextlib.suppress(LeaseLostError):
        while True:
            await client.heartbeat([])
            await asyncio.sleep(0.02)


# A whole one --------------------------------------------------------------------------------------


async def test_an_evaluation_runs_in_a_pod_and_its_jobs_are_builds_before_it_ends(world):
    told = world.engine.told
    go_on = asyncio.Event()

    async def script(pod):
        await pod.fetch()
        async with pod.phase(Phase.WORK) as client:
            await pod.rows(told("a"), JobError(attr_path=("bad",), message="no"))
            await pod.rows(told("b"))
            await go_on.wait()
            await client.end(DONE)

    evaluation_id = await world.evaluation()
    await world.start(script)

    async def streamed():
        return await world.jobs() == ["a", "b"] or None

    await world.until(streamed)
    running = await world.row(evaluation_id)
    assert (running["status"], running["subject"]) == ("running", "Say hello")
    assert await world.engine.one("SELECT count(*) FROM ready_steps") == 2
    go_on.set()
    row = await world.ended(evaluation_id)
    assert (row["status"], row["error_message"], row["jobs"], row["errors"]) == (
        "completed", None, 2, 1,
    )  # fmt: skip
    assert (row["evaluator"], row["evaluator_version"]) == ("walker", "2.26")
    assert (row["checkout_ms"], row["evaluation_ms"], row["tree_hash"]) == (7, 40, "t" * 40)
    (pod,) = world.pods
    assert pod.work.commit == "a" * 40
    assert pod.work.nix.cache_public_keys == ("fc:k",)
    assert pod.work.git.allowed_hosts == ("git.example.org",)
    assert world.deadlines == [3600 + 30]
    (task,) = await world.engine.sql("SELECT * FROM tasks")
    assert (task["executor"], task["state"]) == ("pod", "ended")

    async def emptied():
        return await world.engine.one("SELECT count(*) = 0 FROM task_reports")

    await world.until(emptied)
    assert world.dismissed == []
    assert await world.engine.invariants() == []


async def test_more_reports_than_are_kept_unread_all_come_through(world):
    async def script(pod):
        await pod.fetch()
        await pod.evaluate(*([world.engine.told(f"j{n:03}")] for n in range(100)))

    evaluation_id = await world.evaluation()
    await world.start(script)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["jobs"]) == ("completed", 100)
    assert await world.jobs() == [f"j{n:03}" for n in range(100)]


async def test_the_same_again_is_reused_without_a_pod_unless_the_image_is_another(world):
    async def script(pod):
        await pod.fetch()
        await pod.evaluate([world.engine.told("a")])

    jobset_id = await world.engine.jobset()
    first = await world.evaluation(jobset_id)
    service = await world.start(script)
    await world.ended(first)
    second = await world.evaluation(jobset_id)
    row = await world.ended(second)
    assert (row["status"], row["status_reason"], len(world.pods)) == ("completed", "Reused", 1)
    await service.stop()
    world.services.clear()
    third = await world.evaluation(jobset_id)
    await world.start(script, image="fc:2")
    row = await world.ended(third)
    assert (row["status"], len(world.pods)) == ("completed", 2)


# What decides before there is a pod ---------------------------------------------------------------


async def test_credentials_of_the_project_reach_the_fetch_alone(world):
    secret = world.folder / "secrets" / "git"
    secret.mkdir(parents=True)
    (secret / "username").write_text("ci")
    (secret / "password").write_text("hunter2")
    inputs = {
        "same": "https://git.example.org/other.git main",
        "foreign": "https://elsewhere.example.org/x.git main",
    }
    jobset_id = await world.engine.jobset()
    await world.engine.sql(
        "UPDATE projects SET repository_url = 'https://git.example.org/a.git',"
        " credentials_secret = 'git'"
    )
    evaluation_id = await world.evaluation(jobset_id)
    for name, value in inputs.items():
        await world.engine.sql(
            "INSERT INTO evaluation_inputs (evaluation_id, name, input_type, value, revision)"
            " VALUES ($1, $2, 'git', $3, $4)",
            evaluation_id, name, value, "b" * 40,
        )  # fmt: skip

    async def script(pod):
        await pod.fetch(store_paths={"same": "/nix/store/" + "s" * 32 + "-source"})
        async with pod.phase(Phase.WORK) as client:
            with pytest.raises(NotFoundError):
                await client.credentials()
            foreign = {"foreign": "/nix/store/" + "f" * 32 + "-source", "bad": "/etc/passwd"}
            await client.end(replace(DONE, store_paths=foreign))

    await world.start(script)
    assert (await world.ended(evaluation_id))["status"] == "completed"
    found = {each.url: each.password for each in world.pods[0].credentials.credentials}
    assert found == {
        "https://git.example.org/a.git": "hunter2",
        "https://git.example.org/other.git": "hunter2",
    }
    whole = await world.engine.one("SELECT string_agg(t::text, '') FROM tasks t")
    assert "hunter2" not in whole
    paths = await world.engine.sql("SELECT name, store_path FROM evaluation_inputs ORDER BY name")
    assert [path["store_path"][11:12] for path in paths] == ["f", "s"]


async def test_a_secret_that_is_missing_or_bound_elsewhere_ends_it_before_a_pod(world):
    jobset_id = await world.engine.jobset()
    await world.engine.sql(
        "UPDATE projects SET repository_url = 'https://git.example.org/a.git',"
        " credentials_secret = 'git'"
    )
    await world.start(None)
    row = await world.ended(await world.evaluation(jobset_id))
    assert (row["status"], row["status_reason"]) == ("failed", "CheckoutFailed")
    assert "git" in row["error_message"]
    secret = world.folder / "secrets" / "git"
    secret.mkdir(parents=True)
    for key, value in {
        "username": "ci",
        "password": "p",
        "url": "https://git.example.org/b",
    }.items():
        (secret / key).write_text(value)
    row = await world.ended(await world.evaluation(jobset_id))
    assert (row["status"], row["status_reason"]) == ("failed", "CheckoutFailed")
    assert "bound to https://git.example.org/b" in row["error_message"]
    assert world.pods == []


async def test_a_path_of_a_machine_is_no_input_for_a_pod(world):
    evaluation_id = await world.evaluation()
    await world.engine.sql(
        "INSERT INTO evaluation_inputs (evaluation_id, name, input_type, value, revision)"
        " VALUES ($1, 'here', 'path', '/srv/data', 'x')",
        evaluation_id,
    )
    await world.start(None)
    row = await world.ended(evaluation_id)
    assert row["status"] == "failed"
    assert "/srv/data is a path of one machine" in row["error_message"]


# Ends that agents tell ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("report", "status", "reason"),
    [
        (
            EvaluationReport(
                status=EvaluationStatus.FAILED, reason="EvaluationFailed",
                error_kind="evaluation", message="\x1b[31merror:\x1b[0m no",
            ),
            "failed", "EvaluationFailed",
        ),
        (
            EvaluationReport(
                status=EvaluationStatus.TIMED_OUT, reason="TimeLimit",
                error_kind="limit", message="too long",
            ),
            "timed_out", "TimeLimit",
        ),
        (EvaluationReport(status=EvaluationStatus.RUNNING), "failed", "AgentBroke"),
        (
            EvaluationReport(status=EvaluationStatus.FAILED, error_kind="tea"),
            "failed", "AgentBroke",
        ),
    ],
    ids=["failed", "timed out", "no end", "no kind"],
)  # fmt: skip
async def test_what_the_agent_says_of_its_end_is_the_end(world, report, status, reason):
    async def script(pod):
        await pod.fetch()
        await pod.evaluate([world.engine.told("a")], end=report)

    evaluation_id = await world.evaluation()
    await world.start(script)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["status_reason"]) == (status, reason)
    assert "\x1b" not in (row["error_message"] or "")
    assert await world.jobs() == ["a"]


async def test_a_fetch_that_fails_is_the_end(world):
    async def script(pod):
        async with pod.phase(Phase.FETCH) as client:
            report = EvaluationReport(
                status=EvaluationStatus.FAILED, reason="CheckoutFailed",
                error_kind="fetch", message="the host does not answer", checkout_ms=12,
            )  # fmt: skip
            await client.end(report)
        with pytest.raises(LeaseLostError):
            async with pod.phase(Phase.WORK):
                pass

    evaluation_id = await world.evaluation()
    await world.start(script)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["status_reason"]) == ("failed", "CheckoutFailed")
    assert (row["error_message"], row["checkout_ms"]) == ("the host does not answer", 12)
    await asyncio.gather(*world.running)


async def test_rows_that_are_none_end_it_as_our_own_failure(world):
    async def script(pod):
        await pod.fetch()
        async with pod.phase(Phase.WORK) as client:
            await client.rows(0, b"[1, 2]\n")
            await until_gone(client)
            await gone(client.rows(1, b"{}"))

    evaluation_id = await world.evaluation()
    await world.start(script)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["status_reason"]) == ("failed", "AgentBroke")


async def test_an_agent_that_was_told_to_go_is_followed_by_another_at_no_charge(world):
    async def leaves(pod):
        await pod.fetch()
        await pod.evaluate(
            [world.engine.told("a")],
            end=EvaluationReport(status=EvaluationStatus.FAILED, interrupted=True),
        )

    async def stays(pod):
        await pod.fetch()
        await pod.evaluate([world.engine.told("a")], [world.engine.told("b")])

    evaluation_id = await world.evaluation()
    await world.start(leaves, stays)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["attempt"]) == ("completed", 1)
    assert await world.jobs() == ["a", "b"]
    assert len({pod.task_id for pod in world.pods}) == 2


# Pods that go without a word ----------------------------------------------------------------------


def dying(world, reason, kind, *, after=("a",)):
    """A pod that tells some rows and is then taken away."""

    async def script(pod):
        await pod.fetch()
        async with pod.phase(Phase.WORK):
            for name in after:
                await pod.rows(world.engine.told(name))
            await world.end_pod(pod, reason, kind)

    return script


async def test_a_pod_that_the_cluster_took_is_followed_by_another_at_no_charge(world):
    async def stays(pod):
        await pod.fetch()
        await pod.evaluate([world.engine.told("a")])

    evaluation_id = await world.evaluation()
    free = dying(world, "Preempted", "Free")
    await world.start(free, free, free, free, stays)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["attempt"], len(world.pods)) == ("completed", 1, 5)
    assert await world.jobs() == ["a"]
    assert world.dismissed == [pod.task_id for pod in world.pods[:4]]


async def test_what_is_lost_again_and_again_ends_with_the_reason(world):
    evaluation_id = await world.evaluation()
    await world.start(dying(world, "NodeLost", "Lost"))
    row = await world.ended(evaluation_id)
    assert (row["status"], row["status_reason"], row["attempt"]) == ("failed", "NodeLost", 3)
    assert row["error_message"] == "said the cluster"
    assert len(world.pods) == 3


@pytest.mark.parametrize(
    ("reason", "status", "shown"),
    [
        ("OOMKilled", "failed", "MemoryLimit"),
        ("DeadlineExceeded", "timed_out", "TimeLimit"),
        ("TargetNotAllowed", "failed", "TargetNotAllowed"),
    ],
)
async def test_endings_that_another_pod_would_share_are_the_end(world, reason, status, shown):
    evaluation_id = await world.evaluation()
    await world.start(dying(world, reason, "Charged"))
    row = await world.ended(evaluation_id)
    assert (row["status"], row["status_reason"]) == (status, shown)
    assert (row["error_message"], len(world.pods)) == ("said the cluster", 1)


async def test_all_that_was_told_counts_before_the_ending_does(world):
    """The pod's end may be seen before the last reports were read."""

    async def script(pod):
        await pod.fetch()
        await pod.evaluate(*([world.engine.told(f"j{n}")] for n in range(20)))
        await world.end_pod(pod, "Completed", "None")

    evaluation_id = await world.evaluation()
    world.scripts = [script]
    await world.start(script)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["jobs"], row["attempt"]) == ("completed", 20, 1)


async def test_an_agent_that_says_nothing_more_is_given_up(world):
    world.queue = replace(world.queue, lease_s=1.0, heartbeat_s=0.2, margin_s=0.1)

    async def silent(pod):
        await pod.fetch()
        async with pod.phase(Phase.WORK):
            await pod.rows(world.engine.told("a"))
            await asyncio.Event().wait()

    async def speaks(pod):
        await pod.fetch()
        await pod.evaluate([world.engine.told("a")])

    evaluation_id = await world.evaluation()
    await world.start(silent, speaks)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert world.dismissed == [world.pods[0].task_id]


# Cancels, schedulers and servers that go ----------------------------------------------------------


async def test_a_cancelled_evaluation_ends_its_pod(world):
    told = asyncio.Event()
    left = asyncio.Event()

    async def script(pod):
        await pod.fetch()
        async with pod.phase(Phase.WORK) as client:
            await pod.rows(world.engine.told("a"))
            told.set()
            await until_gone(client)
            await gone(client.rows(pod.seq, b"{}"))
            left.set()

    evaluation_id = await world.evaluation()
    await world.start(script)
    await told.wait()
    await operations.cancel(world.database, evaluation_id, "ada")
    row = await world.ended(evaluation_id)
    assert (row["status"], row["status_reason"]) == ("cancelled", "Cancelled")
    async with asyncio.timeout(10):
        await left.wait()

    async def dismissed():
        return world.dismissed == [world.pods[0].task_id]

    await world.until(dismissed)


async def test_a_scheduler_that_stops_gives_back_and_the_next_evaluates_anew(world):
    begun = asyncio.Event()

    async def first(pod):
        await pod.fetch()
        async with pod.phase(Phase.WORK) as client:
            await pod.rows(world.engine.told("a"))
            begun.set()
            await until_gone(client)

    async def second(pod):
        await pod.fetch()
        await pod.evaluate([world.engine.told("a")], [world.engine.told("b")])

    evaluation_id = await world.evaluation()
    service = await world.start(first, second)
    await begun.wait()
    await service.stop()
    assert (await world.row(evaluation_id))["status"] == "pending"
    assert world.dismissed == [world.pods[0].task_id]
    await world.start(first, second)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["attempt"]) == ("completed", 1)
    async with asyncio.timeout(10):
        await asyncio.gather(*world.running)
    assert await world.jobs() == ["a", "b"]


async def test_a_scheduler_that_dies_loses_its_lease_and_the_old_agent_its_task(world):
    world.queue = replace(world.queue, lease_s=2.0, heartbeat_s=0.3, margin_s=0.3)
    begun = asyncio.Event()

    async def first(pod):
        await pod.fetch()
        async with pod.phase(Phase.WORK) as client:
            await pod.rows(world.engine.told("a"))
            begun.set()
            await until_gone(client)
            await gone(client.rows(pod.seq, b"{}"))
            await gone(client.end(DONE))

    async def second(pod):
        await pod.fetch()
        await pod.evaluate([world.engine.told("a")])

    evaluation_id = await world.evaluation()
    service = await world.start(first, second)
    await begun.wait()
    # As a kill leaves it: nobody renews, nobody gives back.
    for loop in service._loops:
        await loop.stop()
    for held in service._held.values():
        held.holder.cancel()
        held.work.cancel()
    world.services.clear()
    await world.start(first, second)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["attempt"]) == ("completed", 2)
    async with asyncio.timeout(10):
        await asyncio.gather(*world.running)


async def test_a_server_that_restarts_costs_nothing(world):
    first_told, go_on = asyncio.Event(), asyncio.Event()

    async def script(pod):
        await pod.fetch()
        async with pod.phase(Phase.WORK) as client:
            await pod.rows(world.engine.told("a"))
            first_told.set()
            await go_on.wait()
            for n in range(10):
                await pod.rows(world.engine.told(f"b{n}"))
            await client.end(DONE)

    evaluation_id = await world.evaluation()
    await world.start(script)
    await first_told.wait()
    port = world.port
    await world.server.stop()
    go_on.set()
    # The agent finds nobody, and asks again.
    await asyncio.sleep(0.3)
    await world.serve(port)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["attempt"], row["jobs"]) == ("completed", 1, 11)
    assert len(world.pods) == 1


async def test_a_launcher_that_does_not_answer_is_asked_again(world):
    asked = []
    launch = world.launch

    async def refuses(task_id, **more):
        asked.append(task_id)
        if len(asked) < 3:
            raise UnavailableError("the API server is away")
        await launch(task_id, **more)

    world.launch = refuses

    async def script(pod):
        await pod.fetch()
        await pod.evaluate([world.engine.told("a")])

    evaluation_id = await world.evaluation()
    await world.start(script)
    row = await world.ended(evaluation_id)
    assert (row["status"], row["attempt"], len(set(asked)), len(asked)) == ("completed", 1, 1, 3)
