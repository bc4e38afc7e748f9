"""The binary cache as Nix speaks to it: nix-cache-info, narinfos, NARs, listings, logs.

Nix sends passwords of a netrc file at once, agents send the token of their task; both may stand as
a password or after ``Bearer``. A dead token or key is refused with 401. What may not be read is not
there: 404, so that names tell nothing; but 401 to strangers where all reads need a key, since old
clients take a 401 for an empty cache and would build everything.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus
from typing import Any, TypedDict

from sanic import HTTPResponse, Request

from fc_operator.access import tasks
from fc_operator.access.authorization import Action, reader_of
from fc_operator.cache import narinfos
from fc_operator.errors import (
    FcError,
    InvalidError,
    NotFoundError,
    RetryLaterError,
    UnauthenticatedError,
)
from fc_operator.model.ids import StepId
from fc_operator.model.readers import Reader
from fc_operator.model.statuses import Role
from fc_operator.operations.cache import LOCAL_PREFIX, BinaryCache, Caller
from fc_operator.store import cache_paths
from fc_operator.store.pages import logs
from fc_operator.web import answers, bodies, log_reader, problems
from fc_operator.web.context import Context
from fc_operator.web.routes import Answer, Call, Handler, Nothing, Route, get

_INFO = "nix-cache-info"
_NAR_MEDIA = "application/x-nix-nar"
_LISTING_BYTES_MAX = 256 * 1024 * 1024
_REMEMBERED_S = 0.8
_REMEMBERED_MAX = 1_000


class CacheRow(TypedDict):
    """The binary cache, for people and for nix.conf."""

    path: str
    """Below the server's address."""
    public_keys: list[str]
    """For ``trusted-public-keys``."""
    store_dir: str
    priority: int
    paths: int
    nar_bytes: int
    file_bytes: int


async def handle_show(call: Call[Any, Any]) -> HTTPResponse:
    """How to use the cache, and how much it holds."""
    cache = _cache(call.web)
    totals = await cache.totals()
    row: CacheRow = {
        "path": "/cache",
        "public_keys": list(cache.public_keys),
        "store_dir": cache.store_dir,
        "priority": cache.settings.priority,
        "paths": totals.paths,
        "nar_bytes": totals.nar_bytes,
        "file_bytes": totals.file_bytes,
    }
    return answers.json(call, row)


async def handle_get(call: Call[Any, Any]) -> HTTPResponse:
    """``nix-cache-info``, ``<hash>.narinfo`` or ``<hash>.ls``."""
    name = call.path["name"]
    if name == _INFO:
        return answers.tagged(call, _cache(call.web).info(), "text/x-nix-cache-info")
    caller = await identify(call.web, call.request)
    cache = _readable(call.web, caller)
    part, _, kind = name.partition(".")
    if narinfos.HASH_PART.fullmatch(part) is not None:
        if kind == "narinfo":
            text = await cache.narinfo(caller, part)
            return answers.tagged(call, text, "text/x-nix-narinfo")
        if kind == "ls":
            return answers.tagged(call, await cache.listing(caller, part), "application/json")
    raise NotFoundError("the cache has nothing of this name")


async def handle_get_nar(call: Call[Any, Any]) -> HTTPResponse | None:
    """A NAR, whole or by range."""
    caller = await identify(call.web, call.request)
    cache = _readable(call.web, caller)
    name = call.path["name"]
    if call.request.method == "HEAD" and await cache.has_nar(caller, name):
        try:
            nar = await cache.find_nar(caller, name)
        except NotFoundError:
            # Its own upload, of which the narinfo is still to come.
            return HTTPResponse(status=200, content_type=_NAR_MEDIA)
    else:
        nar = await cache.find_nar(caller, name)
    return await bodies.send(
        call,
        size=nar.file_size_bytes,
        media=_NAR_MEDIA,
        read=partial(cache.read_nar, nar),
        etag=f'"{nar.file_hash}"',
    )


async def handle_get_log(call: Call[Any, Any]) -> HTTPResponse | None:
    """The log of a derivation's last attempt, as ``nix log`` asks for it."""
    caller = await identify(call.web, call.request)
    cache = _readable(call.web, caller)
    name = call.path["name"]
    if not narinfos.is_base_name(name):
        raise NotFoundError("there is no such log")
    assert caller.reader is not None
    async with call.web.database.session() as connection:
        step = await cache_paths.fetch_log_step(
            connection, f"{cache.store_dir}/{name}", caller.reader
        )
        log = None if step is None else await logs.fetch_of_step(connection, StepId(step), None)
    if log is None or log.attempt is None or not log.size_bytes:
        raise NotFoundError("there is no such log")
    return await bodies.send(
        call,
        size=log.size_bytes,
        media="text/plain; charset=utf-8",
        read=partial(log_reader.read, call.web, log),
    )


def _answering(handler: Handler, kind: str) -> Handler:
    """``handler`` of an upload, counted; what may be tried again later is 424 instead of 503.

    After an answer of 5xx Nix 2.8 sends the request again without its body, and waits for ever.
    """

    async def handle(call: Call[Any, Any]) -> HTTPResponse | None:
        uploads = call.web.measures.cache_uploads
        try:
            answer = await handler(call)
        except (RetryLaterError, TimeoutError) as error:
            uploads.labels(kind, "unavailable").inc()
            body = problems.problem(HTTPStatus.FAILED_DEPENDENCY, f"try again later: {error}")
            return problems.answer(body)
        except FcError:
            uploads.labels(kind, "refused").inc()
            raise
        uploads.labels(kind, "accepted").inc()
        return answer

    return handle


