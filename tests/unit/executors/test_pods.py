"""What a pod looks like, and how each of its ends is told from its status."""

import json
from uuid import UUID

import pytest

from fc_operator.executors import pods
from fc_operator.executors.pods import BUILD, EVALUATION, Blame, Next, PodOrder
from fc_operator.executors.targets import Target
from fc_operator.model.ids import TaskId
from fc_operator.model.outcomes import Retry
from fc_operator.settings import KubernetesSettings

TASK = TaskId(UUID("01890000-0000-7000-8000-0000000000aa"))
SETTINGS = KubernetesSettings(image="reg/fc:1", server_url="http://fc.ci.svc:8080/")
TARGET = Target(name="default", namespace="builds", service_account="nobody")


def define(target=TARGET, kind=BUILD, **more):
    values = {"project": "demo", "jobset": "main", **more}
    order = PodOrder(kind=kind, task_id=TASK, target=target, **values)
    return pods.definition(order, SETTINGS, "fc-one")


def containers(pod):
    return {
        each["name"]: each
        for part in ("initContainers", "containers")
        for each in pod["spec"].get(part, ())
    }


def environment(container):
    return {each["name"]: each["value"] for each in container["env"]}


# Definitions --------------------------------------------------------------------------------


def test_a_pod_is_restricted_and_holds_no_key_to_the_cluster():
    for kind in (BUILD, EVALUATION):
        spec = define(kind=kind)["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        assert spec["restartPolicy"] == "Never"
        assert spec["serviceAccountName"] == "nobody"
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers({"spec": spec}).values():
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True


def test_its_name_follows_from_the_task():
    assert define()["metadata"]["name"] == f"fc-build-{TASK.hex}"
    assert define(kind=EVALUATION)["metadata"]["name"] == f"fc-eval-{TASK.hex}"
    assert define() == define()


def test_labels_say_whose_it_is_and_names_that_are_no_labels_become_annotations():
    metadata = define(project="demo", jobset="_odd")["metadata"]
    assert metadata["labels"] == {
        "app.kubernetes.io/managed-by": "fc-operator",
        "fc-operator.dev/installation": "fc-one",
        "fc-operator.dev/kind": "build",
        "fc-operator.dev/task": str(TASK),
        "fc-operator.dev/project": "demo",
    }
    assert metadata["annotations"]["fc-operator.dev/jobset"] == "_odd"
    assert pods.task_of({"metadata": metadata}, "fc-one") == str(TASK)
    assert pods.task_of({"metadata": metadata}, "fc-two") is None


def test_only_an_evaluation_fetches_and_shares_neither_home_nor_tmp_with_it():
    assert set(containers(define())) == {"agent"}
    found = containers(define(kind=EVALUATION))
    assert set(found) == {"fetch", "agent"}
    shared = {mount["name"] for mount in found["fetch"]["volumeMounts"]} & {
        mount["name"] for mount in found["agent"]["volumeMounts"]
    }
    assert shared == {"work", "nix"}
    assert environment(found["fetch"])["FC_AGENT_PHASE"] == "fetch"
    assert environment(found["agent"])["FC_AGENT_PHASE"] == "work"


def test_the_token_is_no_part_of_the_definition_that_is_kept():
    pod = define(kind=EVALUATION)
    assert "FC_AGENT_TOKEN" not in json.dumps(pod)
    opened = containers(pods.with_token(pod, "fct_secret"))
    assert {environment(each)["FC_AGENT_TOKEN"] for each in opened.values()} == {"fct_secret"}
    assert "FC_AGENT_TOKEN" not in json.dumps(pod), "the kept one is not changed"


def test_a_target_changes_where_it_runs_but_not_what_it_is():
    target = Target(
        name="big",
        namespace="builds",
        pod_template={
            "metadata": {"labels": {"team": "a", "fc-operator.dev/task": "forged"}},
            "spec": {
                "nodeSelector": {"pool": "big"},
                "restartPolicy": "Always",
                "automountServiceAccountToken": True,
                "activeDeadlineSeconds": 5,
                "enableServiceLinks": True,
                "volumes": [{"name": "nix", "ephemeral": {"volumeClaimTemplate": {}}}],
                "containers": [
                    {
                        "name": "agent",
                        "command": ["/bin/sh"],
                        "args": ["-c", "true"],
                        "env": [
                            {"name": "FC_AGENT_SERVER", "value": "http://elsewhere"},
                            {"name": "HTTP_PROXY", "value": "http://proxy"},
                        ],
                        "resources": {"limits": {"memory": "2Gi"}},
                    },
                    {"name": "side", "image": "x"},
                ],
            },
        },
    )
    pod = define(target, deadline_s=60)
    spec, found = pod["spec"], containers(pod)
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["metadata"]["labels"]["fc-operator.dev/task"] == str(TASK)
    assert spec["nodeSelector"] == {"pool": "big"}
    assert spec["restartPolicy"] == "Never"
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["activeDeadlineSeconds"] == 60
    assert {"name": "nix", "ephemeral": {"volumeClaimTemplate": {}}} in spec["volumes"]
    assert found["agent"]["args"] == ["agent"]
    assert "command" not in found["agent"]
    assert environment(found["agent"])["FC_AGENT_SERVER"] == "http://fc.ci.svc:8080"
    assert environment(found["agent"])["HTTP_PROXY"] == "http://proxy"
    assert found["agent"]["resources"] == {"limits": {"memory": "2Gi"}}
    assert found["agent"]["image"] == "reg/fc:1"
    assert found["side"]["image"] == "x"


def test_a_project_asks_for_more_but_never_leaves_its_targets_nodes():
    target = Target(
        name="a",
        namespace="builds",
        pod_template={
            "spec": {
                "nodeSelector": {"pool": "untrusted"},
                "runtimeClassName": "gvisor",
                "tolerations": [{"key": "untrusted", "operator": "Exists"}],
                "containers": [{"name": "agent", "resources": {"limits": {"cpu": "1"}}}],
                "volumes": [{"name": "tmp", "ephemeral": {}}],
            }
        },
    )
    template = {
        "nodeSelector": {"pool": "trusted", "disk": "ssd"},
        "runtimeClassName": "runc",
        "tolerations": [
            {"key": "untrusted", "value": "", "effect": ""},
            {"key": "spot", "value": "yes", "effect": "NoSchedule"},
        ],
        "resources": {"limits": {"cpu": "4"}, "requests": {"memory": "1Gi"}},
        "volumes": {"nix": "20Gi", "tmp": "1Gi"},
    }
    pod = define(target, template=template)
    spec = pod["spec"]
    assert spec["nodeSelector"] == {"pool": "untrusted", "disk": "ssd"}
    assert spec["runtimeClassName"] == "gvisor"
    assert spec["tolerations"] == [
        {"key": "untrusted", "operator": "Exists"},
        {"key": "spot", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
    ]
    assert containers(pod)["agent"]["resources"] == {
        "limits": {"cpu": "4"},
        "requests": {"memory": "1Gi"},
    }
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes["nix"]["emptyDir"] == {"sizeLimit": "20Gi"}
    assert volumes["tmp"] == {"name": "tmp", "ephemeral": {}}, "the target's own volume stays"


def test_nix_s_own_sandbox_is_the_smallest_exception():
    plain = define()["spec"]
    nix = define(Target(name="n", namespace="builds", sandbox="Nix"))["spec"]
    assert nix["hostUsers"] is False
    context = nix["containers"][0]["securityContext"]
    assert context == {
        **plain["containers"][0]["securityContext"],
        "procMount": "Unmasked",
        "seccompProfile": {"type": "Unconfined"},
    }
    assert environment(nix["containers"][0])["FC_NIX_SANDBOX"] == "Nix"
    assert environment(plain["containers"][0])["FC_NIX_SANDBOX"] == "None"


def test_without_limits_there_is_no_deadline():
    assert "activeDeadlineSeconds" not in define()["spec"]


# Endings ------------------------------------------------------------------------------------


def terminated(name="agent", **state):
    return {"name": name, "state": {"terminated": state}}


def waiting(reason, name="agent", message=""):
    return {"name": name, "state": {"waiting": {"reason": reason, "message": message}}}


def disrupted(reason):
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "so"}]


