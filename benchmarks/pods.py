"""What a pod of ours costs: from a claim to a running step, beside `kubectl run` of the same image.

A real cluster of one node, our chart and our image. Each round commits a change that makes one new
derivation: an evaluation pod, then a build pod. Right after that, with nothing else running, kubectl
runs a pod of the same image whose program prints the time. All clocks are the machine's one.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import asyncpg

from fc_operator.clients.api import ApiClient
from fc_operator.kit import logs
from tests.cluster import images, installations, machine
from tests.cluster.background import GitHost, Loop, Postgres
from tests.cluster.kubectl import Kubectl

OVERHEAD_S_GOAL = 1.0
"""What we may add to the start of a pod."""
RELEASE_NIX = """\
{{
  job = derivation {{
    name = "round-{round}";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" "echo {round} > $out" ];
  }};
}}
"""
MANIFESTS = """\
apiVersion: fc-operator.dev/v1alpha1
kind: Project
metadata: {{name: bench}}
spec: {{repositoryUrl: "{url}/bench.git"}}
---
apiVersion: fc-operator.dev/v1alpha1
kind: Jobset
metadata: {{name: bench-main}}
spec:
  projectRef: {{name: bench}}
  name: main
  branch: main
  nixExpression: release.nix
  checkInterval: 1h
"""
EVALUATION = """\
SELECT extract(epoch FROM pod_created_at - created_at) AS claim_to_pod,
       extract(epoch FROM begun_at - created_at) AS claim_to_start
FROM tasks WHERE kind = 'evaluation' AND state <> 'live' AND begun_at IS NOT NULL
ORDER BY created_at DESC LIMIT 1
"""
STEP = """\
SELECT extract(epoch FROM t.pod_created_at - a.claimed_at) AS claim_to_pod,
       extract(epoch FROM t.begun_at - a.claimed_at) AS claim_to_agent,
       extract(epoch FROM a.started_at - a.claimed_at) AS claim_to_start
