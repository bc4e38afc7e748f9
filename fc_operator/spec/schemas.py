"""The CRDs as data: the schema of each kind, and JSON Schemas for editors made from it.

The files lie in ``crds/`` at the top of the repository; a link beside this module has them
packed into the wheel too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from fc_operator.kit import documents
from fc_operator.model import desired

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def crd_files() -> list[Path]:
    """The CRD files, for installing them into a cluster."""
    return sorted((Path(__file__).parent / "crds").glob("*.yaml"))


@cache
def crds() -> dict[str, dict[str, Any]]:
    """Every CRD by its kind."""
    found = {}
    for file in crd_files():
        read, problems = documents.load(file.read_bytes())
        assert not problems, f"{file}: {problems}"
        for document in read:
            found[document.value["spec"]["names"]["kind"]] = document.value
    return {kind: found[kind] for kind in desired.KINDS}


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """The OpenAPI schema of a kind, as the CRD has it."""
    versions = crds()[kind]["spec"]["versions"]
    stored = next(version for version in versions if version["storage"])
    schema: dict[str, Any] = stored["schema"]["openAPIV3Schema"]
    return schema


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema as plain JSON Schema that refuses unknown fields."""
    plain = {key: value for key, value in schema.items() if not key.startswith("x-kubernetes-")}
    if str(plain.get("format", "")).startswith("int"):
        del plain["format"]
    if "properties" in plain:
        plain["properties"] = {name: strict(sub) for name, sub in plain["properties"].items()}
        plain["additionalProperties"] = False
    if "items" in plain:
        plain["items"] = strict(plain["items"])
    if schema.get("x-kubernetes-list-type") == "set":
        plain["uniqueItems"] = True
    return plain


_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_ANY_CASE = _SUBDOMAIN.replace("a-z", "A-Za-z")
_VALUE = r"([A-Za-z0-9][A-Za-z0-9_.-]*)?[A-Za-z0-9]"
_KEYS = {"pattern": rf"^({_SUBDOMAIN}/)?{_VALUE}$", "maxLength": 317}
_METADATA: dict[str, Any] = {
    "description": "Who it is.",
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {
            "description": "Its name, unique among objects of this kind in the namespace.",
            "type": "string",
            "minLength": 1,
            "maxLength": 253,
            "pattern": f"^{_SUBDOMAIN}$",
        },
        "namespace": {
            "description": "Where it lives and where its secrets are; default: default.",
            "type": "string",
            "minLength": 1,
            "maxLength": 63,
            "pattern": f"^{_LABEL}$",
        },
        "labels": {
            "description": "Labels of your own.",
            "type": "object",
            "propertyNames": _KEYS,
            "additionalProperties": {
                "type": "string",
                "maxLength": 63,
                "pattern": f"^({_VALUE})?$",
            },
        },
        "annotations": {
            "description": "Notes; fc-operator.dev/requestedAt asks for a run now.",
            "type": "object",
            "propertyNames": {**_KEYS, "pattern": rf"^({_ANY_CASE}/)?{_VALUE}$"},
            "additionalProperties": {"type": "string"},
        },
    },
    "additionalProperties": False,
}
METADATA_FIELDS = frozenset(_METADATA["properties"])
"""What a person writes there."""


@cache
def json_schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a manifest; kind ``all`` takes any of the kinds."""
    if kind == "all":
        return {
            "$schema": _DIALECT,
            "title": "FC Operator manifest",
            "oneOf": [{"$ref": f"#/$defs/{each}"} for each in desired.KINDS],
            "$defs": {each: _manifest(each) for each in desired.KINDS},
        }
    return {"$schema": _DIALECT, "title": f"FC Operator {kind}", **_manifest(kind)}


def _manifest(kind: str) -> dict[str, Any]:
    schema = schema_of(kind)
    return {
        "description": schema["description"],
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {
            "apiVersion": {"description": "The version.", "const": desired.API_VERSION},
            "kind": {"description": schema["description"], "const": kind},
            "metadata": _metadata(schema),
            "spec": strict(schema["properties"]["spec"]),
        },
    }


def _metadata(schema: dict[str, Any]) -> dict[str, Any]:
    """What every object has, with what the CRD says besides about the name."""
    own = schema["properties"]["metadata"].get("properties", {}).get("name", {})
    if not own:
        return _METADATA
    properties = {**_METADATA["properties"], "name": {**_METADATA["properties"]["name"], **own}}
    return {**_METADATA, "properties": properties}


def walk(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a schema with its dotted path, for documentation and checks."""
    for name, sub in schema.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        yield here, sub
        yield from walk(sub, here)
        if "items" in sub:
            yield from walk(sub["items"], here + "[]")