@pytest.mark.parametrize(
    ("status", "reason", "blame"),
    [
        ({"phase": "Succeeded"}, "Completed", Blame.NONE),
        (
            {
                "phase": "Failed",
                "containerStatuses": [terminated(reason="OOMKilled", exitCode=137)],
            },
            "OOMKilled",
            Blame.CHARGED,
        ),
        (
            {
                "phase": "Failed",
                "initContainerStatuses": [terminated("fetch", reason="OOMKilled", exitCode=137)],
            },
            "OOMKilled",
            Blame.CHARGED,
        ),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": 'Usage of EmptyDir volume "nix" exceeds the limit "1Mi". ',
            },
            "StorageExceeded",
            Blame.CHARGED,
        ),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "Pod ephemeral local storage usage exceeds the total limit of containers 1Mi. ",
            },
            "StorageExceeded",
            Blame.CHARGED,
        ),
        (
            {
                "phase": "Failed",
                "reason": "Evicted",
                "message": "The node was low on resource: memory.",
                "conditions": disrupted("TerminationByKubelet"),
            },
            "Evicted",
            Blame.LOST,
        ),
        (
            {
                "phase": "Failed",
                "reason": "DeadlineExceeded",
                "message": "Pod was active on the node longer than the specified deadline",
                "containerStatuses": [terminated(reason="Error", exitCode=137)],
            },
            "DeadlineExceeded",
            Blame.CHARGED,
        ),
        ({"phase": "Failed", "reason": "NodeLost"}, "NodeLost", Blame.LOST),
        ({"phase": "Failed", "reason": "OutOfcpu"}, "NodeRefused", Blame.FREE),
        ({"phase": "Failed", "reason": "OutOfmemory"}, "NodeRefused", Blame.FREE),
        ({"phase": "Failed", "reason": "NodeAffinity"}, "NodeRefused", Blame.FREE),
        ({"phase": "Failed", "reason": "NodeShutdown"}, "NodeRefused", Blame.FREE),
        ({"phase": "Failed", "reason": "Preempting"}, "Preempted", Blame.FREE),
        (
            {"phase": "Failed", "conditions": disrupted("PreemptionByScheduler")},
            "Preempted",
            Blame.FREE,
        ),
        ({"phase": "Failed", "conditions": disrupted("DeletionByPodGC")}, "NodeLost", Blame.LOST),
        (
            {"phase": "Failed", "conditions": disrupted("DeletionByTaintManager")},
            "NodeLost",
            Blame.LOST,
        ),
        (
            {"phase": "Failed", "conditions": disrupted("EvictionByEvictionAPI")},
            "Drained",
            Blame.FREE,
        ),
        (
            {"phase": "Failed", "containerStatuses": [terminated(reason="Error", exitCode=1)]},
            "AgentFailed",
            Blame.CHARGED,
        ),
        (
            {"phase": "Failed", "containerStatuses": [terminated(exitCode=139, signal=11)]},
            "AgentFailed",
            Blame.CHARGED,
        ),
        (
            {"phase": "Failed", "containerStatuses": [terminated(reason="Error", exitCode=75)]},
            "ServerUnreachable",
            Blame.LOST,
        ),
        (
            {
                "phase": "Failed",
                "containerStatuses": [terminated(exitCode=78, message="no sandbox here")],
            },
            "PodUnusable",
            Blame.CHARGED,
        ),
        (
            {
                "phase": "Failed",
                "containerStatuses": [terminated(reason="StartError", exitCode=128)],
            },
            "ContainerNotStarted",
            Blame.CHARGED,
        ),
        ({"phase": "Failed", "reason": "SysctlForbidden"}, "PodFailed", Blame.CHARGED),
    ],
)
def test_each_ending_has_its_own_reason(status, reason, blame):
    ending = pods.look({"metadata": {}, "status": status}).ending
    assert (ending.reason, ending.blame) == (reason, blame)


