"""From a valid spec in the manifest's words to the words of our rows, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from fc_operator.model import desired as nouns

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_WORDS = {
    "Public": "public", "Private": "private", "Retain": "retain", "Delete": "delete",
    "GitHub": "github", "Gitea": "gitea", "Forgejo": "forgejo", "GitLab": "gitlab",
    "GitHubStatus": "github_status", "GiteaStatus": "gitea_status",
    "ForgejoStatus": "forgejo_status", "GitLabStatus": "gitlab_status",
    "Webhook": "webhook", "Email": "email", "Slack": "slack",
    "Always": "always", "OnChange": "on_change", "OnFailure": "on_failure",
    "Member": "member", "Maintainer": "maintainer", "Admin": "admin",
    "Disabled": "disabled", "Enabled": "enabled", "OneShot": "one_shot",
    "OneAtATime": "one_at_a_time",
    "Git": "git", "String": "string", "Boolean": "boolean", "Path": "path", "Build": "build",
}  # fmt: skip
"""Every enum value of the CRDs and the word that rows have for it."""

WORDS_BACK = {word: value for value, word in _WORDS.items()}


def word(value: str) -> str:
    """The row's word for an enum value of a manifest."""
    return _WORDS[value]


def seconds(text: str) -> int:
    """A duration such as ``1h30m`` in whole seconds, rounded up."""
    total = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    return math.ceil(round(total, 3))


def _maybe_seconds(text: str | None) -> int | None:
    return None if text is None else seconds(text)


def _secret(ref: dict[str, str]) -> nouns.SecretRef:
    return nouns.SecretRef(name=ref["name"], key=ref["key"])


def _maybe_secret(ref: dict[str, str] | None) -> nouns.SecretRef | None:
    return None if ref is None else _secret(ref)


def _webhooks(spec: dict[str, Any]) -> tuple[nouns.WebhookSpec, ...]:
    return tuple(
        nouns.WebhookSpec(
            forge=word(each["forge"]), secret=_secret(each["secretRef"]), enabled=each["enabled"]
        )
        for each in spec.get("webhooks", ())
    )


def _credentials(spec: dict[str, Any]) -> str | None:
    ref = spec.get("credentialsSecretRef")
    return None if ref is None else str(ref["name"])


def _notification(each: dict[str, Any]) -> nouns.NotificationSpec:
    return nouns.NotificationSpec(
        type=word(each["type"]),
        name=each["name"],
        when=word(each["when"]),
        jobsets=tuple(each["jobsets"]),
        url=each.get("url"),
        to=tuple(each["to"]),
        token=_maybe_secret(each.get("tokenSecretRef")),
        secret=_maybe_secret(each.get("secretRef")),
        enabled=each["enabled"],
    )


def _project(name: str, spec: dict[str, Any]) -> nouns.DesiredProject:
    return nouns.DesiredProject(
        name=spec.get("name", name),
        repository_url=spec["repositoryUrl"],
        display_name=spec["displayName"],
        description=spec["description"],
        homepage=spec["homepage"],
        owner=spec["owner"],
        visibility=word(spec["visibility"]),
        credentials_secret=_credentials(spec),
        webhooks=_webhooks(spec),
        notifications=tuple(_notification(each) for each in spec.get("notifications", ())),
        channels=tuple(nouns.ChannelSpec(**each) for each in spec.get("channels", ())),
        members=tuple(
            nouns.MemberSpec(user=each["user"], role=word(each["role"]))
            for each in spec.get("members", ())
        ),
        pods=nouns.PodsSpec.from_dict(spec.get("pods") or {}),
        cache_public=(spec.get("cache") or {}).get("public"),
        deletion_policy=word(spec["deletionPolicy"]),
        suspended=spec["suspend"],
    )


def _jobset(name: str, spec: dict[str, Any]) -> nouns.DesiredJobset:
    flake = spec["flakeMode"]
    expression = spec.get("nixExpression") or ("" if flake else "release.nix")
    return nouns.DesiredJobset(
        project=spec["projectRef"]["name"],
        name=spec.get("name", name),
        nix_expression=expression,
        flake_mode=flake,
        description=spec["description"],
        branch=spec.get("branch"),
        check_interval_s=seconds(spec["checkInterval"]),
        state=word(spec["state"]),
        scheduling_shares=spec["schedulingShares"],
        keep_evaluations=spec["keepEvaluations"],
        inputs=tuple(
            nouns.InputSpec(name=each["name"], type=word(each["type"]), value=each["value"])
            for each in spec.get("inputs", ())
        ),
        systems=tuple(spec["systems"]),
        only_build_latest=spec["onlyBuildLatest"],
        timeout_s=_maybe_seconds(spec.get("timeout")),
        max_silent_s=_maybe_seconds(spec.get("maxSilent")),
        evaluation_timeout_s=_maybe_seconds(spec.get("evaluationTimeout")),
        allow_import_from_derivation=spec["allowImportFromDerivation"],
        suspended=spec["suspend"],
    )


def _builder(name: str, spec: dict[str, Any]) -> nouns.DesiredBuilder:
    uri = spec["sshUri"].rstrip("/")
    mandatory = tuple(spec["mandatoryFeatures"])
    return nouns.DesiredBuilder(
        name=name,
        ssh_uri=uri if "://" in uri else f"ssh://{uri}",
        systems=tuple(spec["systems"]),
        public_host_key=spec.get("publicHostKey", ""),
        ssh_key=_secret(spec["sshKeySecretRef"]),
        max_jobs=spec["maxJobs"],
        speed_factor=spec["speedFactor"],
        supported_features=tuple(dict.fromkeys((*spec["supportedFeatures"], *mandatory))),
        mandatory_features=mandatory,
        enabled=spec["enabled"],
        drain=spec["drain"],
    )


def _config_repository(name: str, spec: dict[str, Any]) -> nouns.DesiredConfigRepository:
    return nouns.DesiredConfigRepository(
        name=name,
        url=spec["url"],
        branch=spec.get("branch"),
        path="/".join(part for part in spec["path"].split("/") if part not in {"", "."}),
        interval_s=seconds(spec["interval"]),
        prune=spec["prune"],
        credentials_secret=_credentials(spec),
        webhooks=_webhooks(spec),
        suspended=spec["suspend"],
    )


_READERS: dict[str, Callable[[str, dict[str, Any]], nouns.Desired]] = {
    nouns.PROJECT: _project,
    nouns.JOBSET: _jobset,
    nouns.REMOTE_BUILDER: _builder,
    nouns.CONFIG_REPOSITORY: _config_repository,
}


def desired_of(kind: str, name: str, spec: dict[str, Any]) -> nouns.Desired:
    """The declared row of a valid, defaulted spec."""
    return _READERS[kind](name, spec)


def identity_of(declared: nouns.Desired) -> str:
    """What it is called in the whole installation."""
    if isinstance(declared, nouns.DesiredJobset):
        return f"{declared.project}/{declared.name}"
    return declared.name