FROM attempts a JOIN tasks t ON t.id = a.task_id JOIN steps s ON s.id = a.step_id
WHERE s.drv_path LIKE $1 AND a.status = 'succeeded'
"""


@contextlib.contextmanager
def cluster() -> Iterator[machine.Machine]:
    """The development cluster if it is up, else one for this run."""
    found = machine.find(os.environ.get("FC_CLUSTER_INSTANCE", "dev"))
    if found.state()["state"] == "ready":
        yield found
        return
    with machine.running(machine.find("bench")) as here:
        here.import_image(images.make_pause(here.places))
        yield here


def kubectl_run(kubectl: Kubectl, image: str) -> float:
    """Seconds from calling kubectl to the first word of the program in the pod."""
    name = f"plain-{uuid.uuid4().hex[:8]}"
    began_s = time.time()
    kubectl(
        "run", name, f"--image={image}", "--image-pull-policy=Never", "--restart=Never",
        "--command", "--", "/opt/fc/bin/python", "-c", "import time; print(time.time())",
    )  # fmt: skip
    kubectl("wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{name}", "--timeout=60s")
    said_s = float(kubectl("logs", name))
    kubectl("delete", "pod", name, "--wait=true")
    return said_s - began_s


async def one(url: str, query: str, *arguments: Any) -> dict[str, float] | None:
    """The row of a query, if there is one."""
    connection = await asyncpg.connect(url)
    try:
        row = await connection.fetchrow(query, *arguments)
    finally:
        await connection.close()
    return {key: float(value) for key, value in row.items()} if row else None


async def evaluate(url: str, key: str) -> None:
    """Ask for an evaluation now."""
    async with ApiClient(url, key) as client:
        await client.send("POST", "/projects/bench/jobsets/main/evaluate", {})


def told(name: str, values: Sequence[float]) -> float:
    """Print one line; the median."""
    median = statistics.median(values)
    print(f"  {name:<52} {median:6.2f} s   ({min(values):.2f} to {max(values):.2f})")
    return median


def run(rounds: int) -> int:
    with cluster() as here:
        image = os.environ.get("FC_CLUSTER_IMAGE") or images.provide_image(here, print)
        with here.entered():
            return measure(here, image, rounds)


def measure(here: machine.Machine, image: str, rounds: int) -> int:
    loop = Loop()
    postgres, git = Postgres(loop), GitHost(loop)
    kubectl = Kubectl(here.programs["kubectl"], here.environment())
    namespace = f"bench-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", namespace)
    database_url = postgres.create()
    try:
        with installations.site(
            here, kubectl, helm(here), namespace, image=image, database_url=database_url
        ) as site:
            git_settings = {
                "allowed_schemes": ["https", "ssh", "http"],
                "allowed_hosts": [git.host],
            }
            site.install({"server": {"replicas": 1}, "settings": {"git": git_settings}})
            bench = Bench(
                loop=loop, site=site, git=git, database_url=database_url, key=site.make_key(),
                image=image,
            )  # fmt: skip
            return bench.compare(rounds)
    finally:
        kubectl("delete", "namespace", namespace, "--wait=false")
        postgres.drop(database_url)
        git.close()
        postgres.close()
        loop.close()


def helm(here: machine.Machine) -> installations.Helm:
    """helm within the cluster's network."""

    def call(*words: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            [here.programs["helm"], *words], env=here.environment(), input=stdin,
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@dataclass(frozen=True, kw_only=True)
class Bench:
    """An installation, and what its repository is served by."""

    loop: Loop
    site: installations.Site
    git: GitHost
    database_url: str
    key: str
    image: str

    def compare(self, rounds: int) -> int:
        """Run all rounds and say what they gave; 1 if it falls short."""
        evaluations, steps, plain = [], [], []
        self.commit(0)
        self.site.kubectl("apply", "-f", "-", stdin=MANIFESTS.format(url=self.git.url))
        for number in range(rounds + 1):
            if number:
                self.commit(number)
                self.loop.run(evaluate(self.site.url, self.key))
            step = self.wait_for_row(f"round {number} to be built", STEP, f"%-round-{number}.drv")
            evaluation = self.wait_for_row(f"round {number} to be evaluated", EVALUATION)
            self.site.kubectl.wait_gone("pods", "-l", "fc-operator.dev/kind")
            # Elsewhere: what kubectl makes by itself is not restricted.
            once = kubectl_run(self.site.kubectl.within("default"), self.image)
            if number:  # the first round warms both up
                steps.append(step)
                evaluations.append(evaluation)
                plain.append(once)
        return judge(rounds, plain, steps, evaluations)

    def commit(self, number: int) -> None:
        """A new derivation for a round."""
        self.git.commit("bench", {"release.nix": RELEASE_NIX.format(round=number).encode()})

    def wait_for_row(self, what: str, query: str, *arguments: Any) -> dict[str, float]:
        """The row of a query, once there is one."""
        return self.site.kubectl.wait_for(
            lambda: self.loop.run(one(self.database_url, query, *arguments)), what, timeout_s=120
        )


def judge(
    rounds: int,
    plain: Sequence[float],
    steps: Sequence[Mapping[str, float]],
    evaluations: Sequence[Mapping[str, float]],
) -> int:
    """Print the figures; 1 if they fall short."""
    print(f"medians of {rounds} rounds (and the range):")
    base = told("kubectl run: command to first word of its program", plain)
    told("a step: claim to pod made", [each["claim_to_pod"] for each in steps])
    told("a step: claim to agent has its work", [each["claim_to_agent"] for each in steps])
    total = told("a step: claim to step started", [each["claim_to_start"] for each in steps])
    told("an evaluation: claim to pod made", [each["claim_to_pod"] for each in evaluations])
    told(
        "an evaluation: claim to evaluator begins", [each["claim_to_start"] for each in evaluations]
    )
    over = total - base
    met = over <= OVERHEAD_S_GOAL
    print(
        f"a step starts {over:+.2f} s after kubectl run would ({total / base:.2f} times); "
        f"goal: at most {OVERHEAD_S_GOAL:+.1f} s, {'met' if met else 'short'}"
    )
    return 0 if met else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10, help="rounds")
    args = parser.parse_args()
    logs.configure(level="error")
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, n {args.n}")
    return run(args.n)


if __name__ == "__main__":
    sys.exit(main())