async def handle_put(call: Call[Any, Any]) -> HTTPResponse:
    """A narinfo. What we know better (``nix-cache-info``, listings) is taken and forgotten."""
    caller = await identify(call.web, call.request)
    cache = _writable(call.web, caller)
    name = call.path["name"]
    part, _, kind = name.partition(".")
    if name == _INFO or (narinfos.HASH_PART.fullmatch(part) and kind == "ls"):
        async for _ in _pieces(call.request, _LISTING_BYTES_MAX):
            pass
        return HTTPResponse(status=200)
    if narinfos.HASH_PART.fullmatch(part) is None or kind != "narinfo":
        raise InvalidError("nothing of this name belongs into a binary cache")
    pieces = [piece async for piece in _pieces(call.request, narinfos.BYTES_MAX)]
    await cache.put_narinfo(caller, part, b"".join(pieces))
    return HTTPResponse(status=200)


async def handle_put_nar(call: Call[Any, Any]) -> HTTPResponse:
    """A NAR, before its narinfo."""
    caller = await identify(call.web, call.request)
    cache = _writable(call.web, caller)
    # Compressed data is hardly ever larger than what it stands for.
    most = cache.settings.nar_bytes_max + cache.settings.nar_bytes_max // 100 + 65536
    await cache.put_nar(caller, call.path["name"], _pieces(call.request, most))
    return HTTPResponse(status=200)


async def identify(web: Context, request: Request) -> Caller:
    """Who asks, by a key or token after ``Bearer`` or as the password of ``Basic``.

    Raises:
        UnauthenticatedError: what it carries is no good.
    """
    header = request.headers.get("authorization")
    if header is None:
        principal = web.identities.stranger(request)
        return Caller(name="anonymous", reader=Reader() if principal.may_read else None)
    scheme, _, text = header.partition(" ")
    text = _password(text.strip()) if scheme.lower() == "basic" else text.strip()
    if text.startswith(tasks.PREFIX):
        return await _of_task(web, text)
    if text.startswith(LOCAL_PREFIX):
        local = web.cache.local_caller(text) if web.cache is not None else None
        if local is None:
            raise _refused()
        return local
    principal = await web.identities.holder(text)
    return Caller(
        name=f"key/{principal.key_id}",
        reader=reader_of(principal),
        is_admin=principal.role is Role.ADMIN,
    )


async def _of_task(web: Context, text: str) -> Caller:
    token = tasks.parse(text)
    if token is None:
        raise _refused()
    # For less than a second; uploads ask the database again anyway.
    digest = hashlib.sha256(text.encode()).digest()
    known = web.callers.get(digest)
    if known is not None and known[0] > time.monotonic():
        return known[1]
    async with web.database.session() as connection:
        task = await cache_paths.fetch_task(connection, token.task_id)
    is_work = task is not None and token.matches(task.work_token_hash)
    if task is None or not (is_work or token.matches(task.fetch_token_hash)):
        web.callers.pop(digest, None)
        raise _refused()
    projects = (task.project_id,) if task.project_id is not None else ()
    caller = Caller(
        name=f"task/{task.id}",
        reader=Reader(projects=projects),
        # The phase that fetches sources has nothing to bring.
        task=task if is_work else None,
    )
    if len(web.callers) >= _REMEMBERED_MAX:
        web.callers.clear()
    web.callers[digest] = time.monotonic() + _REMEMBERED_S, caller
    return caller


def _password(encoded: str) -> str:
    try:
        pair = base64.b64decode(encoded, validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise _refused() from error
    return pair.partition(":")[2]


def _refused() -> UnauthenticatedError:
    return UnauthenticatedError("the token or key is unknown, expired, or its task is over")


def _cache(web: Context) -> BinaryCache:
    if web.cache is None:
        raise NotFoundError("there is no binary cache here", hint="`fc up --cache` serves one")
    return web.cache


def _readable(web: Context, caller: Caller) -> BinaryCache:
    if caller.reader is None:
        raise UnauthenticatedError(
            "this cache needs a key", hint="as a password in the netrc file of Nix"
        )
    return _cache(web)


def _writable(web: Context, caller: Caller) -> BinaryCache:
    if not caller.is_known:
        raise UnauthenticatedError(
            "uploads need a key", hint="as a password in the netrc file of Nix"
        )
    cache = _cache(web)
    cache.require_uploader(caller)
    return cache


async def _pieces(request: Request, size_max: int) -> AsyncIterator[bytes]:
    stream: Any = request.stream
    # Sanic's own limit is for bodies that are held in memory; it is set anew for each request.
    stream.request_max_size = size_max
    async for piece in stream:
        yield piece


def _route(method: str, path: str, handler: Any, summary: str, **more: Any) -> Route:
    return Route(
        method=method,
        path=path,
        handler=handler,
        summary=summary,
        action=Action.CACHE,
        identifies_itself=True,
        records_itself=True,
        is_page=True,
        query=Nothing,
        **more,
    )


def _put(path: str, handler: Handler, summary: str) -> Route:
    return _route("PUT", path, handler, summary, takes_stream=True, streams=True)


_TEXT = Answer(media="text/plain")
ROUTES = (
    get(
        "/api/v1/cache",
        handle_show,
        "How to use the binary cache, and how much it holds.",
        action=Action.READ,
        answer=Answer(body=CacheRow),
    ),
    _route("GET", "/cache/<name>", handle_get, "A narinfo or a listing.", answer=_TEXT),
    _route("GET", "/cache/nar/<name>", handle_get_nar, "A NAR.", answer=_TEXT, streams=True),
    _route("GET", "/cache/log/<name>", handle_get_log, "A log.", answer=_TEXT, streams=True),
    _put("/cache/<name>", _answering(handle_put, "narinfo"), "Bring a narinfo."),
    _put("/cache/nar/<name>", _answering(handle_put_nar, "nar"), "Bring a NAR."),
)
