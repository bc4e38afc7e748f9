"""The agent protocol over HTTP: what pods ask and tell about the one task that they have.

An agent proves itself by the token of its phase and by nothing else; ``open`` alone takes the token
of the pod's definition. 401: the token is no good. 410: the task is over, leave. 409: a number is
wrong, and ``expected`` says which is right. 429 and 503: come again. See ``model.work``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from uuid import UUID

import msgspec
import orjson
from sanic import HTTPResponse, Request

from fc_operator.access.authorization import Action
from fc_operator.access.tasks import PREFIX
from fc_operator.errors import InvalidError, ProtocolError, TooLargeError, UnauthenticatedError
from fc_operator.model import work
from fc_operator.model.ids import StepId, TaskId
from fc_operator.model.work import (
    BODY_BYTES_MAX,
    LOG_BYTES_MAX,
    EvaluationReport,
    Fetched,
    Heartbeat,
    NumberedEvent,
    Opened,
    OpenRequest,
    StepsEnd,
)
from fc_operator.operations import tasks
from fc_operator.operations.tasks import Agent
from fc_operator.web import answers
from fc_operator.web.routes import Call, Nothing, Route

T = TypeVar("T")
_MEDIA = "application/json"
_SMALL_BYTES_MAX = 256 * 1024
_ZSTD = "zstd"


class Numbered(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which report this is; that it is missing is said to who may report at all."""

    seq: Annotated[int, msgspec.Meta(lt=2**31 - 1)] = -1


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a piece of log belongs."""

    step: int = -1
    attempt: int = -1
    offset: int = -1
    """Bytes of the log, uncompressed, that come before it."""


async def handle_open(call: Call[Any, Any]) -> HTTPResponse:
    """Begin a phase: from here on the hashed token counts."""
    web = call.web
    text = _token(call.request)
    task_id = _task_id(call)
    request = _read(OpenRequest, await _body(call.request, _SMALL_BYTES_MAX))
    given = await tasks.open_phase(web.database, web.cipher, task_id, text, request)
    queue = web.settings.queue
    opened = Opened(work=given, lease_s=queue.agent_lease_s, heartbeat_s=queue.heartbeat_s)
    return _answer(opened.to_json())


async def handle_credentials(call: Call[Any, Any]) -> HTTPResponse:
    """What opens the repositories, for the phase that fetches."""
    agent = await _agent(call)
    web = call.web
    found = await tasks.fetch_credentials(web.database, web.cipher, agent)
    return _answer(found.to_json())


async def handle_fetched(call: Call[Any, Any]) -> HTTPResponse:
    """The source is there; the credentials go."""
    agent = await _agent(call)
    fetched = _read(Fetched, await _body(call.request, _SMALL_BYTES_MAX))
    await tasks.note_fetched(call.web.database, agent, fetched.checkout)
    return _answer({})


async def handle_heartbeat(call: Call[Any, Any]) -> HTTPResponse:
    """The agent lives; what it has to stop."""
    agent = await _agent(call)
    beat = _read(Heartbeat, await _body(call.request, _SMALL_BYTES_MAX))
    answer = await tasks.heartbeat(call.web.database, agent, beat, call.web.settings.queue)
    return _answer(answer.to_json())


async def handle_events(call: Call[Any, Any]) -> HTTPResponse:
    """What happens to the steps, as JSON lines."""
    agent = await _agent(call)
    plain = await _plain(call.request)
    events = await asyncio.to_thread(_checked, _events, plain)
    settings = call.web.settings
    after = await tasks.record_events(call.web.database, agent, events, settings.builds)
    return _answer({"next": after})


async def handle_rows(call: Call[Any, Any]) -> HTTPResponse:
    """A report of an evaluation: JSON lines as evaluators print them, compressed with zstd."""
    agent = await _agent(call)
    if call.query.seq < 0:
        raise InvalidError("seq, the number of the report, is missing")
    if call.request.headers.get("content-encoding") != _ZSTD:
        raise InvalidError("rows come as zstd (Content-Encoding: zstd)")
    body = await _body(call.request, BODY_BYTES_MAX)
    after = await tasks.add_report(call.web.database, agent, call.query.seq, body)
    return _answer({"next": after})


async def handle_log(call: Call[Any, Any]) -> HTTPResponse:
    """A piece of an attempt's log."""
    agent = await _agent(call)
    place = call.query
    after = await tasks.append_log(
        call.web.database,
        agent,
        step_id=StepId(place.step),
        attempt=place.attempt,
        offset=place.offset,
        data=await _plain(call.request, LOG_BYTES_MAX),
        builds=call.web.settings.builds,
    )
    return _answer({"next_offset": after})


