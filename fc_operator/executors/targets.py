"""Where pods may run: the administrator's list of targets, and which of them a project gets. Pure.

Who writes a Project picks a target by its name; which targets there are, and for the objects of
which namespaces, is the administrator's word alone. So nobody who may only write objects in one
namespace makes pods appear in another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from fc_operator.kit import documents
from fc_operator.model import conditions as terms

DEFAULT: Final = "default"
"""The target of a project that names none, where it may use one of this name."""
SANDBOXES: Final = ("Pod", "Nix")
TEMPLATE_FIELDS: Final = ("nodeSelector", "tolerations", "resources", "runtimeClassName", "volumes")
"""What a project's own template may say, unless its target allows less."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_GLOB = re.compile(r"[a-z0-9*?\[\]!-]{1,253}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place where pods may run."""

    name: str
    namespace: str
    """Of the pods."""
    object_namespaces: tuple[str, ...] = ("*",)
    """Globs: objects in these namespaces may use it."""
    service_account: str = ""
    """An account without any rights; empty is the namespace's default one. No token is mounted."""
    pod_template: Mapping[str, Any] = field(default_factory=dict)
    """``metadata`` (labels, annotations) and ``spec`` of a pod, merged strategically over ours."""
    sandbox: str = "Pod"
    """``Pod``: the pod itself is the sandbox. ``Nix``: Nix's own sandbox inside it, or no build."""
    systems: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    allowed_template_fields: tuple[str, ...] = TEMPLATE_FIELDS
    """What the template of a project may say here."""

    def is_for(self, namespace: str) -> bool:
        """Whether objects of a namespace may use it."""
        return any(fnmatchcase(namespace, glob) for glob in self.object_namespaces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What became of a wish: a target, or why there is none."""

    target: Target | None = None
    reason: str = ""
    """``TargetNotAllowed`` or ``TemplateNotAllowed``."""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a target has that says nothing itself."""

    namespace: str
    systems: tuple[str, ...]
    features: tuple[str, ...]


def only_default(defaults: Defaults) -> tuple[Target, ...]:
    """The targets of an administrator who wrote no list: our own namespace, for all objects."""
    return (
        Target(
            name=DEFAULT,
            namespace=defaults.namespace,
            systems=defaults.systems,
            features=defaults.features,
        ),
    )


def parse_targets(data: bytes, defaults: Defaults) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """The list in a file, and what is wrong with it, each with its line."""
    read, found = documents.load(data)
    problems = [f"{problem.line}: {problem.message}" for problem in found]
    targets: list[Target] = []
    entries: list[Any] = []
    for document in read:
        value = document.value
        if isinstance(value, Mapping) and set(value) == {"targets"}:
            value = value["targets"]
        if value is None:
            continue
        if not isinstance(value, Sequence) or isinstance(value, str):
            problems.append(f"{document.line}: this is no list of targets")
            continue
        entries += value
    for number, entry in enumerate(entries, 1):
        said = list(_problems(entry))
        if said:
            problems += [f"target {number}: {each}" for each in said]
            continue
        target = _target(entry, defaults)
        if any(target.name == other.name for other in targets):
            problems.append(f"target {number}: there is a target {target.name} already")
            continue
        targets.append(target)
    if not entries and not problems:
        problems.append("there is no target, so no pod could run anywhere")
    return tuple(targets), tuple(problems)


def choose(
    targets: Sequence[Target],
    *,
    object_namespace: str,
    name: str | None = None,
    template_fields: Sequence[str] = (),
) -> Choice:
    """The target for an object: the named one, else ``default``, else the first that it may use."""
    mine = [target for target in targets if target.is_for(object_namespace)]
    by_name = {target.name: target for target in mine}
    if name is not None:
        target = by_name.get(name)
        if target is None:
            # The same words whether it exists or not: what others may use is nobody's business.
            return Choice(
                reason=terms.TARGET_NOT_ALLOWED,
                message=f"there is no target {name} for objects in namespace {object_namespace}",
            )
    else:
        target = by_name.get(DEFAULT, mine[0] if mine else None)
        if target is None:
            return Choice(
                reason=terms.TARGET_NOT_ALLOWED,
                message=f"there is no target for objects in namespace {object_namespace}",
            )
    refused = sorted(set(template_fields) - set(target.allowed_template_fields))
    if refused:
        return Choice(
            reason=terms.TEMPLATE_NOT_ALLOWED,
            message=f"the target {target.name} lets no project set {', '.join(refused)}",
        )
    return Choice(target=target)


_TEXTS: Final = ("name", "namespace", "serviceAccountName", "sandbox")
_LISTS: Final = ("objectNamespaces", "systems", "features", "allowedTemplateFields")


def _problems(entry: Any) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield "it is no mapping"
        return
    for key in entry:
        if key not in {*_TEXTS, *_LISTS, "podTemplate"}:
            yield f"it has no field {key}"
    for key in _TEXTS:
        if key in entry and not (isinstance(entry[key], str) and entry[key]):
            yield f"{key} is a text"
    for key in _LISTS:
        value = entry.get(key, [])
        if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
            yield f"{key} is a list of texts"
    for key in ("name", "namespace"):
        value = entry.get(key)
        if key == "name" and value is None:
            yield "it has no name"
        if isinstance(value, str) and value and not _NAME.fullmatch(value):
            yield f"{key} has small letters, digits and hyphens"
    if "objectNamespaces" not in entry:
        # Never by default: a list that forgot it would open the target to everybody.
        yield "it does not say objectNamespaces; ['*'] is all of them"
    globs = entry.get("objectNamespaces")
    for glob in globs if isinstance(globs, list) else ():
        if isinstance(glob, str) and not _GLOB.fullmatch(glob):
            yield f"objectNamespaces: {glob!r} can't match a namespace"
    if isinstance(entry.get("sandbox"), str) and entry["sandbox"] not in SANDBOXES:
        yield f"sandbox is one of {', '.join(SANDBOXES)}"
    allowed = entry.get("allowedTemplateFields")
    for each in allowed if isinstance(allowed, list) else ():
        if each not in TEMPLATE_FIELDS:
            yield f"allowedTemplateFields has {', '.join(TEMPLATE_FIELDS)}, not {each}"
    yield from _template_problems(entry.get("podTemplate", {}))


def _template_problems(template: Any) -> Iterator[str]:
    if not isinstance(template, Mapping):
        yield "podTemplate is a mapping"
        return
    for key in template:
        if key not in {"metadata", "spec"}:
            yield f"podTemplate has metadata and spec, not {key}"
    for key in ("metadata", "spec"):
        if not isinstance(template.get(key, {}), Mapping):
            yield f"podTemplate.{key} is a mapping"
            return
    for key in template.get("metadata", {}):
        if key not in {"labels", "annotations"}:
            yield f"podTemplate.metadata has labels and annotations, not {key}"
    for key in ("containers", "initContainers"):
        containers = template.get("spec", {}).get(key, [])
        if not isinstance(containers, list) or not all(
            isinstance(each, Mapping) and each.get("name") for each in containers
        ):
            yield f"podTemplate.spec.{key} is a list of containers with names"


def _target(entry: Mapping[str, Any], defaults: Defaults) -> Target:
    return Target(
        name=entry["name"],
        namespace=entry.get("namespace", defaults.namespace),
        object_namespaces=tuple(entry["objectNamespaces"]),
        service_account=entry.get("serviceAccountName", ""),
        pod_template=entry.get("podTemplate", {}),
        sandbox=entry.get("sandbox", "Pod"),
        systems=tuple(entry.get("systems", defaults.systems)),
        features=tuple(entry.get("features", defaults.features)),
        allowed_template_fields=tuple(entry.get("allowedTemplateFields", TEMPLATE_FIELDS)),
    )
