"""Parts of an installation and of its cluster die at generated moments: nothing is lost or doubled.

Each case makes one commit, lets its evaluation and builds get as far as a seed says, kills, and waits
for the end. Then the rows tell whether every step ended well exactly once, at no charge, and how long
it took until work went on.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest

from tests.cluster import installations
from tests.cluster.background import GitHost, Loop
from tests.cluster.kubectl import RefusedError
from tests.cluster.machine import Machine

CHAINS, DEPTH = 6, 4
STEPS = CHAINS * DEPTH
SEED = int(os.environ.get("FC_KILLS_SEED", "1"))
OUTAGE_S = 60.0
RESUMED_S = 60.0
"""Longest time from the end of an outage to the next sign of work."""
_END_S = 300.0

RELEASE = """
let
  # Long enough for an evaluation to be killed in the middle.
  slowly = builtins.foldl' (sum: n: sum + n) 0 (builtins.genList (n: n) 3000000);
  step = name: needs: derivation {
    inherit name needs;
    system = "x86_64-linux";
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    args = [ "-c" "for n in 1 2 3; do echo ${name} $n; sleep 0.5; done; echo @SALT@ > $out" ];
  };
  chain = c: builtins.foldl'
    (made: d: made ++ [ (step "step-${toString c}-${toString d}" (if made == [ ] then [ ] else [ (builtins.elemAt made (d - 1)) ])) ])
    [ ] (builtins.genList (d: d) @DEPTH@);
  all = builtins.concatLists (builtins.genList chain @CHAINS@);
in
builtins.seq slowly (builtins.listToAttrs (map (each: { name = each.name; value = each; }) all))
"""

MANIFESTS = [
    {
        "apiVersion": "fc-operator.dev/v1alpha1", "kind": "Project", "metadata": {"name": "kills"},
        "spec": {"repositoryUrl": "@GIT@/kills.git"},
    },
    {
        "apiVersion": "fc-operator.dev/v1alpha1", "kind": "Jobset", "metadata": {"name": "main"},
        "spec": {
            "projectRef": {"name": "kills"}, "branch": "main", "nixExpression": "release.nix",
            "checkInterval": "5s",
        },
    },
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """An installation with the jobset, and what a test asks of it."""

    site: installations.Site
    cluster: Machine
    git: GitHost
    loop: Loop
    database_url: str

    def ask(self, query: str, *values: Any) -> Any:
        """One value."""

        async def asked() -> Any:
            connection = await asyncpg.connect(self.database_url)
            try:
                return await connection.fetchval(query, *values)
            finally:
                await connection.close()

        return self.loop.run(asked())

    def commit(self, salt: str) -> str:
        """A revision of which nothing is built yet."""
        text = RELEASE
        for name, value in {"SALT": salt, "DEPTH": DEPTH, "CHAINS": CHAINS}.items():
            text = text.replace(f"@{name}@", str(value))
        return self.git.commit("kills", {"release.nix": text.encode()})

    def until(self, query: str, *values: Any, timeout_s: float = _END_S) -> float:
        """Wait until a query gives something true; seconds it took."""
        began_s = time.monotonic()
        while not self.ask(query, *values):
            if time.monotonic() - began_s > timeout_s:
                raise AssertionError(f"waited {timeout_s:g} s for {query} {values}")
            time.sleep(0.1)
        return time.monotonic() - began_s

    def kill_pods(self, *words: str) -> None:
        """At once, as if the power of their node went: no grace, no word to anybody."""
        self.site.kubectl("delete", "pod", *words, "--grace-period=0", "--force", "--wait=false")

    def kill_part(self, part: str) -> None:
        """A pod of a part of the installation."""
        self.kill_pods("-l", f"app.kubernetes.io/component={part}")

    @contextmanager
    def without(self, part: str) -> Iterator[None]:
        """A part of the cluster is stopped meanwhile."""
        with self.cluster.left():
            self.cluster.tell("stop", part)
        try:
            yield
        finally:
            with self.cluster.left():
                self.cluster.tell("start", part)
            # A part that was only begun is away still; how long it takes to be there is its own.
            self.site.kubectl.wait_for(
                lambda: "ok" in self.site.kubectl("get", "--raw=/readyz", "--request-timeout=2s"),
                "the API server to be ready",
            )


@pytest.fixture(scope="module")
def place(cluster, kubectl, helm, image, background, cluster_postgres, git_host):  # noqa: PLR0917
    namespace = f"t-kills-{os.urandom(3).hex()}"
    kubectl("create", "namespace", namespace)
    url = cluster_postgres.create()
    values = {
        "settings": {
            "git": {"allowed_schemes": ["https", "ssh", "http"], "allowed_hosts": [git_host.host]}
        }
    }
    try:
        with installations.site(
            cluster, kubectl, helm, namespace, image=image, database_url=url
        ) as site:
            made = Place(site, cluster, git_host, background, url)
            made.commit("first")
            site.install(values)
            for each in MANIFESTS:
                spec = {
                    k: v.replace("@GIT@", git_host.url) if isinstance(v, str) else v
                    for k, v in each["spec"].items()
                }
                site.kubectl.apply(each | {"spec": spec})
            with site.explaining():
                made.until("SELECT builds_ended_at IS NOT NULL FROM evaluations")
            yield made
            site.uninstall()
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")
        cluster_postgres.drop(url)


def no_harm(_: Place) -> None:
    """Nothing; what the others are compared with."""


def build_pod(place: Place) -> None:
    """One of those that run now."""
    found = place.site.kubectl(
        "get", "pods", "-l", "fc-operator.dev/kind=build", "--field-selector=status.phase=Running",
        "-o", "name",
    ).split()  # fmt: skip
    for name in found[:1]:
        place.kill_pods(name.removeprefix("pod/"))


def scheduler(place: Place) -> None:
    """The scheduler."""
    place.kill_part("scheduler")


def server(place: Place) -> None:
    """All servers at once."""
    place.kill_part("server")


def operator(place: Place) -> None:
    """The operator."""
    place.kill_part("operator")


def everything(place: Place) -> None:
    """All of our pods, the agents' too."""
    place.kill_pods("-l", "app.kubernetes.io/component in (server,scheduler,operator)")
    place.kill_pods("-l", "fc-operator.dev/kind")


