"""Logs of builds and of steps: as text with ranges, and live as events.

Events of ``log/stream``: ``log`` with ``{"attempt", "text"}``, ``attempt`` when a new try begins,
``end`` with the status. An event's id says where it ends, so that a reconnect by ``Last-Event-ID``
goes on with the next byte; after ``end`` it is told 204: nothing more will come.
"""

from __future__ import annotations

import asyncio
import codecs
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from sanic import HTTPResponse

from fc_operator.errors import InvalidError, NotFoundError, UnavailableError
from fc_operator.model.ids import StepId
from fc_operator.store import listener
from fc_operator.store.database import Connection
from fc_operator.store.pages import builds, logs, steps
from fc_operator.store.pages.logs import LogState
from fc_operator.web import answers, bodies, log_reader
from fc_operator.web.context import Context
from fc_operator.web.routes import Answer, Call, get, secured

_TEXT = "text/plain; charset=utf-8"
_POLL_S = 5.0
_PING_S = 15.0
_PIECE_CHARACTERS = 64 * 1024
_ID = re.compile(r"(\d{1,9}):(\d{1,18})(:end)?", re.ASCII)

Find = Callable[[Connection, int | None], Awaitable[LogState | None]]


class LogQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which log, and how much of it."""

    attempt: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    """One try; the newest by default."""
    tail: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    """Only the last lines."""


class StreamQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to begin."""

    attempt: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    last_event_id: str | None = None
    """As the header, for who can't set one."""


async def handle_build_log(call: Call[LogQuery, Any]) -> HTTPResponse | None:
    """A build's log as text."""
    async with call.web.database.session() as connection:
        build = await builds.find(connection, call.reader, call.path["build"])
        log = await logs.fetch_of_build(connection, build["id"], call.query.attempt)
    return await _send(call, log)


async def handle_step_log(call: Call[LogQuery, Any]) -> HTTPResponse | None:
    """A step's log as text."""
    async with call.web.database.session() as connection:
        step = await steps.fetch(connection, call.reader, call.path["step"])
        log = await logs.fetch_of_step(connection, StepId(step["id"]), call.query.attempt)
    return await _send(call, log)


async def _send(call: Call[LogQuery, Any], log: LogState | None) -> HTTPResponse | None:
    if log is None or log.attempt is None:
        raise NotFoundError("there is no log: nothing was run for it", hint="see /why")
    found, start = log, 0
    if call.query.tail is not None:
        start = await log_reader.find_tail(call.web, log, call.query.tail)

    def read(first: int, end: int) -> AsyncIterator[bytes]:
        return log_reader.read(call.web, found, start + first, start + end)

    return await bodies.send(
        call,
        size=found.size_bytes - start,
        media=_TEXT,
        read=read,
        etag=f'"{found.step_id}-{found.attempt}-{start}-{found.size_bytes}"'
        if found.ended
        else None,
        headers={"X-Attempt": str(found.attempt)},
    )


async def handle_build_stream(call: Call[StreamQuery, Any]) -> HTTPResponse | None:
    """A build's log as it grows."""
    async with call.web.database.session() as connection:
        build = await builds.find(connection, call.reader, call.path["build"])

    async def find(connection: Connection, attempt: int | None) -> LogState | None:
        return await logs.fetch_of_build(connection, build["id"], attempt)

    return await _stream(call, find)


