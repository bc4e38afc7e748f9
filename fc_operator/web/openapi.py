"""The OpenAPI 3.1 document, from the route table and the types that it names.

Nothing is said twice: what a route takes and gives is what its handler is typed with, so the
document can't fall behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from fc_operator.access.authorization import BY_ROLE, Action
from fc_operator.web import problems
from fc_operator.web.routes import Nothing, Route

_PART = re.compile(r"<(\w+)(?::\w+)?>")
_REF = "#/components/schemas/{name}"
_MEANINGS = {
    "project": "Name, number or id of a project.",
    "jobset": "Name, number or id of a jobset.",
    "evaluation": "Number or id of an evaluation.",
    "build": "Number or id of a build.",
    "step": "Id of a step.",
    "job": "Name of a job.",
    "builder": "Name or id of a builder.",
    "channel": "Name or id of a channel.",
    "repository": "Name or id of a config repository.",
    "key": "Id or shown first characters of a key.",
    "forge": "github, gitea, forgejo or gitlab.",
    "nr": "Number of a product.",
    "below": "Path of a file.",
    "kind": "Project, Jobset, RemoteBuilder, ConfigRepository or all.",
    "system": "A system such as x86_64-linux.",
}
_PROBLEMS = {
    "400": "The request can't be understood.",
    "404": "It does not exist, or you may not see it.",
    "500": "An unexpected error of ours.",
    "503": "Something that this needs is not there; try again.",
}


def document(routes: Iterable[Route], *, version: str) -> dict[str, Any]:
    """The whole document."""
    shown = [route for route in routes if not route.is_page]
    types = [part for route in shown for part in _types(route)] + [problems.Problem]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = {str(kind): schema for kind, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for route in shown:
        path = _PART.sub(lambda part: "{" + part[1] + "}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "FC Operator",
            "version": version,
            "description": "A Nix CI that is run by declaration. Lists are keyset pages: pass "
            "`next` as `cursor`. Every error is problem+json (RFC 9457).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, `fc_…`."}
            },
        },
    }


def _types(route: Route) -> list[Any]:
    return [
        kind
        for kind in (route.answer.body, route.body, None if route.query is Nothing else route.query)
        if kind is not None
    ]


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    answer = route.answer
    done: dict[str, Any] = {"description": route.summary}
    if answer.media:
        schema = schemas[str(answer.body)] if answer.body is not None else {"type": "string"}
        done["content"] = {answer.media: {"schema": schema}}
    refused = {
        "content": {problems.MEDIA: {"schema": schemas[str(problems.Problem)]}},
    }
    responses = {
        str(answer.status): done,
        **{status: {"description": words, **refused} for status, words in _errors(route).items()},
    }
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": _identifier(route),
        "tags": [_tag(route)],
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": responses,
        **_security(route),
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[str(route.body)]}},
        }
    elif route.action is Action.SIGNED:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": {"type": "object"}}},
        }
    return operation


def _errors(route: Route) -> dict[str, str]:
    found = dict(_PROBLEMS)
    if route.action is not Action.PUBLIC:
        found["401"] = "A key is needed, or the one given is no good."
        found["403"] = "The key does not allow this."
    if route.changes:
        found["409"] = "It contradicts the present state."
        found["413"] = "The body is too large."
    if route.streams:
        found["416"] = "There are no such bytes."
    return dict(sorted(found.items()))


def _security(route: Route) -> dict[str, Any]:
    if route.action in {Action.PUBLIC, Action.SIGNED}:
        return {"security": []}
    roles = sorted(role for role, actions in BY_ROLE.items() if route.action in actions)
    allowed: list[dict[str, list[str]]] = [{"key": []}]
    if route.action in {Action.READ, Action.INSPECT}:
        # Open where `web.anonymous_read` says so.
        allowed.append({})
    return {"security": allowed, "x-action": route.action, "x-roles": roles}


def _identifier(route: Route) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", route.path.lower().removeprefix("/api/v1")).strip("_")
    return f"{route.method.lower()}_{words}"


def _tag(route: Route) -> str:
    return route.handler.__module__.rpartition(".")[2].replace("_", " ")


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _MEANINGS.get(name, ""),
            "schema": {"type": "string", "minLength": 1},
        }
        for name in _PART.findall(route.path)
    ]


def _query_parameters(route: Route) -> list[dict[str, Any]]:
    if route.query is Nothing:
        return []
    (top,), components = msgspec.json.schema_components([route.query], ref_template="{name}")
    schema = components[top["$ref"]]
    required = set(schema.get("required", ()))
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "style": "form",
            "explode": False,
            "schema": _inlined(each, components),
        }
        for name, each in schema["properties"].items()
    ]


def _inlined(schema: dict[str, Any], components: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema without references; null, which no URL can say, is left out."""
    if "$ref" in schema:
        return _inlined(components[schema["$ref"]], components)
    if "anyOf" in schema:
        kept = [each for each in schema["anyOf"] if each != {"type": "null"}]
        if len(kept) == 1:
            return _inlined(kept[0], components)
    out = {key: value for key, value in schema.items() if not (key == "default" and value is None)}
    if "items" in out:
        out["items"] = _inlined(out["items"], components)
    return out


def groups(routes: Iterable[Route]) -> dict[str, list[dict[str, Any]]]:
    """The same for a page: by noun, each route with its parameters and who may."""
    shown: dict[str, list[dict[str, Any]]] = {}
    for route in routes:
        if route.is_page:
            continue
        security = _security(route)
        shown.setdefault(_tag(route), []).append(
            {
                "method": route.method,
                "path": _PART.sub(lambda part: "{" + part[1] + "}", route.path),
                "summary": route.summary,
                "parameters": [
                    (each["name"], _type_words(each["schema"])) for each in _query_parameters(route)
                ],
                "body": _body_words(route),
                "roles": security.get("x-roles", []),
                "is_open": not security["security"] or {} in security["security"],
            }
        )
    return shown


def _body_words(route: Route) -> list[tuple[str, str]]:
    if route.body is None:
        return []
    (top,), components = msgspec.json.schema_components([route.body], ref_template="{name}")
    properties = components[top["$ref"]]["properties"]
    return [(name, _type_words(_inlined(each, components))) for name, each in properties.items()]


def _type_words(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type_words(schema['items'])}"
    return str(schema.get("format") or schema.get("type", "value"))
