"""How real pods end on a real cluster, and what becomes of the steps that they held.

Each pod here is made by the product's own service, with the definition that it makes; only what its
container runs is bent, so that it ends as the test needs it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fc_operator.clients.kube import Kube
from fc_operator.clients.kube_pods import KubePods
from fc_operator.executors import pods
from fc_operator.executors.targets import Target
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.work import NixWork
from fc_operator.scheduler.pods import PodService, Site
from fc_operator.settings import BuildSettings, KubernetesSettings, QueueSettings
from fc_operator.store.listener import Listener


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_engine = load(
    "engine_conftest", Path(__file__).parents[1] / "integration" / "operations" / "conftest.py"
)
engine = _engine.engine


async def until(question, *, within_s=60):
    """Wait for the cluster: ask until the answer is true."""
    async with asyncio.timeout(within_s):
        while not (answer := await question()):
            await asyncio.sleep(0.1)
        return answer


class BentPods(KubePods):
    """Real pods of which ``bend`` changes the definition before it is sent."""

    bend = staticmethod(lambda pod: None)

    async def create(self, pod):
        pod = json.loads(json.dumps(pod))
        self.bend(pod)
        return await super().create(pod)


def runs(script, **spec):
    """A bend: the agent's container runs a shell script."""

    def bend(pod):
        pod["spec"].update(spec)
        (container,) = pod["spec"]["containers"]
        container["command"], container["args"] = ["/bin/sh", "-c"], [script]
        for each in pod["spec"].get("initContainers", ()):
            each["command"], each["args"] = ["/bin/true"], []

    return bend


class Cell:
    """One service, one namespace, one step named ``a``, and questions about them."""

    def __init__(self, engine, kubectl, namespace):
        self.engine, self.kubectl, self.namespace = engine, kubectl.within(namespace), namespace
        self.installation = f"fc-{uuid.uuid4().hex[:12]}"
        self.service = None
        self.kube = None

    async def step(self):
        return (await self.engine.steps())["a"]

    async def task(self):
        (task,) = await self.engine.sql(
            "SELECT * FROM tasks WHERE pod_name IS NOT NULL ORDER BY id LIMIT 1"
        )
        return task

    async def ending(self, *reasons, within_s=60):
        """The first pod's task, once it has ended, for one of ``reasons``."""

        async def ended():
            rows = await self.engine.sql(
                "SELECT * FROM tasks WHERE pod_ending IS NOT NULL AND state = 'ended' ORDER BY id"
            )
            return rows and rows[0]

        task = await until(ended, within_s=within_s)
        assert task["pod_ending"]["reason"] in reasons, task["pod_ending"]
        return task

    async def phase(self, phase, *, within_s=60):
        """The first pod, once it is in a phase."""

        async def reached():
            found = self.pods()
            return found and found[0]["status"].get("phase") == phase and found[0]

        return await until(reached, within_s=within_s)

    def pods(self):
        label = f"{pods.INSTALLATION}={self.installation}"
        return self.kubectl.json("get", "pods", "-l", label)["items"]

    async def no_pods(self, within_s=60):
        async def none():
            return not self.pods()

        await until(none, within_s=within_s)

    async def costs(self):
        step = await self.step()
        return step["infra_failures"], step["free_losses"]


