"""The agent protocol: what a pod is given to do and what it tells, and their JSON forms. Pure.

An agent speaks to `fc server` below ``/api/v1/tasks/<task>/``: it opens a phase (``OpenRequest``,
``Opened``), says that it lives (``Heartbeat``, ``HeartbeatAnswer``), and reports. Steps are told by
``events``; evaluations by ``rows``, each body one report, and by one end. What stands here is the
whole contract of both sides: shapes, limits, order.

Order. Events of a task are numbered from 0, reports too; a number that was taken already is skipped
in silence, a gap is refused with the number that is expected. All log bytes of an attempt are
sent before its ``ended``. Unknown fields are ignored, so that either side may be newer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import msgspec
import orjson

from fc_operator.errors import ProtocolError
from fc_operator.model.evaluations import ResolvedInput
from fc_operator.model.ids import CommitId, DrvPath, EvaluationId, StepId, StorePath, TaskId
from fc_operator.model.jobs import JobError, JobMeta, JobRow
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.model.tasks import PhaseChanged, StepEnded, StepOrder, StepStarted

BODY_BYTES_MAX = 4 * 1024 * 1024
"""Of any request, as it is sent, compressed."""
PLAIN_BYTES_MAX = 16 * 1024 * 1024
"""Of what a compressed body stands for."""
BODY_BYTES_AIM = 4 * 1024 * 1024
"""Of what a compressed body stands for, where there is a choice: ``bodies`` begins another one."""
LINES_MAX = 10_000
"""Of one body: small lines take far more memory once they are read."""
LOG_BYTES_MAX = 1024 * 1024
"""Of one piece of log, not compressed."""
UNREAD_REPORTS_MAX = 32
"""Reports of an evaluation that wait for the scheduler; more are told to come later."""

T = TypeVar("T")
ReportedEvent = StepStarted | PhaseChanged | StepEnded
"""What ``events`` carries; log pieces go their own way."""


class Phase(StrEnum):
    """The two containers of a pod; each opens its task once, with a token of its own."""

    FETCH = "fetch"
    """Evaluations only: it alone sees git credentials, and ends before any Nix code runs."""
    WORK = "work"


# What there is to do ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NixWork:
    """How the agent calls Nix."""

    store_dir: str = "/nix/store"
    sandbox: str = "None"
    """``None``: the pod is the sandbox. ``Nix``: Nix's own too; without it nothing is built."""
    cache_url: str = ""
    """Our binary cache: inputs come from it and outputs go to it. The phase's token opens it, as a
    basic password or as a bearer."""
    cache_public_keys: tuple[str, ...] = ()
    """Keys that sign what it serves."""
    substituters: tuple[str, ...] = ()
    """Other caches."""
    trusted_public_keys: tuple[str, ...] = ()
    """Keys that sign what those serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsWork:
    """A batch of steps to build, all of one jobset and one class."""

    task_id: TaskId
    orders: tuple[StepOrder, ...]
    """May depend on each other; their .drv closures are in the cache."""
    slots: int = 0
    """Steps at once; 0 is one per core of the pod."""
    systems: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    nix: NixWork = field(default_factory=NixWork)
    stop_grace_s: float = 60
    """What the agent has between SIGTERM and its end."""

    def to_json(self) -> dict[str, Any]:
        """As it is stored and sent."""
        return {"kind": "steps", **_plain(self)}

    @classmethod
    def from_json(cls, data: Any) -> StepsWork:
        """What ``to_json`` made.

        Raises:
            ProtocolError: it is something else.
        """
        return read(cls, data)


@dataclass(frozen=True, slots=True, kw_only=True)
class GitWork:
    """How the agent may fetch; see ``settings.GitSettings``."""

    allowed_schemes: tuple[str, ...] = ("https", "ssh")
    allowed_hosts: tuple[str, ...] = ()
    timeout_s: int = 600
    max_bytes: int = 10 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInput:
    """What an input of type build stands for."""

    drv_path: DrvPath
    name: str
    """The derivation's name, with version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationWork:
    """One revision to check out and to evaluate."""

    task_id: TaskId
    evaluation_id: EvaluationId
    repository_url: str
    commit: CommitId
    expression: str
    is_flake: bool
    inputs: tuple[ResolvedInput, ...] = ()
    input_urls: dict[str, str] = field(default_factory=dict)
    """Of git inputs, by their names."""
    builds: dict[str, BuildInput] = field(default_factory=dict)
    """Of build inputs, by their names; the outputs are in the cache."""
    systems: tuple[str, ...] = ()
    """Only jobs of these; empty means all."""
    allow_import_from_derivation: bool = False
    timeout_s: float = 3600
    """Longest evaluation."""
    fetch_timeout_s: float = 600
    """Longest fetch of the source and of all inputs."""
    memory_bytes: int = 4 * 1024**3
    """Of the evaluator's process group."""
    output_bytes: int = 1024**3
    """Most that the evaluator may print."""
    workers: int = 1
    max_memory_size_mib: int = 4096
    git: GitWork = field(default_factory=GitWork)
    nix: NixWork = field(default_factory=NixWork)
    stop_grace_s: float = 60
    """What the agent has between SIGTERM and its end."""

    def to_json(self) -> dict[str, Any]:
        """As it is stored and sent; no secret is in it."""
        return {"kind": "evaluation", **_plain(self)}

    @classmethod
    def from_json(cls, data: Any) -> EvaluationWork:
        """What ``to_json`` made.

        Raises:
            ProtocolError: it is something else.
        """
        return read(cls, data)


