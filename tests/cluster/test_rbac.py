"""Rights: each part of an installation has what it needs and no more, and who may declare things in
one namespace causes nothing in another.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import yaml

from fc_operator.clients.kube import OWN, Kube
from fc_operator.model import desired
from fc_operator.spec import schemas
from tests.cluster.kubectl import Kubectl, RefusedError
from tests.cluster.programs import KUBERNETES

CHART = Path(__file__).parents[2] / "charts" / "fc-operator"
FC = Path(sys.executable).with_name("fc")
GROUP = "fc-operator.dev"
KINDS = ("projects", "jobsets", "remotebuilders", "configrepositories")
SCOPES = ("Namespaced", "Cluster")
_RBAC = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


@dataclass(frozen=True)
class Installation:
    """The rights of a release, really in the cluster; its pods are not."""

    kubectl: Kubectl
    scope: str
    home: str
    """The release's own namespace."""
    a: str
    """One team's objects and secrets."""
    b: str
    """Another team's."""
    pods_a: str
    """Where the pods of a's projects run."""
    pods_b: str
    bystander: str
    """A namespace that has nothing to do with any of it."""
    objects: tuple[dict, ...]

    @property
    def name(self) -> str:
        return f"{self.home}-fc-operator"

    def called(self, word: str) -> str:
        """A project's name that no other test of this cluster takes: the operator may see them all."""
        return f"{word}-{self.home.rsplit('-', 1)[-1]}"

    def account(self, part: str, namespace: str = "") -> str:
        return f"system:serviceaccount:{namespace or self.home}:fc-operator-{part}"

    def as_part(self, part: str) -> Kubectl:
        """kubectl with exactly the rights of a part: its own token, and no impersonation."""
        return as_account(self.kubectl, self.home, f"fc-operator-{part}")


def as_account(kubectl: Kubectl, namespace: str, name: str) -> Kubectl:
    token = kubectl.within(namespace)("create", "token", name).strip()
    return kubectl._with("--kubeconfig=" + kubeconfig_of(kubectl, token))


def kubeconfig_of(kubectl: Kubectl, token: str) -> str:
    """A kubeconfig with another token than the administrator's."""
    own = Path(kubectl.environment["KUBECONFIG"])
    config = yaml.safe_load(own.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    file = own.with_name(f"as-{uuid.uuid4().hex[:8]}.kubeconfig")
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump(config))
    _FILES.append(file)
    return str(file)


_FILES: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _forget_tokens():
    yield
    while _FILES:
        _FILES.pop().unlink()


def render(helm, home: str, **rbac) -> tuple[dict, ...]:
    """The objects of the chart with these values."""
    values = {
        "fullnameOverride": "fc-operator",
        "existingSecret": "fc",
        "externalDatabase": {"existingSecret": "fc-database"},
        "objects": {"url": "s3://bucket/fc"},
        "crds": {"install": False},
        "rbac": {key: value for key, value in rbac.items() if key != "targets"},
        "targets": rbac.get("targets", []),
    }
    said = helm(
        "template", "fc", str(CHART), "--namespace", home, "--kube-version", KUBERNETES,
        "--values", "-", stdin=json.dumps(values),
    )  # fmt: skip
    return tuple(each for each in yaml.safe_load_all(said) if each)


@pytest.fixture(scope="module", params=SCOPES)
def installation(request, kubectl, helm):
    """Both scopes in turn, with two teams and a namespace of each for pods."""
    crds = str(schemas.crd_files()[0].parent.resolve())
    kubectl("apply", "--server-side", "--force-conflicts", "-f", crds)
    tag = uuid.uuid4().hex[:6]
    home, a, b, pods_a, pods_b, bystander = (
        f"g-{word}-{tag}" for word in ("home", "a", "b", "pods-a", "pods-b", "by")
    )
    namespaces = (home, a, b, pods_a, pods_b, bystander)
    objects = render(
        helm, home, scope=request.param, objectNamespaces=[a, b],
        targets=[
            {"name": "default", "objectNamespaces": [a], "namespace": pods_a},
            {"name": "b-only", "objectNamespaces": [b], "namespace": pods_b},
        ],
    )  # fmt: skip
    rights = [each for each in objects if each["kind"] in _RBAC]
    for each in namespaces:
        kubectl("create", "namespace", each)
    kubectl.apply(*rights)
    try:
        yield Installation(
            kubectl, request.param, home, a, b, pods_a, pods_b, bystander, objects
        )  # fmt: skip
    finally:
        for each in rights:
            if each["kind"].startswith("Cluster"):
                kubectl("delete", each["kind"], each["metadata"]["name"], "--ignore-not-found")
        for each in (a, b):
            # An object of a test may still have its finalizer, and nobody is there to take it off.
            for kind in KINDS:
                for found in kubectl.within(each)("get", kind, "-o", "name").split():
                    kubectl.within(each)(
                        "patch", found, "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
                    )
        kubectl("delete", "namespace", *namespaces, "--wait=false")


# What is written down -----------------------------------------------------------------------


def rules_of(objects) -> list[tuple[str, dict]]:
    return [
        (f"{each['kind']} {each['metadata']['name']}", rule)
        for each in objects
        if each["kind"] in {"Role", "ClusterRole"}
        for rule in each["rules"]
    ]


def test_no_rule_has_a_star_nor_a_word_that_leads_further(installation):
    rules = rules_of(installation.objects)
    assert len(rules) >= 8
    for where, rule in rules:
        words = [word for part in rule.values() for word in part]
        assert not any("*" in word for word in words), where
        assert not {"escalate", "bind", "impersonate", "update"} & set(rule["verbs"]) or (
            where.rsplit("-", 1)[-1] in {"edit", "admin", "builders"}
        ), where
        forbidden = {"pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers",
                     "serviceaccounts/token", "nodes", "configmaps"}  # fmt: skip
        assert not forbidden & set(rule["resources"]), where
        if "secrets" in rule["resources"]:
            assert rule["resources"] == ["secrets"], where
            assert rule["verbs"] == ["get"], where


def test_secrets_and_pods_are_bound_namespace_by_namespace(installation):
    powerful = {
        each["metadata"]["name"]
        for each in installation.objects
        if each["kind"] == "ClusterRole"
        and any({"secrets", "pods"} & set(rule["resources"]) for rule in each["rules"])
    }
    wide = [each for each in installation.objects if each["kind"] == "ClusterRoleBinding"]
    assert not powerful & {each["roleRef"]["name"] for each in wide}
    if installation.scope == "Namespaced":
        assert wide == []
        assert powerful == set()
    for each in installation.objects:
        if each["kind"].endswith("Binding"):
            assert all(subject["kind"] == "ServiceAccount" for subject in each["subjects"])
            assert {subject["namespace"] for subject in each["subjects"]} == {installation.home}


def test_namespaced_without_aggregation_nothing_is_cluster_wide(helm):
    objects = render(helm, "ci", scope="Namespaced", aggregate=False)
    assert [each for each in objects if each["kind"].startswith("ClusterRole")] == []
    assert [each for each in objects if each["kind"] == "Role"]


def test_without_rbac_there_are_only_accounts(helm):
    objects = render(helm, "ci", create=False)
    assert {each["kind"] for each in objects if each["kind"] in _RBAC} == {"ServiceAccount"}


def test_secrets_can_be_narrowed_to_names(helm):
    objects = render(helm, "ci", scope="Namespaced", secretNames=["team-git"])
    (found,) = [rule for _, rule in rules_of(objects) if "secrets" in rule["resources"]]
    assert found["resourceNames"] == ["team-git"]


# What the API server makes of it ------------------------------------------------------------


