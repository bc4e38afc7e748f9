"""The chart on a real cluster: judged, installed, upgraded, uninstalled."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import uuid

import pytest

from fc_operator.store import migrations
from tests.cluster import installations, schemas
from tests.cluster.kubectl import RefusedError
from tests.house import chart_snapshots

# The house's tests of the chart, here where helm is always there.
from tests.house.test_chart import *  # noqa: F403

ELSEWHERE = {"HTTPRoute", "ServiceMonitor"}
"""Kinds that a bare cluster does not have; nothing here judges them."""
KINDS = ("projects", "jobsets", "remotebuilders", "configrepositories")


@pytest.fixture
def site(cluster, kubectl, helm, namespace, image, cluster_database_url):  # noqa: PLR0917
    """A namespace that is ready for an install."""
    with installations.site(
        cluster, kubectl, helm, namespace, image=image, database_url=cluster_database_url
    ) as made:
        yield made


# Judged by what the API server knows -------------------------------------------------------------


@pytest.fixture(scope="module")
def known(kubectl, tmp_path_factory):
    """The folder with schemas of all kinds of the running API server."""
    folder = tmp_path_factory.mktemp("schemas")
    names = schemas.write(json.loads(kubectl("get", "--raw", "/openapi/v2")), folder)
    assert "deployment-apps-v1.json" in names
    return folder


def conform(cluster, known, text):
    done = subprocess.run(
        [cluster.programs["kubeconform"], "-strict", "-summary", "-output", "json",
         "-schema-location", f"{known}/{schemas.LOCATION}", "-skip", ",".join(ELSEWHERE), "-"],
        input=text, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = json.loads(done.stdout)
    assert not said["summary"]["errors"], said["resources"][0]
    return said


@pytest.mark.parametrize("case", chart_snapshots.cases())
@pytest.mark.parametrize("kinds", [True, False])
def test_what_it_renders_conforms_to_the_api_server(cluster, known, program, case, kinds):
    flags = ("--set", f"crds.install={str(kinds).lower()}")
    text = chart_snapshots.template(
        program, "--values", str(chart_snapshots.values_of(case)), *flags
    )
    said = conform(cluster, known, text)
    assert said.get("resources", []) == [], said
    summary = said["summary"]
    skipped = [each for each in chart_snapshots.objects(text) if each["kind"] in ELSEWHERE]
    assert summary["valid"] == len(chart_snapshots.objects(text)) - len(skipped)
    assert summary["skipped"] == len(skipped)


def test_what_does_not_conform_would_be_found(cluster, known, program):
    text = chart_snapshots.template(program, "--values", str(chart_snapshots.values_of("smallest")))
    for wrong in ("replicas: two", "replica: 2"):
        said = conform(cluster, known, text.replace("replicas: 2", wrong))
        assert said["summary"]["invalid"] == 1, wrong


@pytest.mark.parametrize("case", chart_snapshots.cases())
def test_the_api_server_would_take_all_of_it(kubectl, namespace, program, case):
    text = chart_snapshots.template(
        program, "--values", str(chart_snapshots.values_of(case)), "--namespace", namespace
    )
    # One namespace for all, since the others of the values are not there; and no pod by itself, which
    # is admitted only where its account is.
    without = {*ELSEWHERE, "Pod"}
    objects = [each for each in chart_snapshots.objects(text) if each["kind"] not in without]
    for each in objects:
        if "namespace" in each["metadata"]:
            each["metadata"]["namespace"] = namespace
    items = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    kubectl(
        "apply", "--server-side", "--dry-run=server", "--validate=strict", "-n", namespace,
        "-f", "-", stdin=items,
    )  # fmt: skip


# Installed ---------------------------------------------------------------------------------------


def test_install_upgrade_uninstall_and_again(
    site, kubectl, background, cluster_database_url, tmp_path
):
    """The life of an installation, on a database that an older version has left behind."""
    background.run(migrations.migrate(cluster_database_url, target="0003"))
    first = tmp_path / "fc-operator"
    shutil.copytree(installations.CHART, first)
    head = (first / "Chart.yaml").read_text()
    (first / "Chart.yaml").write_text(head.replace("version: 0.1.0", "version: 0.0.1", 1))
    old = installations.Site(
        kubectl=site.kubectl, helm=site.helm, namespace=site.namespace, values=site.values,
        chart=first,
    )  # fmt: skip
    repository = {"name": "team", "spec": {"url": "https://git.example.org/ci.git"}}
    said = old.install({"configRepositories": [repository]})
    assert "kubectl" in said  # NOTES.txt says how to go on
    assert background.run(migrations.state(cluster_database_url)).current
    site.kubectl.wait_for(lambda: site.get("/ready")[0] == 200, "a scheduler to beat")
    assert "Succeeded" in site.helm("test", installations.RELEASE, "--namespace", site.namespace)
    assert site.get("/health")[0] == 200
    assert site.get("/api/v1/projects")[0] == 401, "nobody reads without a key by default"
    for part in ("server", "scheduler", "operator"):
        deployment = site.kubectl.json("get", "deployment", site.named(part))
        assert deployment["status"]["readyReplicas"] == deployment["spec"]["replicas"], part
    has_no_rights(site, kubectl)
    team = site.kubectl.json("get", "configrepository", "team")
    assert team["spec"]["url"] == repository["spec"]["url"]
    assert team["metadata"]["labels"]["fc-operator.dev/release"] == installations.RELEASE
    site.kubectl.wait_for(
        lambda: site.kubectl.json("get", "configrepository", "team")["metadata"]["finalizers"],
        "the operator to hold the config repository",
    )

    # An upgrade with other settings: the pods are replaced, and nobody is turned away.
    before = pods(site, "server")
    asking = installations.Asking(site.url)
    thread = threading.Thread(target=asking.run, daemon=True)
    thread.start()
    other = {"name": "other", "spec": repository["spec"]}
    site.upgrade({"configRepositories": [other], "settings": {"web": {"log_streams_max": 7}}})
    asking.stopping = True
    thread.join(10)
    assert asking.failures == []
    assert asking.answers > 50
    assert not set(before) & set(pods(site, "server"))
    assert "0.1.0" in site.helm("list", "--namespace", site.namespace)
    # What the values do not hold any more is deleted, as its own operator lets it.
    site.kubectl.wait_gone("configrepository", "team")
    assert site.kubectl("get", "configrepository", "other", "-o", "name").strip()
    config = json.loads(site.kubectl.json("get", "configmap", "fc-fc-operator")["data"]["fc.yaml"])
    assert config["web"]["log_streams_max"] == 7

    # Uninstalled with objects present: none hangs, the kinds and the data stay.
    site.uninstall()
    left = site.kubectl.json("get", "configrepository", "other")["metadata"]
    assert not left.get("finalizers")
    labelled = f"app.kubernetes.io/instance={installations.RELEASE}"
    remains = site.kubectl(
        "get", "all,configmap,serviceaccount,role,rolebinding,networkpolicy,pdb,job",
        "-l", labelled, "-o", "name",
    ).split()  # fmt: skip
    site.kubectl.wait_gone("pods", "-l", labelled)
    assert [each for each in remains if not each.startswith("pod/")] == []
    for kind in KINDS:
        site.kubectl("get", "crd", f"{kind}.fc-operator.dev")
    site.kubectl("delete", "configrepository", "other", "--timeout=10s")
    assert background.run(migrations.state(cluster_database_url)).current

    # And again, on what is left.
    site.install({"server": {"replicas": 1}})
    site.kubectl.wait_for(lambda: site.get("/ready")[0] == 200, "a scheduler to beat")


def has_no_rights(site, kubectl):
    """The server has no token, and neither it nor our pods may do anything in the cluster."""
    with pytest.raises(RefusedError, match="No such file"):
        site.kubectl(
            "exec", f"deploy/{site.named('server')}", "-c", "server", "--",
            "ls", "/var/run/secrets/kubernetes.io/serviceaccount/token",
        )  # fmt: skip
    for part in ("server", "pods"):
        account = f"system:serviceaccount:{site.namespace}:{site.named(part)}"
        for verb, what in (("get", "secrets"), ("create", "pods"), ("list", "projects")):
            with pytest.raises(RefusedError):
                kubectl.as_user(account).within(site.namespace)("auth", "can-i", verb, what)


def pods(site, part):
    found = site.kubectl.json(
        "get", "pods", "-l", f"app.kubernetes.io/component={part}", "--field-selector",
        "status.phase=Running",
    )  # fmt: skip
    return [each["metadata"]["name"] for each in found["items"]]


def test_an_install_to_look_around_brings_its_own_database(site):
    values = {
        "externalDatabase": {"existingSecret": ""},
        "postgresql": {
            "enabled": True, "existingSecret": "fc",
            "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        },
        "server": {"replicas": 1},
    }  # fmt: skip
    site.install(values)
    site.kubectl.wait_for(lambda: site.get("/ready")[0] == 200, "a scheduler to beat")
    assert site.make_key().startswith("fc_")
    # Its password is asked for.
    with pytest.raises(RefusedError, match="password authentication failed"):
        site.kubectl(
            "exec", f"deploy/{site.named('server')}", "-c", "server", "--", "env",
            "PGPASSWORD=guessed", "/opt/fc/bin/fc", "migrate", "--check",
        )  # fmt: skip


def test_for_a_whole_cluster_and_with_kinds_that_go(cluster, site, kubectl, second_namespace):
    """With the scope Cluster objects count everywhere; without crds.keep all of them go at the end."""
    if cluster.places.instance == "dev":
        pytest.skip("it deletes our kinds, and with them what others have in the cluster named dev")
    site.install({
        "rbac": {"scope": "Cluster"}, "crds": {"install": True, "keep": False},
        "server": {"replicas": 1},
    })  # fmt: skip
    elsewhere = kubectl.within(second_namespace)
    elsewhere.apply({
        "apiVersion": "fc-operator.dev/v1alpha1", "kind": "Project",
        "metadata": {"name": "elsewhere"}, "spec": {"repositoryUrl": "https://git.example.org/e.git"},
    })  # fmt: skip
    elsewhere("wait", "--for=condition=Ready", "project/elsewhere", "--timeout=60s")
    assert elsewhere.json("get", "project", "elsewhere")["metadata"]["finalizers"]
    site.uninstall()
    for kind in KINDS:
        kubectl.wait_gone("crd", f"{kind}.fc-operator.dev", timeout_s=30)
    # For whoever comes next.
    kubectl(
        "apply", "--server-side", "--force-conflicts", "-f", str(installations.REPOSITORY / "crds")
    )


@pytest.fixture
def second_namespace(kubectl):
    """Another namespace, of somebody else."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
