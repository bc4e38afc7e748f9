"""Every setting, in frozen groups; each field says its meaning, unit and why its default is so.

Rooms receive their group and never read the environment. ``load`` is the one reader: a YAML file,
then the environment (``FC_<GROUP>_<FIELD>``), then flags, in rising order.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from fc_operator.errors import SettingsError
from fc_operator.kit import documents


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    """PostgreSQL."""

    url: str = ""
    """Where PostgreSQL is (``postgresql://…``). Empty: `fc up` runs its own below ``state.dir``."""
    pool_size: int = 10
    """Sessions per process at most; twelve is our bound on connections, two are kept aside."""
    listen: bool = True
    """Whether a session waits for wake-ups (LISTEN). Off, for a link that can't carry them:
    everything goes on by looking again every ``queue.poll_s``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSettings:
    """Files of this machine."""

    dir: Path = Path(".state")
    """Database, mirrors, worktrees, logs and roots; one `fc up` at a time owns it."""
    objects_url: str = ""
    """Object store of finished logs and products: a folder, s3://, gs:// or az://.
    Empty: ``objects`` below ``dir``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigSettings:
    """Where manifests come from."""

    source: str = ""
    """A directory or a git URL with manifests; empty: only what is applied."""
    branch: str = ""
    """Branch of a git source; empty is its default branch."""
    path: str = ""
    """Folder inside the source that holds the manifests; empty is all of it."""
    credentials_secret: str = ""
    """Name of the secret that opens a git source; empty: none is needed."""
    interval_s: int = 60
    """Seconds between looks at a git source without a webhook; a directory is watched besides."""
    force_push: str = "Hold"
    """What a rewritten history does: ``Hold`` keeps the last good state until somebody confirms the
    new revision (`fc sync NAME --confirm`), for it replaces what was reviewed; ``Follow`` takes it.
    """
    prune_grace_s: int = 30
    """Seconds between a manifest's disappearance (nothing is scheduled any more) and the deletion
    of what it declared; long enough to put a lost file back."""
    prune_share_max: float = 0.5
    """A sync that would prune more than this share of a source's objects waits for confirmation."""
    prune_guard_min: int = 3
    """Sources that own fewer objects than this are not guarded: half of two is one."""
    builder_namespaces: tuple[str, ...] = ()
    """The namespaces in which RemoteBuilders count; empty: all. A builder serves the whole
    installation and sees what it builds, so it is for administrators to declare one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsSettings:
    """Values that manifests only refer to."""

    source: str = "Directory"
    """``Directory``, or ``Kubernetes``: the Secrets of the cluster that ``kubernetes`` reaches,
    each in the namespace of the object that refers to it. ``None``: this process reads none, as a
    server that has no rights in its cluster; what refers to them waits for another one's look."""
    dir: Path = Path("secrets")
    """``<dir>/<name>/<key>`` holds a value outside a cluster; relative to ``state.dir``."""
    encryption_key: str = field(default="", repr=False)
    """The installation's key (32 bytes, base64) for what the server itself must know, such as a
    webhook's HMAC secret. Empty: made once and kept in ``state.dir``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitSettings:
    """Fetching from git hosts."""

    allowed_schemes: tuple[str, ...] = ("https", "ssh")
    """Schemes of repository URLs; ``ext::`` and ``file:`` are refused whatever stands here."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts (``name``, ``name:port`` or address) that may be loopback or private; no others."""
    timeout_s: int = 600
    """Longest time of one fetch."""
    max_bytes: int = 10 * 1024**3
    """Largest mirror; a repository beyond it is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NixSettings:
    """How Nix is called."""

    substituters: tuple[str, ...] = ()
    """Binary caches that builds may use. None by default: a dead one costs seconds."""
    trusted_public_keys: tuple[str, ...] = ()
    """Keys that sign what ``substituters`` serve."""
    sandbox: str = "Auto"
    """``Nix`` (fail where it can't be had), ``None``, or ``Auto``: Nix where a probe shows that it
    works, else none, shown in `fc get builders` and by `fc doctor`. Never a silent fallback."""
    store_dir: str = "/nix/store"
    """Store folder of the Nix in use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSettings:
    """Evaluating jobsets."""

    max_parallel: int = 4
    """Evaluations at once in one scheduler; a slow one delays nobody."""
    timeout_s: int = 3600
    """Longest evaluation, unless its jobset says otherwise."""
    fetch_timeout_s: int = 600
    """Longest fetch of all inputs."""
    memory_bytes: int = 4 * 1024**3
    """Memory of one evaluation's process group; beyond it the evaluation ends with that reason."""
    output_bytes: int = 1024**3
    """Most that an evaluator may print."""
    workers: int = 1
    """Worker processes of nix-eval-jobs; 1 suits small jobsets."""
    max_memory_size_mib: int = 4096
    """nix-eval-jobs replaces a worker beyond this."""
    allowed_paths: tuple[str, ...] = ()
    """Folders below which inputs of type Path may lie; empty: such inputs are refused."""
    poll_jitter: float = 0.1
    """Share of ``checkInterval`` by which polls are spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """Building on this machine and what is allowed to builds anywhere."""

    local: bool = True
    """Whether this machine builds. Off where only pods do, as in a cluster: the scheduler then
    needs no Nix for it."""
    local_slots: int = 0
    """Builds at once on this machine; 0 is one per core."""
    local_systems: tuple[str, ...] = ()
    """Systems that this machine builds; empty: its own."""
    ssh: bool = True
    """Whether declared builders are used, over SSH, by a scheduler whose machine has Nix and that
    evaluates there, not in pods: what they build goes through its store."""
    local_features: tuple[str, ...] = ("benchmark", "big-parallel", "nixos-test", "uid-range")
    """System features that this machine offers."""
    timeout_s: int = 36_000
    """Longest build, unless meta or jobset say otherwise (Hydra's default)."""
    max_silent_s: int = 3_600
    """Longest time without a log line, unless meta or jobset say otherwise (Hydra's default)."""
    log_bytes: int = 64 * 1024**2
    """Longest log; a build beyond it ends as log_limit_exceeded (Hydra's default)."""
    nar_bytes: int = 0
    """Largest sum of a build's outputs; 0 is no limit."""
    max_retries: int = 3
    """Tries again after infrastructure failures before a step is aborted."""
    retry_base_s: float = 60.0
    """First backoff after an infrastructure failure; it triples up to the fourth."""
    failure_ttl_s: int = 86_400
    """How long a real failure is remembered (cached_failure)."""
    unsupported_after_s: int = 120
    """A runnable step that no builder can ever take becomes unsupported_system after this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """Claims and leases."""

    lease_s: float = 30.0
    """A lease not renewed for this long is lost and its step requeued."""
    agent_lease_s: float = 60.0
    """The same for what runs in pods. Longer, so that a server may be away for most of it; that a
    pod has ended is seen at once, whatever this says."""
    heartbeat_s: float = 10.0
    """Seconds between renewals."""
    margin_s: float = 5.0
    """A holder stops itself this long before its lease would end."""
    poll_s: float = 5.0
    """Longest wait without a wake-up; wake-ups may be lost, polls are not."""
    batch: int = 16
    """Steps claimed at once at most."""
    usage_window_s: int = 86_400
    """Fair shares look back this far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesSettings:
    """Evaluating and building in pods of a Kubernetes cluster."""

    enabled: bool = False
    """Whether the scheduler makes pods: one per evaluation, one per batch of steps."""
    evaluations: bool = True
    """Whether evaluations run in pods, where pods are made at all; off: on the scheduler's machine,
    which then needs Nix."""
    builds: bool = True
    """Whether steps are built in pods, where pods are made at all. ``builds.local`` says whether
    this machine builds besides."""
    kubeconfig: str = ""
    """File that says how to reach the cluster. Empty: the service account of the pod that we run
    in, or outside a cluster kubectl's own choice."""
    context: str = ""
    """Context of the kubeconfig; empty: its current one."""
    namespace: str = ""
    """The installation's own namespace, where pods run unless a target says otherwise. Empty: that
    of the pod that we run in, or ``default``."""
    installation: str = ""
    """Tells our pods from those of other installations, as the value of a label. Empty: one that
    follows from ``secrets.encryption_key``."""
    image: str = ""
    """Image of the pods: ours, of the same version as the server."""
    image_pull_policy: str = "IfNotPresent"
    """``Always``, ``IfNotPresent`` or ``Never``."""
    server_url: str = ""
    """How pods reach `fc server`, such as http://fc-server.ci.svc:8080. They talk to nothing else
    of ours."""
    targets_file: str = ""
    """The administrator's list of where pods may run, by the namespace of the object that asks.
    Empty: one target, ``default``, in our own namespace, for all objects."""
    systems: tuple[str, ...] = ("x86_64-linux",)
    """Systems that pods build, unless a target says otherwise."""
    features: tuple[str, ...] = ("benchmark", "big-parallel")
    """System features that pods have, unless a target says otherwise."""
    steps_per_pod: int = 8
    """Steps of one jobset and class that one pod builds at most."""
    pods_max: int = 50
    """Build pods at once; evaluations are bounded by ``evaluation.max_parallel``."""
    creations_per_s: float = 10.0
    """Pods made per second at most, over time; spares the API server."""
    creations_burst: int = 20
    """Pods that may be made at once after a pause."""
    pending_timeout_s: int = 600
    """Longest time from a pod's creation to the start of its containers; then its work goes back to
    the queue at no charge."""
    stuck_timeout_s: int = 120
    """How long a pod may stand at an image that can't be pulled or a configuration that can't be
    resolved before it counts as failed; both may heal by themselves."""
    deadline_slack_s: int = 600
    """The kubelet ends a pod this long after all of its own time limits together would have."""
    stop_grace_s: int = 60
    """What an agent has to report and to leave when its pod is told to stop."""
    orphan_grace_s: int = 60
    """A pod of ours that no live task claims is deleted after this."""
    reconcile_s: float = 5.0
    """Seconds between comparisons of our pods with our tasks."""
    retry_s: float = 60.0
    """Wait after a quota or an admission refused a pod."""
    threads: int = 8
    """Calls to the API server at once."""
    timeout_s: float = 20.0
    """Longest wait for an answer of the API server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSettings:
    """`fc operator`: objects of our kinds in a cluster. How to reach it is in ``kubernetes``."""

    namespaces: tuple[str, ...] = ()
    """Where it looks for objects; empty: in all namespaces, for which it needs a ClusterRole."""
    compare_s: int = 300
    """Seconds between comparisons of all objects with the database; a watch may miss something."""
    status_s: float = 2.0
    """Results reach a status at most this often; each write costs the API server a revision."""
    lease_s: float = 15.0
    """One operator acts at a time. A dead one is followed by the next after this."""
    confirm_prune: bool = False
    """Whether a start may prune more than half of all objects because they are in the cluster no
    more, as after a move to another cluster; else they stay in force and say so."""
    health_host: str = "0.0.0.0"  # noqa: S104 - the kubelet comes from outside of the pod
    """Where ``/healthz`` and ``/readyz`` are answered, and nothing else."""
    health_port: int = 8081
    """Port of them; 0 takes a free one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSettings:
    """`fc scheduler` as a process of its own."""

    health_host: str = "0.0.0.0"  # noqa: S104 - the kubelet comes from outside of the pod
    """Where ``/healthz`` is answered, and nothing else, if it is at all."""
    health_port: int = 0
    """Port of it, for whoever restarts processes that stand still; 0 is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """The HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on; loopback until told otherwise."""
    port: int = 8080
    """Port; 0 takes a free one."""
    public_url: str = ""
    """How users reach it; empty: ``http://host:port``."""
    anonymous_read: str = "Loopback"
    """Reads without a key: ``Always``, ``Never``, or ``Loopback``: while ``host`` is loopback."""
    body_bytes_max: int = 5 * 1024**2
    """Largest request body (webhooks, manifests); larger ones get 413."""
    log_streams_max: int = 500
    """Live log viewers per process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """The binary cache below ``/cache``."""

    enabled: str = "Auto"
    """``Always``, ``Never``, or ``Auto``: served by `fc server`, and by `fc up --cache`."""
    signing_keys: tuple[str, ...] = field(default=(), repr=False)
    """Secret keys in Nix's format (``name:base64``); all of them sign, so that one can take the
    place of another. With none here or in ``signing_key_files``: one that follows from
    ``secrets.encryption_key``."""
    signing_key_files: tuple[str, ...] = ()
    """Files that hold a secret key each, such as a mounted secret."""
    priority: int = 30
    """How eagerly clients ask here; lower is asked first (cache.nixos.org says 40)."""
    nar_bytes_max: int = 16 * 1024**3
    """Largest NAR that is taken, uncompressed."""
    uploads_max: int = 16
    """NARs received at once in one process; more of them wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """Our own log lines."""

    level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""
    format: str = "Auto"
    """``Json``, ``Console``, or ``Auto``: console on a terminal, JSON elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What `fc agent` is told by its pod's definition; all else comes with its task."""

    server: str = ""
    """Root of the server whose task it is."""
    task: str = ""
    """The task's id."""
    token: str = field(default="", repr=False)
    """Opens each phase of the task once; later requests carry a token that the agent makes."""
    phase: str = "work"
    """``fetch`` (the checkout of an evaluation) or ``work`` (to evaluate it, or to build steps)."""
    folder: Path = Path("/work")
    """What both containers of an evaluation's pod see: the checkout passes through it."""
    open_timeout_s: int = 300
    """Longest wait for the server's first answer; then the pod ends with an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All groups."""

    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    state: StateSettings = field(default_factory=StateSettings)
    config: ConfigSettings = field(default_factory=ConfigSettings)
    secrets: SecretsSettings = field(default_factory=SecretsSettings)
    git: GitSettings = field(default_factory=GitSettings)
    nix: NixSettings = field(default_factory=NixSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    builds: BuildSettings = field(default_factory=BuildSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)
    operator: OperatorSettings = field(default_factory=OperatorSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    web: WebSettings = field(default_factory=WebSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    agent: AgentSettings = field(default_factory=AgentSettings)
    log: LogSettings = field(default_factory=LogSettings)


# Reading ------------------------------------------------------------------------------------

ENVIRONMENT_PREFIX: Final = "FC_"
_OTHER_VARIABLES: Final = frozenset({"FC_URL", "FC_API_KEY", "FC_CONFIG_FILE"})
"""Variables of ours that are no settings: the CLI reads them."""
_AGENT_VARIABLE: Final = re.compile(r"FC_AGENT_[A-Z]+")
"""What a pod's definition tells the agent inside."""
_ALIASES: Final = {"FC_ENCRYPTION_KEY": "secrets.encryption_key"}
_SERVICE_LINK: Final = re.compile(r"FC_\w*(_SERVICE_(HOST|PORT)(_\w+)?|_PORT(_\d+_(TCP|UDP)\w*)?)")
"""What Kubernetes puts into a pod for a Service whose name begins with ``fc-``."""
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "agent.phase": ("fetch", "work"),
    "config.force_push": ("Hold", "Follow"),
    "secrets.source": ("Directory", "Kubernetes", "None"),
    "nix.sandbox": ("Nix", "None", "Auto"),
    "kubernetes.image_pull_policy": ("Always", "IfNotPresent", "Never"),
    "cache.enabled": ("Always", "Never", "Auto"),
    "web.anonymous_read": ("Always", "Never", "Loopback"),
    "log.level": ("debug", "info", "warning", "error"),
    "log.format": ("Json", "Console", "Auto"),
}
_AT_LEAST: Final[Mapping[str, float]] = {
    "database.pool_size": 4,
    "config.interval_s": 1,
    "evaluation.max_parallel": 1,
    "evaluation.workers": 1,
    "queue.lease_s": 1,
    "queue.agent_lease_s": 1,
    "queue.heartbeat_s": 0.1,
    "queue.poll_s": 0.05,
    "queue.batch": 1,
    "kubernetes.steps_per_pod": 1,
    "kubernetes.pods_max": 1,
    "kubernetes.creations_per_s": 0.01,
    "kubernetes.creations_burst": 1,
    "kubernetes.pending_timeout_s": 1,
    "kubernetes.reconcile_s": 0.1,
    "kubernetes.retry_s": 0.1,
    "kubernetes.threads": 1,
    "kubernetes.timeout_s": 1,
    "web.body_bytes_max": 1024,
    "cache.nar_bytes_max": 1024,
    "cache.uploads_max": 1,
}
"""Lower bounds; every other number is at least 0."""
_AT_MOST: Final[Mapping[str, float]] = {
    "config.prune_share_max": 1,
    "evaluation.poll_jitter": 1,
    "operator.health_port": 65535,
    "web.port": 65535,
    "scheduler.health_port": 65535,
}


def names() -> tuple[str, ...]:
    """Every setting as ``group.field``, in order."""
    return tuple(
        f"{group.name}.{each.name}"
        for group in fields(Settings)
        for each in fields(_type_of(group))
    )


def load(
    *,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings: defaults, then ``file``, then ``env``, then ``flags`` (by ``group.field``).

    Raises:
        SettingsError: a setting is unknown or has a wrong value; all such are named at once.
    """
    given: dict[str, tuple[str, Any]] = {}
    wrong: list[str] = []
    for name, where, value in (
        *(_from_file(file, wrong) if file is not None else ()),
        *_from_environment(env or {}, wrong),
        *((name, f"--{name}", value) for name, value in (flags or {}).items()),
    ):
        given[name] = (where, value)
    known = set(names())
    values: dict[str, dict[str, Any]] = {}
    for name, (where, value) in given.items():
        if name not in known:
            wrong.append(f"{where}: there is no setting {name}{_meant(name, known)}")
            continue
        group, _, field_name = name.partition(".")
        try:
            values.setdefault(group, {})[field_name] = _value(name, value)
        except ValueError as error:
            wrong.append(f"{where}: {name} {error}")
    settings = Settings()
    if not wrong:
        groups: dict[str, Any] = {
            group: replace(getattr(settings, group), **changed) for group, changed in values.items()
        }
        settings = replace(settings, **groups)
        wrong.extend(_contradictions(settings))
    if wrong:
        raise SettingsError("; ".join(wrong), hint="config/fc.example.yaml explains every setting")
    return settings


def _type_of(group: Any) -> Any:
    return get_type_hints(Settings)[group.name]


def _meant(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f", did you mean {close[0]}?" if close else ""


def _from_file(file: Path, wrong: list[str]) -> Iterator[tuple[str, str, Any]]:
    try:
        read, problems = documents.load(file.read_bytes())
    except OSError as error:
        raise SettingsError(f"the settings file {file} can't be read: {error.strerror}") from error
    wrong.extend(f"{file}:{problem.line}: {problem.message}" for problem in problems)
    for document in read:
        groups = document.value
        if groups is None:
            continue
        if not isinstance(groups, dict):
            wrong.append(f"{file}:{document.line}: the settings are a mapping of groups")
            continue
        for group, content in groups.items():
            where = f"{file}:{document.lines.at((group,))}"
            if content is None:
                continue
            if not isinstance(content, dict):
                wrong.append(f"{where}: {group} is a group of settings, not a value")
                continue
            for name, value in content.items():
                yield f"{group}.{name}", f"{file}:{document.lines.at((group, name))}", value


def _from_environment(env: Mapping[str, str], wrong: list[str]) -> Iterator[tuple[str, str, Any]]:
    by_variable = {ENVIRONMENT_PREFIX + name.replace(".", "_").upper(): name for name in names()}
    by_variable |= _ALIASES
    for variable in sorted(env):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        if variable in by_variable:
            yield by_variable[variable], variable, env[variable]
        elif not (_SERVICE_LINK.fullmatch(variable) or _AGENT_VARIABLE.fullmatch(variable)):
            wrong.append(
                f"the environment variable {variable} is no setting"
                f"{_meant(variable, set(by_variable))}"
            )


def _value(name: str, value: Any) -> Any:
    """``value`` in the type of the setting; texts of the environment are read as such.

    Raises:
        ValueError: it has another type or is out of bounds; the message follows the name.
    """
    group, _, field_name = name.partition(".")
    wanted = get_type_hints(get_type_hints(Settings)[group])[field_name]
    read = _typed(wanted, value)
    choices = _CHOICES.get(name)
    if choices is not None and read not in choices:
        folded = {choice.lower(): choice for choice in choices}
        if str(read).lower() not in folded:
            raise ValueError(f"is {read!r}; it must be one of {', '.join(choices)}")
        read = folded[str(read).lower()]
    if isinstance(read, int | float) and not isinstance(read, bool):
        least, most = _AT_LEAST.get(name, 0), _AT_MOST.get(name)
        if read < least or (most is not None and read > most):
            bound = f"at least {least:g}" if read < least else f"at most {most:g}"
            raise ValueError(f"is {read:g}; it must be {bound}")
    return read


def _typed(wanted: Any, value: Any) -> Any:
    if wanted is bool:
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
        if not isinstance(value, bool):
            raise ValueError(f"is {value!r}; it must be true or false")
        return value
    if wanted in {int, float}:
        return _number(wanted, value)
    if get_origin(wanted) is tuple and get_args(wanted)[0] is str:
        if isinstance(value, str):
            value = [part for part in re.split(r"[\s,]+", value) if part]
        if not isinstance(value, list | tuple) or not all(isinstance(part, str) for part in value):
            raise ValueError(f"is {value!r}; it must be a list of texts")
        return tuple(value)
    if isinstance(value, Path) and wanted is Path:
        return value
    if not isinstance(value, str):
        raise ValueError(f"is {value!r}; it must be text")  # noqa: TRY004 - as above
    return Path(value) if wanted is Path else value


def _number(wanted: type[int | float], value: Any) -> Any:
    kind = "a whole number" if wanted is int else "a number"
    try:
        read = wanted(value)
    except (ValueError, TypeError, OverflowError):
        read = None
    exact = isinstance(value, str) or read == value
    if read is None or isinstance(value, bool) or not exact or not math.isfinite(read):
        raise ValueError(f"is {value!r}; it must be {kind}")
    return read


def _contradictions(settings: Settings) -> Iterator[str]:
    queue = settings.queue
    for name in ("lease_s", "agent_lease_s"):
        if queue.heartbeat_s + queue.margin_s >= getattr(queue, name):
            yield (
                f"queue.{name} ({getattr(queue, name):g}) must be longer than queue.heartbeat_s "
                f"({queue.heartbeat_s:g}) and queue.margin_s ({queue.margin_s:g}) together"
            )
    kubernetes = settings.kubernetes
    if kubernetes.enabled:
        for name in ("image", "server_url"):
            if not getattr(kubernetes, name):
                yield f"kubernetes.{name} must be set where kubernetes.enabled is true"