def rights(kubectl: Kubectl, account: str, namespace: str) -> set[tuple[str, str]]:
    """(verb, resource) of all that an account may do in a namespace, but for what everybody may."""
    body = {
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }  # fmt: skip
    group = f"system:serviceaccounts:{account.split(':')[2]}"
    user = kubectl.as_user(account, "system:serviceaccounts", group, "system:authenticated")
    said = json.loads(
        user("create", "--validate=false", "-f", "-", "-o", "json", stdin=json.dumps(body))
    )
    assert said["status"]["incomplete"] is False
    return {
        (verb, f"{resource}.{api}" if api else resource)
        for rule in said["status"]["resourceRules"]
        if not {"authorization.k8s.io", "authentication.k8s.io"} & set(rule["apiGroups"])
        for api in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


OBJECTS = {
    (verb, f"{kind}.{GROUP}") for kind in KINDS for verb in ("get", "list", "watch", "patch")
}
OBJECTS |= {("patch", f"{kind}/status.{GROUP}") for kind in KINDS}
OBJECTS |= {("create", "events.events.k8s.io")}
SECRETS = {("get", "secrets")}
PODS = {(verb, "pods") for verb in ("create", "get", "list", "delete")}
PODS |= {("get", "pods/log"), ("list", "events")}


HOOKS = {
    (verb, f"configrepositories.{GROUP}") for verb in ("get", "list", "create", "patch", "delete")
}


def test_each_part_may_do_what_it_needs_and_nothing_more(installation, kubectl):
    where = installation
    everywhere = OBJECTS if where.scope == "Cluster" else set()
    expected = {
        "operator": {
            where.home: OBJECTS | SECRETS, where.a: OBJECTS | SECRETS, where.b: OBJECTS | SECRETS,
            where.pods_a: everywhere, where.pods_b: everywhere, where.bystander: everywhere,
            "kube-system": everywhere,
        },
        "scheduler": {
            where.home: SECRETS | PODS, where.a: SECRETS, where.b: SECRETS,
            where.pods_a: PODS, where.pods_b: PODS, where.bystander: set(), "kube-system": set(),
        },
        "hooks": {where.home: HOOKS, where.a: set(), "kube-system": set()},
        "server": {where.home: set(), where.a: set(), where.pods_a: set(), "kube-system": set()},
        "pods": {where.home: set(), where.a: set(), where.pods_a: set(), "kube-system": set()},
    }  # fmt: skip
    for part, by_namespace in expected.items():
        for namespace, expected_rights in by_namespace.items():
            found = rights(kubectl, where.account(part), namespace)
            assert found == expected_rights, (part, namespace)
    # The account of pods in their own namespace, as that is what they run with.
    for namespace in (where.pods_a, where.pods_b):
        assert rights(kubectl, where.account("pods", namespace), namespace) == set()


def test_a_part_without_rights_gets_no_token_either(installation):
    accounts = {
        (each["metadata"]["namespace"], each["metadata"]["name"]): each
        for each in installation.objects
        if each["kind"] == "ServiceAccount"
    }
    for (_, name), account in accounts.items():
        if name.rsplit("-", 1)[-1] in {"server", "pods"}:
            assert account["automountServiceAccountToken"] is False
    assert (installation.pods_a, "fc-operator-pods") in accounts


SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "git"},
    "stringData": {"username": "ada", "password": "canary-of-this-namespace"},
}
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "probe"},
    # Never placed on a node: rights are what is asked for here.
    "spec": {"containers": [{"name": "c", "image": "none"}], "nodeSelector": {"none": "such"}},
}


def refused(kubectl: Kubectl, *words: str, stdin: str | None = None) -> None:
    with pytest.raises(RefusedError, match=r"[Ff]orbidden"):
        kubectl(*words, stdin=stdin)


async def patch_status(kubeconfig: str, namespace: str, name: str) -> None:
    """As the operator does; kubectl would read first what it patches, which it has no need of."""
    async with await Kube.connect(kubeconfig=kubeconfig) as kube:
        step = {"op": "add", "path": "/status/observedGeneration", "value": 1}
        body = await kube.patch(OWN[desired.PROJECT], namespace, name, [step], sub="status")
    assert body["status"]["observedGeneration"] == 1


def kubeconfig(kubectl: Kubectl) -> str:
    (found,) = [word for word in kubectl.arguments if word.startswith("--kubeconfig=")]
    return found.removeprefix("--kubeconfig=")


def test_real_calls_of_each_part_with_its_own_token(installation, kubectl, background):
    where = installation
    for namespace in (where.a, where.bystander):
        kubectl.within(namespace).apply(SECRET)
    kubectl.within(where.a).apply(project("real-calls", f"real-calls-{where.a}"))
    scheduler, operator, server = map(where.as_part, ("scheduler", "operator", "server"))
    for part in (scheduler, operator):
        assert part.within(where.a)("get", "secret", "git", "-o", "name") == "secret/git\n"
        refused(part.within(where.a), "get", "secrets")
        refused(part.within(where.bystander), "get", "secret", "git")
        refused(part, "get", "secrets", "--all-namespaces")
        refused(part.within(where.a), "create", "secret", "generic", "x")
        refused(part.within(where.home), "create", "token", "fc-operator-operator")
        refused(
            part, "create", "clusterrolebinding", "x", "--clusterrole=cluster-admin", "--user=x"
        )
    scheduler.within(where.pods_a)("create", "-f", "-", stdin=json.dumps(POD))
    assert "probe" in scheduler.within(where.pods_a)("get", "pods")
    refused(scheduler.within(where.pods_a), "patch", "pod", "probe", "-p", "{}")
    refused(scheduler.within(where.pods_a), "get", "secret", "git")
    scheduler.within(where.pods_a)("delete", "pod", "probe", "--wait=false")
    refused(scheduler.within(where.a), "create", "-f", "-", stdin=json.dumps(POD))
    refused(scheduler.within(where.bystander), "create", "-f", "-", stdin=json.dumps(POD))
    refused(scheduler.within(where.a), "get", "projects")
    background.run(patch_status(kubeconfig(operator), where.a, "real-calls"))
    refused(operator.within(where.a), "delete", "project", "real-calls")
    refused(operator.within(where.a), "create", "-f", "-", stdin=json.dumps(project("x", "x")))
    refused(operator.within(where.pods_a), "create", "-f", "-", stdin=json.dumps(POD))
    if where.scope == "Cluster":
        assert "real-calls" in operator("get", "projects", "--all-namespaces")
    else:
        refused(operator, "get", "projects", "--all-namespaces")
        refused(operator.within(where.bystander), "get", "projects")
    refused(server.within(where.a), "get", "secret", "git")
    refused(server.within(where.home), "get", "pods")
    refused(server.within(where.a), "get", "projects")


