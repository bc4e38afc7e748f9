"""The operator against a real API server: kubectl in, conditions out, nothing written at rest."""

from __future__ import annotations

import contextlib
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

import asyncpg
import pytest

from tests.cluster.kubectl import RefusedError

REPOSITORY = "https://git.example.org/team/demo.git"
API = "fc-operator.dev/v1alpha1"
FC = Path(sys.executable).with_name("fc")
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
                [FC, "operator"],
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
            assert self.process.poll() is None, self.text()[-3_000:]
            assert time.monotonic() < end, self.text()[-3_000:]
            time.sleep(0.05)
        return self

    def text(self) -> str:
        return self.log.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
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
        print(operator.text()[-10_000:])  # shown when the test failed
    if made:  # else their namespaces would wait for an operator for ever
        subprocess.run(
            [FC, "operator", "--release-objects"], env=made[0].environment, timeout=120,
            capture_output=True, check=True,
        )  # fmt: skip


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


def test_at_rest_nothing_is_written_not_even_over_a_restart(make_operator, here, namespace):
    operator = make_operator(FC_OPERATOR_NAMESPACES=namespace, FC_OPERATOR_COMPARE_S="1").start()
    here.apply(project(), jobset(), jobset("other"))
    here("wait", "--for=condition=Ready", "jobset/main", "jobset/other", "--timeout=30s")
    here.wait_for(
        lambda: here.json("get", "project/demo")["status"].get("jobsets") == 2, "both jobsets"
    )
    before = versions(here)
    compared = operator.text().count("operator.compared")
    here.wait_for(
        lambda: operator.text().count("operator.compared") > compared + 2, "two comparisons"
    )
    assert versions(here) == before
    assert operator.stop() == 0
    operator.start().wait_ready()
    here.wait_for(lambda: operator.text().count("operator.leading") == 2, "the second start")
    compared = operator.text().count("operator.compared")
    here.wait_for(
        lambda: operator.text().count("operator.compared") > compared + 1, "two comparisons"
    )
    assert versions(here) == before


def versions(kubectl):
    items = kubectl.json("get", "projects,jobsets")["items"]
    return {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in items}


def test_a_change_is_ready_only_when_it_was_seen(operator, here, query):
    here.apply(project(), jobset())
    here("wait", "--for=condition=Ready", "jobset/main", "--timeout=30s")
    operator.stop()
    here("patch", "jobset", "main", "--type=merge", "-p", '{"spec":{"branch":"dev"}}')
    with pytest.raises(RefusedError, match="timed out"):
        here("wait", "--for=condition=Ready", "jobset/main", "--timeout=1s")
    operator.start()
    here("wait", "--for=condition=Ready", "jobset/main", "--timeout=30s")
    assert query("SELECT branch FROM jobsets") == [("dev",)]
    assert here.json("get", "jobset", "main")["status"]["observedGeneration"] == 2


def test_a_jobset_waits_for_its_project_and_says_so(operator, here):
    here.apply(jobset())
    found = wait_reason(here, "jobset/main", "ReferenceNotFound")
    assert found["status"] == "False"
    assert condition(here, "jobset/main", "Reconciling")["status"] == "True"
    here.apply(project())
    wait_reason(here, "jobset/main", "Reconciled")
    assert condition(here, "jobset/main", "Reconciling") is None


def test_a_secret_that_is_missing_is_said_on_the_object_and_to_people(operator, here):
    here.apply(project(credentialsSecretRef={"name": "nowhere"}))
    found = wait_reason(here, "project/demo", "SecretNotFound")
    assert "nowhere" in found["message"]
    events = here.wait_for(
        lambda: here.json("get", "events", "--field-selector", "reason=SecretNotFound")["items"],
        "an event",
    )
    assert events[0]["type"] == "Warning"
    assert events[0]["involvedObject"]["kind"] == "Project"


