"""Pods against a real PostgreSQL and an API server that does as it is told, over real HTTP.

What real pods end like is asked of a real cluster in tests/cluster/test_pods.py.
"""

from __future__ import annotations

import asyncio
import copy
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from aiohttp import web
from kubernetes.client import Configuration

from fc_operator.access import tasks as tokens
from fc_operator.clients.kube import Kube
from fc_operator.clients.kube_pods import KubePods
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.executors import pods
from fc_operator.executors.targets import Target
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.ids import TaskId
from fc_operator.model.sources import Source
from fc_operator.model.work import NixWork, StepsWork
from fc_operator.operations import builds as build_operations
from fc_operator.operations import manifests as manifest_operations
from fc_operator.operations import tasks as task_operations
from fc_operator.scheduler.maintain import MaintenanceService
from fc_operator.scheduler.pods import Bucket, PodService, Site
from fc_operator.settings import BuildSettings, ConfigSettings, KubernetesSettings, QueueSettings
from fc_operator.spec import manifests
from fc_operator.store.listener import Listener

CIPHER = Cipher(bytes(32))
INSTALLATION = "fc-test"
TARGET = Target(name="default", namespace="builds", systems=("x86_64-linux",), features=("kvm",))


async def until(question, *, within_s=20):
    """Wait for a service: ask until the answer is true."""
    async with asyncio.timeout(within_s):
        while not (answer := await question()):
            await asyncio.sleep(0.02)
        return answer


class Api:
    """Pods in a dictionary, behind HTTP. ``refusals`` are answered first, one per creation."""

    def __init__(self):
        self.pods = {}
        self.refusals = []
        self.posts = []
        self.deletions = []
        self.logs = {}
        self.is_away = False
        self.lose_answers = False
        self.is_blind = False
        """Lists show nothing until somebody asks for a pod that is there."""
        self.url = ""

    def set(self, name, *, deleting=False, labels=None, **status):
        pod = next(pod for (_, each), pod in self.pods.items() if each == name)
        pod["status"] = {**pod["status"], **status}
        if deleting:
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        pod["metadata"]["labels"].update(labels or {})

    def vanish(self, name):
        self.pods = {key: pod for key, pod in self.pods.items() if key[1] != name}

    @property
    def names(self):
        return sorted(name for _, name in self.pods)

    def add(self, name, namespace="builds", **labels):
        """A pod that nobody of ours made."""
        self.pods[namespace, name] = {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": str(uuid4()),
                "labels": labels,
            },
            "spec": {},
            "status": {"phase": "Running"},
        }

    @staticmethod
    def refusal(code, reason, message, **details):
        body = {"kind": "Status", "code": code, "reason": reason, "message": message}
        return web.json_response({**body, "details": details}, status=code)

    async def handle(self, request):
        if self.is_away:
            return self.refusal(503, "ServiceUnavailable", "away")
        namespace, name = request.match_info["namespace"], request.match_info.get("name")
        match request.method:
            case "POST":
                return self.create(namespace, await request.json())
            case "GET" if request.path.endswith("/log"):
                return web.Response(text=self.logs.get(name, ""))
            case "GET" if name is None:
                return self.list(namespace, request.query)
            case "GET":
                pod = self.pods.get((namespace, name))
                return (
                    web.json_response(pod) if pod else self.refusal(404, "NotFound", "no such pod")
                )
            case "DELETE":
                return self.delete(namespace, name, await request.json())
        raise AssertionError(request)

    def create(self, namespace, pod):
        self.posts.append(copy.deepcopy(pod))
        if self.refusals:
            code, reason, message, details = self.refusals.pop(0)
            return self.refusal(code, reason, message, **details)
        name = pod["metadata"]["name"]
        if (namespace, name) in self.pods:
            self.is_blind = False
            return self.refusal(409, "AlreadyExists", f'pods "{name}" already exists', kind="pods")
        pod["metadata"]["uid"] = str(uuid4())
        pod["status"] = {"phase": "Pending"}
        self.pods[namespace, name] = pod
        if self.lose_answers:
            return self.refusal(504, "Timeout", "nobody knows")
        return web.json_response(pod, status=201)

    def list(self, namespace, query):
        wanted = dict(part.split("=") for part in query["labelSelector"].split(","))
        found = [
            pod
            for (where, _), pod in sorted(self.pods.items())
            if not self.is_blind
            and where == namespace
            and wanted.items() <= pod["metadata"].get("labels", {}).items()
        ]
        start, size = int(query.get("continue", 0)), int(query["limit"])
        more = {"continue": str(start + size)} if start + size < len(found) else {}
        return web.json_response({"items": found[start : start + size], "metadata": more})

    def delete(self, namespace, name, options):
        pod = self.pods.get((namespace, name))
        if pod is None:
            return self.refusal(404, "NotFound", "no such pod")
        wanted = (options.get("preconditions") or {}).get("uid")
        if wanted not in {None, pod["metadata"]["uid"]}:
            return self.refusal(409, "Conflict", "another uid")
        self.deletions.append((name, options.get("gracePeriodSeconds")))
        del self.pods[namespace, name]
        return web.json_response(pod)


