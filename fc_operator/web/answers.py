"""Successful answers: JSON with its ETag, lists with their cursor."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

import msgspec
import orjson
from sanic import HTTPResponse

from fc_operator.web import cursors
from fc_operator.web.routes import Call

T = TypeVar("T")
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS


class Items(msgspec.Struct, Generic[T]):
    """A page of a list; for the OpenAPI document."""

    items: list[T]
    next: str | None
    """Pass it as ``cursor`` for the next page; null on the last."""


def dump(value: Any) -> bytes:
    """``value`` as JSON: times in UTC with Z, ids as text."""
    return orjson.dumps(value, default=_default, option=_OPTIONS)


def _default(value: Any) -> Any:
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(type(value).__name__)


def json(call: Call[Any, Any], value: Any, *, status: int = 200) -> HTTPResponse:
    """``value`` with an ETag; 304 where the caller has it already."""
    return tagged(call, dump(value), "application/json", status=status)


def tagged(
    call: Call[Any, Any],
    body: bytes,
    media: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> HTTPResponse:
    """``body`` with an ETag of its content; 304 where the caller has it already."""
    if call.request.method not in {"GET", "HEAD"}:
        return HTTPResponse(body, status=status, content_type=media, headers=dict(headers or {}))
    etag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
    all_headers = {"ETag": etag, "Cache-Control": "no-cache", **(headers or {})}
    if matches(call.request.headers.get("if-none-match"), etag):
        return HTTPResponse(status=304, headers=all_headers)
    return HTTPResponse(body, status=status, content_type=media, headers=all_headers)


def matches(header: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names ``etag`` (weak comparison, as RFC 9110 wants here)."""
    if not header:
        return False
    known = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" in known or etag.removeprefix("W/") in known


def page(
    call: Call[Any, Any], rows: Sequence[Any], limit: int, key: Callable[[Any], tuple[Any, ...]]
) -> HTTPResponse:
    """``rows`` as a page: one row more than ``limit`` was asked for, to know whether more come."""
    shown = rows[:limit]
    more = cursors.encode(*key(shown[-1])) if len(rows) > limit else None
    return json(call, {"items": shown, "next": more})


def page_of_texts(
    call: Call[Any, Any], rows: Sequence[str], limit: int, key: Callable[[Any], tuple[Any, ...]]
) -> HTTPResponse:
    """As ``page``, of rows that are JSON already."""
    more = "null"
    if len(rows) > limit:
        more = f'"{cursors.encode(*key(orjson.loads(rows[limit - 1])))}"'
    body = f'{{"items":[{",".join(rows[:limit])}],"next":{more}}}'
    return tagged(call, body.encode(), "application/json")
