"""`fc agent` in real pods, restricted and with the image's own Nix, against a real `fc server`.

Pods are made here by hand from the definitions of `executors.pods`; who makes them otherwise, and
judges their ends, is tested elsewhere.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fc_operator.cache import signing
from fc_operator.cache.knowledge import CacheKnowledge
from fc_operator.clients.objects import ObjectStore
from fc_operator.evaluator import rows
from fc_operator.executors import pods
from fc_operator.executors.targets import Target
from fc_operator.kit.ciphers import Cipher, Ed25519Key
from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import CommitId, EvaluationId, Owner, TaskId
from fc_operator.model.jobs import JobError, JobRow
from fc_operator.model.work import Credentials, EvaluationReport, EvaluationWork, GitWork, NixWork
from fc_operator.operations import tasks
from fc_operator.operations.ingest import Ingest
from fc_operator.queue import claims
from fc_operator.queue.offers import Offer
from fc_operator.settings import BuildSettings, KubernetesSettings, QueueSettings
from fc_operator.store.database import Database
from tests.cluster import parts

FC = Path(sys.executable).with_name("fc")
SECRET = b"k" * 32
KEY = signing.SigningKey("test-1", Ed25519Key(b"1" * 32))
SYSTEM = "x86_64-linux"
FILES = {
    "release.nix": f"""let job = name: needs: derivation {{
        inherit name needs; system = "{SYSTEM}"; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
        args = [ "-c" ''echo making $name
          for i in $(seq 20); do echo at $i; sleep 0.2; done
          mkdir -p $out/nix-support; cp $needs $out/data; id -u
          echo "file data $out/data" > $out/nix-support/hydra-build-products'' ]; }};
        # Imported while it evaluates, so that it is built in the evaluation's own pod.
        plain = derivation {{ name = "plain"; system = "{SYSTEM}"; builder = "/bin/sh";
          args = [ "-c" "echo yes > $out" ]; }};
      in rec {{
        base = job "base" ./data;
        top = if builtins.readFile plain == "yes\n" then job "top" "${{base}}/data" else null;
        inherit plain;
      }}""".encode(),
    "data": b"content\n",
}


@dataclass
class Server:
    """`fc server` as a process, with the binary cache."""

    folder: Path
    database_url: str
    port: int
    process: subprocess.Popen | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "server.log"

    @property
    def url(self) -> str:
        return f"http://{parts.MACHINE}:{self.port}"

    def start(self) -> None:
        env = {
            "PATH": os.environ["PATH"],
            "FC_DATABASE_URL": self.database_url,
            "FC_STATE_DIR": str(self.folder / "state"),
            "FC_ENCRYPTION_KEY": base64.b64encode(SECRET).decode(),
            "FC_CACHE_SIGNING_KEYS": KEY.secret,
            "FC_WEB_HOST": parts.HOST,
            "FC_WEB_PORT": str(self.port),
            "FC_WEB_ANONYMOUS_READ": "Always",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [FC, "server"], env=env, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 30
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            url = f"http://{parts.HOST}:{self.port}/cache/nix-cache-info"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(number)
            process.wait(20)


class World:
    """One database, one server, pods in one namespace."""

    def __init__(self, background, database, server, kubectl, image, git_host):  # noqa: PLR0917
        self.background, self.database, self.server = background, database, server
        self.kubectl, self.image, self.git_host = kubectl, image, git_host

    def run(self, work):
        return self.background.run(work)

    def sql(self, text, *values):
        async def ask():
            async with self.database.session() as connection:
                return await connection.fetch(text, *values)

        return self.run(ask())

    def one(self, text, *values):
        found = self.sql(text, *values)
        return found[0][0] if found else None

    @property
    def nix_work(self) -> NixWork:
        return NixWork(cache_url=f"{self.server.url}/cache", cache_public_keys=(KEY.public,))

    def give(self, task_id, work, credentials=None) -> None:
        sealed = credentials and tasks.seal_credentials(Cipher(SECRET), task_id, credentials)
        self.sql(
            "UPDATE tasks SET work = $2, credentials_ciphertext = $3 WHERE id = $1",
            task_id, work.to_json(), sealed,
        )  # fmt: skip

    def make_pod(self, kind: str, task_id) -> str:
        """Make a task's pod; its name."""
        order = pods.PodOrder(
            kind=kind,
            task_id=TaskId(task_id),
            project="demo",
            jobset="main",
            target=Target(name="default", namespace=self.kubectl.arguments[0].split("=")[1]),
        )
        settings = KubernetesSettings(
            image=self.image, image_pull_policy="Never", server_url=self.server.url
        )
        token = tasks.opening_token(Cipher(SECRET), TaskId(task_id)).text
        self.kubectl.apply(pods.with_token(pods.definition(order, settings, "test"), token))
        return pods.name_of(kind, TaskId(task_id))

    def wait(self, name: str, timeout_s: float = 180) -> str:
        """How a pod ended; its log where it ended badly."""
        phase = self.kubectl.wait_for(
            lambda: (said := self.kubectl("get", "pod", name, "-o", "jsonpath={.status.phase}"))
            in {"Succeeded", "Failed"} and said,
            f"{name} to end",
            timeout_s=timeout_s,
        )  # fmt: skip
        return phase if phase == "Succeeded" else f"{phase}: {self.log(name)}"

    def log(self, name: str) -> str:
        return self.kubectl("logs", name, "--all-containers")

    def evaluation(self) -> EvaluationFence:
        """A commit of ``FILES`` that waits for its pod."""
        name = f"agent-{uuid.uuid4().hex[:8]}"
        commit = self.git_host.commit(name, FILES)
        project = self.one(
            "INSERT INTO projects (name, repository_url) VALUES ($1, 'https://example.org')"
            " RETURNING id", name,
        )  # fmt: skip
        jobset = self.one(
            "INSERT INTO jobsets (project_id, name, nix_expression)"
            " VALUES ($1, 'main', 'release.nix') RETURNING id", project,
        )  # fmt: skip
        evaluation = self.one(
            "INSERT INTO evaluations (jobset_id, commit_hash, status)"
            " VALUES ($1, $2, 'running') RETURNING id", jobset, commit,
        )  # fmt: skip
        task = self.one(
            "INSERT INTO tasks (kind, evaluation_id, owner, expires_at)"
            " VALUES ('evaluation', $1, 'test', now() + interval '1 hour') RETURNING id",
            evaluation,
        )
        self.sql("UPDATE evaluations SET task_id = $2 WHERE id = $1", evaluation, task)
        fence = EvaluationFence(evaluation_id=EvaluationId(evaluation), task_id=TaskId(task))
        work = EvaluationWork(
            task_id=fence.task_id,
            evaluation_id=fence.evaluation_id,
            repository_url=f"{self.git_host.url}/{name}.git",
            commit=CommitId(commit),
            expression="release.nix",
            is_flake=False,
            allow_import_from_derivation=True,
            git=GitWork(allowed_schemes=("http",), allowed_hosts=(self.git_host.host,)),
            nix=self.nix_work,
        )
        self.give(task, work, Credentials())
        return fence

    def ingest(self, fence: EvaluationFence) -> EvaluationReport:
        """Take an evaluation's reports as a scheduler without Nix does; the last of them."""
        objects = ObjectStore.open(self.server.folder / "state" / "objects")
        knowledge = CacheKnowledge(self.database, objects, store_dir="/nix/store")
        ingest = Ingest(
            self.database, knowledge, BuildSettings(), roots_dir=self.server.folder / "roots"
        )
        reports = self.sql(
            "SELECT payload FROM task_reports WHERE task_id = $1 ORDER BY seq", fence.task_id
        )
        *batches, end = [tasks.read_report(report["payload"]) for report in reports]
        assert isinstance(end, EvaluationReport)

        async def take() -> None:
            for batch in batches:
                items = [
                    rows.parse_row(data, store_dir="/nix/store", name_of_root="release.nix")
                    for data in batch
                ]
                await ingest.add(
                    fence,
                    [item for item in items if isinstance(item, JobRow)],
                    [item for item in items if isinstance(item, JobError)],
                )
            await ingest.finish(fence, EvaluationEnd(status=end.status))

        self.run(take())
        return end

    def claim(self) -> TaskId | None:
        """A batch of what can be built now, as a task with its work."""
        offer = Offer(systems=(SYSTEM,))
        found = self.run(
            claims.claim(
                self.database, offer, 8, owner=Owner("pods"), executor="pod",
                settings=QueueSettings(lease_s=120),
            )
        )  # fmt: skip
        if not found:
            return None
        task_id = found[0].task_id
        work = tasks.steps_work(
            task_id, found, builds=BuildSettings(), nix=self.nix_work, slots=2, stop_grace_s=20
        )
        self.give(task_id, work)
        return task_id

    def until(self, question: str, *values, timeout_s: float = 90) -> None:
        """Wait until a query answers with something true."""
        self.kubectl.wait_for(lambda: self.one(question, *values), question, timeout_s=timeout_s)