@pytest.fixture
async def api():
    api = Api()
    app = web.Application()
    for path in ("", "/{name}", "/{name}/log"):
        app.router.add_route("*", "/api/v1/namespaces/{namespace}/pods" + path, api.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    port = runner.addresses[0][1]
    api.url = f"http://127.0.0.1:{port}"
    yield api
    await runner.cleanup()


@pytest.fixture
def make_pods(database, api):
    """A pod service, started and stopped around a block."""

    @asynccontextmanager
    async def make(*, targets=(TARGET,), is_started=True, owner_file=None, **settings):
        values = {
            "image": "fc:1",
            "server_url": "http://fc",
            "reconcile_s": 0.1,
            "creations_per_s": 1000.0,
            "creations_burst": 100,
            "orphan_grace_s": 0,
            "retry_s": 0.3,
            **settings,
        }
        configuration = Configuration()
        configuration.host = api.url
        kube = Kube(configuration, threads=4, timeout_s=5)
        listener = Listener(database)
        await listener.start()
        service = PodService(
            database,
            listener,
            KubePods(kube),
            CIPHER,
            Site(
                installation=INSTALLATION, targets=targets, nix=NixWork(cache_url="http://fc/cache")
            ),
            kubernetes=KubernetesSettings(enabled=True, **values),
            queue=QueueSettings(
                poll_s=0.2, lease_s=3.0, agent_lease_s=3.0, heartbeat_s=0.5, margin_s=0.5
            ),
            builds=BuildSettings(retry_base_s=0.05, max_retries=1, timeout_s=100),
            owner_file=owner_file,
        )
        if is_started:
            await service.start()
        try:
            yield service
        finally:
            await service.stop()
            await listener.stop()
            await kube.close()

    return make


@pytest.fixture
def told(engine):
    """Questions to the database, in few words."""

    class Told:
        async def steps(self):
            return {name: step["status"] for name, step in (await engine.steps()).items()}

        async def reasons(self):
            return {name: step["status_reason"] for name, step in (await engine.steps()).items()}

        async def step(self, name="a"):
            return (await engine.steps())[name]

        async def live(self):
            return await engine.sql(
                "SELECT * FROM tasks WHERE state = 'live' AND pod_name IS NOT NULL ORDER BY id"
            )

        async def tasks(self):
            return await engine.sql("SELECT * FROM tasks WHERE pod_name IS NOT NULL ORDER BY id")

    return Told()


async def one_pod(api, told):
    """The one pod that there is by now, as its task sees it."""

    async def made():
        live = await told.live()
        return [task for task in live if task["pod_created_at"] and task["pod_name"] in api.names]

    (task,) = await until(made)
    return task


async def a_step(engine, *names):
    return await engine.evaluate(await engine.jobset(), [engine.told(n) for n in names or ("a",)])


# Making ---------------------------------------------------------------------------------------


async def test_a_batch_becomes_one_pod_with_its_work_and_a_token(engine, api, make_pods, told):
    await a_step(engine, "a", "b", "c")
    async with make_pods(steps_per_pod=2):

        async def both():
            tasks = await told.live()
            return tasks if [bool(task["pod_uid"]) for task in tasks] == [True, True] else None

        tasks = await until(both)
        assert set((await told.steps()).values()) == {"running"}
    works = [StepsWork.from_json(task["work"]) for task in tasks]
    assert sorted(len(work.orders) for work in works) == [1, 2]
    assert all(work.nix.cache_url == "http://fc/cache" for work in works)
    for task, work in zip(tasks, works, strict=True):
        assert {order.task_id for order in work.orders} == {task["id"]}
        pod = api.pods["builds", task["pod_name"]]
        (container,) = pod["spec"]["containers"]
        variables = {each["name"]: each["value"] for each in container["env"]}
        token = tokens.parse(variables["FC_AGENT_TOKEN"])
        assert token == task_operations.opening_token(CIPHER, TaskId(task["id"]))
        assert pod["metadata"]["labels"][pods.TASK] == str(task["id"])
        assert pod["metadata"]["labels"][pods.PROJECT] == "demo"
        assert pod["spec"]["activeDeadlineSeconds"] == 100 * len(work.orders) + 600
        assert "FC_AGENT_TOKEN" not in json.dumps(task["pod_definition"]), "no token in a row"
        assert task["pod_uid"] == pod["metadata"]["uid"]
    builders = {row[0] for row in await engine.sql("SELECT builder_name FROM attempts")}
    assert builders == {task["pod_name"] for task in tasks}
    assert await engine.invariants() == []


async def test_a_pod_holds_steps_of_one_jobset_and_one_class_only(engine, api, make_pods, told):
    await engine.evaluate(
        await engine.jobset("one"), [engine.told("a"), engine.told("k", features=("kvm",))]
    )
    await engine.evaluate(await engine.jobset("two"), [engine.told("b")])
    async with make_pods():

        async def three():
            return len(api.names) == 3

        await until(three)
    works = [StepsWork.from_json(task["work"]) for task in await told.tasks()]
    assert sorted([order.name for order in work.orders] for work in works) == [["a"], ["b"], ["k"]]


async def test_no_more_pods_than_allowed(engine, api, make_pods, told):
    await a_step(engine, "a", "b", "c")
    async with make_pods(steps_per_pod=1, pods_max=2):
        await until(lambda: _true(len(api.names) == 2))
        task = (await told.live())[0]
        # One ends; the next takes its place.
        api.set(task["pod_name"], phase="Failed", reason="OutOfcpu")
        await until(lambda: _true(len(api.posts) == 3))
        assert len(await told.live()) <= 2


async def test_what_no_target_can_build_is_left_to_others(engine, api, make_pods, told):
    await engine.evaluate(
        await engine.jobset(),
        [
            engine.told("a", system="riscv64-linux"),
            engine.told("b"),
            engine.told("c", features=("gpu",)),
        ],
    )
    async with make_pods():
        await one_pod(api, told)
    assert await told.steps() == {"a": "pending", "b": "running", "c": "pending"}


async def test_each_project_runs_where_its_namespace_may(engine, api, make_pods, told):
    targets = (
        Target(
            name="a", namespace="pods-a", object_namespaces=("team-a",), systems=("x86_64-linux",)
        ),
        Target(
            name="b", namespace="pods-b", object_namespaces=("team-b",), systems=("x86_64-linux",)
        ),
    )
    for project, namespace, wish in (
        ("ann", "team-a", {}),
        ("bob", "team-b", {"target": "b", "template": {"resources": {"limits": {"cpu": "2"}}}}),
        ("eve", "team-b", {"target": "a"}),
        ("joe", "team-c", {}),
    ):
        jobset = await engine.jobset(project=project)
        await engine.sql(
            "UPDATE projects SET namespace = $2, pods = $3 WHERE name = $1",
            project,
            namespace,
            wish,
        )
        await engine.evaluate(jobset, [engine.told(project)])
    async with make_pods(targets=targets) as service:
        await until(lambda: _true(len(api.names) == 2))
        await service.compare()
    assert await told.steps() == {
        "ann": "running",
        "bob": "running",
        "eve": "pending",
        "joe": "pending",
    }
    where = {pod["metadata"]["labels"][pods.PROJECT]: ns for (ns, _), pod in api.pods.items()}
    assert where == {"ann": "pods-a", "bob": "pods-b"}
    resources = {
        pod["metadata"]["namespace"]: pod["spec"]["containers"][0].get("resources")
        for pod in api.pods.values()
    }
    assert resources == {"pods-a": None, "pods-b": {"limits": {"cpu": "2"}}}


async def _true(value):
    return value


# Refusals -------------------------------------------------------------------------------------


async def test_an_answer_that_is_lost_makes_no_second_pod(engine, api, make_pods, told):
    await a_step(engine)
    api.lose_answers = api.is_blind = True
    async with make_pods():
        task = await one_pod(api, told)
        assert len(api.posts) == 2, "asked again: it is there already, and is adopted"
        assert task["pod_uid"] == api.pods["builds", task["pod_name"]]["metadata"]["uid"]
        assert (await told.step())["attempt"] == 1


async def test_another_s_pod_of_the_name_is_not_adopted(engine, api, make_pods, told):
    fence = await engine.evaluation(await engine.jobset())
    name = pods.name_of(pods.EVALUATION, fence.task_id)
    api.add(name, mine="yes")
    async with make_pods(builds=False) as service:
        await service.launch(fence.task_id)

        async def ended():
            return await engine.one("SELECT pod_ending FROM tasks WHERE id = $1", fence.task_id)

        assert (await until(ended))["reason"] == "PodExists"
        await service.compare()
    assert api.names == [name]
    assert api.deletions == []


@pytest.mark.parametrize(
    "refusal",
    [
        (500, "InternalError", "resource quota evaluation timed out", {}),
        (429, "TooManyRequests", "slow down", {"retryAfterSeconds": 0}),
        (
            409,
            "Conflict",
            'Operation cannot be fulfilled on resourcequotas "q"',
            {"kind": "resourcequotas"},
        ),
        (503, "ServiceUnavailable", "leader changed", {}),
    ],
)
async def test_what_passes_by_itself_costs_nothing(engine, api, make_pods, told, refusal):
    await a_step(engine)
    api.refusals = [refusal, refusal]
    async with make_pods():
        await one_pod(api, told)
    step = await told.step()
    assert (step["attempt"], step["infra_failures"], step["free_losses"]) == (1, 0, 0)
    assert len(api.posts) == 3


async def test_a_quota_gives_steps_back_at_no_charge_and_waits(engine, api, make_pods, told):
    await a_step(engine)
    quota = (403, "Forbidden", 'pods "x" is forbidden: exceeded quota: q', {"kind": "pods"})
    api.refusals = [quota]
    async with make_pods(retry_s=60.0):

        async def back():
            return (await told.step())["status_reason"] == "QuotaExceeded"

        await until(back)
        step = await told.step()
        assert (step["status"], step["infra_failures"], step["free_losses"]) == ("pending", 0, 0)
        offers = await until(
            lambda: engine.one(
                "SELECT info -> 'offers' -> 0 FROM service_heartbeats "
                "WHERE info -> 'offers' -> 0 ->> 'problem' LIKE '%quota%'"
            )
        )
        assert offers["slots"] == 0
        assert len(api.posts) == 1, "nothing more is asked for a while"
    async with make_pods():
        await one_pod(api, told)
    assert await engine.invariants() == []


async def test_a_quota_has_room_again_when_a_pod_of_its_target_goes(engine, api, make_pods, told):
    await a_step(engine, "a", "b")
    quota = (403, "Forbidden", 'pods "x" is forbidden: exceeded quota: q', {"kind": "pods"})
    async with make_pods(retry_s=600.0, steps_per_pod=1, pods_max=1) as service:
        first = await one_pod(api, told)
        service._settings = replace(service._settings, pods_max=2)
        api.refusals = [quota]

        async def back():
            return "QuotaExceeded" in (await told.reasons()).values()

        await until(back)
        service._settings = replace(service._settings, pods_max=1)
        api.set(first["pod_name"], phase="Failed", reason="DeadlineExceeded")

        async def next_one():
            live = await told.live()
            return [task for task in live if task["id"] != first["id"]]

        await until(next_one)


async def test_a_refused_definition_is_charged_and_holds_only_its_project(
    engine, api, make_pods, told
):
    await a_step(engine)
    denied = (403, "Forbidden", 'pods "x" is forbidden: violates PodSecurity "restricted"', {})
    api.refusals = [denied]
    async with make_pods(retry_s=60.0):

        async def charged():
            return (await told.step())["infra_failures"] == 1

        await until(charged)
        assert (await told.step())["status_reason"] == "PodAdmissionFailed"
        await engine.evaluate(await engine.jobset(project="other"), [engine.told("b")])
        await one_pod(api, told)
    assert (await told.steps())["b"] == "running"


async def test_a_step_that_is_refused_for_good_is_aborted_with_the_reason(
    engine, api, make_pods, told
):
    fence = await a_step(engine)
    api.refusals = [(422, "Invalid", "spec.containers[0].image: Required value", {})] * 2
    maintenance = MaintenanceService(
        engine.database, None, queue=QueueSettings(poll_s=0.1), builds=BuildSettings()
    )
    async with make_pods(retry_s=0.1):

        async def aborted():
            await maintenance.queue_due()
            return (await told.step())["status"] == "aborted"

        await until(aborted)
    build = (await engine.builds(fence))["a"]
    assert build["status_reason"] == "PodCreationFailed"
    assert "image: Required value" in build["error_message"]


# Ends -----------------------------------------------------------------------------------------


def agent_ended(**terminated):
    return [{"name": "agent", "state": {"terminated": terminated}}]


@pytest.mark.parametrize(
    ("status", "reason", "costs"),
    [
        ({"reason": "OutOfmemory"}, "NodeRefused", (0, 0)),
        ({"reason": "Preempting"}, "Preempted", (0, 0)),
        ({"reason": "NodeLost"}, "NodeLost", (0, 1)),
        ({"reason": "Evicted", "message": "The node was low on resource"}, "Evicted", (0, 1)),
        ({"reason": "Evicted", "message": "usage exceeds the limit"}, "StorageExceeded", (1, 0)),
        ({"reason": "DeadlineExceeded"}, "DeadlineExceeded", (1, 0)),
        (
            {"containerStatuses": agent_ended(reason="OOMKilled", exitCode=137)},
            "OOMKilled",
            (1, 0),
        ),
        ({"containerStatuses": agent_ended(reason="Error", exitCode=1)}, "AgentFailed", (1, 0)),
        (
            {"containerStatuses": agent_ended(reason="Error", exitCode=75)},
            "ServerUnreachable",
            (0, 1),
        ),
    ],
)
async def test_a_pod_that_fails_gives_its_steps_back(
    engine, api, make_pods, told, *, status, reason, costs
):
    await a_step(engine)
    async with make_pods(pods_max=1):
        task = await one_pod(api, told)
        api.set(task["pod_name"], phase="Failed", **status)

        async def back():
            step = await told.step()
            return step["status_reason"] == reason and step

        step = await until(back)
        await until(lambda: _true(task["pod_name"] not in api.names))
    assert (step["infra_failures"], step["free_losses"]) == costs
    (ended,) = await engine.sql("SELECT * FROM tasks WHERE id = $1", task["id"])
    assert ended["state"] == "ended"
    assert ended["pod_ending"]["reason"] == reason
    assert ended["pod_phase"] == "Failed"
    assert await engine.invariants() == []


async def test_an_agent_that_leaves_without_a_word_is_a_loss(engine, api, make_pods, told):
    await a_step(engine)
    async with make_pods(pods_max=1):
        task = await one_pod(api, told)
        api.set(task["pod_name"], phase="Succeeded")

        async def back():
            step = await told.step()
            return step["status_reason"] == "AgentLeft" and step

        step = await until(back)
    assert (step["infra_failures"], step["free_losses"]) == (0, 1)


async def test_a_pod_that_is_deleted_by_hand_costs_nothing(engine, api, make_pods, told):
    await a_step(engine)
    async with make_pods(pods_max=1) as service:
        task = await one_pod(api, told)
        api.set(task["pod_name"], deleting=True)
        await service.compare()
        api.vanish(task["pod_name"])

        async def again():
            step = await told.step()
            return step["attempt"] == 2 and step

        step = await until(again)
    assert (step["infra_failures"], step["free_losses"]) == (0, 0)
    (first,) = await engine.sql("SELECT pod_ending FROM tasks WHERE id = $1", task["id"])
    assert first["pod_ending"]["reason"] == "PodDeleted"


async def test_a_pod_that_is_gone_is_found_missing(engine, api, make_pods, told):
    await a_step(engine)
    async with make_pods():
        task = await one_pod(api, told)
        api.vanish(task["pod_name"])

        async def again():
            step = await told.step()
            return step["attempt"] == 2 and step

        step = await until(again)
    assert (step["infra_failures"], step["free_losses"]) == (0, 1)


@pytest.mark.parametrize(
    ("waiting", "settings", "reason", "infra"),
    [
        ("ImagePullBackOff", {"stuck_timeout_s": 0}, "ImagePullFailed", 1),
        ("CreateContainerConfigError", {"stuck_timeout_s": 0}, "ContainerConfig", 1),
        ("ContainerCreating", {"pending_timeout_s": 1}, "PendingTimeout", 0),
    ],
)
async def test_a_pod_that_does_not_begin_is_given_up_and_its_target_held(
    engine, api, make_pods, told, *, waiting, settings, reason, infra
):
    await a_step(engine)
    async with make_pods(retry_s=60.0, **settings):
        task = await one_pod(api, told)
        state = {"waiting": {"reason": waiting, "message": "because"}}
        api.set(task["pod_name"], containerStatuses=[{"name": "agent", "state": state}])

        async def back():
            step = await told.step()
            return step["status_reason"] == reason and step

        step = await until(back)
        await until(lambda: _true(api.names == []))
    assert (step["status"], step["infra_failures"]) == ("pending", infra)
    assert len(api.posts) == 1, "the next one would fare alike"


async def test_an_agent_that_never_speaks_is_given_up(engine, api, make_pods, told):
    await a_step(engine)
    async with make_pods(pending_timeout_s=1, pods_max=1):
        task = await one_pod(api, told)
        api.set(task["pod_name"], phase="Running")

        async def back():
            return (await told.step())["status_reason"] == "AgentSilent"

        await until(back)


async def test_leases_are_kept_until_the_agent_speaks_and_no_longer(engine, api, make_pods, told):
    await a_step(engine)

    async def left_s():
        return await engine.one("SELECT extract(epoch FROM expires_at - now())::float8 FROM leases")

    async with make_pods():
        task = await one_pod(api, told)
        before = await engine.one("SELECT expires_at FROM leases")

        async def renewed():
            return await engine.one("SELECT expires_at FROM leases") > before

        await until(renewed)
        await engine.sql("UPDATE tasks SET begun_at = now() WHERE id = $1", task["id"])

        async def runs_out():
            return await left_s() < 0

        await until(runs_out)


async def test_what_is_cancelled_before_it_began_ends_at_once(engine, api, make_pods, told):
    fence = await a_step(engine)
    async with make_pods(orphan_grace_s=600):
        await one_pod(api, told)
        build = (await engine.builds(fence))["a"]
        await build_operations.cancel(engine.database, [build["id"]], "ann")

        async def cancelled():
            return (await told.steps())["a"] == "cancelled"

        await until(cancelled)
        await until(lambda: _true(api.names == []))
    assert await engine.invariants() == []


async def test_the_last_words_of_a_crash_are_kept_before_its_pod_goes(engine, api, make_pods, told):
    await a_step(engine)
    async with make_pods(pods_max=1):
        task = await one_pod(api, told)
        api.logs[task["pod_name"]] = "Traceback: it broke"
        message = "it broke"
        status = agent_ended(reason="Error", exitCode=1, message=message)
        api.set(task["pod_name"], phase="Failed", containerStatuses=status)
        await until(lambda: _true(task["pod_name"] not in api.names))
    step = await told.step()
    assert "it broke" in (await engine.one("SELECT message FROM attempts WHERE attempt = 1"))
    assert step["infra_failures"] == 1


# Order ----------------------------------------------------------------------------------------


async def test_pods_that_no_task_claims_are_deleted_and_no_others(engine, api, make_pods, told):
    ours = {
        "app.kubernetes.io/managed-by": "fc-operator",
        pods.INSTALLATION: INSTALLATION,
        pods.TASK: str(uuid4()),
    }
    api.add("orphan", **ours)
    api.add("of-another-installation", **{**ours, pods.INSTALLATION: "fc-other"})
    api.add("of-somebody")
    api.add("without-a-task", **{**ours, pods.TASK: "none"})
    async with make_pods():
        await until(lambda: _true(len(api.names) == 2))
    assert api.names == ["of-another-installation", "of-somebody"]


async def test_a_live_pod_of_an_ended_task_has_its_grace(engine, api, make_pods, told):
    await a_step(engine)
    async with make_pods(orphan_grace_s=600) as service:
        task = await one_pod(api, told)
        await engine.sql("UPDATE leases SET expires_at = now() - interval '1 s'")
        await engine.sql("UPDATE tasks SET begun_at = now() WHERE id = $1", task["id"])
        maintenance = MaintenanceService(
            engine.database, None, queue=QueueSettings(), builds=BuildSettings()
        )

        async def requeued():
            return await maintenance.requeue_lost() or (await told.step())["attempt"] == 2

        await engine.sql("UPDATE leases SET expires_at = now() - interval '1 s' WHERE attempt = 1")
        await until(requeued)
        await service.compare()
        assert task["pod_name"] in api.names, "its agent is told 410 and leaves by itself"
        api.set(task["pod_name"], phase="Succeeded")
        await until(lambda: _true(task["pod_name"] not in api.names))


async def test_the_next_life_takes_up_what_it_finds(engine, api, make_pods, told):
    """Killed at each moment between claim and pod: nothing twice, nothing lost."""
    await a_step(engine, "a", "b", "c")
    api.is_away = True
    async with make_pods(steps_per_pod=1):
        await until(lambda: _count(told, 3))  # claimed, and no pod could be made
    assert api.names == []
    api.is_away, api.lose_answers = False, True
    async with make_pods(steps_per_pod=1):
        await until(lambda: _true(len(api.names) == 3))  # made, and nobody noted it
    api.lose_answers = False
    async with make_pods(steps_per_pod=1):

        async def noted():
            return all(task["pod_created_at"] for task in await told.live())

        await until(noted)
    assert len(api.names) == 3
    assert [step["attempt"] for step in (await engine.steps()).values()] == [1, 1, 1]
    assert await engine.invariants() == []


async def _count(told, n):
    return len(await told.live()) == n


async def test_a_life_that_ends_between_an_ending_and_its_steps_is_finished_by_the_next(
    engine, api, make_pods, told
):
    await a_step(engine)
    async with make_pods():
        task = await one_pod(api, told)
    ending = pods.Ending(reason="Drained", message="x", blame=pods.Blame.FREE)
    await engine.sql("UPDATE tasks SET pod_ending = $1", ending.as_dict())
    api.vanish(task["pod_name"])
    async with make_pods():

        async def again():
            return (await told.step())["attempt"] == 2

        await until(again)
        first = await engine.one("SELECT reason FROM attempts WHERE attempt = 1")
        assert first == "Drained", "as it was noted, not as it is found now"


DUTY = "INSERT INTO duty_leases (name, owner, expires_at) VALUES ('pods', $1, now() + $2)"


async def test_a_restart_after_a_kill_need_not_wait_for_the_duty(
    engine, api, make_pods, told, tmp_path
):
    await engine.sql(DUTY, "killed", timedelta(hours=1))
    (tmp_path / "pods").write_text("killed\n")
    await a_step(engine)
    async with make_pods(owner_file=tmp_path / "pods"):
        await one_pod(api, told)
        assert "killed" not in (tmp_path / "pods").read_text()
    assert not (tmp_path / "pods").exists()
    assert await engine.one("SELECT count(*) FROM duty_leases WHERE name = 'pods'") == 0


async def test_batches_whose_agents_have_not_spoken_outlive_who_claimed_them(
    engine, api, make_pods, told
):
    """Any scheduler renews them, also while the duty is still that of one that is gone."""
    await a_step(engine)
    async with make_pods():
        await one_pod(api, told)
    await engine.sql(DUTY, "another", timedelta(hours=1))
    before = await engine.one("SELECT expires_at FROM leases")
    async with make_pods() as service:

        async def renewed():
            return await engine.one("SELECT expires_at FROM leases") > before

        await until(renewed)
        assert not service._has_duty


async def test_while_the_api_is_away_nothing_is_lost(engine, api, make_pods, told):
    await a_step(engine)
    async with make_pods() as service:
        task = await one_pod(api, told)
        api.is_away = True
        await service.compare()
        assert (await told.step())["status"] == "running"
        api.is_away = False
        await service.compare()
    assert api.names == [task["pod_name"]]
    assert (await told.step())["attempt"] == 1


async def test_two_schedulers_make_each_pod_once(engine, api, make_pods, told):
    await a_step(engine, *"abcdefgh")
    async with make_pods(steps_per_pod=1), make_pods(steps_per_pod=1):
        await until(lambda: _true(len(api.names) == 8))
        await until(lambda: _count(told, 8))
    assert len(api.posts) == 8
    assert {step["attempt"] for step in (await engine.steps()).values()} == {1}


async def test_many_pods_are_listed_in_pages(engine, api, make_pods, told):
    await a_step(engine, *(f"s{n}" for n in range(270)))
    async with make_pods(steps_per_pod=1, pods_max=300) as service:
        await until(lambda: _true(len(api.names) == 270), within_s=60)
        await until(lambda: _count(told, 270))
        await service.compare()
    assert len(api.names) == 270, "none was taken for missing or for an orphan"
    assert {step["attempt"] for step in (await engine.steps()).values()} == {1}
    assert api.deletions == []


async def test_creations_are_limited():
    bucket = Bucket(per_s=20.0, burst=3)
    started = asyncio.get_running_loop().time()
    for _ in range(7):
        await bucket.take()
    assert asyncio.get_running_loop().time() - started >= 4 / 20 * 0.9


# Conditions -----------------------------------------------------------------------------------


async def declare(engine, **spec):
    """A project by its manifest, as a user applies it."""
    text = {
        "apiVersion": "fc-operator.dev/v1alpha1",
        "kind": "Project",
        "metadata": {"name": "demo", "namespace": "team-a"},
        "spec": {"repositoryUrl": "https://example.org/x.git", **spec},
    }
    parsed = manifests.parse({"demo.yaml": json.dumps(text).encode()})
    assert parsed.problems == ()
    await manifest_operations.apply(
        engine.database,
        Source("ConfigRepository", "team"),
        parsed,
        keyring=manifest_operations.Keyring(DirectorySecrets(Path("/nonexistent")), CIPHER),
        revision=uuid4().hex,
        complete=True,
        config=ConfigSettings(),
    )


async def test_a_project_says_that_its_target_is_not_for_it(engine, make_pods):
    async def ready():
        (row,) = await engine.sql("SELECT conditions FROM managed_resources")
        found = {each["type"]: each for each in row["conditions"]}
        return found["Ready"]["status"], found["Ready"]["reason"], "Stalled" in found

    targets = (Target(name="mine", namespace="x", object_namespaces=("team-a",)),)
    async with make_pods(targets=targets, is_started=False) as service:
        await declare(engine, pods={"target": "mine"})
        assert await service.tell_projects() == 0
        assert await ready() == ("True", "Reconciled", False)
        await declare(engine, pods={"target": "yours"})
        assert await service.tell_projects() == 1
        assert await service.tell_projects() == 0, "nothing is written twice"
        assert await ready() == ("False", "TargetNotAllowed", True)
        await declare(engine, pods={"target": "yours"})
        assert await ready() == ("False", "TargetNotAllowed", True), "a sync leaves it"
        await declare(engine, pods={"unreviewedTarget": "yours"})
        assert await service.tell_projects() == 1
        assert await ready() == ("False", "TargetNotAllowed", True)
        # The administrator makes it one of theirs.
        service._site = replace(
            service._site, targets=(*targets, replace(targets[0], name="yours"))
        )
        assert await service.tell_projects() == 1
        assert await ready() == ("True", "Reconciled", False)


# Evaluations ----------------------------------------------------------------------------------


async def test_an_evaluation_has_a_pod_of_its_own(engine, api, make_pods, told):
    fence = await engine.evaluation(await engine.jobset())
    async with make_pods(builds=False) as service:
        await service.launch(fence.task_id, deadline_s=100)
        task = await one_pod(api, told)
        await service.launch(fence.task_id)
        await service.compare()
        assert len(api.posts) == 1
        pod = api.pods["builds", task["pod_name"]]
        assert pod["metadata"]["labels"][pods.KIND] == "evaluation"
        assert [each["name"] for each in pod["spec"]["initContainers"]] == ["fetch"]
        assert pod["spec"]["activeDeadlineSeconds"] == 700
        api.set(task["pod_name"], phase="Failed", reason="DeadlineExceeded")

        async def ended():
            return await engine.one("SELECT pod_ending FROM tasks WHERE id = $1", fence.task_id)

        ending = await until(ended)
        assert (ending["reason"], ending["class"]) == ("DeadlineExceeded", "Charged")
        await until(lambda: _true(api.names == []))
        await service.compare()
    assert len(api.posts) == 1, "an evaluation's task has one pod; the next try is a new task"
    assert await engine.one("SELECT state FROM tasks WHERE id = $1", fence.task_id) == "live"


async def test_a_pod_that_was_given_up_is_deleted_even_if_nobody_came_to_it(
    engine, api, make_pods, told
):
    """Killed between noting the ending and deleting the pod, or while the pod was being made."""
    fence = await engine.evaluation(await engine.jobset())
    async with make_pods(builds=False) as service:
        await service.launch(fence.task_id)
        task = await one_pod(api, told)
    ending = pods.Ending(reason="PendingTimeout", message="x", blame=pods.Blame.FREE)
    await engine.sql("UPDATE tasks SET pod_ending = $1", ending.as_dict())
    async with make_pods(builds=False):
        await until(lambda: _true(api.names == []))
    assert len(api.posts) == 1
    (now,) = await engine.sql("SELECT * FROM tasks WHERE id = $1", task["id"])
    assert now["state"] == "live", "its scheduler ends it"
    assert now["pod_ending"]["reason"] == "PendingTimeout"


async def test_code_that_nobody_reviewed_runs_in_its_own_target(engine, api, make_pods, told):
    targets = (TARGET, Target(name="fenced", namespace="fenced"))
    jobset = await engine.jobset()
    await engine.sql("UPDATE projects SET pods = $1", {"unreviewedTarget": "fenced"})
    reviewed = await engine.evaluation(jobset)
    unreviewed = await engine.evaluation(jobset, trust="unreviewed")
    async with make_pods(targets=targets, builds=False) as service:
        await service.launch(reviewed.task_id)
        await service.launch(unreviewed.task_id)
        await until(lambda: _true(len(api.names) == 2))
    assert {namespace for namespace, _ in api.pods} == {"builds", "fenced"}


async def test_an_evaluation_builds_in_the_sandbox_of_its_target(engine, api, make_pods, told):
    targets = (TARGET, replace(TARGET, name="strict", namespace="strict", sandbox="Nix"))
    found = {}
    async with make_pods(targets=targets, builds=False) as service:
        for name in ("default", "strict"):
            fence = await engine.evaluation(await engine.jobset(name))
            await engine.sql("UPDATE projects SET pods = $1", {"target": name})
            work = {"kind": "evaluation", "nix": {"sandbox": "None", "store_dir": "/nix/store"}}
            await engine.sql("UPDATE tasks SET work = $2 WHERE id = $1", fence.task_id, work)
            await service.launch(fence.task_id)
            found[name] = await engine.one("SELECT work FROM tasks WHERE id = $1", fence.task_id)
    assert {name: work["nix"]["sandbox"] for name, work in found.items()} == {
        "default": "None", "strict": "Nix",
    }  # fmt: skip
    assert found["strict"]["nix"]["store_dir"] == "/nix/store"


async def test_steps_of_code_that_nobody_reviewed_are_built_there_too(engine, api, make_pods, told):
    fenced = replace(TARGET, name="fenced", namespace="fenced")
    one, two = await engine.jobset("one"), await engine.jobset("two")
    await engine.sql("UPDATE projects SET pods = $1", {"unreviewedTarget": "fenced"})
    await engine.evaluate(one, [engine.told("a")])
    await engine.evaluate(two, [engine.told("b")], trust="unreviewed")
    async with make_pods(targets=(TARGET, fenced)):
        await until(lambda: _true(len(api.names) == 2))
    where = {pod["metadata"]["labels"][pods.JOBSET]: space for (space, _), pod in api.pods.items()}
    assert where == {"one": "builds", "two": "fenced"}


async def test_an_evaluation_without_a_target_is_told_so(engine, api, make_pods, told):
    fence = await engine.evaluation(await engine.jobset())
    await engine.sql("UPDATE projects SET pods = $1", {"target": "secret"})
    async with make_pods(builds=False) as service:
        await service.launch(fence.task_id)
    ending = await engine.one("SELECT pod_ending FROM tasks WHERE id = $1", fence.task_id)
    assert ending["reason"] == "TargetNotAllowed"
    assert api.posts == []


async def test_an_evaluation_waits_for_its_quota(engine, api, make_pods, told):
    fence = await engine.evaluation(await engine.jobset())
    quota = (403, "Forbidden", 'pods "x" is forbidden: exceeded quota: q', {"kind": "pods"})
    api.refusals = [quota]
    async with make_pods(builds=False) as service:
        await service.launch(fence.task_id)
        await one_pod(api, told)
    assert len(api.posts) == 2
    assert await engine.one("SELECT pod_ending FROM tasks WHERE id = $1", fence.task_id) is None


async def test_a_dismissed_evaluation_leaves_no_pod(engine, api, make_pods, told):
    fence = await engine.evaluation(await engine.jobset())
    async with make_pods(builds=False, orphan_grace_s=600) as service:
        await service.launch(fence.task_id)
        await one_pod(api, told)
        await engine.sql("UPDATE tasks SET state = 'ended' WHERE id = $1", fence.task_id)
        await service.dismiss(fence.task_id)
    assert api.names == []
