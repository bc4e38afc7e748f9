"""Pods as data: what we ask of the API server, and what a pod's status says about its end. Pure.

One pod runs one task: an evaluation, or a batch of steps. Its name follows from the task, so that
asking twice makes one. Its definition holds one secret, a token that opens this task alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fc_operator.executors.merging import merge
from fc_operator.executors.targets import Target
from fc_operator.model.ids import TaskId
from fc_operator.model.outcomes import Outcome, Retry
from fc_operator.model.statuses import BuildStatus
from fc_operator.settings import KubernetesSettings

PREFIX: Final = "fc-operator.dev/"
KIND: Final = PREFIX + "kind"
TASK: Final = PREFIX + "task"
INSTALLATION: Final = PREFIX + "installation"
PROJECT: Final = PREFIX + "project"
JOBSET: Final = PREFIX + "jobset"
_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "fc-operator"
_SAFE_TO_EVICT: Final = "cluster-autoscaler.kubernetes.io/safe-to-evict"

EVALUATION: Final = "evaluation"
BUILD: Final = "build"
_SHORT: Final[Mapping[str, str]] = {EVALUATION: "eval", BUILD: "build"}

AGENT: Final = "agent"
FETCH: Final = "fetch"
"""Names of our containers."""
_TOKEN: Final = "FC_AGENT_TOKEN"  # noqa: S105 - the name of a variable
_UID: Final = 65532
"""The image's user; the number has to stand in the pod for ``runAsNonRoot`` to be checked."""
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")
_MESSAGE_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOrder:
    """One pod to be made."""

    kind: str
    """``EVALUATION`` or ``BUILD``."""
    task_id: TaskId
    project: str
    jobset: str
    """Its name in the project."""
    target: Target
    template: Mapping[str, Any] = field(default_factory=dict)
    """What the project says of its pods, as its manifest has it (``spec.pods.template``)."""
    deadline_s: int = 0
    """When the kubelet shall end it, counted from its start; 0 is never."""


# Definitions --------------------------------------------------------------------------------


def name_of(kind: str, task_id: TaskId) -> str:
    """The pod's name: the same for the same task, so that a second creation is refused."""
    return f"fc-{_SHORT[kind]}-{task_id.hex}"


def selector(installation: str) -> str:
    """What finds all pods of an installation."""
    return f"{_MANAGED_BY}={MANAGER},{INSTALLATION}={installation}"


def definition(order: PodOrder, settings: KubernetesSettings, installation: str) -> dict[str, Any]:
    """The whole pod, without its token: see :func:`with_token`.

    Ours first, then the target's template over it, then what the project may say, and last what no
    template changes: who it is, what it runs and that it holds no key to the cluster.
    """
    pod = merge(_base(order, settings), _without_ours(order.target.pod_template))
    spec = _with_project(pod["spec"], order.template)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(order, pod.get("metadata", {}), installation),
        "spec": _ours_again(spec, order, settings),
    }


def with_token(pod: Mapping[str, Any], token: str) -> dict[str, Any]:
    """The definition with the token that opens its task."""
    spec = dict(pod["spec"])
    for part in ("initContainers", "containers"):
        if part in spec:
            spec[part] = [
                {**each, "env": [*each.get("env", ()), {"name": _TOKEN, "value": token}]}
                if each["name"] in {AGENT, FETCH}
                else each
                for each in spec[part]
            ]
    return {**pod, "spec": spec}


def _metadata(
    order: PodOrder, said: Mapping[str, Any], installation: str
) -> dict[str, dict[str, str] | str]:
    labels = {
        **said.get("labels", {}),
        _MANAGED_BY: MANAGER,
        INSTALLATION: installation,
        KIND: order.kind,
        TASK: str(order.task_id),
    }
    annotations = {_SAFE_TO_EVICT: "false", **said.get("annotations", {})}
    for key, value in ((PROJECT, order.project), (JOBSET, order.jobset)):
        # Names may be longer than labels, or begin with what no label begins with.
        labels.pop(key, None)
        (labels if _LABEL_VALUE.fullmatch(value) else annotations)[key] = value
    return {
        "name": name_of(order.kind, order.task_id),
        "namespace": order.target.namespace,
        "labels": labels,
        "annotations": annotations,
    }