@pytest.fixture
def world(background, database_url, kubectl, namespace, image, git_host, tmp_path):  # noqa: PLR0917
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    # Pods reach the server and nothing else, so any database of this machine will do.
    database = background.run(Database.open(database_url, size=6))
    with socket.socket() as free:
        free.bind((parts.HOST, 0))
        port = free.getsockname()[1]
    server = Server(tmp_path, database_url, port)
    server.start()
    yield World(background, database, server, kubectl.within(namespace), image, git_host)
    server.stop()
    background.run(database.close())


def test_a_commit_is_evaluated_and_built_in_restricted_pods(world):
    fence = world.evaluation()
    name = world.make_pod(pods.EVALUATION, fence.task_id)
    assert world.wait(name) == "Succeeded", world.log(name)
    end = world.ingest(fence)
    assert (end.status.value, end.evaluator) == ("completed", "walker"), end.message
    assert "2.26" in end.evaluator_version, "the image's Nix, not this machine's"
    first = world.claim()
    name = world.make_pod(pods.BUILD, first)
    world.until("SELECT count(*) FROM log_chunks")
    world.server.stop(signal.SIGKILL)
    world.server.start()
    assert world.wait(name) == "Succeeded"
    second = world.claim()
    assert second is not None, "top can be built, since base is in the cache"
    assert world.wait(world.make_pod(pods.BUILD, second)) == "Succeeded"
    builds = world.sql("SELECT job_name, status FROM builds ORDER BY job_name")
    ended = {row["job_name"]: row["status"] for row in builds}
    assert ended == dict.fromkeys(("base", "plain", "top"), "succeeded")
    assert world.one("SELECT max(attempt) FROM steps") == 1, "the restart cost nothing"
    for build in world.sql("SELECT id, job_name FROM builds WHERE job_name <> 'plain'"):
        url = f"http://{parts.HOST}:{world.server.port}/api/v1/builds/{build['id']}/log"
        request = urllib.request.Request(url, headers={"Accept": "text/plain"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            log = answer.read().decode().splitlines()
        assert log == [f"making {build['job_name']}", *(f"at {n}" for n in range(1, 21)), "65532"]
    assert world.one("SELECT count(*) FROM build_products WHERE name = 'data'") == 2


def test_a_deleted_build_pod_gives_its_steps_back_in_time(world):
    fence = world.evaluation()
    assert world.wait(world.make_pod(pods.EVALUATION, fence.task_id)) == "Succeeded"
    world.ingest(fence)
    name = world.make_pod(pods.BUILD, world.claim())
    world.until("SELECT count(*) FROM log_chunks")
    began_s = time.monotonic()
    world.kubectl("delete", "pod", name, "--wait=true")
    assert time.monotonic() - began_s < 20, "within its grace period"
    step = world.sql("SELECT status, infra_failures FROM steps WHERE name = 'base'")[0]
    assert tuple(step) == ("pending", 0), "back in the queue, and nothing is charged"
    assert world.one("SELECT count(*) FROM leases") == 0


def test_a_pod_holds_no_key_to_anything_but_its_task(world):
    fence = world.evaluation()
    name = world.make_pod(pods.EVALUATION, fence.task_id)
    assert world.wait(name) == "Succeeded"
    said = json.dumps(world.kubectl.json("get", "pod", name))
    assert "serviceaccount" not in said
    # The one token of its definition opens nothing any more.
    token = tasks.opening_token(Cipher(SECRET), fence.task_id).text
    request = urllib.request.Request(
        f"http://{parts.HOST}:{world.server.port}/api/v1/tasks/{fence.task_id}/credentials",
        headers={"Authorization": f"Bearer {token}"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    assert refused.value.code in {401, 410}
