"""The cluster is a real one, and the image runs in it as a stranger's cluster would run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncpg
import pytest

from tests.cluster import machine, parts
from tests.cluster.kubectl import Pod, RefusedError
from tests.cluster.places import Places


@pytest.fixture
def restricted(kubectl, namespace):
    """kubectl in a namespace that admits only pods of the standard "restricted"."""
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return kubectl.within(namespace)


def run_to_end(kubectl, pod: Pod, timeout_s: float = 60) -> str:
    """What the pod printed, when it has ended well."""
    kubectl.apply(pod.manifest())
    phase = kubectl.wait_for(
        lambda: (said := kubectl("get", "pod", pod.name, "-o", "jsonpath={.status.phase}"))
        in {"Succeeded", "Failed"} and said,
        f"{pod.name} to end",
        timeout_s=timeout_s,
    )  # fmt: skip
    log = kubectl("logs", pod.name)
    assert phase == "Succeeded", log
    return log


def test_the_node_is_ready_and_all_parts_run(cluster, kubectl):
    node = kubectl.json("get", "node", parts.NODE)
    ready = {each["type"]: each["status"] for each in node["status"]["conditions"]}
    assert ready["Ready"] == "True"
    assert node["status"]["nodeInfo"]["kubeletVersion"] == "v1.36.3"
    said = cluster.tell("status")["parts"]
    assert all(each["running"] for each in said.values()), said


def test_a_pod_finds_services_by_name_and_reaches_the_api_server(restricted, image):
    script = (
        "import socket, ssl, urllib.request as u\n"
        "a = socket.getaddrinfo('kubernetes.default.svc.cluster.local', 443)[0][4][0]\n"
        "c = ssl._create_unverified_context()\n"
        "print(a, u.urlopen('https://kubernetes.default.svc/livez', context=c, timeout=5).read())\n"
    )
    said = run_to_end(restricted, Pod("probe", image, ("/opt/fc/bin/python", "-c", script)))
    assert said.strip() == f"{parts.API} b'ok'"


def test_a_pod_reaches_what_listens_on_the_node(restricted, image):
    class Hello(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer((parts.HOST, 0), Hello)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        script = (
            "import urllib.request as u\n"
            f"print(u.urlopen('http://{parts.MACHINE}:{server.server_port}/', timeout=5).read())\n"
        )
        said = run_to_end(restricted, Pod("probe", image, ("/opt/fc/bin/python", "-c", script)))
    finally:
        server.shutdown()
        server.server_close()
    assert said.strip() == "b'hello'"


def test_a_service_leads_to_its_pods_from_a_pod_and_from_the_node(restricted, image):
    serve = ("/opt/fc/bin/python", "-m", "http.server", "8000", "--directory", "/opt/fc/share")
    pod = Pod("server", image, serve).manifest()
    pod["metadata"]["labels"] = {"app": "server"}
    restricted.apply(
        pod,
        {
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "server"},
            "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8000}]},
        },
    )  # fmt: skip
    restricted("wait", "--for=condition=Ready", "pod/server", "--timeout=60s")
    address = restricted("get", "service", "server", "-o", "jsonpath={.spec.clusterIP}")

    def answers() -> bool:
        try:
            socket.create_connection((address, 80), timeout=1).close()
        except OSError:
            return False
        return True

    restricted.wait_for(answers, "the service to answer")
    script = (
        "import urllib.request as u\n"
        "print(b'crds' in u.urlopen('http://server/', timeout=5).read())\n"
    )
    said = run_to_end(restricted, Pod("probe", image, ("/opt/fc/bin/python", "-c", script)))
    assert said.strip() == "True"


def test_postgresql_is_reached_from_a_pod_with_its_password(
    restricted, image, background, cluster_database_url
):
    async def version(url):
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval("SHOW server_version_num")
        finally:
            await connection.close()

    assert int(background.run(version(cluster_database_url))) >= 150000
    with pytest.raises(asyncpg.InvalidPasswordError):
        background.run(version(cluster_database_url.replace("only-for-tests", "guessed")))
    migrate = Pod(
        "migrate", image, ("/opt/fc/bin/fc", "migrate"), {"FC_DATABASE_URL": cluster_database_url}
    )
    run_to_end(restricted, migrate)
    assert background.run(_count(cluster_database_url)) > 20


async def _count(url):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(
            "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'"
        )
    finally:
        await connection.close()


def test_the_git_host_is_reached_from_a_pod(restricted, image, git_host):
    said = run_to_end(
        restricted, Pod("probe", image, ("git", "ls-remote", f"{git_host.url}/demo.git", "HEAD"))
    )
    assert "HEAD" in said


@pytest.mark.parametrize(
    "words",
    [
        ("--version",),
        ("validate", "/opt/fc/share/config/demo/manifests"),
        ("doctor", "-o", "json"),
    ],
    ids=lambda words: words[0],
)
def test_fc_runs_in_the_image_as_nobody_on_a_root_that_cant_be_written(restricted, image, words):
    said = run_to_end(restricted, Pod("probe", image, ("/opt/fc/bin/fc", *words)))
    if words[0] == "doctor":
        found = {each["name"]: each for each in json.loads(said)}
        assert found["Nix"]["detail"] == "2.26.3"
        assert found["Python"]["detail"].startswith("3.13.")
        assert not [each for each in found.values() if each["state"] == "missing"], said


def test_the_image_says_of_itself_what_pods_need(restricted, image):
    script = "id -un; id -u; echo ~; touch /opt/x 2>&1; touch ~/x && echo home"
    said = run_to_end(restricted, Pod("probe", image, ("sh", "-c", script))).splitlines()
    assert said[:3] == ["fc", "65532", "/home/fc"]
    assert "Read-only file system" in said[3]
    assert said[4] == "home"


def test_nix_builds_in_an_unprivileged_pod(restricted, image):
    """The pod is the sandbox: an empty /nix, no capability, no token, nobody's rights."""
    expression = (
        'derivation { name = "x"; system = builtins.currentSystem; builder = "/bin/sh"; '
        'args = [ "-c" "echo built > $out" ]; }'
    )
    script = f"cat $(nix-build --no-out-link --option substituters '' -E '{expression}')"
    said = run_to_end(restricted, Pod("build", image, ("sh", "-c", script)))
    assert said.splitlines()[-1] == "built"