@pytest.fixture
async def make_cell(engine, kubectl, namespace, cluster, image):
    """A cell whose service runs for as long as a block; no further pod is made after the first."""
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")

    @asynccontextmanager
    async def make(bend, *, target=None, targets=None, step=True, **settings):
        cell = Cell(engine, kubectl, namespace)
        values = {
            "image": image,
            "image_pull_policy": "Never",
            "server_url": "http://nobody.test",
            "reconcile_s": 0.5,
            "stuck_timeout_s": 2,
            "stop_grace_s": 2,
            "orphan_grace_s": 2,
            "retry_s": 600.0,
            "pods_max": 1,
            **settings,
        }
        cell.kube = await Kube.connect(
            kubeconfig=cluster.environment()["KUBECONFIG"], threads=4, timeout_s=10
        )
        bent = BentPods(cell.kube)
        bent.bend = bend
        listener = Listener(engine.database)
        await listener.start()
        place = {"name": "default", "namespace": namespace, "systems": ("x86_64-linux",)}
        targets = targets or (Target(**place, **(target or {})),)
        cell.service = PodService(
            engine.database,
            listener,
            bent,
            Cipher(bytes(32)),
            Site(installation=cell.installation, targets=targets, nix=NixWork()),
            kubernetes=KubernetesSettings(enabled=True, **values),
            queue=QueueSettings(poll_s=0.5, lease_s=15.0, heartbeat_s=3.0, margin_s=2.0),
            # A charge is a backoff that outlasts the test: what is charged makes no second pod.
            builds=BuildSettings(retry_base_s=600.0, max_retries=3, timeout_s=600),
        )
        if step:
            await engine.evaluate(await engine.jobset(), [engine.told("a")])
        await cell.service.start()
        try:
            yield cell
            assert await engine.invariants() == []
        finally:
            await cell.service.stop()
            await listener.stop()
            await cell.kube.close()
            label = f"{pods.INSTALLATION}={cell.installation}"
            for force in ((), ("--grace-period=0", "--force")):
                cell.kubectl("delete", "pods", "-l", label, "--wait=false", *force)

    return make


# By itself ------------------------------------------------------------------------------------


async def test_the_definition_passes_restricted_and_a_pod_that_ends_well_goes(make_cell):
    async with make_cell(runs("exit 0")) as cell:
        task = await cell.ending("Completed")
        assert task["pod_phase"] == "Succeeded"
        # It told nothing of its step: a loss, at no charge.
        assert (await cell.costs())[0] == 0
        assert (await cell.step())["free_losses"] >= 1


@pytest.mark.parametrize(
    ("code", "reason", "costs"),
    [(1, "AgentFailed", (1, 0)), (75, "ServerUnreachable", (0, 1)), (78, "PodUnusable", (1, 0))],
)
async def test_an_agent_that_breaks_says_why(make_cell, code, reason, costs):
    script = f"echo these are my last words >&2; exit {code}"
    async with make_cell(runs(script)) as cell:
        task = await cell.ending(reason)
        assert "these are my last words" in task["pod_ending"]["message"]
        message = await cell.engine.one("SELECT message FROM attempts WHERE attempt = 1")
        assert "these are my last words" in message
        assert await cell.costs() == costs


async def test_a_signal_is_told(make_cell):
    async with make_cell(runs("/opt/fc/bin/python -c 'import os; os.abort()'")) as cell:
        task = await cell.ending("AgentFailed")
        assert "134" in task["pod_ending"]["message"]


async def test_too_much_memory(make_cell):
    def bend(pod):
        runs("")(pod)
        (container,) = pod["spec"]["containers"]
        container["resources"] = {"limits": {"memory": "48Mi"}}
        container["command"] = ["/opt/fc/bin/python", "-c"]
        container["args"] = ["a = []\nwhile True: a.append(bytearray(1 << 20))"]

    async with make_cell(bend) as cell:
        await cell.ending("OOMKilled")
        assert await cell.costs() == (1, 0)
        await cell.no_pods()


async def test_longer_than_its_deadline(make_cell):
    async with make_cell(runs("sleep 600", activeDeadlineSeconds=3)) as cell:
        await cell.ending("DeadlineExceeded")
        assert await cell.costs() == (1, 0)


@pytest.mark.slow
async def test_more_storage_than_its_limit(make_cell):
    template = {"volumes": {"work": "1Mi"}}
    async with make_cell(
        runs("dd if=/dev/zero of=/work/x bs=1M count=30; sleep 600"), step=False
    ) as cell:
        jobset = await cell.engine.jobset()
        await cell.engine.sql("UPDATE projects SET pods = $1", {"template": template})
        await cell.engine.evaluate(jobset, [cell.engine.told("a")])
        task = await cell.ending("StorageExceeded", within_s=180)
        assert "work" in task["pod_ending"]["message"]
        assert await cell.costs() == (1, 0)