Work = StepsWork | EvaluationWork


def work_from_json(data: Any) -> Work:
    """Either kind of work.

    Raises:
        ProtocolError: it is neither.
    """
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if kind == "steps":
        return StepsWork.from_json(data)
    if kind == "evaluation":
        return EvaluationWork.from_json(data)
    raise ProtocolError(f"there is no work of the kind {kind!r}")


# Opening, credentials, heartbeats -----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentVersions:
    """What runs in the pod, for people."""

    nix: str = ""
    evaluator: str = ""
    fc: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRequest:
    """``POST open``, with the opening token of the pod's definition."""

    phase: Phase
    token_hash: str
    """Hex SHA-256 of the secret bytes of the token that this phase will use from now on."""
    host: str = ""
    versions: AgentVersions = field(default_factory=AgentVersions)

    def to_json(self) -> dict[str, Any]:
        """The body."""
        return _plain(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The answer to ``open``."""

    work: Work
    lease_s: float
    """An agent that was silent for this long has lost its work."""
    heartbeat_s: float
    """Seconds between heartbeats."""

    def to_json(self) -> dict[str, Any]:
        """The body."""
        return {
            "work": self.work.to_json(),
            "lease_s": self.lease_s,
            "heartbeat_s": self.heartbeat_s,
        }

    @classmethod
    def from_json(cls, data: Any) -> Opened:
        """What ``to_json`` made.

        Raises:
            ProtocolError: it is something else.
        """
        times = read(_Times, data)
        return cls(
            work=work_from_json(data.get("work")),
            lease_s=times.lease_s,
            heartbeat_s=times.heartbeat_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Times:
    lease_s: float
    heartbeat_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GitCredential:
    """What opens one URL: ``identity`` and ``known_hosts``, or ``username`` and ``password``."""

    url: str
    """The only URL that may be shown it."""
    identity: str = field(default="", repr=False)
    known_hosts: str = field(default="", repr=False)
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The answer to ``GET credentials``."""

    credentials: tuple[GitCredential, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The body."""
        return _plain(self)

    @classmethod
    def from_json(cls, data: Any) -> Credentials:
        """What ``to_json`` made.

        Raises:
            ProtocolError: it is something else.
        """
        return read(cls, data)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutReport:
    """What describes the commit."""

    tree: str = ""
    subject: str = ""
    author: str = ""
    """``Name <mail>``."""
    ms: int = 0
    """How long the checkout took."""
    store_paths: dict[str, StorePath] = field(default_factory=dict)
    """Where the content of inputs lies in the store, by their names, as far as known by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """``POST fetched``: the checkout is there, and the credentials go. May be repeated."""

    checkout: CheckoutReport

    def to_json(self) -> dict[str, Any]:
        """The body."""
        return _plain(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """``POST heartbeat``; it renews the leases of all steps of the task."""

    running: tuple[tuple[StepId, int], ...] = ()
    """(step, attempt) of every order that has not ended, those that wait included."""

    def to_json(self) -> dict[str, Any]:
        """The body."""
        return _plain(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatAnswer:
    """What the agent shall do now."""

    lease_s: float
    cancel: tuple[tuple[StepId, int], ...] = ()
    """Attempts to stop; those of ``running`` that are somebody else's by now are among them."""
    cancel_task: bool = False
    """Stop everything, tell the end and leave."""
    reason: str = ""
    """Why ``cancel_task``: ``Cancelled`` or ``Superseded``."""

    def to_json(self) -> dict[str, Any]:
        """The body."""
        return _plain(self)

    @classmethod
    def from_json(cls, data: Any) -> HeartbeatAnswer:
        """What ``to_json`` made.

        Raises:
            ProtocolError: it is something else.
        """
        return read(cls, data)


# What is told of steps ----------------------------------------------------------------------------

_EVENTS: dict[str, type[Any]] = {"started": StepStarted, "phase": PhaseChanged, "ended": StepEnded}
_EVENT_NAMES = {kind: name for name, kind in _EVENTS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedEvent:
    """One line of ``events``."""

    seq: int
    event: ReportedEvent

    def to_json(self) -> dict[str, Any]:
        """``{"seq", "type": "started|phase|ended", "step_id", "attempt", …}``."""
        name = _EVENT_NAMES[type(self.event)]
        return {"seq": self.seq, "type": name, **_plain(self.event)}

    @classmethod
    def from_json(cls, data: Any) -> NumberedEvent:
        """What ``to_json`` made.

        Raises:
            ProtocolError: it is something else.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("seq"), int):
            raise ProtocolError("an event is an object with a number, seq")
        kind = _EVENTS.get(str(data.get("type")))
        if kind is None:
            raise ProtocolError(f"there is no event of the type {str(data.get('type'))[:50]!r}")
        return cls(seq=data["seq"], event=read(kind, data))


class Remaining(StrEnum):
    """What becomes of the steps that an agent has not ended when it leaves."""

    NONE = "none"
    """There are none: all have ended."""
    REQUEUE = "requeue"
    """It was told to go: they go back to the queue, free of charge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsEnd:
    """``POST end`` of a batch of steps."""

    remaining: Remaining = Remaining.NONE

    def to_json(self) -> dict[str, Any]:
        """The body."""
        return _plain(self)


# What is told of evaluations ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """``POST end`` of an evaluation, from either phase; nothing follows it."""

    status: EvaluationStatus
    """COMPLETED, FAILED, CANCELLED or TIMED_OUT. Also an agent that must leave before the end says
    so: it is ``interrupted``."""
    reason: str = ""
    error_kind: str | None = None
    """fetch, evaluation, limit or internal; None when it ended well."""
    message: str = ""
    checkout_ms: int = 0
    evaluation_ms: int = 0
    evaluator: str = ""
    evaluator_version: str = ""
    store_paths: dict[str, StorePath] = field(default_factory=dict)
    """Where the content of inputs lies in the store, by their names."""
    interrupted: bool = False
    """It was told to go (SIGTERM): evaluate it again, this try is not charged."""

    def to_json(self) -> dict[str, Any]:
        """The body."""
        return _plain(self)


def row_to_json(item: JobRow | JobError) -> dict[str, Any]:
    """A row in the form of nix-eval-jobs, which ``evaluator.rows.parse_row`` reads."""
    if isinstance(item, JobError):
        return {"attrPath": list(item.attr_path), "error": item.message}
    data: dict[str, Any] = {
        "attrPath": list(item.attr_path),
        "name": item.name,
        "system": item.system,
        "drvPath": item.drv_path,
        "outputs": item.outputs,
        "meta": _meta(item.meta),
        # Whether it looked is told apart from what it found.
        "cacheStatus": item.cache_status,
    }
    if item.is_aggregate:
        data["constituents"] = list(item.constituents)
        globs = "globConstituents" if item.glob_constituents else "namedConstituents"
        data[globs] = list(item.named_constituents)
    if item.input_drvs is not None:
        data["inputDrvs"] = {drv: list(outputs) for drv, outputs in item.input_drvs.items()}
    if item.required_features is not None:
        data["requiredSystemFeatures"] = list(item.required_features)
    if item.needed_builds is not None:
        data["neededBuilds"] = list(item.needed_builds)
    return data


def _meta(meta: JobMeta) -> dict[str, Any]:
    return {
        "description": meta.description,
        "homepage": meta.homepage,
        "license": meta.license,
        "maintainers": meta.maintainers,
        "timeout": meta.timeout_s,
        "maxSilent": meta.max_silent_s,
        "schedulingPriority": meta.scheduling_priority,
        "isHydraChannel": meta.is_channel,
    }


# Lines --------------------------------------------------------------------------------------------


def bodies(
    lines: Iterable[Mapping[str, Any]],
    *,
    bytes_aim: int = BODY_BYTES_AIM,
    bytes_max: int = PLAIN_BYTES_MAX,
    lines_max: int = LINES_MAX,
) -> Iterator[bytes]:
    """JSON lines, in as many bodies as size and number ask for; not compressed yet.

    Raises:
        ProtocolError: one line alone is too large.
    """
    body, count = bytearray(), 0
    for line in lines:
        text = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
        if len(text) > bytes_max:
            raise ProtocolError(f"a line has {len(text)} bytes; {bytes_max} are allowed")
        if body and (len(body) + len(text) > bytes_aim or count == lines_max):
            yield bytes(body)
            body, count = bytearray(), 0
        body += text
        count += 1
    if body:
        yield bytes(body)


def lines_of(body: bytes) -> Iterator[Any]:
    """What each line of a body says.

    Raises:
        ProtocolError: a line is no JSON, or there are too many.
    """
    if body.count(b"\n") > LINES_MAX:
        raise ProtocolError(f"a body has at most {LINES_MAX} lines")
    for line in body.split(b"\n"):
        if line.strip():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ProtocolError(f"a line is no JSON: {error}") from error


def read(form: type[T], data: Any) -> T:
    """``data`` (from JSON) as a ``form`` of this module or of ``model.tasks``.

    Raises:
        ProtocolError: it does not fit; the message says where.
    """
    try:
        return msgspec.convert(data, form)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"not what the protocol says: {error}") from error


def _plain(value: Any) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain
