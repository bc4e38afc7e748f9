"""What somebody declared, in the words of our rows: enums in snake case, times in seconds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Kind = Literal["Project", "Jobset", "RemoteBuilder", "ConfigRepository"]
PROJECT: Final = "Project"
JOBSET: Final = "Jobset"
REMOTE_BUILDER: Final = "RemoteBuilder"
CONFIG_REPOSITORY: Final = "ConfigRepository"
KINDS: Final[tuple[Kind, ...]] = ("Project", "Jobset", "RemoteBuilder", "ConfigRepository")
"""In the order in which they must come into being: a jobset needs its project."""

API_VERSION: Final = "fc-operator.dev/v1alpha1"
REQUESTED_AT: Final = "fc-operator.dev/requestedAt"
"""The annotation that asks for a run now."""
DEFAULT_NAMESPACE: Final = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """One key of a secret; the secret is looked up in the namespace of the object."""

    name: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSpec:
    """A forge whose events wake us."""

    forge: str
    """github, gitea, forgejo or gitlab."""
    secret: SecretRef
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationSpec:
    """Whom to tell about results."""

    type: str
    """github_status, gitea_status, forgejo_status, gitlab_status, webhook, email or slack."""
    name: str = ""
    when: str = "on_change"
    """always, on_change or on_failure."""
    jobsets: tuple[str, ...] = ()
    """Empty means all."""
    url: str | None = None
    to: tuple[str, ...] = ()
    token: SecretRef | None = None
    secret: SecretRef | None = None
    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSpec:
    """A name that follows the latest good evaluation of a jobset of the same project."""

    name: str
    jobset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSpec:
    """Who may do what in a project: member, maintainer or admin."""

    user: str
    role: str = "member"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """An argument of a jobset's expression."""

    name: str
    type: str
    """git, string, boolean, path or build."""
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PodsSpec:
    """Where the pods of a project run, and what it asks for them."""

    target: str | None = None
    """One of the administrator's; None is its default."""
    unreviewed_target: str | None = None
    """For code that nobody reviewed; None is the same one."""
    template: dict[str, Any] = field(default_factory=dict)
    """As the manifest has it: nodeSelector, tolerations, resources, runtimeClassName, volumes."""

    def as_dict(self) -> dict[str, Any]:
        """As the row keeps it: only what is said."""
        said = {
            "target": self.target,
            "unreviewedTarget": self.unreviewed_target,
            "template": self.template,
        }
        return {key: value for key, value in said.items() if value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PodsSpec:
        """Reads what :meth:`as_dict` wrote, or the manifest's own words."""
        return cls(
            target=data.get("target"),
            unreviewed_target=data.get("unreviewedTarget"),
            template=data.get("template") or {},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredProject:
    """A row of ``projects`` and of the tables that hang on it."""

    name: str
    repository_url: str
    display_name: str = ""
    description: str = ""
    homepage: str = ""
    owner: str = ""
    visibility: str = "public"
    """public or private."""
    credentials_secret: str | None = None
    webhooks: tuple[WebhookSpec, ...] = ()
    notifications: tuple[NotificationSpec, ...] = ()
    channels: tuple[ChannelSpec, ...] = ()
    members: tuple[MemberSpec, ...] = ()
    pods: PodsSpec = PodsSpec()
    cache_public: bool | None = None
    """Whether strangers may read what it built from the cache; None: as ``visibility`` says."""
    deletion_policy: str = "retain"
    """retain or delete."""
    suspended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredJobset:
    """A row of ``jobsets`` and of ``jobset_inputs``."""

    project: str
    name: str
    nix_expression: str
    """Legacy: a file. Flake: an attribute, empty for hydraJobs, else checks."""
    flake_mode: bool = False
    description: str = ""
    branch: str | None = None
    check_interval_s: int = 300
    """0: only webhooks and requests."""
    state: str = "enabled"
    """enabled, disabled, one_shot or one_at_a_time."""
    scheduling_shares: int = 100
    keep_evaluations: int = 3
    inputs: tuple[InputSpec, ...] = ()
    systems: tuple[str, ...] = ()
    only_build_latest: bool = False
    timeout_s: int | None = None
    max_silent_s: int | None = None
    evaluation_timeout_s: int | None = None
    allow_import_from_derivation: bool = False
    suspended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredBuilder:
    """A row of ``remote_builders``."""

    name: str
    ssh_uri: str
    """Always with its scheme."""
    systems: tuple[str, ...]
    public_host_key: str
    ssh_key: SecretRef
    max_jobs: int = 1
    speed_factor: int = 1
    supported_features: tuple[str, ...] = ()
    """With the mandatory ones, as in Nix."""
    mandatory_features: tuple[str, ...] = ()
    enabled: bool = True
    drain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredConfigRepository:
    """A row of ``config_repositories``."""

    name: str
    url: str
    branch: str | None = None
    path: str = ""
    """The folder, without ``./`` and slashes at its ends; empty for the root."""
    interval_s: int = 60
    prune: bool = True
    credentials_secret: str | None = None
    webhooks: tuple[WebhookSpec, ...] = ()
    suspended: bool = False


Desired = DesiredProject | DesiredJobset | DesiredBuilder | DesiredConfigRepository


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """One valid manifest: what it says, and where it stands."""

    kind: Kind
    namespace: str
    name: str
    """``metadata.name``."""
    identity: str
    """What it is called in the installation: ``demo``, ``demo/main``, ``big-1``, ``team``."""
    spec: dict[str, Any]
    """With the defaults of the schema, as the API server would keep it."""
    spec_hash: str
    desired: Desired
    path: str = ""
    line: int = 0
    annotations: dict[str, str] = field(default_factory=dict)
    generation: int | None = None
    uid: str | None = None

    @property
    def requested_at(self) -> str | None:
        """The value of the annotation that asks for a run now."""
        return self.annotations.get(REQUESTED_AT)


def hash_spec(kind: str, namespace: str, name: str, spec: dict[str, Any]) -> str:
    """SHA-256 in hex of the canonical JSON of what was declared."""
    content = {"kind": kind, "namespace": namespace, "name": name, "spec": spec}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
