"""Secrets of a real API server: the seam's own suite, rights, rotation, and what conditions say."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from kubernetes.client import Configuration

from fc_operator.clients.kube import SECRETS, Kube
from fc_operator.clients.kube_secrets import KubernetesSecrets
from fc_operator.errors import NotFoundError, SecretError, UnavailableError
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.sources import Source
from fc_operator.operations import manifests as operations
from fc_operator.operations.manifests import Keyring
from fc_operator.settings import ConfigSettings
from fc_operator.spec import manifests
from tests.conformance.secrets.suite import *  # noqa: F403 - the suite runs here too


class InCluster:
    """See ``suite.Keeper``: the administrator's hand, and our reader."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube = kube
        self.namespace = namespace
        self.secrets = KubernetesSecrets(kube)

    async def put(self, name, values, *, kind="Opaque") -> None:
        data = {key: base64.b64encode(value).decode() for key, value in values.items()}
        body = {"metadata": {"name": name}, "type": kind, "data": data}
        try:
            found = await self._kube.get(SECRETS, self.namespace, name)
        except NotFoundError:
            await self._kube.create(SECRETS, self.namespace, body)
            return
        body["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        await self._kube.request("PUT", SECRETS.path(self.namespace, name), body=body)

    async def remove(self, name) -> None:
        await self._kube.delete(SECRETS, self.namespace, name)


@pytest.fixture
async def kube(cluster):
    async with await Kube.connect(kubeconfig=cluster.environment()["KUBECONFIG"]) as kube:
        yield kube


@pytest.fixture
def keeper(kube, namespace):
    return InCluster(kube, namespace)


@pytest.fixture
def other_namespace(kubectl, namespace):
    name = f"{namespace}-b"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


# Rights -------------------------------------------------------------------------------------


async def test_a_secret_of_the_same_name_elsewhere_is_another_one(keeper, kube, other_namespace):
    await InCluster(kube, other_namespace).put("git", {"password": b"canary"})
    with pytest.raises(SecretError, match=f"no secret git in namespace {keeper.namespace}"):
        await keeper.secrets.values(keeper.namespace, "git")
    for namespace in ("", "..", f"../{other_namespace}", "a/b", f"{other_namespace}/secrets/git?"):
        with pytest.raises(SecretError, match="is no name of a namespace"):
            await keeper.secrets.values(namespace, "git")


def reader_rules(namespace: str) -> list[dict]:
    """The smallest rights: to get secrets of one namespace by name."""
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "reader"}}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}},
        {**head, "kind": "Role",
         "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]},
        {**head, "kind": "RoleBinding",
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
         "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}]},
    ]  # fmt: skip


def configuration_of(cluster, token: str) -> Configuration:
    from kubernetes import config

    settings = Configuration()
    config.load_kube_config(cluster.environment()["KUBECONFIG"], client_configuration=settings)
    settings.api_key = {"BearerToken": token}
    settings.api_key_prefix = {"BearerToken": "Bearer"}
    settings.refresh_api_key_hook = None
    return settings


async def test_get_by_name_in_its_namespaces_is_all_that_it_needs(
    cluster, kubectl, keeper, kube, other_namespace
):
    await keeper.put("git", {"password": b"one"})
    await InCluster(kube, other_namespace).put("git", {"password": b"canary"})
    kubectl.within(keeper.namespace).apply(*reader_rules(keeper.namespace))
    token = kubectl.within(keeper.namespace)("create", "token", "reader").strip()
    async with Kube(configuration_of(cluster, token), threads=2, timeout_s=10) as limited:
        secrets = KubernetesSecrets(limited)
        assert await secrets.read(keeper.namespace, "git", "password") == b"one"
        with pytest.raises(SecretError, match="no secret nope"):
            await secrets.values(keeper.namespace, "nope")
        for name in ("git", "nope"):  # one is there, the other not: nobody learns which
            with pytest.raises(SecretError, match="we have no right to read it") as refused:
                await secrets.values(other_namespace, name)
            assert other_namespace in refused.value.message
            assert "rbac.objectNamespaces" in refused.value.hint
        # So long as the right is missing, and no longer.
        kubectl.within(other_namespace).apply(*reader_rules(keeper.namespace))

        async def allowed() -> bytes:
            while True:
                try:
                    return await secrets.read(other_namespace, "git", "password")
                except SecretError:
                    await asyncio.sleep(0.05)

        assert await asyncio.wait_for(allowed(), 10) == b"canary"


@pytest.mark.parametrize(
    "kind",
    ["kubernetes.io/service-account-token", "helm.sh/release.v1", "kubernetes.io/dockerconfigjson"],
)
async def test_s09_confused_deputy_the_clusters_own_credentials_are_nobodys_to_refer_to(
    keeper, kubectl, kind
):
    """Who may declare a project, but read no secret, would have it sent to a host of theirs."""
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "sa"}, "type": kind}
    if "service-account" in kind:
        body["metadata"]["annotations"] = {"kubernetes.io/service-account.name": "default"}
    else:
        body["stringData"] = {".dockerconfigjson": '{"auths": {}}', "password": "canary"}
    kubectl.within(keeper.namespace).apply(body)
    with pytest.raises(SecretError, match="not ours to use") as refused:
        await keeper.secrets.read(keeper.namespace, "sa", "token")
    assert "canary" not in str(refused.value)
    await keeper.put("basic", {"password": b"x", "username": b"y"}, kind="kubernetes.io/basic-auth")
    assert await keeper.secrets.read(keeper.namespace, "basic", "password") == b"x"


