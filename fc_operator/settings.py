"""Every setting, in frozen groups; each field says its meaning, unit and why its default is so.

Rooms receive their group and never read the environment. ``load`` is the one reader: a YAML file,
then the environment (``FC_<GROUP>_<FIELD>``), then flags, in rising order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSettings:
    """PostgreSQL."""

    url: str = ""
    """Where PostgreSQL is (``postgresql://…``). Empty: `fc up` runs its own below ``state.dir``."""
    pool_size: int = 10
    """Sessions per process at most; twelve is our bound on connections, two are kept aside."""


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
    interval_s: int = 60
    """Seconds between looks at a git source without a webhook; a directory is watched besides."""
    prune_grace_s: int = 30
    """Seconds between a manifest's disappearance (nothing is scheduled any more) and the deletion
    of what it declared; long enough to put a lost file back."""
    prune_share_max: float = 0.5
    """A sync that would prune more than this share of a source's objects waits for confirmation."""
    prune_guard_min: int = 3
    """Sources that own fewer objects than this are not guarded: half of two is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsSettings:
    """Values that manifests only refer to."""

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

    local_slots: int = 0
    """Builds at once on this machine; 0 is one per core."""
    local_systems: tuple[str, ...] = ()
    """Systems that this machine builds; empty: its own."""
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
class LogSettings:
    """Our own log lines."""

    level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""
    format: str = "Auto"
    """``Json``, ``Console``, or ``Auto``: console on a terminal, JSON elsewhere."""


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
    web: WebSettings = field(default_factory=WebSettings)
    log: LogSettings = field(default_factory=LogSettings)