def test_suspended_is_ready_and_says_why_nothing_happens(operator, here, query):
    here.apply(project(), jobset(suspend=True))
    wait_reason(here, "jobset/main", "Suspended")
    here("wait", "--for=condition=Ready", "jobset/main", "--timeout=10s")
    assert query("SELECT suspended FROM jobsets") == [(True,)]


def test_a_request_by_annotation_is_acted_on_once_and_echoed(operator, here, query):
    here.apply(project(), jobset())
    wait_reason(here, "jobset/main", "Reconciled")
    here("annotate", "jobset", "main", "fc-operator.dev/requestedAt=now-1")
    here.wait_for(
        lambda: here.json("get", "jobset", "main")["status"].get("lastHandledRequest") == "now-1",
        "the echo",
    )
    assert query("SELECT check_reason FROM jobsets") == [("request",)]


def test_what_is_deleted_leaves_the_cluster_and_is_scheduled_no_more(operator, here, query):
    here.apply(project(), jobset())
    wait_reason(here, "jobset/main", "Reconciled")
    here("delete", "jobset/main", "project/demo", "--timeout=20s")
    rows = query("SELECT kind, pruning_since IS NOT NULL FROM managed_resources ORDER BY kind")
    assert rows == [("Jobset", True), ("Project", True)]
    assert query("SELECT deleting_at IS NOT NULL FROM jobsets") == [(True,)]
    # It comes back under the same name, as another object.
    here.apply(project(), jobset())
    wait_reason(here, "jobset/main", "Reconciled")
    assert query("SELECT deleting_at IS NULL FROM jobsets") == [(True,)]