def _base(order: PodOrder, settings: KubernetesSettings) -> dict[str, Any]:
    mounts = [
        {"name": "nix", "mountPath": "/nix"},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - of a pod of its own
        {"name": "home", "mountPath": "/home/fc"},
        {"name": "work", "mountPath": "/work"},
    ]
    spec: dict[str, Any] = {
        "terminationGracePeriodSeconds": settings.stop_grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UID,
            "runAsGroup": _UID,
            "fsGroup": _UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": name, "emptyDir": {}}
            for name in ("nix", "tmp", "home", "work", *_fetching(order))
        ],
        "containers": [_container(AGENT, mounts, settings)],
    }
    if order.kind == EVALUATION:
        # What the credentials touch (its home, its temporary files) is not there when Nix runs.
        # The store is: inputs that are repositories are added to it as they are fetched.
        spec["initContainers"] = [
            _container(
                FETCH,
                [
                    {"name": "nix", "mountPath": "/nix"},
                    {"name": "fetch", "mountPath": "/tmp", "subPath": "tmp"},  # noqa: S108
                    {"name": "fetch", "mountPath": "/home/fc", "subPath": "home"},
                    {"name": "work", "mountPath": "/work"},
                ],
                settings,
            )
        ]
    if order.target.sandbox == "Nix":
        _allow_sandbox(spec)
    return {"spec": spec}


def _fetching(order: PodOrder) -> tuple[str, ...]:
    return ("fetch",) if order.kind == EVALUATION else ()


