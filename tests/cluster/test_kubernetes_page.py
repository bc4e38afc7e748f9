"""docs/kubernetes.md, word by word: every block marked ``sh`` is run as it stands, in order."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import pytest

from tests.cluster.kubectl import RefusedError
from tests.cluster.places import REPOSITORY

PAGE = REPOSITORY / "docs" / "kubernetes.md"
NAMESPACE = "fc"
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text):
    return _BLOCK.findall(text)


def replaced(text, old, new):
    """``text`` with what this cluster has in place of what the page can't know; it must be there."""
    assert old in text, f"the page does not say {old!r} any more"
    return text.replace(old, new)


@pytest.fixture
def place(cluster, kubectl, tmp_path):
    """A folder with the chart in it, and storage such as a cluster's default class gives."""
    (tmp_path / "charts").symlink_to(REPOSITORY / "charts")
    try:
        kubectl("get", "namespace", NAMESPACE)
    except RefusedError:
        pass
    else:
        pytest.fail(f"somebody else uses the namespace {NAMESPACE}")
    folder = cluster.places.dir / "volumes" / "page"
    folder.mkdir(parents=True)
    os.chown(folder, 65532, 65532)
    kubectl.apply({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "page"},
        "spec": {
            "accessModes": ["ReadWriteMany"], "capacity": {"storage": "5Gi"},
            "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": NAMESPACE, "name": "fc-fc-operator-objects"},
            "hostPath": {"path": str(folder)},
        },
    })  # fmt: skip
    yield tmp_path
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout_s=180)
    kubectl("delete", "pv", "page", "--wait=false")
    shutil.rmtree(folder, ignore_errors=True)


def test_a_newcomer_can_follow_it(cluster, kubectl, image, git_host, place):
    git_host.serve_demo()
    repository, _, tag = image.rpartition(":")
    # What this cluster has of its own: a git host with a private address, an image that no registry
    # serves, kinds that another test may have brought, and others who must be left alone.
    (place / "here.yaml").write_text(json.dumps({
        "image": {"pullPolicy": "Never"},
        "rbac": {"scope": "Namespaced"},
        "settings": {
            "git": {"allowed_schemes": ["https", "ssh", "http"], "allowed_hosts": [git_host.host]}
        },
    }))  # fmt: skip
    text = PAGE.read_text()
    text = replaced(text, "registry.example.org/fc-operator TAG=0.1.0", f"{repository} TAG={tag}")
    text = replaced(
        text, "https://git.example.org/team/demo.git\n```", f"{git_host.url}/demo.git\n```"
    )
    text = replaced(text, "--values my-values.yaml", "--values my-values.yaml --values here.yaml")
    text = replaced(text, "helm install fc ", "helm install fc --take-ownership ")
    text = replaced(text, "helm upgrade fc ", "helm upgrade fc --take-ownership ")
    found = blocks(text)
    assert len(found) > 12
    script = "\n".join(f"echo '### block {n}'\n{block}" for n, block in enumerate(found, 1))
    done = subprocess.run(
        ["/bin/bash", "-euo", "pipefail", "-c", script],
        cwd=place, env={**cluster.environment(), "HOME": str(place)}, text=True, timeout=560,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{told(kubectl)}"
    assert "fc_" in done.stdout
    assert "jobset.fc-operator.dev/first-main" in done.stdout
    print(done.stdout)
    left = kubectl.within(NAMESPACE).json("get", "fc")["items"]
    assert {each["metadata"]["name"] for each in left} == {"first", "first-main"}
    assert not [each for each in left if each["metadata"].get("finalizers")]


def told(kubectl):
    within = kubectl.within(NAMESPACE)
    try:
        pods = within("get", "pods", "-o", "wide")
        return pods + within("get", "fc", "-o", "yaml") + within("get", "events")[-3000:]
    except RefusedError as error:
        return str(error)


def test_what_it_links_to_is_there():
    text = PAGE.read_text()
    anchors = {
        "#" + re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target in anchors, target
        elif not target.startswith("http"):
            assert (PAGE.parent / target).exists(), target