# People -------------------------------------------------------------------------------------


def project(name: str, called: str, **spec) -> dict:
    spec = {"name": called, "repositoryUrl": "https://git.example.org/demo.git", **spec}
    return manifest("Project", name, spec)


def jobset(name: str, of: str, **spec) -> dict:
    return manifest("Jobset", name, {"projectRef": {"name": of}, **spec})


def manifest(kind: str, name: str, spec: dict) -> dict:
    return {
        "apiVersion": desired.API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec,
    }  # fmt: skip


@pytest.fixture(scope="module")
def people(installation, kubectl):
    """Accounts that are bound to the cluster's own roles in namespace a, and to nothing else."""
    made = {}
    for role in ("view", "edit", "admin"):
        kubectl.within(installation.bystander)("create", "serviceaccount", role)
        who = f"{installation.bystander}:{role}"
        kubectl.within(installation.a)(
            "create", "rolebinding", role, f"--clusterrole={role}", f"--serviceaccount={who}"
        )
        made[role] = as_account(kubectl, installation.bystander, role)
    # The cluster learns our part of these roles a moment after it was written.
    made["admin"].wait_for(
        lambda: can(
            made["admin"].within(installation.a), "create", f"configrepositories.{GROUP}"
        ),
        "the roles to be aggregated",
    )  # fmt: skip
    return made


def can(kubectl: Kubectl, verb: str, what: str, *more: str) -> bool:
    try:
        return kubectl("auth", "can-i", verb, what, *more).strip() == "yes"
    except RefusedError as error:
        if str(error).strip().endswith(": no"):  # kubectl says so by its exit code too
            return False
        raise


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("view", {"get": set(KINDS), "create": set(), "delete": set()}),
        ("edit", {"get": set(KINDS), "create": {"projects", "jobsets"},
                  "delete": {"projects", "jobsets"}}),
        ("admin", {"get": set(KINDS), "create": {"projects", "jobsets", "configrepositories"},
                   "delete": {"projects", "jobsets", "configrepositories"}}),
    ],
)  # fmt: skip
def test_the_clusters_roles_know_our_kinds(installation, people, role, may):
    user = people[role].within(installation.a)
    for verb, kinds in may.items():
        assert {kind for kind in KINDS if can(user, verb, f"{kind}.{GROUP}")} == kinds, verb
    for kind in KINDS:
        # What it says of itself is the operator's word alone.
        assert not can(user, "patch", f"{kind}.{GROUP}", "--subresource=status")
        assert not can(user, "update", f"{kind}.{GROUP}", "--subresource=status")
    elsewhere = people[role].within(installation.b)
    assert not any(can(elsewhere, verb, f"{kind}.{GROUP}") for kind in KINDS for verb in may)
    assert not can(elsewhere, "get", "secrets")
    assert not can(people[role].within(installation.pods_a), "create", "pods")


# The operator with its own rights, and people who want more than theirs ----------------------


@pytest.fixture(scope="module")
def database(postgres, background):
    """A query of the operator's own database."""
    name = postgres.create()
    url = postgres.url(name)

    def ask(text: str, *values: object) -> list[tuple]:
        async def run() -> list[tuple]:
            connection = await asyncpg.connect(url)
            try:
                return [tuple(row) for row in await connection.fetch(text, *values)]
            finally:
                await connection.close()

        return background.run(run())

    ask.url = url
    yield ask
    postgres.drop(name)