def _container(
    name: str, mounts: Sequence[Mapping[str, str]], settings: KubernetesSettings
) -> dict[str, Any]:
    return {
        "name": name,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "workingDir": "/work",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [dict(mount) for mount in mounts],
        # A crash tells its last lines in the pod's status, even when its log can't be read.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _allow_sandbox(spec: dict[str, Any]) -> None:
    """The smallest exception to "restricted" with which Nix can make its own sandbox.

    Users of the pod are nobody on the node; there it may make namespaces and a /proc of its own.
    Nothing else is given: no privilege, no capability, no root.
    """
    spec["hostUsers"] = False
    for container in spec["containers"]:
        container["securityContext"] = {
            **container["securityContext"],
            "procMount": "Unmasked",
            "seccompProfile": {"type": "Unconfined"},
        }


def _without_ours(template: Mapping[str, Any]) -> dict[str, Any]:
    """A target's template without what is not a template's to say."""
    said = dict(template)
    said["spec"] = {
        key: value
        for key, value in template.get("spec", {}).items()
        if key not in {"restartPolicy", "activeDeadlineSeconds", "automountServiceAccountToken"}
    }
    return said


def _with_project(spec: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """What a project says of its pods; what the target has decided about where they run stays."""
    found = dict(spec)
    if chosen := template.get("nodeSelector"):
        found["nodeSelector"] = {**chosen, **found.get("nodeSelector", {})}
    if more := template.get("tolerations"):
        there = list(found.get("tolerations", ()))
        borne = [_toleration(each) for each in more]
        found["tolerations"] = there + [each for each in borne if each not in there]
    if wanted := template.get("runtimeClassName"):
        found.setdefault("runtimeClassName", wanted)
    if resources := template.get("resources"):
        for part in ("initContainers", "containers"):
            if part in found:
                found[part] = [
                    {**each, "resources": merge(each.get("resources", {}), resources)}
                    if each["name"] in {AGENT, FETCH}
                    else each
                    for each in found[part]
                ]
    sizes = template.get("volumes") or {}
    found["volumes"] = [_sized(volume, sizes) for volume in found.get("volumes", ())]
    return found


def _toleration(taint: Mapping[str, str]) -> dict[str, str]:
    """A taint of a project's template, as pods bear it; what it leaves open matches all."""
    value = taint.get("value")
    found = {"key": taint["key"], "operator": "Equal" if value else "Exists"}
    if value:
        found["value"] = value
    if effect := taint.get("effect"):
        found["effect"] = effect
    return found


def _sized(volume: Mapping[str, Any], sizes: Mapping[str, str]) -> dict[str, Any]:
    """An empty folder with the size that the project wants; other volumes are the target's."""
    wanted = sizes.get(volume["name"])
    if wanted is None or "emptyDir" not in volume:
        return dict(volume)
    return {**volume, "emptyDir": {**volume["emptyDir"], "sizeLimit": wanted}}


def _ours_again(
    spec: Mapping[str, Any], order: PodOrder, settings: KubernetesSettings
) -> dict[str, Any]:
    found = {
        **spec,
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
    }
    if order.target.service_account:
        found["serviceAccountName"] = order.target.service_account
    if order.deadline_s:
        found["activeDeadlineSeconds"] = order.deadline_s
    phases = {FETCH: "fetch", AGENT: "work"}
    for part, name in (("initContainers", FETCH), ("containers", AGENT)):
        if part == "initContainers" and order.kind != EVALUATION:
            continue
        there = found.get(part, [])
        found[part] = [
            {**each, "args": ["agent"], "env": _environment(each, order, settings, phases[name])}
            if each["name"] == name
            else each
            for each in there
        ]
        for each in found[part]:
            if each["name"] == name:
                each.pop("command", None)
    return found


def _environment(
    container: Mapping[str, Any], order: PodOrder, settings: KubernetesSettings, phase: str
) -> list[dict[str, Any]]:
    ours = {
        "FC_AGENT_SERVER": settings.server_url.rstrip("/"),
        "FC_AGENT_TASK": str(order.task_id),
        "FC_AGENT_PHASE": phase,
        # The root is read-only, and the image names a folder there.
        "FC_STATE_DIR": "/work/state",
        "FC_NIX_SANDBOX": "Nix" if order.target.sandbox == "Nix" else "None",
    }
    kept = [each for each in container.get("env", ()) if each["name"] not in {*ours, _TOKEN}]
    return [*kept, *({"name": name, "value": value} for name, value in ours.items())]


# Endings ------------------------------------------------------------------------------------


class Blame(StrEnum):
    """What the end of a pod means for what it had not finished."""

    NONE = "None"
    """It ended by itself and told all; what is left all the same is tried again at no charge."""
    FREE = "Free"
    """The cluster took it away in order: tried again at once, at no charge."""
    LOST = "Lost"
    """It vanished or its node did: at no charge, but what does so again and again is put aside."""
    CHARGED = "Charged"
    """It would likely end so again: tried again after a backoff, a few times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a pod is over, or can't begin."""

    reason: str
    """A CamelCase word that does not change."""
    message: str
    blame: Blame
    is_crash: bool = False
    """Its log may tell more."""

    def as_dict(self) -> dict[str, str]:
        """As ``tasks.pod_ending`` keeps it."""
        return {"reason": self.reason, "message": self.message, "class": self.blame.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, str]) -> Ending:
        """Reads what :meth:`as_dict` wrote."""
        return cls(reason=data["reason"], message=data["message"], blame=Blame(data["class"]))

    def outcome(self) -> Outcome:
        """What it is for a step that it left unfinished."""
        retry = {
            Blame.NONE: Retry.LOST,
            Blame.FREE: Retry.FREE,
            Blame.LOST: Retry.LOST,
            Blame.CHARGED: Retry.INFRASTRUCTURE,
        }[self.blame]
        reason = "AgentLeft" if self.blame is Blame.NONE else self.reason
        return Outcome(status=BuildStatus.ABORTED, retry=retry, reason=reason, message=self.message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a pod's status says."""

    phase: str
    """Pending, Running, Succeeded or Failed."""
    ending: Ending | None = None
    """Set once it is over."""
    stuck: Ending | None = None
    """Why it does not begin and would not by itself, if that lasts."""
    waits_for: str = ""
    """Why it is pending, for people."""
    leaving: Ending | None = None
    """It is being deleted, and why; what it will be when it is gone."""


GONE: Final = Ending(
    reason="PodGone", message="its pod is no longer there, nobody saw why", blame=Blame.LOST
)
DELETED: Final = Ending(reason="PodDeleted", message="somebody deleted its pod", blame=Blame.FREE)

EXIT_UNAVAILABLE: Final = 75
"""The agent could not reach the server for too long (EX_TEMPFAIL)."""
EXIT_UNUSABLE: Final = 78
"""The agent can't work in this pod, such as without the sandbox that it must use (EX_CONFIG)."""

_CANT_PULL: Final = frozenset(
    {
        "ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName",
        "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed",
    }
)  # fmt: skip
_CANT_START: Final = frozenset(
    {
        "CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError",
        "ContainerCannotRun", "PreCreateHookError", "PostStartHookError",
    }
)  # fmt: skip
_NODE_SAYS_NO: Final = frozenset(
    {
        "NodeAffinity", "NodePorts", "UnexpectedAdmissionError", "NodeShutdown", "Shutdown",
        "Terminated", "TopologyAffinityError", "InPlacePodVerticalScaling",
    }
)  # fmt: skip
"""Reasons of kubelets that had no place after all; another node, or the same later, has."""
_DISRUPTIONS: Final[Mapping[str, Ending]] = {
    "PreemptionByScheduler": Ending(
        reason="Preempted", message="a more urgent pod needed its place", blame=Blame.FREE
    ),
    "EvictionByEvictionAPI": Ending(
        reason="Drained", message="its node was drained", blame=Blame.FREE
    ),
    "DeletionByTaintManager": Ending(
        reason="NodeLost",
        message="its node was unreachable, not ready or tainted",
        blame=Blame.LOST,
    ),
    "DeletionByPodGC": Ending(reason="NodeLost", message="its node is gone", blame=Blame.LOST),
}


def look(pod: Mapping[str, Any]) -> Look:
    """What the status of a pod tells, as the API server gave it."""
    status = pod.get("status") or {}
    phase = str(status.get("phase") or "Pending")
    leaving = _leaving(pod, status)
    if phase == "Succeeded":
        return Look(phase=phase, ending=_done(status), leaving=leaving)
    if phase == "Failed":
        return Look(phase=phase, ending=_failed(status, leaving), leaving=leaving)
    if phase not in {"Pending", "Running"}:
        # "Unknown": its node does not answer. Leases and the node's own fate decide.
        phase = "Running"
    stuck = next(_stuck(status), None)
    return Look(phase=phase, stuck=stuck, waits_for=_waits_for(status, stuck), leaving=leaving)


def _done(status: Mapping[str, Any]) -> Ending:
    ended = _state_of(status, AGENT).get("terminated") or {}
    return Ending(
        reason="Completed",
        message=f"its pod ended by itself with exit code {ended.get('exitCode', 0)}",
        blame=Blame.NONE,
    )


def _disruption(status: Mapping[str, Any]) -> tuple[str, str]:
    for condition in status.get("conditions") or ():
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return str(condition.get("reason") or ""), str(condition.get("message") or "")
    return "", ""


def _leaving(pod: Mapping[str, Any], status: Mapping[str, Any]) -> Ending | None:
    if not (pod.get("metadata") or {}).get("deletionTimestamp"):
        return None
    reason, message = _disruption(status)
    known = _DISRUPTIONS.get(reason)
    return DELETED if known is None else _with_message(known, message)


def _failed(status: Mapping[str, Any], leaving: Ending | None) -> Ending:
    reason, message = str(status.get("reason") or ""), str(status.get("message") or "")
    if reason == "DeadlineExceeded":
        return _ending("DeadlineExceeded", "its pod ran longer than allowed", message)
    if reason == "Evicted":
        return _evicted(message)
    if reason == "Preempting":
        return _ending("Preempted", "a critical pod needed its place", message, Blame.FREE)
    if reason == "NodeLost":
        return _ending("NodeLost", "its node does not answer", message, Blame.LOST)
    if reason in _NODE_SAYS_NO or reason.startswith(("OutOf", "Outof")):
        return _ending("NodeRefused", f"its node had no place ({reason})", message, Blame.FREE)
    # Killed for memory is its own doing, also while somebody wanted it gone.
    for name in (FETCH, AGENT):
        ended = _state_of(status, name).get("terminated") or {}
        if ended.get("reason") == "OOMKilled":
            return _ending(
                "OOMKilled", f"its container {name} needed more memory than its limit", ""
            )
    disruption, why = _disruption(status)
    if disruption in _DISRUPTIONS:
        return _with_message(_DISRUPTIONS[disruption], why)
    if leaving is not None:
        return leaving
    return _exited(status, reason, message)


def _evicted(message: str) -> Ending:
    # "… exceeds the total limit of containers", "Usage of EmptyDir volume … exceeds the limit":
    # its own limits. Else the node ran short, and it was only the one that went.
    if "exceeds" in message.lower():
        return _ending("StorageExceeded", "it needed more storage than its limit", message)
    return _ending("Evicted", "its node ran short of resources", message, Blame.LOST)


def _exited(status: Mapping[str, Any], reason: str, message: str) -> Ending:
    for name in (FETCH, AGENT):
        ended = _state_of(status, name).get("terminated") or {}
        code = ended.get("exitCode")
        if code in {None, 0}:
            continue
        said = str(ended.get("message") or "")
        if code == EXIT_UNAVAILABLE:
            return _ending("ServerUnreachable", "its agent lost the server", said, Blame.LOST)
        if code == EXIT_UNUSABLE:
            return _ending("PodUnusable", "its agent can't work in such a pod", said, crash=True)
        if ended.get("reason") in _CANT_START:
            return _ending("ContainerNotStarted", f"container {name} could not start", said)
        how = f"signal {ended['signal']}" if ended.get("signal") else f"exit code {code}"
        return _ending("AgentFailed", f"container {name} ended with {how}", said, crash=True)
    return _ending("PodFailed", f"its pod failed ({reason or 'no reason given'})", message)


def _stuck(status: Mapping[str, Any]) -> Iterator[Ending]:
    for each in _container_statuses(status):
        waiting = (each.get("state") or {}).get("waiting") or {}
        reason, message = str(waiting.get("reason") or ""), str(waiting.get("message") or "")
        if reason in _CANT_PULL:
            yield _ending("ImagePullFailed", f"its image can't be had ({reason})", message)
        elif reason in _CANT_START:
            yield _ending("ContainerConfig", f"its container can't start ({reason})", message)


def _waits_for(status: Mapping[str, Any], stuck: Ending | None) -> str:
    if stuck is not None:
        return stuck.message
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            reason, message = condition.get("reason") or "", condition.get("message") or ""
            return f"{reason}: {message}"[:_MESSAGE_MAX]
    for each in _container_statuses(status):
        waiting = (each.get("state") or {}).get("waiting")
        if waiting:
            return str(waiting.get("reason") or "")
    return ""


def pending_too_long(seen: Look, timeout_s: float) -> Ending:
    """A pod whose containers did not begin in time."""
    why = f": {seen.waits_for}" if seen.waits_for else ""
    return Ending(
        reason="PendingTimeout",
        message=f"its pod did not start within {timeout_s:g} s{why}"[:_MESSAGE_MAX],
        blame=Blame.FREE,
    )


def _container_statuses(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _state_of(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    for each in _container_statuses(status):
        if each.get("name") == name:
            return each.get("state") or {}
    return {}


def _ending(
    reason: str, what: str, said: str, blame: Blame = Blame.CHARGED, *, crash: bool = False
) -> Ending:
    message = f"{what}: {said.strip()}" if said.strip() else what
    return Ending(reason=reason, message=message[:_MESSAGE_MAX], blame=blame, is_crash=crash)


def _with_message(ending: Ending, message: str) -> Ending:
    return _ending(ending.reason, ending.message, message, ending.blame)


# Refusals -----------------------------------------------------------------------------------


class Next(StrEnum):
    """What to do after the API server refused to make a pod."""

    ADOPT = "Adopt"
    """It is there already: look whose it is."""
    AGAIN = "Again"
    """Soon, with the same definition; nothing is wrong with it."""
    WAIT = "Wait"
    """There is no room now: its work goes back, and nothing more is asked for a while."""
    FAIL = "Fail"
    """This definition is not taken here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why a pod was not made."""

    next: Next
    ending: Ending
    """What it is for its work, when that goes back."""


def refused(code: int, reason: str, message: str, details: Mapping[str, Any]) -> Refused:
    """Judge the API server's answer to a creation; ``code`` is the HTTP status."""
    text = message.lower()
    kind = str(details.get("kind") or "")
    if code == 409 and reason == "AlreadyExists":
        return _refused(Next.ADOPT, "PodExists", message, Blame.FREE)
    if code in {408, 409, 410, 429} or code >= 500:
        # 409 on a resource quota: two creations met, and one shall try again.
        return _refused(Next.AGAIN, "ApiUnavailable", message, Blame.FREE)
    if code == 403 and "exceeded quota" in text:
        return _refused(Next.WAIT, "QuotaExceeded", message, Blame.FREE)
    if code == 403 and "being terminated" in text:
        return _refused(Next.FAIL, "NamespaceMissing", message)
    if code == 404:
        what = "NamespaceMissing" if kind in {"", "namespaces"} else "PodCreationFailed"
        return _refused(Next.FAIL, what, message)
    if code == 401 or (code == 403 and "cannot create resource" in text):
        return _refused(Next.FAIL, "PodCreationForbidden", message)
    if code == 403:
        return _refused(Next.FAIL, "PodAdmissionFailed", message)
    return _refused(Next.FAIL, "PodCreationFailed", message)


_REFUSALS: Final[Mapping[str, str]] = {
    "PodExists": "a pod of its name is there already",
    "ApiUnavailable": "the Kubernetes API did not make its pod",
    "QuotaExceeded": "the namespace's quota has no room for its pod",
    "NamespaceMissing": "the namespace of its pod is not there",
    "PodCreationForbidden": "we may not make pods there",
    "PodAdmissionFailed": "an admission refused its pod",
    "PodCreationFailed": "the Kubernetes API does not take its pod",
}


def _refused(next_: Next, reason: str, message: str, blame: Blame = Blame.CHARGED) -> Refused:
    return Refused(next=next_, ending=_ending(reason, _REFUSALS[reason], message, blame))


def task_of(pod: Mapping[str, Any], installation: str) -> str | None:
    """The task that a pod of ours says it is for; None for a pod that is not ours."""
    labels = (pod.get("metadata") or {}).get("labels") or {}
    if labels.get(_MANAGED_BY) != MANAGER or labels.get(INSTALLATION) != installation:
        return None
    found = labels.get(TASK)
    return str(found) if found else None
