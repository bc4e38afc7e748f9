"""The operator against a real API server: kubectl in, conditions out, nothing written at rest."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest

REPOSITORY = "https://git.example.org/team/demo.git"
API = "fc-operator.dev/v1alpha1"
FINALIZER = "fc-operator.dev/finalizer"


def project(name="demo", **spec):
    return manifest("Project", name, {"repositoryUrl": REPOSITORY, **spec})


def jobset(name="main", of="demo", **spec):
    return manifest("Jobset", name, {"projectRef": {"name": of}, **spec})


def manifest(kind, name, spec):
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.fixture
def crds(kubectl):
    """Our kinds, as the sources have them."""
    folder = Path(__file__).parents[2] / "crds"
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(folder))
    kubectl("wait", "--for=condition=Established", "crd", "-l", "!none", "--timeout=30s")


@dataclass
class Operator:
    """`fc operator` as a process; its log is kept for failures."""

    environment: dict[str, str]
    log: Path
    process: subprocess.Popen | None = None
    port: int = 0
    ports: list[int] = field(default_factory=list)

    def start(self) -> Operator:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("fc"), "operator"],
                env=self.environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.environment['FC_OPERATOR_HEALTH_PORT']}{path}"

    def answer(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url(path), timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def wait_ready(self, timeout_s: float = 40) -> Operator:
        end = time.monotonic() + timeout_s
        while self.answer("/readyz") != 200:
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)
        return self

    def text(self) -> str:
        return self.log.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        return process.wait(20)

    @property
    def rss_mib(self) -> float:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture
def make_operator(cluster, crds, database_url, tmp_path, free_port):
    made = []

    def make(**settings: str) -> Operator:
        own = {
            "FC_DATABASE_URL": database_url,
            "FC_STATE_DIR": str(tmp_path / f"state{len(made)}"),
            "FC_KUBERNETES_KUBECONFIG": cluster.environment()["KUBECONFIG"],
            "FC_KUBERNETES_INSTALLATION": "test",
            "FC_OPERATOR_LEASE_S": "3",
            "FC_OPERATOR_STATUS_S": "0.2",
            "FC_OPERATOR_HEALTH_PORT": str(free_port()),
            "FC_LOG_FORMAT": "Json",
            "FC_WEB_PUBLIC_URL": "https://ci.example.org",
            **settings,
        }
        environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        operator = Operator({**environment, **own}, tmp_path / f"operator{len(made)}.log")
        made.append(operator)
        return operator

    yield make
    for operator in made:
        operator.stop(signal.SIGKILL)
        print(operator.text())  # shown when the test failed


@pytest.fixture
def free_port():
    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture
def operator(make_operator, namespace):
    return make_operator(FC_OPERATOR_NAMESPACES=namespace).start()


@pytest.fixture
def here(kubectl, namespace):
    """kubectl in the test's namespace, with what tests ask of an object."""
    return kubectl.within(namespace)


def condition(kubectl, what, type_="Ready"):
    object_ = kubectl.json("get", what)
    found = object_.get("status", {}).get("conditions", [])
    return next((each for each in found if each["type"] == type_), None)


def wait_reason(kubectl, what, reason, type_="Ready", timeout_s=20):
    def reached():
        found = condition(kubectl, what, type_)
        return found if found and found["reason"] == reason else None

    return kubectl.wait_for(reached, f"{what} {type_} {reason}", timeout_s=timeout_s)


@pytest.fixture
def query(background, database_url):
    """What a query of the test gives."""

    def run(text, *values):
        async def ask():
            connection = await asyncpg.connect(database_url)
            try:
                return [tuple(row) for row in await connection.fetch(text, *values)]
            finally:
                await connection.close()

        return background.run(ask())

    return run


def test_what_is_applied_becomes_ready_and_says_where_it_stands(operator, here, namespace):
    here.apply(project(), jobset())
    here("wait", "--for=condition=Ready", "project/demo", "jobset/main", "--timeout=30s")
    found = here.json("get", "jobset/main")
    assert found["status"]["observedGeneration"] == 1
    assert found["status"]["url"] == "https://ci.example.org/projects/demo/main"
    assert found["metadata"]["finalizers"] == [FINALIZER]
    assert condition(here, "jobset/main", "Passing")["reason"] == "NotEvaluated"
    here.wait_for(
        lambda: here.json("get", "project/demo")["status"].get("jobsets") == 1, "its jobset"
    )