def stopped_kubelet(place: Place) -> None:
    """The node's kubelet, for a minute."""
    with place.without("kubelet"):
        time.sleep(OUTAGE_S)


def api_server(place: Place) -> None:
    """The API server, for a minute."""
    with place.without("kube-apiserver"):
        time.sleep(OUTAGE_S)


def evaluation_pod(place: Place) -> None:
    """That of the evaluation."""
    place.kill_pods("-l", "fc-operator.dev/kind=evaluation")


ENDED = "SELECT count(*) FROM attempts a JOIN evaluations e ON a.claimed_at > e.evaluation_time WHERE e.commit_hash = $1 AND a.ended_at IS NOT NULL"
BEGUN = "SELECT count(*) > 0 FROM evaluations WHERE commit_hash = $1 AND status = 'running'"


@pytest.mark.parametrize(
    "victim",
    [
        no_harm, build_pod, evaluation_pod, scheduler, server, operator, everything,
        stopped_kubelet, api_server,
    ],
)  # fmt: skip
def test_nothing_is_lost_and_nothing_is_doubled(place: Place, victim: Callable[[Place], None]):
    name = victim.__name__
    chance = random.Random(f"{SEED}/{name}")
    ended = 0 if victim is evaluation_pod else chance.randrange(1, STEPS * 2 // 3)
    pause_s = chance.uniform(0, 2)
    commit = place.commit(f"{name}-{SEED}-{os.urandom(4).hex()}")
    began_s = time.monotonic()
    with place.site.explaining():
        if victim is evaluation_pod:
            place.until(BEGUN, commit)
            place.site.kubectl.wait_for(
                lambda: place.site.kubectl(
                    "get", "pods", "-l", "fc-operator.dev/kind=evaluation", "-o", "name"
                ).strip(),
                "its pod",
            )
        else:
            place.until(f"SELECT ({ENDED}) >= $2", commit, ended)
        time.sleep(pause_s)
        victim(place)
        # Work goes on: an evaluation, an attempt or a step moves that had not moved before.
        moved = "SELECT clock_timestamp()"
        killed_at = place.ask(moved)
        resumed_s = place.until(
            "SELECT EXISTS (SELECT FROM attempts WHERE ended_at > $1 AND status = 'succeeded') OR"
            " EXISTS (SELECT FROM evaluations WHERE commit_hash = $2 AND builds_ended_at < $1)",
            killed_at,
            commit,
        )
        place.until("SELECT builds_ended_at IS NOT NULL FROM evaluations WHERE commit_hash = $1",
                    commit)  # fmt: skip
        whole_s = time.monotonic() - began_s
        judge(place, commit)
        place.site.kubectl.wait_gone("pods", "-l", "fc-operator.dev/kind", timeout_s=150)
        place.site.kubectl.wait_for(lambda: is_whole(place), "all parts to be there", timeout_s=120)
    print(
        f"{name}: after {ended} steps and {pause_s:.1f} s; went on {resumed_s:.1f} s after,"
        f" ended {whole_s:.1f} s after the commit"
    )
    assert resumed_s <= RESUMED_S


def is_whole(place: Place) -> bool:
    try:
        found = place.site.kubectl.json("get", "deployments")["items"]
    except RefusedError:
        return False
    return all(each["status"].get("readyReplicas", 0) == each["spec"]["replicas"] for each in found)


def judge(place: Place, commit: str) -> None:
    """Every job has one build, every step one success, and nothing was charged."""
    one = {
        "evaluations": ("SELECT count(*) FROM evaluations WHERE commit_hash = $1", 1),
        "builds": (
            (
                "SELECT count(*) FROM builds b JOIN evaluations e ON e.id = b.evaluation_id"
                " WHERE e.commit_hash = $1 AND b.status = 'succeeded'"
            ),
            STEPS,
        ),
        "charged": (
            (
                "SELECT coalesce(sum(retry_count), 0) FROM builds b"
                " JOIN evaluations e ON e.id = b.evaluation_id WHERE e.commit_hash = $1"
            ),
            0,
        ),
        "steps with one success": (
            (
                "SELECT count(*) FROM (SELECT a.step_id FROM attempts a"
                " JOIN builds b ON b.step_id = a.step_id JOIN evaluations e ON e.id = b.evaluation_id"
                " WHERE e.commit_hash = $1 AND a.status = 'succeeded'"
                " GROUP BY a.step_id HAVING count(*) = 1) single"
            ),
            STEPS,
        ),
        "other ends that are a build's": (
            (
                "SELECT count(*) FROM attempts a JOIN builds b ON b.step_id = a.step_id"
                " JOIN evaluations e ON e.id = b.evaluation_id"
                " WHERE e.commit_hash = $1 AND a.status IN ('failed', 'timeout')"
            ),
            0,
        ),
    }
    said = {name: place.ask(query, commit) for name, (query, _) in one.items()}
    reasons = place.ask(
        "SELECT jsonb_object_agg(reason, n) FROM (SELECT a.reason, count(*) AS n FROM attempts a"
        " JOIN builds b ON b.step_id = a.step_id JOIN evaluations e ON e.id = b.evaluation_id"
        " WHERE e.commit_hash = $1 GROUP BY 1) ends",
        commit,
    )
    print(f"  attempts ended as {reasons}")
    assert said == {name: wanted for name, (_, wanted) in one.items()}, reasons
    assert place.ask("SELECT count(*) FROM leases") == 0
    assert place.ask("SELECT count(*) FROM ready_steps") == 0
    place.until("SELECT count(*) = 0 FROM tasks WHERE state = 'live'", timeout_s=60)