async def test_an_api_server_that_does_not_answer_says_nothing_of_the_secret(cluster):
    """Else every outage would tell all owners that their secrets are gone."""
    settings = configuration_of(cluster, "none")
    settings.host = "https://127.0.0.1:9"
    async with Kube(settings, threads=1, timeout_s=2) as kube:
        with pytest.raises(UnavailableError):
            await KubernetesSecrets(kube).values("default", "git")


# Conditions ---------------------------------------------------------------------------------


PROJECT = """
apiVersion: fc-operator.dev/v1alpha1
kind: Project
metadata: {{name: demo, namespace: {namespace}}}
spec:
  repositoryUrl: https://git.example.org/demo.git
  credentialsSecretRef: {{name: demo-git}}
  webhooks: [{{forge: Forgejo, secretRef: {{name: demo-hook, key: secret}}}}]
"""


class Applied:
    """The manifest above, brought into force with secrets of the cluster."""

    def __init__(self, database, keeper) -> None:
        self.database = database
        self.cipher = Cipher(bytes(32))
        self.keyring = Keyring(keeper.secrets, self.cipher)
        self.parsed = manifests.parse(
            {"a.yaml": PROJECT.format(namespace=keeper.namespace).encode()}
        )
        assert self.parsed.problems == ()
        self.source = Source("Apply", "ann")

    async def apply(self) -> tuple[str, str, str]:
        """Status, reason and message of its condition afterwards."""
        await operations.apply(
            self.database, self.source, self.parsed, keyring=self.keyring,
            config=ConfigSettings(), revision="r1", complete=True,
        )  # fmt: skip
        return await self.ready()

    async def again(self) -> tuple[str, str, str]:
        await operations.reapply(
            self.database, self.source, keyring=self.keyring, config=ConfigSettings()
        )
        return await self.ready()

    async def ready(self) -> tuple[str, str, str]:
        async with self.database.session() as connection:
            conditions = await connection.fetchval("SELECT conditions FROM managed_resources")
        conditions = json.loads(conditions) if isinstance(conditions, str) else conditions
        (found,) = [each for each in conditions if each["type"] == "Ready"]
        return found["status"], found["reason"], found["message"]

    async def kept(self) -> bytes | None:
        """The webhook's secret as the server will read it."""
        async with self.database.session() as connection:
            row = await connection.fetchrow("SELECT id, secret_ciphertext FROM webhook_configs")
        if row["secret_ciphertext"] is None:
            return None
        return self.cipher.decrypt(row["secret_ciphertext"], context=f"webhook_configs/{row['id']}")


@pytest.fixture
def applied(database, keeper):
    return Applied(database, keeper)


async def test_what_is_missing_is_a_condition_until_it_comes(applied, keeper):
    status, reason, message = await applied.apply()
    assert (status, reason) == ("False", "SecretNotFound")
    assert (
        f"credentialsSecretRef: there is no secret demo-git in namespace {keeper.namespace}"
        in message
    )
    assert "the webhook of forgejo: there is no secret demo-hook" in message
    await keeper.put("demo-git", {"username": b"u", "password": b"p"})
    await keeper.put("demo-hook", {"other": b"canary"})
    status, reason, message = await applied.again()
    assert (status, reason) == ("False", "SecretNotFound")
    assert message == "the webhook of forgejo: the secret demo-hook has no key secret"
    await keeper.put("demo-hook", {"secret": b"first"})
    assert (await applied.again())[:2] == ("True", "Reconciled")
    assert await applied.kept() == b"first"


async def test_a_rotation_reaches_what_is_kept_for_the_server(applied, keeper):
    await keeper.put("demo-git", {"username": b"u", "password": b"p"})
    await keeper.put("demo-hook", {"secret": b"first"})
    assert (await applied.apply())[0] == "True"
    await keeper.put("demo-hook", {"secret": b"second"})
    assert (await applied.again())[0] == "True"
    assert await applied.kept() == b"second"
    await keeper.remove("demo-hook")
    assert (await applied.again())[1] == "SecretNotFound"
    assert await applied.kept() is None, "what was taken away opens nothing any more"


async def test_a_secret_that_is_not_ours_to_use_is_a_condition_too(applied, keeper):
    await keeper.put("demo-git", {"username": b"u", "password": b"p"})
    await keeper.put("demo-hook", {"secret": b"canary"}, kind="helm.sh/release.v1")
    status, reason, message = await applied.apply()
    assert (status, reason) == ("False", "SecretNotFound")
    assert "helm.sh/release.v1" in message
    assert "canary" not in message
    assert await applied.kept() is None