# Never begun ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("localhost/absent:1", "Never"),
        ("registry.invalid/absent:1", "IfNotPresent"),
        ("not an image", "Never"),
    ],
)
async def test_an_image_that_can_not_be_had(make_cell, image, policy):
    settings = {"image": image, "image_pull_policy": policy}
    async with make_cell(lambda _: None, **settings) as cell:
        task = await cell.ending("ImagePullFailed")
        assert image in task["pod_ending"]["message"]
        assert await cell.costs() == (1, 0)
        await cell.no_pods()


async def test_a_configuration_that_can_not_be_resolved(make_cell):
    variable = {
        "name": "X",
        "valueFrom": {"secretKeyRef": {"name": "absent", "key": "x"}},
    }
    template = {"spec": {"containers": [{"name": "agent", "env": [variable]}]}}
    async with make_cell(lambda _: None, target={"pod_template": template}) as cell:
        task = await cell.ending("ContainerConfig")
        assert "absent" in task["pod_ending"]["message"]
        assert await cell.costs() == (1, 0)


async def test_a_program_that_is_not_there(make_cell):
    def bend(pod):
        pod["spec"]["containers"][0]["command"] = ["/no/such/program"]

    async with make_cell(bend) as cell:

        async def ended():
            return await cell.engine.one(
                "SELECT pod_ending FROM tasks WHERE pod_ending IS NOT NULL"
            )

        ending = await until(ended)
        assert ending["reason"] in {"ContainerNotStarted", "ContainerConfig"}
        assert "/no/such/program" in ending["message"]


async def test_a_node_that_there_is_not(make_cell):
    async with make_cell(
        lambda _: None,
        target={"pod_template": {"spec": {"nodeSelector": {"moon": "full"}}}},
        pending_timeout_s=3,
    ) as cell:
        task = await cell.ending("PendingTimeout")
        assert "Unschedulable" in task["pod_ending"]["message"]
        assert await cell.costs() == (0, 0)
        await cell.no_pods()


# Taken away -----------------------------------------------------------------------------------


async def test_deleted_by_hand(make_cell):
    async with make_cell(runs("sleep 600")) as cell:
        pod = await cell.phase("Running")
        cell.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
        await cell.ending("PodDeleted")
        assert await cell.costs() == (0, 0)

        async def again():
            return (await cell.step())["attempt"] == 2

        await until(again)


async def test_torn_away_by_force(make_cell):
    async with make_cell(runs("sleep 600"), reconcile_s=600.0) as cell:
        pod = await cell.phase("Running")
        cell.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
        cell.kubectl.wait_gone("pod", pod["metadata"]["name"])
        await cell.service.compare()
        await cell.ending("PodGone")
        assert await cell.costs() == (0, 1)


async def test_drained(make_cell):
    async with make_cell(runs("sleep 600")) as cell:
        pod = await cell.phase("Running")
        name = pod["metadata"]["name"]
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": cell.namespace},
        }
        path = f"/api/v1/namespaces/{cell.namespace}/pods/{name}/eviction"
        cell.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
        await cell.ending("Drained")
        assert await cell.costs() == (0, 0)


async def test_preempted_by_a_more_urgent_pod(make_cell, kubectl, image):
    low, high = (f"c-{word}-{uuid.uuid4().hex[:8]}" for word in ("low", "high"))
    kind = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass"}
    kubectl.apply(
        {**kind, "metadata": {"name": low}, "value": -1000},
        {**kind, "metadata": {"name": high}, "value": 1000},
    )
    node = kubectl.json("get", "node", "fc-node")
    half = int(node["status"]["allocatable"]["memory"].removesuffix("Ki")) * 6 // 10
    need = {"requests": {"memory": f"{half}Ki"}}
    template = {
        "spec": {
            "priorityClassName": low,
            "containers": [{"name": "agent", "resources": need}],
        }
    }
    try:
        async with make_cell(runs("sleep 600"), target={"pod_template": template}) as cell:
            await cell.phase("Running")
            urgent = pods.definition(
                pods.PodOrder(
                    kind=pods.BUILD, task_id=uuid.uuid4(), project="p", jobset="j",
                    target=Target(
                        name="u", namespace=cell.namespace,
                        pod_template={"spec": {**template["spec"], "priorityClassName": high}},
                    ),
                ),
                KubernetesSettings(image=image, image_pull_policy="Never"), "fc-urgent",
            )  # fmt: skip
            runs("sleep 30")(urgent)
            cell.kubectl.apply(urgent)
            await cell.ending("Preempted")
            assert await cell.costs() == (0, 0)
            cell.kubectl("delete", "pod", urgent["metadata"]["name"], "--wait=false")
    finally:
        kubectl("delete", "priorityclass", low, high, "--wait=false")