@pytest.fixture(scope="module")
def operator(installation, people, database, tmp_path_factory):
    """`fc operator` with the settings that the chart gives it and the token of its account."""
    home = tmp_path_factory.mktemp("operator")
    (configmap,) = [
        each for each in installation.objects
        if each["kind"] == "ConfigMap" and "fc.yaml" in each["data"]
    ]  # fmt: skip
    settings = yaml.safe_load(configmap["data"]["fc.yaml"])
    settings["kubernetes"]["kubeconfig"] = kubeconfig(installation.as_part("operator"))
    settings["operator"] |= {"compare_s": 2, "status_s": 0.2, "health_host": "127.0.0.1",
                             "health_port": 0}  # fmt: skip
    settings["state"] = {"dir": str(home / "state")}
    (home / "fc.yaml").write_text(json.dumps(settings))
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "FC_CONFIG_FILE": str(home / "fc.yaml"),
        "FC_DATABASE_URL": database.url, "FC_ENCRYPTION_KEY": base64.b64encode(bytes(32)).decode(),
    }  # fmt: skip
    log = home / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [FC, "operator"], env=environment, stdout=file, stderr=file, start_new_session=True
        )
    yield process
    code = process.poll()
    process.terminate()
    process.wait(20)
    print(log.read_text())  # shown when a test failed
    assert code is None, "it ended by itself"
    assert "is forbidden: User" not in log.read_text(), "it asked for what is not its right"


def ready(kubectl: Kubectl, what: str, reason: str) -> dict:
    """Its condition, once it has this reason for the present generation."""

    def reached():
        found = kubectl.json("get", what)
        for each in found.get("status", {}).get("conditions", ()):
            if (each["type"], each["observedGeneration"]) == (
                "Ready", found["metadata"]["generation"]
            ) and each["reason"] == reason:  # fmt: skip
                return each
        return None

    return kubectl.wait_for(reached, f"{what} to be {reason}", timeout_s=90)


@pytest.fixture
def mallory(operator, installation, people):
    """May edit in a, and nothing anywhere else."""
    return people["edit"].within(installation.a)


@pytest.fixture
def victim(operator, installation, kubectl):
    """The administrator in b, with a project and the secrets of a team."""
    here = kubectl.within(installation.b)
    here.apply(
        {**SECRET, "metadata": {"name": "b-git"}},
        {**SECRET, "metadata": {"name": "b-hook"}, "stringData": {"secret": "canary"}},
    )
    here.apply(
        project("shared", installation.called("shared"), credentialsSecretRef={"name": "b-git"})
    )
    ready(here, "project/shared", "Reconciled")
    return here


def test_what_a_user_declares_becomes_ready_with_the_rights_that_the_operator_has(
    mallory, installation, kubectl
):
    mallory.apply(
        project("own", installation.called("own"), webhooks=[{"forge": "Gitea", "secretRef": {"name": "own", "key": "s"}}]),
        jobset("own-main", installation.called("own")),
    )  # fmt: skip
    assert "no secret own" in ready(mallory, "project/own", "SecretNotFound")["message"]
    mallory.wait_for(lambda: "SecretNotFound" in mallory("get", "events"), "an Event")
    mallory("create", "secret", "generic", "own", "--from-literal=s=x")
    ready(mallory, "project/own", "Reconciled")
    ready(mallory, "jobset/own-main", "Reconciled")
    mallory("delete", "jobset/own-main", "project/own", "--timeout=30s")


def test_s09_confused_deputy_a_secret_of_b_is_not_read_for_a(
    mallory, victim, database, installation
):
    mallory.apply(
        project(
            "thief", installation.called("thief"), credentialsSecretRef={"name": "b-git"},
            webhooks=[{"forge": "GitHub", "secretRef": {"name": "b-hook", "key": "secret"}}],
        )
    )  # fmt: skip
    message = ready(mallory, "project/thief", "SecretNotFound")["message"]
    namespace = mallory.arguments[-1].partition("=")[2]
    assert f"there is no secret b-git in namespace {namespace}" in message
    assert f"there is no secret b-hook in namespace {namespace}" in message
    kept = database(
        "SELECT w.secret_ciphertext FROM webhook_configs w JOIN projects p ON p.id = w.project_id "
        "WHERE p.name = $1",
        installation.called("thief"),
    )
    assert kept == [(None,)]
    # Nor by a name that leads out of the namespace.
    for name in ("../b/git", "b/git", "git?namespace=b", "..", "GIT"):
        with pytest.raises(RefusedError, match=r"credentialsSecretRef\.name"):
            mallory.apply(
                project("thief", installation.called("thief"), credentialsSecretRef={"name": name})
            )
    mallory("delete", "project/thief", "--timeout=30s")


