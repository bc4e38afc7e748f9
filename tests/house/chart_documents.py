"""Writes what the chart says of its values: ``values.schema.json`` and the table in its README.

Both come from the comments of ``values.yaml``; the settings that a value may hold come from
``settings.py``. Run it with ``python -m tests.house.chart_documents`` after a change of either; a
test compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from fc_operator import settings
from tests.house import example_settings

CHART = Path(__file__).parents[2] / "charts" / "fc-operator"
VALUES = CHART / "values.yaml"
SCHEMA = CHART / "values.schema.json"
README = CHART / "README.md"
_BEGIN = "<!-- values: written by tests/house/chart_documents.py -->"
_END = "<!-- end of values -->"
_FREE = {"type": "object", "additionalProperties": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """One value with its default."""

    path: tuple[str, ...]
    default: Any
    comment: str
    more: dict[str, Any]
    """What ``@schema`` says of it."""

    @property
    def name(self) -> str:
        """As ``--set`` writes it."""
        return ".".join(self.path)


def values() -> list[Value]:
    """All of ``values.yaml`` in its order: what has a comment, and what is neither mapping."""
    text = VALUES.read_text()
    found: list[Value] = []
    _walk(yaml.compose(text), text.splitlines(), (), found)
    return found


def _walk(node: Any, lines: list[str], path: tuple[str, ...], found: list[Value]) -> None:
    for key, value in node.value:
        here = (*path, key.value)
        comment, more = _comment(lines, key.start_mark.line)
        is_group = isinstance(value, yaml.MappingNode) and value.value and not value.flow_style
        if comment or not is_group:
            plain = yaml.safe_load(yaml.serialize(value))
            whole = is_group and _has_defaults_of_a_pod(key.value)
            if not is_group or whole:
                found.append(Value(path=here, default=plain, comment=comment, more=more))
        if is_group and not _has_defaults_of_a_pod(key.value):
            _walk(value, lines, here, found)


def _has_defaults_of_a_pod(name: str) -> bool:
    """Whether a mapping is Kubernetes' own, so that its keys are not ours to explain."""
    return name == "resources"


def _comment(lines: list[str], line: int) -> tuple[str, dict[str, Any]]:
    words: list[str] = []
    more: dict[str, Any] = {}
    at = line - 1
    while at >= 0 and lines[at].strip().startswith("#"):
        text = lines[at].strip().removeprefix("#").strip()
        if text.startswith("@schema "):
            more = json.loads(text.removeprefix("@schema "))
        else:
            words.insert(0, text)
        at -= 1
    return " ".join(words), more


# The schema ---------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """What ``helm`` judges values by: an unknown or misspelt one is refused."""
    root = _group("Values of the chart fc-operator.")
    root = {"$schema": "http://json-schema.org/draft-07/schema#", **root}
    for value in values():
        at = root
        for name in value.path[:-1]:
            at = at["properties"].setdefault(name, _group(""))
        at["properties"][value.path[-1]] = _schema_of(value)
    # What Helm and charts around this one put in by themselves.
    root["properties"]["global"] = {"description": "Values of a chart around this one.", **_FREE}
    return root


def _group(description: str) -> dict[str, Any]:
    group: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": {}}
    return {"description": description, **group} if description else group


def _schema_of(value: Value) -> dict[str, Any]:
    described = {"description": value.comment}
    match value.default:
        case bool():
            kind: dict[str, Any] = {"type": "boolean"}
        case int():
            kind = {"type": "integer"}
        case str():
            kind = {"type": "string"}
        case list() if all(isinstance(each, str) for each in value.default) and value.default:
            kind = {"type": "array", "items": {"type": "string"}}
        case list():
            kind = {"type": "array"}
        case _ if value.name == "settings":
            kind = _settings()
        case _:
            kind = _FREE
    return described | kind | value.more


def _settings() -> dict[str, Any]:
    explained = example_settings.explanations()
    root = _group("")
    for group in fields(settings.Settings):
        content = get_type_hints(settings.Settings)[group.name]
        words = explained[content.__name__]
        made = root["properties"][group.name] = _group(_plain(words[""]))
        for each in fields(content):
            name = f"{group.name}.{each.name}"
            if not each.repr:
                continue  # a secret, and these values go to a ConfigMap
            made["properties"][each.name] = {
                "description": _plain(words[each.name]),
                **_setting(name, get_type_hints(content)[each.name]),
            }
    return root


def _setting(name: str, of: Any) -> dict[str, Any]:
    choices = settings._CHOICES.get(name)
    if choices:
        return {"enum": list(choices)}
    if of is bool:
        return {"type": "boolean"}
    if of in {int, float}:
        bounds: dict[str, Any] = {"minimum": settings._AT_LEAST.get(name, 0)}
        if name in settings._AT_MOST:
            bounds["maximum"] = settings._AT_MOST[name]
        return {"type": "integer" if of is int else "number", **bounds}
    if get_origin(of) is tuple and get_args(of)[0] is str:
        return {"type": "array", "items": {"type": "string"}}
    return {"type": "string"}


def _plain(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def render_schema() -> str:
    """The whole file."""
    return json.dumps(schema(), indent=2) + "\n"


# The table ----------------------------------------------------------------------------------------


def render_table() -> str:
    """All values, their defaults, and what they mean, as Markdown."""
    lines = ["| value | default | meaning |", "| --- | --- | --- |"]
    lines += [
        f"| `{value.name}` | {_default(value.default)} | {_cell(value.comment)} |"
        for value in values()
    ]
    return "\n".join(lines)


def _default(of: Any) -> str:
    if of == "":
        return "empty"
    return f"`{of if isinstance(of, str) else json.dumps(of)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def render_readme() -> str:
    """The README with its table as the values are now."""
    text = README.read_text()
    found = re.fullmatch(f"(.*{_BEGIN}\n).*(\n{_END}.*)", text, re.DOTALL)
    assert found, f"{README} has no place for the table"
    return f"{found[1]}{render_table()}{found[2]}"


def undescribed() -> Iterator[str]:
    """Values without a word."""
    return (value.name for value in values() if not value.comment)


if __name__ == "__main__":
    SCHEMA.write_text(render_schema())
    README.write_text(render_readme())