async def handle_end(call: Call[Any, Any]) -> HTTPResponse:
    """The agent has told all and leaves."""
    agent = await _agent(call)
    body = await _body(call.request, _SMALL_BYTES_MAX)
    if agent.task.kind == "steps":
        await tasks.end_steps(call.web.database, agent, _read(StepsEnd, body))
    else:
        await tasks.end_evaluation(call.web.database, agent, _read(EvaluationReport, body))
    return _answer({})


async def _agent(call: Call[Any, Any]) -> Agent:
    agent = await tasks.identify(call.web.database, _token(call.request))
    if agent.task_id != _task_id(call):
        raise UnauthenticatedError("the token is that of another task")
    return agent


def _token(request: Request) -> str:
    scheme, _, text = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip().startswith(PREFIX):
        raise UnauthenticatedError("a task token is needed")
    return str(text.strip())


def _task_id(call: Call[Any, Any]) -> TaskId:
    try:
        return TaskId(UUID(call.path["task"]))
    except ValueError as error:
        raise UnauthenticatedError("the token is that of another task") from error


async def _body(request: Request, bytes_max: int) -> bytes:
    stream: Any = request.stream
    # Sanic's own limit is set anew for each request; ours is the protocol's, whatever a server's
    # settings say of manifests and webhooks.
    stream.request_max_size = bytes_max
    body = bytearray()
    async for piece in stream:
        body += piece
        if len(body) > bytes_max:
            raise TooLargeError(f"this body has at most {bytes_max} bytes")
    return bytes(body)


async def _plain(request: Request, bytes_max: int = work.PLAIN_BYTES_MAX) -> bytes:
    """The body as it was before it was compressed."""
    body = await _body(request, BODY_BYTES_MAX)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding == _ZSTD:
        return await asyncio.to_thread(tasks.decompressed, body, bytes_max=bytes_max)
    if encoding != "identity":
        raise InvalidError(f"no encoding of ours: {encoding[:50]}; there is zstd")
    if len(body) > bytes_max:
        raise TooLargeError(f"this body has at most {bytes_max} bytes")
    return body


def _events(plain: bytes) -> list[NumberedEvent]:
    return [NumberedEvent.from_json(line) for line in work.lines_of(plain)]


def _read(form: type[T], body: bytes) -> T:
    def read(data: bytes) -> T:
        return work.read(form, orjson.loads(data))

    return _checked(read, body)


def _checked(read: Callable[[bytes], T], body: bytes) -> T:
    """What ``read`` makes of a body; what it can't be made of is the caller's fault."""
    try:
        return read(body)
    except (ProtocolError, orjson.JSONDecodeError) as error:
        raise InvalidError(f"the body is wrong: {error}") from error


def _answer(body: Any) -> HTTPResponse:
    return HTTPResponse(
        answers.dump(body), content_type=_MEDIA, headers={"Cache-Control": "no-store"}
    )


def _route(method: str, name: str, handler: Any, query: type[Any] = Nothing) -> Route:
    return Route(
        method=method,
        path=f"/api/v1/tasks/<task>/{name}",
        handler=handler,
        summary=handler.__doc__,
        action=Action.TASK,
        query=query,
        identifies_itself=True,
        records_itself=True,
        takes_stream=method == "POST",
        is_page=True,
    )


ROUTES = (
    _route("POST", "open", handle_open),
    _route("GET", "credentials", handle_credentials),
    _route("POST", "fetched", handle_fetched),
    _route("POST", "heartbeat", handle_heartbeat),
    _route("POST", "events", handle_events),
    _route("POST", "rows", handle_rows, Numbered),
    _route("POST", "log", handle_log, Place),
    _route("POST", "end", handle_end),
)
