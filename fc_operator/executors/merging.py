"""Strategic merge of pod templates, as Kubernetes does it. Pure.

Mappings are merged key by key; ``null`` removes a key. Lists that Kubernetes merges by a key
(containers by their name, mounts by their path) are merged item by item; every other list is
replaced. ``$patch: delete`` in an item removes it, ``$patch: replace`` in a mapping replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

_KEYS: Final[Mapping[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
    "schedulingGates": "name",
}
"""Lists of a pod that are merged, and by which key (``x-kubernetes-patch-merge-key``)."""
_RETAINED: Final = frozenset({"volumes"})
"""Items of which only the keys of the newer one stay: a volume has one source."""
_DIRECTIVE: Final = "$patch"


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` merged into it; neither is changed."""
    if over.get(_DIRECTIVE) == "replace":
        return {key: _clean(value) for key, value in over.items() if key != _DIRECTIVE}
    merged = dict(base)
    for key, value in over.items():
        if key == _DIRECTIVE:
            continue
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            old = merged.get(key)
            merged[key] = merge(old if isinstance(old, Mapping) else {}, value)
        elif key in _KEYS and _is_keyed(value, _KEYS[key]):
            merged[key] = _merge_list(
                merged.get(key) or [], value, _KEYS[key], retain=key in _RETAINED
            )
        else:
            merged[key] = _clean(value)
    return merged


def _is_keyed(value: Any, key: str) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, Mapping) and (key in item or item.get(_DIRECTIVE) == "replace")
        for item in value
    )


def _merge_list(
    base: Sequence[Mapping[str, Any]], over: Sequence[Mapping[str, Any]], key: str, *, retain: bool
) -> list[dict[str, Any]]:
    if any(item.get(_DIRECTIVE) == "replace" and key not in item for item in over):
        # The one item says: not these of the base.
        base = []
        over = [item for item in over if key in item]
    items = {item[key]: dict(item) for item in base}
    for item in over:
        name = item[key]
        if item.get(_DIRECTIVE) == "delete":
            items.pop(name, None)
            continue
        merged = merge(items.get(name, {}), item)
        items[name] = {each: merged[each] for each in merged if not retain or each in item}
    return list(items.values())


def _clean(value: Any) -> Any:
    """Without what only a merge understands: a value that replaces has no nulls to remove."""
    if isinstance(value, Mapping):
        return {
            key: _clean(each)
            for key, each in value.items()
            if key != _DIRECTIVE and each is not None
        }
    if isinstance(value, list):
        return [_clean(each) for each in value]
    return value
