"""JSON schemas of all kinds that a running API server knows, in the form that kubeconform reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOCATION = "{{ .ResourceKind }}{{ .KindSuffix }}.json"
"""How kubeconform is told the name of a kind's file."""
_KIND = "x-kubernetes-group-version-kind"
_EITHER = {"oneOf": [{"type": "string"}, {"type": "integer"}]}
_QUANTITY = {"oneOf": [{"type": "string"}, {"type": "number"}]}


def write(openapi: Mapping[str, Any], folder: Path) -> list[str]:
    """Write what ``/openapi/v2`` says; unknown fields are wrong. Returns the files' names."""
    definitions = {
        name: _strict(name, definition) for name, definition in openapi["definitions"].items()
    }
    (folder / "definitions.json").write_text(json.dumps({"definitions": definitions}))
    names = []
    for name, definition in definitions.items():
        for kind in definition.get(_KIND, ()):
            suffix = "-".join(
                part for part in (kind["group"].split(".")[0], kind["version"]) if part
            )
            file = f"{kind['kind'].lower()}-{suffix}.json"
            text = json.dumps({"$ref": f"definitions.json#/definitions/{name}"})
            (folder / file).write_text(text)
            names.append(file)
    return names


def _strict(name: str, definition: Mapping[str, Any]) -> dict[str, Any]:
    if name.endswith(".IntOrString"):
        return _EITHER
    if name.endswith(".Quantity"):
        return _QUANTITY
    made = {key: _inside(value) for key, value in definition.items()}
    if "properties" in made and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("format") == "int-or-string":
            return _EITHER
        return {key: _of(key, each) for key, each in value.items()}
    return [_inside(each) for each in value] if isinstance(value, list) else value


def _of(key: str, value: Any) -> Any:
    # A schema of schemas has a property of this name too, which is no reference.
    if key == "$ref" and isinstance(value, str):
        return f"definitions.json{value}"
    return _inside(value)