def test_a_pod_that_is_not_restricted_is_refused(restricted, image):
    manifest = Pod("root", image, ("id",)).manifest()
    manifest["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(RefusedError, match="PodSecurity"):
        restricted.apply(manifest)


def test_logs_and_exec_work(restricted, image):
    restricted.apply(Pod("stay", image, ("sh", "-c", "echo here; sleep 600")).manifest())
    restricted("wait", "--for=condition=Ready", "pod/stay", "--timeout=60s")
    assert restricted("logs", "stay").strip() == "here"
    assert restricted("exec", "stay", "--", "id", "-un").strip() == "fc"


def parts_stop_and_come_back(other):
    """What tests of bad days do to a cluster; a part that dies by itself is started again."""
    ask = other.inside(other.programs["kubectl"], "get", "--raw=/readyz", "--request-timeout=2s")

    def answers() -> bool:
        done = subprocess.run(ask, env=other.environment(), capture_output=True, check=False)
        return done.returncode == 0

    assert answers()
    other.tell("stop", "kube-apiserver")
    assert not answers()
    other.tell("start", "kube-apiserver")
    deadline_s = time.monotonic() + 30
    while not answers():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    (kubelet,) = (
        pid
        for pid in machine.holders(other.places)
        if Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].endswith(b"/kubelet")
    )
    os.kill(kubelet, signal.SIGKILL)
    while not (said := other.tell("status")["parts"]["kubelet"])["restarts"] or not said["running"]:
        assert time.monotonic() < deadline_s + 30
        time.sleep(0.1)


def test_a_cluster_that_was_killed_or_taken_down_leaves_nothing(cluster):
    """A second one beside this one; its processes die with it, and its mounts with them."""
    places = Places("passing")
    other = machine.find("passing")
    with cluster.left():
        with machine.running(other):
            assert other.state()["state"] == "ready"
            assert len(machine.holders(places)) >= 9
            parts_stop_and_come_back(other)
            other.kill()
            assert machine.holders(places) == []
            assert other.state()["state"] == "down"
            # A next one clears away what the killed one has left.
            other.up(dies_with_us=True)
            assert other.state()["state"] == "ready"
        assert machine.traces(places) == []
