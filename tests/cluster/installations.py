"""The chart, installed as a stranger would: what must be there before, and how to reach it after."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.kubectl import Kubectl
from tests.cluster.machine import Machine
from tests.cluster.places import REPOSITORY

CHART = REPOSITORY / "charts" / "fc-operator"
RELEASE = "fc"
_UID = 65532
Helm = Callable[..., str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A namespace that is ready for an install: it admits only restricted pods."""

    kubectl: Kubectl
    """In the namespace."""
    helm: Helm
    namespace: str
    values: Mapping[str, Any]
    chart: Path = CHART

    def install(self, values: Mapping[str, Any] | None = None, *flags: str) -> str:
        """``helm install --wait``; what it said."""
        return self._run("install", values, *flags)

    def upgrade(self, values: Mapping[str, Any] | None = None, *flags: str) -> str:
        """``helm upgrade --wait``; what it said."""
        return self._run("upgrade", values, *flags)

    def uninstall(self, *flags: str) -> str:
        """``helm uninstall --wait``; what it said."""
        return self.helm(
            "uninstall", RELEASE, "--namespace", self.namespace, "--wait", "--timeout=3m", *flags
        )

    def _run(self, verb: str, values: Mapping[str, Any] | None, *flags: str) -> str:
        with self.explaining():
            return self.helm(
                verb, RELEASE, str(self.chart), "--namespace", self.namespace, "--values", "-",
                # The kinds of a cluster may have come with another test's release.
                "--take-ownership", "--wait", "--timeout=4m", *flags,
                stdin=json.dumps(merged(self.values, values or {})),
            )  # fmt: skip

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Add to an error what the installation does and says."""
        try:
            yield
        except Exception as error:
            error.add_note(self.describe())
            raise

    def describe(self) -> str:
        """What its objects are and its pods said last, for an error."""
        said = [self.kubectl("get", "pods", "-o", "wide")]
        for kind in ("fc", "deployments"):
            for each in self.kubectl.json("get", kind)["items"]:
                name, status = each["metadata"]["name"], each.get("status", {})
                said.append(f"{each['kind']} {name}: {json.dumps(status)[:1500]}")
        for pod in self.kubectl("get", "pods", "-o", "name").split():
            said.append(f"--- {pod}")
            try:
                said.append(self.kubectl("logs", pod, "--all-containers", "--tail=15"))
            except Exception as error:  # noqa: BLE001 - it is only told
                said.append(str(error))
        said.append(self.kubectl("get", "events", "--sort-by=.lastTimestamp")[-3000:])
        return "\n".join(said)

    def named(self, part: str) -> str:
        """The name of one of its objects."""
        return f"{RELEASE}-fc-operator-{part}"

    @property
    def url(self) -> str:
        """Where its server answers, in the cluster's network."""
        address = self.kubectl(
            "get", "service", self.named("server"), "-o", "jsonpath={.spec.clusterIP}"
        )
        return f"http://{address}"

    def get(self, path: str, *, timeout_s: float = 5) -> tuple[int, bytes]:
        """Status and body of a path of its server."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout_s) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def fc(self, part: str, *words: str) -> str:
        """Run ``fc`` in a pod of one of its parts."""
        return self.kubectl(
            "exec", f"deploy/{self.named(part)}", "-c", part, "--", "/opt/fc/bin/fc", *words
        )

    def make_key(self, role: str = "admin") -> str:
        """The text of a new API key."""
        return self.fc("server", "key", "create", f"test-{role}", "--role", role).split()[-1]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Values as Helm merges them: mappings deeply, all else replaced."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value
    return result


@contextmanager
def site(
    machine: Machine,
    kubectl: Kubectl,
    helm: Helm,
    namespace: str,
    *,
    image: str,
    database_url: str,
) -> Iterator[Site]:
    """Prepare a namespace as docs/kubernetes.md says, and clean up what is not in it."""
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    within = kubectl.within(namespace)
    within(
        "create", "secret", "generic", "fc",
        f"--from-literal=encryption-key={base64.b64encode(os.urandom(32)).decode()}",
        f"--from-literal=url={database_url}", "--from-literal=password=only-for-tests",
    )  # fmt: skip
    folder = machine.places.dir / "volumes" / namespace
    folder.mkdir(parents=True)
    os.chown(folder, _UID, _UID)
    _claim(within, namespace, folder)
    repository, _, tag = image.rpartition(":")
    small = {"resources": {"requests": {"cpu": "10m", "memory": "64Mi"}}}
    made = Site(
        kubectl=within, helm=helm, namespace=namespace,
        values={
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "existingSecret": "fc",
            "externalDatabase": {"existingSecret": "fc"},
            # Others may run on the same cluster, and theirs is not ours.
            "rbac": {"scope": "Namespaced"},
            "objects": {"persistence": {"enabled": True, "existingClaim": "objects"}},
            "server": small, "scheduler": small, "operator": small,
        },
    )  # fmt: skip
    try:
        yield made
    finally:
        if f"{RELEASE}\t" in helm("list", "--namespace", namespace, "--all"):
            made.uninstall("--no-hooks")
        within("delete", "pvc", "objects", "--wait=false")
        kubectl("delete", "pv", f"objects-{namespace}", "--wait=false")
        shutil.rmtree(folder, ignore_errors=True)


def _claim(within: Kubectl, namespace: str, folder: Path) -> None:
    """A volume that several pods share, as a cluster's storage would give it."""
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    within.apply(
        {
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": f"objects-{namespace}"},
            "spec": {
                **common, "capacity": {"storage": "1Gi"},
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": namespace, "name": "objects"},
                "hostPath": {"path": str(folder)},
            },
        },
        {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "objects", "namespace": namespace},
            "spec": {
                **common, "volumeName": f"objects-{namespace}",
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    )  # fmt: skip


@dataclass(slots=True)
class Asking:
    """Asks a server again and again, from a thread, and remembers what went wrong."""

    url: str
    failures: list[str] = field(default_factory=list)
    answers: int = 0
    stopping: bool = False

    def run(self) -> None:
        """Until ``stopping``."""
        while not self.stopping:
            try:
                with urllib.request.urlopen(f"{self.url}/live", timeout=5) as answer:
                    answer.read()
                self.answers += 1
            except OSError as error:
                self.failures.append(f"{time.strftime('%X')} {error}")
            time.sleep(0.02)
