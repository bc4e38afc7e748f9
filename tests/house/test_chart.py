"""The chart renders what we last looked at, refuses what can't work, and keeps its promises."""

from __future__ import annotations

import base64
import json
import tomllib
import uuid
from pathlib import Path

import pytest
import yaml

from fc_operator import settings
from fc_operator.executors import pods, targets
from fc_operator.model.ids import TaskId
from tests.house import chart_documents, chart_snapshots
from tests.house.chart_documents import CHART

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program():
    """helm; the cluster suite builds it, and runs these tests too."""
    found = chart_snapshots.helm()
    if found is None:
        pytest.skip("there is no helm on PATH and none was built (`python -m tests.cluster build`)")
    return found


def rendered(program, case, *flags):
    values = ("--values", str(chart_snapshots.values_of(case)))
    return chart_snapshots.objects(chart_snapshots.template(program, *values, *flags))


def of_kind(objects, kind):
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


# What is written beside it -----------------------------------------------------------------------


def test_every_value_is_explained():
    assert list(chart_documents.undescribed()) == []


def test_the_schema_is_what_the_values_say():
    assert chart_documents.SCHEMA.read_text() == chart_documents.render_schema(), (
        "run: python -m tests.house.chart_documents"
    )


def test_the_table_is_what_the_values_say():
    assert chart_documents.README.read_text() == chart_documents.render_readme(), (
        "run: python -m tests.house.chart_documents"
    )


def test_the_chart_has_the_version_of_the_program():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == project["version"]