async def test_a_node_whose_taint_drives_all_away_and_that_does_not_answer(make_cell, kubectl):
    """A node without a kubelet: it holds the pod, and nobody there confirms that it is gone."""
    node = f"c-ghost-{uuid.uuid4().hex[:8]}"
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    try:

        def bend(pod):
            pod["spec"]["nodeName"] = node
            pod["spec"]["tolerations"] = [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists"},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists"},
            ]

        async with make_cell(bend) as cell:
            pod = await until(lambda: _later(cell.pods))
            name = pod[0]["metadata"]["name"]
            status = {"status": {"phase": "Running"}}
            cell.kubectl(
                "patch", "pod", name, "--subresource=status", "--type=merge", "-p",
                json.dumps(status),
            )  # fmt: skip
            kubectl("taint", "node", node, "gone=yes:NoExecute")
            task = await cell.ending("NodeLost", within_s=90)
            assert await cell.costs() == (0, 1)

            async def gone():
                return task["pod_name"] not in {each["metadata"]["name"] for each in cell.pods()}

            await until(gone)
    finally:
        kubectl("delete", "node", node, "--wait=false")


async def _later(ask):
    return ask()


@pytest.mark.slow
async def test_a_node_that_is_gone(make_cell, kubectl):
    node = f"c-ghost-{uuid.uuid4().hex[:8]}"
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})

    def bend(pod):
        pod["spec"]["nodeName"] = node
        pod["spec"]["tolerations"] = [{"operator": "Exists"}]

    async with make_cell(bend) as cell:
        pod = await until(lambda: _later(cell.pods))
        cell.kubectl(
            "patch", "pod", pod[0]["metadata"]["name"], "--subresource=status", "--type=merge",
            "-p", json.dumps({"status": {"phase": "Running"}}),
        )  # fmt: skip
        kubectl("delete", "node", node)
        # The cluster's own collector says why and deletes it in one breath: mostly nobody sees it.
        await cell.ending("NodeLost", "PodGone", within_s=150)
        assert await cell.costs() == (0, 1)


# Refused --------------------------------------------------------------------------------------


async def test_a_quota_without_room(make_cell):
    async with make_cell(runs("sleep 600"), step=False) as cell:
        cell.kubectl("create", "quota", "none", "--hard=pods=0")
        await until(
            lambda: _later(lambda: cell.kubectl.json("get", "quota", "none")["status"].get("hard"))
        )
        await cell.engine.evaluate(await cell.engine.jobset(), [cell.engine.told("a")])
        task = await cell.ending("QuotaExceeded")
        assert "pods" in task["pod_ending"]["message"]
        assert await cell.costs() == (0, 0)
        assert (await cell.step())["status"] == "pending"
        assert cell.pods() == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "nix", "hostPath": {"path": "/nix"}}]}, "hostPath"),
    ],
)
async def test_pod_security_refuses_what_a_template_may_not(make_cell, spec, words):
    async with make_cell(lambda _: None, target={"pod_template": {"spec": spec}}) as cell:
        task = await cell.ending("PodAdmissionFailed")
        assert "PodSecurity" in task["pod_ending"]["message"]
        assert words.lower() in task["pod_ending"]["message"].lower().replace(" ", "")
        assert await cell.costs() == (1, 0)


async def test_an_account_that_is_not_there(make_cell):
    async with make_cell(lambda _: None, target={"service_account": "absent"}) as cell:
        task = await cell.ending("PodAdmissionFailed")
        assert "absent" in task["pod_ending"]["message"]


async def test_a_namespace_that_is_not_there(make_cell):
    nowhere = Target(name="default", namespace="c-nowhere", systems=("x86_64-linux",))
    async with make_cell(lambda _: None, targets=(nowhere,)) as cell:
        await cell.ending("NamespaceMissing")
        assert await cell.costs() == (1, 0)