def test_a_pod_that_goes_on_has_no_ending():
    for status in ({}, {"phase": "Pending"}, {"phase": "Running"}, {"phase": "Unknown"}):
        seen = pods.look({"status": status})
        assert (seen.ending, seen.stuck, seen.leaving) == (None, None, None)
    assert pods.look({}).phase == "Pending"
    assert pods.look({"status": {"phase": "Unknown"}}).phase == "Running"


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("ErrImagePull", "ImagePullFailed"),
        ("ImagePullBackOff", "ImagePullFailed"),
        ("ErrImageNeverPull", "ImagePullFailed"),
        ("InvalidImageName", "ImagePullFailed"),
        ("CreateContainerConfigError", "ContainerConfig"),
        ("CreateContainerError", "ContainerConfig"),
        ("RunContainerError", "ContainerConfig"),
        ("ContainerCreating", None),
        ("PodInitializing", None),
    ],
)
def test_what_would_not_begin_by_itself_is_told(reason, told):
    for part, name in (("containerStatuses", "agent"), ("initContainerStatuses", "fetch")):
        status = {"phase": "Pending", part: [waiting(reason, name, "because")]}
        seen = pods.look({"status": status})
        assert seen.ending is None
        assert (seen.stuck and seen.stuck.reason) == told
        if told:
            assert "because" in seen.stuck.message


