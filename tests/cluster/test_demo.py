"""The demo in a cluster: its manifests by `kubectl apply` and by git, evaluated and built in pods."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fc_operator.app import demo, expectations, observation
from fc_operator.clients.api import ApiClient
from tests.cluster import installations
from tests.cluster.kubectl import Kubectl, RefusedError

_OUTCOME_S = 420
JOBSETS = ("demo-main", "demo-failures", "demo-partly", "flakes-main", "flakes-checks")


@pytest.fixture
def site(cluster, kubectl, helm, namespace, image, cluster_database_url):  # noqa: PLR0917
    """A namespace that is ready for an install."""
    with installations.site(
        cluster, kubectl, helm, namespace, image=image, database_url=cluster_database_url
    ) as made:
        yield made


@pytest.fixture
def commits(git_host):
    """The demo's repositories, as they are in config/demo."""
    return git_host.serve_demo()


def values_for(git_host):
    """What an administrator says whose git host has a private address and speaks plain HTTP."""
    return {
        "settings": {
            "git": {"allowed_schemes": ["https", "ssh", "http"], "allowed_hosts": [git_host.host]}
        }
    }


def kustomized(kubectl: Kubectl, git_host, folder: Path) -> str:
    """The demo's manifests as config/demo/kubernetes makes them, for the git host that is here."""
    for each in ("manifests", "kubernetes"):
        shutil.copytree(demo.default_folder() / each, folder / each)
    file = folder / "kubernetes" / "kustomization.yaml"
    file.write_text(file.read_text().replace("https://git.example.org/team/", f"{git_host.url}/"))
    text = kubectl("kustomize", "--load-restrictor=LoadRestrictionsNone", str(file.parent))
    assert "127.0.0.1" not in text
    assert "git.example.org" not in text
    return text


@dataclass(slots=True)
class Seen:
    """What came and went beside, seen by asking again and again from a thread."""

    kubectl: Kubectl
    pods: dict[str, Mapping[str, str]] = field(default_factory=dict)
    """Labels of every pod of ours by its name."""
    trouble: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Until ``stopping``."""
        while not self.stopping.wait(0.3):
            try:
                found = self.kubectl.json("get", "pods", "-l", "fc-operator.dev/kind")
            except RefusedError as error:
                self.trouble.append(str(error))
                continue
            for pod in found["items"]:
                self.pods[pod["metadata"]["name"]] = pod["metadata"]["labels"]


async def watch(client, git_url, commits, expected, since):
    """Look until everything has ended; the outcomes, and what was still waited for."""
    moment, waits = observation.Moment(), ["starting"]
    async with client:
        try:
            async with asyncio.timeout(_OUTCOME_S):
                while waits:
                    moment = await observation.observe(client, git_url, moment)
                    waits = observation.waits_for(moment, expected, commits, since=since)
                    await asyncio.sleep(0.5 if waits else 0)
        except TimeoutError:
            pass
        outcomes = expectations.compare(
            expected,
            await observation.find_jobsets(client, moment, expected),
            await observation.find_channels(client),
        )
    return outcomes, waits


def judge(site, background, git_host, commits, since):
    """The outcomes are those of `make demo`, and the work was done in pods that have gone."""
    expected = expectations.parse((demo.default_folder() / "expected.yaml").read_text())
    client = ApiClient(site.url, site.make_key())
    seen = Seen(kubectl=site.kubectl)
    thread = threading.Thread(target=seen.run, daemon=True)
    thread.start()
    try:
        outcomes, waits = background.run(
            watch(client, git_host.url, commits, expected, since), timeout_s=_OUTCOME_S + 60
        )
    finally:
        seen.stopping.set()
        thread.join(30)
    table = "\n".join(
        f"{each.thing}: {each.found or '-'}, wanted {each.wanted}" for each in outcomes
    )
    wrong = [f"{each.thing}: {said}" for each in outcomes for said in each.differences]
    assert waits == [], f"{waits}\n{table}"
    assert wrong == [], f"{wrong}\n{table}"
    assert len(outcomes) == 22
    kinds = [labels["fc-operator.dev/kind"] for labels in seen.pods.values()]
    print(
        f"{len(outcomes)} outcomes as declared; pods seen: {kinds.count('evaluation')} of evaluations, {kinds.count('build')} of builds"
    )
    assert kinds.count("evaluation") >= len(JOBSETS) - 1, seen
    assert kinds.count("build") >= 3, seen
    # At most one pod per evaluation, and one per batch of steps: never one per job.
    assert kinds.count("build") < sum(each.kind == "build" for each in outcomes), seen
    site.kubectl.wait_gone("pods", "-l", "fc-operator.dev/kind", timeout_s=90)


def test_the_manifests_by_kubectl_give_the_outcomes_of_make_demo(
    site, background, git_host, commits, tmp_path
):
    site.install(values_for(git_host))
    since = datetime.now(UTC)
    site.kubectl("apply", "-f", "-", stdin=kustomized(site.kubectl, git_host, tmp_path))
    with site.explaining():
        site.kubectl("wait", "--for=condition=Ready", "jobset/demo-main", "--timeout=60s")
        # Nothing comes from a config repository here.
        judge(site, background, git_host, commits | {"config": ""}, since)
    for kind, names in {"project": ("demo", "flakes"), "jobset": JOBSETS}.items():
        for name in names:
            site.kubectl("wait", "--for=condition=Ready", f"{kind}/{name}", "--timeout=30s")

    def passing(name):
        found = site.kubectl.json("get", "jobset", name)["status"]["conditions"]
        return {each["type"]: each["status"] for each in found}.get("Passing")

    for name, wanted in {"demo-main": "True", "demo-failures": "False"}.items():
        site.kubectl.wait_for(lambda n=name, w=wanted: passing(n) == w, f"{name}: Passing={wanted}")
    columns = site.kubectl("get", "fc")
    assert all(name in columns for name in JOBSETS), columns
    print(columns)


def test_the_same_manifests_through_a_config_repository(site, background, git_host, commits):
    repository = {
        "name": "demo",
        "spec": {"url": f"{git_host.url}/config.git", "branch": "main", "interval": "5s"},
    }
    since = datetime.now(UTC)
    site.install(values_for(git_host) | {"configRepositories": [repository]})
    site.kubectl("wait", "--for=condition=Ready", "configrepository/demo", "--timeout=90s")
    found = site.kubectl.json("get", "configrepository", "demo")
    site.kubectl.wait_for(
        lambda: (
            commits["config"]
            in json.dumps(site.kubectl.json("get", "configrepository", "demo")["status"])
        ),
        "its revision to be said",
    )
    assert found["metadata"]["labels"]["fc-operator.dev/release"] == installations.RELEASE
    with site.explaining():
        judge(site, background, git_host, commits, since)
    # What git owns is no object of the cluster.
    assert not site.kubectl("get", "jobsets", "-o", "name").strip()