def test_s09_confused_deputy_a_name_of_b_is_not_taken(mallory, victim, database, installation):
    mallory.apply(
        project(
            "mine", installation.called("shared"), repositoryUrl="https://evil.example.org/x.git"
        )
    )
    message = ready(mallory, "project/mine", "OwnedByOther")["message"]
    assert "canary" not in message
    owned = "SELECT namespace, repository_url FROM projects WHERE name = $1"
    shared = installation.called("shared")
    assert database(owned, shared) == [(installation.b, "https://git.example.org/demo.git")]
    ready(victim, "project/shared", "Reconciled")
    # A claim that waits does not get the history when the owner leaves for good, and is no heir.
    mallory("delete", "project/mine", "--timeout=30s")
    assert database(owned, shared) == [(installation.b, "https://git.example.org/demo.git")]


def test_s09_confused_deputy_a_jobset_of_a_joins_no_project_of_b(
    mallory, victim, database, installation
):
    """With its credentials it would read b's repository, and build in its place."""
    mallory.apply(jobset("parasite", installation.called("shared")))
    ready(mallory, "jobset/parasite", "ReferenceNotPermitted")
    assert database("SELECT count(*) FROM jobsets WHERE name = 'parasite'") == [(0,)]
    mallory("delete", "jobset/parasite", "--timeout=30s")


def test_a_user_of_a_may_do_nothing_in_b_by_hand_either(mallory, victim, installation, people):
    there = people["edit"].within(installation.b)
    for words in (("get", "projects"), ("get", "secret", "b-git"), ("get", "pods")):
        refused(there, *words)
    refused(
        there, "create", "-f", "-", stdin=json.dumps(jobset("x", installation.called("shared")))
    )
    refused(mallory, "create", "-f", "-", stdin=json.dumps(builder("mine")))
    forged = json.dumps({"status": {"observedGeneration": 99}})
    mallory.apply(project("forger", installation.called("forger")))
    refused(
        mallory, "patch", "project", "forger", "--subresource=status", "--type=merge", "-p", forged
    )
    mallory("delete", "project/forger", "--timeout=30s")


def builder(name: str) -> dict:
    spec = {
        "sshUri": "ssh://nix@evil.example.org", "systems": ["x86_64-linux"],
        "sshKeySecretRef": {"name": "k"}, "publicHostKey": "ssh-ed25519 AAAAC3NzaC1lZDI1",
    }  # fmt: skip
    return manifest("RemoteBuilder", name, spec)


def test_a_builder_counts_in_the_installations_own_namespace_alone(operator, installation, kubectl):
    """Whatever rights somebody has in a: a builder would get the work of everybody."""
    name = installation.called("builder")
    theirs, ours = kubectl.within(installation.a), kubectl.within(installation.home)
    theirs.apply(builder(name))
    ready(theirs, f"remotebuilder/{name}", "NotPermitted")
    ours("create", "secret", "generic", "k", "--from-literal=identity=x")
    ours.apply(builder(name))
    ready(ours, f"remotebuilder/{name}", "Reconciled")
    ready(theirs, f"remotebuilder/{name}", "NotPermitted")
    for each in (theirs, ours):
        each("delete", f"remotebuilder/{name}", "--timeout=60s")


def test_a_namespace_outside_of_the_scope_causes_nothing(operator, installation, kubectl, database):
    """Namespaced: nobody looks. Cluster: it counts, but its secrets are out of reach, and it says so."""
    here = kubectl.within(installation.bystander)
    here.apply(
        SECRET, project("far", installation.called("far"), credentialsSecretRef={"name": "git"})
    )
    if installation.scope == "Cluster":
        message = ready(here, "project/far", "SecretNotFound")["message"]
        assert f"no right to read it in namespace {installation.bystander}" in message
        assert "canary" not in message
    else:
        inside = kubectl.within(installation.a)
        inside.apply(
            project("near", installation.called("near"))
        )  # what is seen after it shows that it was not seen
        ready(inside, "project/near", "Reconciled")
        assert here.json("get", "project/far")["status"] == {"observedGeneration": -1}
        assert database("SELECT count(*) FROM projects WHERE name LIKE 'far%'") == [(0,)]
        inside("delete", "project/near", "--timeout=30s")
    here("delete", "project/far", "--timeout=30s")
