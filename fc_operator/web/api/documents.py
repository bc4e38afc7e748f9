"""What describes us: the OpenAPI document, a page of it, and the schemas of manifests."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.errors import NotFoundError
from fc_operator.model.desired import KINDS
from fc_operator.web import answers, openapi
from fc_operator.web.routes import Answer, Call, get


async def handle_openapi(call: Call[Any, Any]) -> HTTPResponse:
    """The OpenAPI document."""
    return answers.tagged(call, _openapi(), "application/json")


async def handle_schema(call: Call[Any, Any]) -> HTTPResponse:
    """The JSON Schema of a kind of manifest, for editors."""
    from fc_operator.spec import schemas

    kind = call.path["kind"].removesuffix(".json")
    if kind not in {*KINDS, "all"}:
        raise NotFoundError(f"no kind {kind}", hint=f"one of {', '.join(KINDS)}, all")
    return answers.tagged(call, answers.dump(schemas.json_schema(kind)), "application/schema+json")


@cache
def _openapi() -> bytes:
    from fc_operator.web import route_table

    return answers.dump(openapi.document(route_table.ROUTES, version=version("fc-operator")))


ROUTES = (
    get(
        "/api/v1/openapi.json",
        handle_openapi,
        "This document.",
        action=Action.PUBLIC,
        answer=Answer(body=dict[str, Any]),
    ),
    get(
        "/api/v1/schema/<kind>",
        handle_schema,
        "The JSON Schema of a kind of manifest, for editors.",
        action=Action.PUBLIC,
        answer=Answer(body=dict[str, Any], media="application/schema+json"),
    ),
)