def test_what_was_deleted_while_no_operator_ran_goes_when_one_comes(operator, here, query):
    here.apply(project(), jobset(), jobset("other"), jobset("third"))
    wait_reason(here, "jobset/main", "Reconciled")
    wait_reason(here, "jobset/third", "Reconciled")
    operator.stop()
    here("delete", "jobset/main", "--wait=false")
    # Somebody who could not wait.
    here("patch", "jobset", "other", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    here("delete", "jobset/other")
    operator.start()
    here.wait_gone("jobset/main")
    assert sorted(query("SELECT name FROM jobsets WHERE deleting_at IS NOT NULL")) == [
        ("main",),
        ("other",),
    ]


def test_somebody_elses_conditions_and_finalizers_stay(operator, here):
    here.apply(project())
    wait_reason(here, "project/demo", "Reconciled")
    other = {
        "type": "Reviewed", "status": "True", "reason": "ByHand", "message": "",
        "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    steps = [{"op": "add", "path": "/status/conditions/-", "value": other}]
    here("patch", "project", "demo", "--subresource=status", "--type=json", "-p", json.dumps(steps))
    here("patch", "project", "demo", "--type=json", "-p", json.dumps(
        [{"op": "add", "path": "/metadata/finalizers/-", "value": "example.org/mine"},
         {"op": "add", "path": "/spec/suspend", "value": True}]
    ))  # fmt: skip
    wait_reason(here, "project/demo", "Suspended")
    assert condition(here, "project/demo", "Reviewed")["reason"] == "ByHand"
    here("delete", "project/demo", "--wait=false")
    here.wait_for(
        lambda: here.json("get", "project/demo")["metadata"]["finalizers"] == ["example.org/mine"],
        "ours to be gone",
    )
    here("patch", "project", "demo", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    here.wait_gone("project/demo")


def test_a_namespace_can_neither_take_nor_join_what_another_has(
    make_operator, here, namespace, there, query
):
    other = there.arguments[-1].partition("=")[2]
    make_operator(FC_OPERATOR_NAMESPACES=f"{namespace},{other}").start()
    here.apply(project(), jobset())
    wait_reason(here, "jobset/main", "Reconciled")
    there.apply(project(repositoryUrl="https://git.example.org/evil.git"), jobset("mine"))
    found = wait_reason(there, "project/demo", "OwnedByOther")
    assert f"{namespace}/demo" in found["message"]
    assert condition(there, "project/demo", "Stalled")["status"] == "True"
    wait_reason(there, "jobset/mine", "ReferenceNotPermitted")
    assert query("SELECT repository_url FROM projects") == [(REPOSITORY,)]
    assert query("SELECT name FROM jobsets") == [("main",)]


@pytest.fixture
def there(kubectl):
    """kubectl in another namespace."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    kubectl("create", "namespace", name)
    yield kubectl.within(name)
    kubectl("delete", "namespace", name, "--wait=false")


def test_results_come_back_into_the_status(operator, here, query):
    here.apply(project(), jobset())
    wait_reason(here, "jobset/main", "NotEvaluated", "Passing")
    query(
        "INSERT INTO evaluations (jobset_id, commit_hash, status)"
        " SELECT id, repeat('a', 40), 'running' FROM jobsets"
    )
    query("SELECT pg_notify('fc_evaluations', '')")
    wait_reason(here, "jobset/main", "Evaluating", "Passing")
    query("UPDATE evaluations SET status = 'completed'")
    query(
        "INSERT INTO builds (evaluation_id, job_name, drv_path, status)"
        " SELECT id, 'hello', 'hello', 'pending' FROM evaluations"
    )
    query("SELECT pg_notify('fc_builds', id::text) FROM evaluations")
    wait_reason(here, "jobset/main", "Building", "Passing")
    query("UPDATE builds SET status = 'running'")
    query("UPDATE builds SET status = 'failed', completed_at = now()")
    query("UPDATE evaluations SET builds_ended_at = now(), build_counts = '{\"failed\": 1}'")
    query("SELECT pg_notify('fc_builds', id::text) FROM evaluations")
    found = wait_reason(here, "jobset/main", "BuildsFailed", "Passing")
    assert found["status"] == "False"
    status = here.json("get", "jobset", "main")["status"]
    assert status["lastRevision"] == "a" * 40
    assert status["lastEvaluation"] == query("SELECT number FROM evaluations")[0][0]
    assert status["builds"] == {
        "total": 1, "queued": 0, "running": 0, "succeeded": 0, "failed": 1
    }  # fmt: skip
    here.wait_for(
        lambda: here.json("get", "events", "--field-selector", "reason=BuildsFailed")["items"],
        "an event",
    )


def test_a_second_operator_waits_and_a_seized_lease_ends_the_first_within_a_second(
    make_operator, operator, here, namespace, query
):
    operator.wait_ready()
    second = make_operator(FC_OPERATOR_NAMESPACES=namespace).start()
    wait_logged(second, "operator.waiting_for_lease")
    assert second.answer("/healthz") == 200
    assert second.answer("/readyz") == 503
    query("UPDATE duty_leases SET owner = 'thief', expires_at = now() + interval '2 s'")
    start = time.monotonic()
    assert operator.process.wait(10) == 75
    assert time.monotonic() - start < 1.5  # half a second of it for a busy machine
    second.wait_ready()
    here.apply(project())
    wait_reason(here, "project/demo", "Reconciled")


def wait_logged(operator, event, timeout_s=20):
    end = time.monotonic() + timeout_s
    while event not in operator.text():
        assert time.monotonic() < end, operator.text()[-3_000:]
        time.sleep(0.05)


def test_a_killed_operator_is_followed_and_nothing_is_lost(
    make_operator, operator, here, namespace
):
    operator.wait_ready()
    here.apply(project())
    operator.stop(signal.SIGKILL)
    here.apply(jobset())
    make_operator(FC_OPERATOR_NAMESPACES=namespace).start()
    wait_reason(here, "jobset/main", "Reconciled")
    wait_reason(here, "project/demo", "Reconciled")


def test_released_objects_hang_on_nothing(operator, here, cluster, query):
    here.apply(project(), jobset())
    wait_reason(here, "jobset/main", "Reconciled")
    done = subprocess.run(
        [FC, "operator", "--release-objects"], env=operator.environment, timeout=60,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "2 objects released" in done.stdout
    assert operator.process.wait(5) == 75
    items = here.json("get", "projects,jobsets")["items"]
    assert [each["metadata"].get("finalizers") for each in items] == [None, None]
    # None of them hangs, and what they declared stays recorded.
    here("delete", "project/demo", "jobset/main", "--timeout=5s")
    assert query("SELECT count(*) FROM managed_resources") == [(2,)]


def test_a_config_repository_tells_of_its_syncs(operator, here, query):
    here.apply(manifest("ConfigRepository", "team", {"url": "https://git.example.org/ci.git"}))
    found = wait_reason(here, "configrepository/team", "Progressing")
    assert found["status"] == "Unknown"
    conditions = [{
        "type": "Ready", "status": "True", "reason": "Reconciled", "message": "3 objects at abc",
        "observedGeneration": -1, "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]  # fmt: skip
    query(
        "UPDATE config_repositories SET conditions = $1::text::jsonb, last_revision = 'abc'",
        json.dumps(conditions),
    )
    query("SELECT pg_notify('fc_sources', '')")
    found = wait_reason(here, "configrepository/team", "Reconciled")
    assert found["observedGeneration"] == 1
    assert here.json("get", "configrepository/team")["status"]["lastRevision"] == "abc"
    here("wait", "--for=condition=Ready", "configrepository/team", "--timeout=5s")


@pytest.mark.slow
def test_a_thousand_jobsets_are_ready_soon_and_a_restart_writes_nothing(
    make_operator, here, namespace
):
    operator = make_operator(FC_OPERATOR_NAMESPACES=namespace, FC_OPERATOR_STATUS_S="2")
    operator.start().wait_ready()
    many = [jobset(f"j-{number}") for number in range(1_000)]
    start = time.monotonic()
    here.apply(project())
    here.apply(*many, server_side=True)
    applied_s = time.monotonic() - start
    here.wait_for(lambda: count_ready(here) == 1_000, "all to be Ready", timeout_s=120)
    ready_s = time.monotonic() - start
    rss_mib, worked_s = operator.rss_mib, cpu_s(operator)
    here.wait_for(
        lambda: here.json("get", "project/demo")["status"].get("jobsets") == 1_000, "the count"
    )
    before = versions(here)
    operator.stop(signal.SIGKILL)
    start = time.monotonic()
    operator.start().wait_ready()
    restarted_s = time.monotonic() - start
    compared = operator.text().count("operator.compared")
    assert compared == 2
    # What the watches tell first comes after; and results are read once.
    wait_quiet(operator)
    after = versions(here)
    changed = [name for name, version in after.items() if before[name] != version]
    print(
        f"applied in {applied_s:.1f} s, all Ready after {ready_s:.1f} s (the operator's CPU"
        f" {worked_s:.1f} s, RSS {rss_mib:.0f} MiB); restart to serving {restarted_s:.1f} s (CPU"
        f" {cpu_s(operator):.1f} s, RSS {operator.rss_mib:.0f} MiB), {len(changed)} patches"
    )
    assert changed == []
    assert ready_s - applied_s < 20
    assert operator.rss_mib < 256


def count_ready(kubectl) -> int:
    text = kubectl(
        "get", "jobsets", "-o",
        'jsonpath={range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}',
    )  # fmt: skip
    return text.split().count("True")


def wait_quiet(operator, for_s=3.0):
    """Until the operator used no processor time to speak of for a while."""
    end = time.monotonic() + 60
    quiet_since = time.monotonic()
    last = cpu_s(operator)
    while time.monotonic() - quiet_since < for_s:
        time.sleep(0.5)
        now = cpu_s(operator)
        if now - last > 0.1:
            quiet_since = time.monotonic()
        last = now
        assert time.monotonic() < end, "it is never quiet"


def cpu_s(operator) -> float:
    fields = Path(f"/proc/{operator.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