async def handle_step_stream(call: Call[StreamQuery, Any]) -> HTTPResponse | None:
    """A step's log as it grows."""
    async with call.web.database.session() as connection:
        step = await steps.fetch(connection, call.reader, call.path["step"])

    async def find(connection: Connection, attempt: int | None) -> LogState | None:
        return await logs.fetch_of_step(connection, StepId(step["id"]), attempt)

    return await _stream(call, find)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a viewer is."""

    attempt: int
    offset: int
    ended: bool = False


def parse_position(text: str | None) -> Position | None:
    """What ``Last-Event-ID`` says.

    Raises:
        InvalidError: it is none of ours.
    """
    if not text:
        return None
    match = _ID.fullmatch(text)
    if match is None:
        raise InvalidError("the last event id is not one of this stream")
    return Position(int(match[1]), int(match[2]), match[3] is not None)


async def _stream(call: Call[StreamQuery, Any], find: Find) -> HTTPResponse | None:
    web = call.web
    given = call.request.headers.get("last-event-id") or call.query.last_event_id
    position = parse_position(given)
    if position is not None and position.ended:
        return HTTPResponse(status=204)
    if position is None and call.query.attempt is not None:
        position = Position(call.query.attempt, 0)
    if len(web.streams) >= web.settings.web.log_streams_max:
        raise UnavailableError("too many live logs are open", delay_s=30)
    response = await call.request.respond(
        secured(
            HTTPResponse(
                content_type="text/event-stream; charset=utf-8",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        )
    )
    task = asyncio.current_task()
    assert task is not None
    web.streams.add(task)
    web.measures.log_streams.set(len(web.streams))
    try:
        await response.send(b"retry: 2000\n\n")
        async for event in follow(web, find, position):
            await response.send(event)
        await response.eof()
    finally:
        web.streams.discard(task)
        web.measures.log_streams.set(len(web.streams))
    return None


async def follow(web: Context, find: Find, position: Position | None) -> AsyncIterator[bytes]:
    """The events of a log from ``position`` on, until nothing more can come.

    The subscription comes before the first look, so nothing falls between; every look is at the
    rows, so a lost notification costs a poll and never a byte.
    """
    at = position
    loop = asyncio.get_running_loop()
    said_s = loop.time()
    with web.listener.subscribe(listener.LOGS, listener.BUILDS) as news:
        while True:
            async with web.database.session() as connection:
                log = await find(connection, None if at is None else at.attempt)
            if log is None:
                return
            if at is None and log.attempt is not None:
                at = Position(log.attempt, 0)
                yield _event("attempt", {"attempt": at.attempt}, at)
            if at is not None and log.attempt is not None:
                async for text, offset in _texts(web, log, at.offset):
                    at = Position(at.attempt, offset)
                    said_s = loop.time()
                    yield _event("log", {"attempt": at.attempt, "text": text}, at)
                if log.ended and log.newest > at.attempt:
                    at = Position(at.attempt + 1, 0)
                    yield _event("attempt", {"attempt": at.attempt}, at)
                    continue
            if log.is_over:
                at = at or Position(0, 0)
                said = {"status": log.status, "status_reason": log.status_reason}
                yield _event("end", said, Position(at.attempt, at.offset, ended=True))
                return
            await _news_of(news, log.step_id)
            if loop.time() - said_s >= _PING_S:
                said_s = loop.time()
                yield b": still here\n\n"


async def _news_of(news: listener.Subscription, step_id: StepId | None) -> None:
    """Wait until something came that may be about this step, a poll's time at most."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _POLL_S
    while (left_s := deadline_s - loop.time()) > 0:
        payloads = await news.wait(left_s)
        if payloads is None or step_id is None or "" in payloads:
            return
        # LOGS name steps by number. BUILDS name evaluations by uuid: one may have ended this build.
        words = {word for text in payloads for word in text.split(",")}
        if str(step_id) in words or any("-" in word for word in words):
            return


async def _texts(web: Context, log: LogState, start: int) -> AsyncIterator[tuple[str, int]]:
    """Text from byte ``start`` on, with the offset after it; a character is never cut in two."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    position = start
    if log.size_bytes > start:
        async for piece in log_reader.read(web, log, start, log.size_bytes):
            position += len(piece)
            text = decoder.decode(piece)
            if text:
                yield text, position - len(decoder.getstate()[0])
    rest = decoder.decode(b"", final=True) if log.ended else ""
    if rest:
        yield rest, position


def _event(name: str, data: dict[str, Any], at: Position) -> bytes:
    end = ":end" if at.ended else ""
    head = f"event: {name}\nid: {at.attempt}:{at.offset}{end}\ndata: "
    return head.encode() + answers.dump(data) + b"\n\n"


_LOG = Answer(media="text/plain")
_STREAM = Answer(media="text/event-stream")
ROUTES = (
    get(
        "/api/v1/builds/<build>/log",
        handle_build_log,
        "A build's log as text; takes Range.",
        query=LogQuery,
        answer=_LOG,
        streams=True,
    ),
    get(
        "/api/v1/builds/<build>/log/stream",
        handle_build_stream,
        "A build's log as it grows, as server-sent events; takes Last-Event-ID.",
        query=StreamQuery,
        answer=_STREAM,
        streams=True,
    ),
    get(
        "/api/v1/steps/<step>/log",
        handle_step_log,
        "A step's log as text; takes Range.",
        query=LogQuery,
        answer=_LOG,
        streams=True,
    ),
    get(
        "/api/v1/steps/<step>/log/stream",
        handle_step_stream,
        "A step's log as it grows, as server-sent events; takes Last-Event-ID.",
        query=StreamQuery,
        answer=_STREAM,
        streams=True,
    ),
)