# What it renders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("case", chart_snapshots.cases())
def test_lint_has_nothing_to_say(program, case):
    values = ("--values", str(chart_snapshots.values_of(case)))
    done = chart_snapshots.run_helm(
        program, "lint", str(CHART), "--strict", *values,
        "--kube-version", chart_snapshots.KUBERNETES,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", chart_snapshots.cases())
def test_it_renders_what_we_looked_at(program, case):
    now = chart_snapshots.render(program, case)
    assert now == chart_snapshots.snapshot_of(case).read_text(), (
        "run: python -m tests.house.chart_snapshots, and read the difference"
    )


@pytest.mark.parametrize("case", chart_snapshots.cases())
def test_it_renders_the_same_again(program, case):
    values = ("--values", str(chart_snapshots.values_of(case)))
    assert chart_snapshots.template(program, *values) == chart_snapshots.template(program, *values)


@pytest.mark.parametrize("keep", [True, False])
def test_the_kinds_are_ours_letter_by_letter(program, keep):
    flags = ("--set", "crds.install=true", "--set", f"crds.keep={str(keep).lower()}")
    found = of_kind(rendered(program, "smallest", *flags), "CustomResourceDefinition")
    ours = [yaml.safe_load(file.read_text()) for file in (ROOT / "crds").glob("*.yaml")]
    assert set(found) == {each["metadata"]["name"] for each in ours}
    for each in ours:
        made = found[each["metadata"]["name"]]
        annotations = made["metadata"].pop("annotations", {})
        assert annotations == ({"helm.sh/resource-policy": "keep"} if keep else {})
        assert made["metadata"].pop("labels")
        assert made == each


def test_without_the_kinds_there_are_none(program):
    assert of_kind(rendered(program, "smallest"), "CustomResourceDefinition") == {}


@pytest.mark.parametrize("case", chart_snapshots.cases())
def test_every_pod_is_restricted(program, case):
    found = list(chart_snapshots.pods(rendered(program, case)))
    assert len(found) >= 3
    for name, pod in found:
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["enableServiceLinks"] is False, name
        assert not any("hostPath" in volume for volume in pod["volumes"]), name
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


@pytest.mark.parametrize("case", chart_snapshots.cases())
def test_only_who_speaks_to_the_api_server_has_a_token(program, case):
    with_token = {
        pod["serviceAccountName"].rpartition("-")[2]
        for _, pod in chart_snapshots.pods(rendered(program, case))
        if pod.get("automountServiceAccountToken", True)
    }
    assert with_token <= {"operator", "scheduler", "hooks"}
    assert {"operator", "scheduler"} <= with_token


@pytest.mark.parametrize("case", chart_snapshots.cases())
def test_nothing_secret_is_rendered(program, case):
    objects = rendered(program, case)
    assert of_kind(objects, "Secret") == {}
    for name, pod in chart_snapshots.pods(objects):
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            for variable in container.get("env", ()):
                if any(word in variable["name"] for word in ("KEY", "PASSWORD")):
                    assert "value" not in variable or variable["name"].endswith("_FILES"), name


@pytest.mark.parametrize("case", chart_snapshots.cases())
def test_the_operator_is_one_and_never_two(program, case):
    deployments = of_kind(rendered(program, case), "Deployment")
    (operator,) = [each for name, each in deployments.items() if name.endswith("-operator")]
    assert operator["spec"]["replicas"] == 1
    assert operator["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("case", chart_snapshots.cases())
def test_the_program_accepts_its_settings_and_targets(program, case, tmp_path):
    objects = rendered(program, case)
    (data,) = [
        each["data"] for each in of_kind(objects, "ConfigMap").values() if "fc.yaml" in each["data"]
    ]
    (tmp_path / "fc.yaml").write_text(data["fc.yaml"])
    key = base64.b64encode(bytes(32)).decode()
    for name, pod in chart_snapshots.pods(objects):
        if name.endswith("-postgresql"):
            continue
        env = {
            each["name"]: each.get("value", key)
            for each in pod["containers"][0].get("env", ())
            if each["name"].startswith("FC_") and each["name"] != "FC_CONFIG_FILE"
        }
        loaded = settings.load(file=tmp_path / "fc.yaml", env=env)
        assert loaded.kubernetes.enabled
        assert not loaded.builds.local
    defaults = targets.Defaults(namespace="ci", systems=("x86_64-linux",), features=())
    found, problems = targets.parse_targets(data["targets.yaml"].encode(), defaults)
    assert problems == ()
    assert found[0].name == targets.DEFAULT
    assert found[0].service_account.endswith("-pods")
    accounts = {
        (each["metadata"]["namespace"], each["metadata"]["name"])
        for each in objects if each["kind"] == "ServiceAccount"
    }  # fmt: skip
    assert (found[0].namespace, found[0].service_account) in accounts


def test_numbers_stay_whole(program):
    (data,) = [
        each["data"]["fc.yaml"]
        for each in of_kind(rendered(program, "everything"), "ConfigMap").values()
        if "fc.yaml" in each["data"]
    ]
    assert json.loads(data)["builds"]["nar_bytes"] == 123_456_789_012


def test_pods_that_run_what_strangers_wrote_reach_no_database_and_no_api_server(program):
    policies = of_kind(rendered(program, "evaluation"), "NetworkPolicy")
    (pods,) = [each["spec"] for name, each in policies.items() if name.endswith("-pods")]
    assert pods["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in pods
    to_server, names, world = pods["egress"]
    selector = to_server["to"][0]["podSelector"]["matchLabels"]
    assert selector["app.kubernetes.io/component"] == "server"
    assert "to" not in names
    assert {each["port"] for each in names["ports"]} == {53}
    private = world["to"][0]["ipBlock"]["except"]
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= set(private)
    without = rendered(program, "evaluation", "--set", "networkPolicy.pods.internet=false")
    (pods,) = [
        s["spec"] for n, s in of_kind(without, "NetworkPolicy").items() if n.endswith("-pods")
    ]
    assert pods["egress"] == [to_server, names]


@pytest.mark.parametrize("case", ["smallest", "everything"])
def test_its_policy_and_account_are_those_of_the_pods_that_we_make(program, case, tmp_path):
    objects = rendered(program, case)
    (data,) = [
        each["data"] for each in of_kind(objects, "ConfigMap").values() if "fc.yaml" in each["data"]
    ]
    (tmp_path / "fc.yaml").write_text(data["fc.yaml"])
    given = settings.load(file=tmp_path / "fc.yaml").kubernetes
    defaults = targets.Defaults(namespace="ci", systems=("x86_64-linux",), features=())
    found, _ = targets.parse_targets(data["targets.yaml"].encode(), defaults)
    for target in found:
        order = pods.PodOrder(
            kind=pods.BUILD, task_id=TaskId(uuid.uuid4()), project="p", jobset="j", target=target
        )
        made = pods.definition(order, given, given.installation)
        namespace = made["metadata"]["namespace"]
        (policy,) = [
            each["spec"]["podSelector"]["matchLabels"]
            for each in objects
            if each["kind"] == "NetworkPolicy"
            and each["metadata"]["namespace"] == namespace
            and each["metadata"]["name"].endswith("-pods")
        ]
        assert policy.items() <= made["metadata"]["labels"].items()
        accounts = {
            each["metadata"]["name"]: each
            for each in objects
            if each["kind"] == "ServiceAccount" and each["metadata"]["namespace"] == namespace
        }
        if target.service_account.endswith("-pods"):
            account = accounts[made["spec"]["serviceAccountName"]]
            assert account["automountServiceAccountToken"] is False
            pulls = [{"name": "registry"}] if case == "everything" else None
            assert account.get("imagePullSecrets") == pulls
        # Who makes pods there may.
        assert any(
            each["kind"] == "RoleBinding"
            and each["metadata"]["namespace"] == namespace
            and each["metadata"]["name"].endswith("-build-pods")
            for each in objects
        )


def test_only_who_keeps_logs_and_products_gets_the_bucket_s_key(program):
    with_key = {
        name.rpartition("-")[2]
        for name, pod in chart_snapshots.pods(rendered(program, "everything"))
        for container in [*pod.get("initContainers", ()), *pod["containers"]]
        if {"secretRef": {"name": "fc-bucket"}} in container.get("envFrom", ())
    }
    assert with_key == {"server", "scheduler"}


def test_a_change_of_settings_replaces_the_pods(program):
    def sums(*flags):
        return {
            name: each["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
            for name, each in of_kind(rendered(program, "smallest", *flags), "Deployment").items()
        }

    before, after = sums(), sums("--set", "settings.queue.batch=3")
    assert set(before) == set(after)
    assert not [name for name in before if before[name] == after[name]]


# What it refuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "flag", "said"),
    [
        ("smallest", "existingSecret=", "existingSecret is needed"),
        ("smallest", "externalDatabase.existingSecret=", "externalDatabase.existingSecret is needed"),
        ("smallest", "objects.url=", "objects.url or objects.persistence.enabled is needed"),
        ("smallest", "postgresql.enabled=true", "exclude each other"),
        ("evaluation", "postgresql.existingSecret=", "postgresql.existingSecret is needed"),
        ("smallest", "server.ingress.enabled=true", "server.ingress.hosts is needed"),
        ("smallest", "server.httpRoute.enabled=true", "parentRefs is needed"),
        ("smallest", "servr.replicas=3", "'servr' not allowed"),
        ("smallest", "server.replicas=0", "replicas"),
        ("smallest", "rbac.scope=cluster", "scope"),
        ("smallest", "settings.web.prot=1", "'prot' not allowed"),
        ("smallest", "settings.web.port=70000", "port"),
        ("smallest", "settings.secrets.encryption_key=x", "'encryption_key' not allowed"),
        ("smallest", "settings.nix.sandbox=Maybe", "sandbox"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_refused_with_a_reason(program, case, flag, said):
    with pytest.raises(ValueError, match=said):
        rendered(program, case, "--set", flag)


def test_a_kubernetes_that_is_too_old_is_refused(program):
    with pytest.raises(ValueError, match="incompatible"):
        rendered(program, "smallest", "--kube-version", "1.31.9")