async def test_a_definition_that_is_wrong(make_cell):
    template = {"spec": {"containers": [{"name": "agent", "resources": {"limits": {"cpu": "x"}}}]}}
    async with make_cell(lambda _: None, target={"pod_template": template}) as cell:
        await cell.ending("PodCreationFailed")
        assert await cell.costs() == (1, 0)


async def test_no_right_to_make_pods(make_cell, cluster, kubectl):
    async with make_cell(lambda _: None, step=False) as cell:
        # The same API server, as somebody without any right.
        poor = await Kube.connect(
            kubeconfig=cluster.environment()["KUBECONFIG"], threads=1, timeout_s=10
        )
        poor._api.set_default_header("Impersonate-User", "c-nobody")
        cell.service._kube._kube = poor
        try:
            await cell.engine.evaluate(await cell.engine.jobset(), [cell.engine.told("a")])
            task = await cell.ending("PodCreationForbidden")
            assert "c-nobody" in task["pod_ending"]["message"]
        finally:
            await poor.close()


# Nix's own sandbox ----------------------------------------------------------------------------


async def test_restricted_refuses_a_pod_with_nix_s_own_sandbox(make_cell):
    """The exception must be allowed by an administrator; nothing is built in another way instead."""
    async with make_cell(lambda _: None, target={"sandbox": "Nix"}) as cell:
        task = await cell.ending("PodAdmissionFailed")
        message = task["pod_ending"]["message"]
        assert "PodSecurity" in message
        assert "procMount" in message or "seccompProfile" in message
        assert await cell.costs() == (1, 0)


async def test_a_runtime_without_user_namespaces_makes_no_such_pod(make_cell, kubectl):
    async with make_cell(
        runs("exit 0"), target={"sandbox": "Nix"}, step=False, pending_timeout_s=20
    ) as cell:
        label = "pod-security.kubernetes.io/enforce=privileged"
        kubectl("label", "namespace", cell.namespace, label, "--overwrite")
        await cell.engine.evaluate(await cell.engine.jobset(), [cell.engine.told("a")])

        async def ended():
            return await cell.engine.one(
                "SELECT pod_ending FROM tasks WHERE pod_ending IS NOT NULL"
            )

        ending = await until(ended)
        assert ending["reason"] == "PendingTimeout", ending
        # Which the kubelet says outright; a newer runtime gives the pod what it asks for.
        assert "user namespaces" in ending["message"]


# Order ----------------------------------------------------------------------------------------


async def test_orphans_go_and_the_pods_of_others_stay(make_cell, image):
    async with make_cell(runs("sleep 600"), step=False, orphan_grace_s=1) as cell:

        def stray(installation):
            pod = pods.definition(
                pods.PodOrder(
                    kind=pods.BUILD, task_id=uuid.uuid4(), project="p", jobset="j",
                    target=Target(name="x", namespace=cell.namespace),
                ),
                KubernetesSettings(image=image, image_pull_policy="Never", stop_grace_s=1),
                installation,
            )  # fmt: skip
            runs("sleep 600")(pod)
            cell.kubectl.apply(pod)
            return pod["metadata"]["name"]

        mine, other = stray(cell.installation), stray("fc-another")
        await until(lambda: _later(lambda: not cell.pods()))
        assert mine not in cell.kubectl("get", "pods", "-o", "name")
        assert other in cell.kubectl("get", "pods", "-o", "name")
        cell.kubectl("delete", "pod", other, "--wait=false", "--grace-period=0", "--force")


async def test_the_next_life_adopts_real_pods(make_cell):
    async with make_cell(runs("sleep 600")) as cell:
        pod = await cell.phase("Running")
        await cell.service.stop()
        # As if nobody had noted that it was made.
        await cell.engine.sql("UPDATE tasks SET pod_created_at = NULL, pod_uid = NULL")
        task = await cell.task()
        cell.service._create(task["id"])
        await until(lambda: _noted(cell))
        assert (await cell.task())["pod_uid"] == pod["metadata"]["uid"]
        assert len(cell.pods()) == 1


async def _noted(cell):
    return (await cell.task())["pod_uid"]