def test_a_pending_pod_says_what_it_waits_for():
    status = {
        "phase": "Pending",
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/1 nodes are available",
            }
        ],
    }
    ending = pods.pending_too_long(pods.look({"status": status}), 60)
    assert (ending.reason, ending.blame) == ("PendingTimeout", Blame.FREE)
    assert "0/1 nodes" in ending.message


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ([], "PodDeleted"),
        (disrupted("PreemptionByScheduler"), "Preempted"),
        (disrupted("EvictionByEvictionAPI"), "Drained"),
        (disrupted("DeletionByTaintManager"), "NodeLost"),
    ],
)
def test_a_pod_on_its_way_out_says_who_wants_it(conditions, reason):
    pod = {
        "metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        "status": {"phase": "Running", "conditions": conditions},
    }
    seen = pods.look(pod)
    assert seen.ending is None
    assert seen.leaving.reason == reason
    # Killed by the deletion: not the agent's fault.
    pod["status"] |= {
        "phase": "Failed",
        "containerStatuses": [terminated(reason="Error", exitCode=137)],
    }
    assert pods.look(pod).ending.reason == reason


def test_an_ending_that_is_kept_reads_back():
    ending = pods.Ending(reason="Drained", message="so", blame=Blame.FREE)
    assert pods.Ending.from_dict(ending.as_dict()) == ending


def test_what_an_ending_is_for_a_step():
    def retry(blame):
        return pods.Ending(reason="X", message="x", blame=blame).outcome().retry

    assert retry(Blame.FREE) is Retry.FREE
    assert retry(Blame.LOST) is Retry.LOST
    assert retry(Blame.NONE) is Retry.LOST
    assert retry(Blame.CHARGED) is Retry.INFRASTRUCTURE


# Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind", "next_", "told"),
    [
        ((409, "AlreadyExists", 'pods "x" already exists'), "pods", Next.ADOPT, "PodExists"),
        (
            (409, "Conflict", 'Operation cannot be fulfilled on resourcequotas "q"'),
            "resourcequotas",
            Next.AGAIN,
            "ApiUnavailable",
        ),
        ((500, "InternalError", "resource quota evaluation timed out"), "", Next.AGAIN, None),
        ((429, "TooManyRequests", "slow down"), "", Next.AGAIN, None),
        ((503, "", ""), "", Next.AGAIN, None),
        (
            (
                403,
                "Forbidden",
                'pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1',
            ),
            "pods",
            Next.WAIT,
            "QuotaExceeded",
        ),
        (
            (
                403,
                "Forbidden",
                'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true',
            ),
            "pods",
            Next.FAIL,
            "PodAdmissionFailed",
        ),
        (
            (
                403,
                "Forbidden",
                'pods is forbidden: User "u" cannot create resource "pods" in API group ""',
            ),
            "pods",
            Next.FAIL,
            "PodCreationForbidden",
        ),
        (
            (
                403,
                "Forbidden",
                'pods "x" is forbidden: unable to create new content in namespace n because it is being terminated',
            ),
            "pods",
            Next.FAIL,
            "NamespaceMissing",
        ),
        (
            (404, "NotFound", 'namespaces "n" not found'),
            "namespaces",
            Next.FAIL,
            "NamespaceMissing",
        ),
        ((422, "Invalid", "spec.x: Invalid value"), "Pod", Next.FAIL, "PodCreationFailed"),
        ((400, "BadRequest", "quantities must match"), "", Next.FAIL, "PodCreationFailed"),
    ],
)
def test_each_refusal_says_what_to_do(answer, kind, next_, told):
    code, reason, message = answer
    found = pods.refused(code, reason, message, {"kind": kind} if kind else {})
    assert found.next is next_
    if told:
        assert found.ending.reason == told
    if next_ in {Next.AGAIN, Next.WAIT}:
        assert found.ending.blame is Blame.FREE
    if next_ is Next.FAIL:
        assert found.ending.blame is Blame.CHARGED
        assert message in found.ending.message
