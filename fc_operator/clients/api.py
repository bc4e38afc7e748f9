"""Our own HTTP API from the outside: what every ``fc`` verb and the demo speak.

Problem bodies (RFC 9457) become our errors with their hint. Only reads are tried again, and only
when nothing was answered at all: a write whose answer was lost may have been done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

import aiohttp
import orjson

from fc_operator.errors import (
    ConflictError,
    FcError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    ProtocolError,
    UnauthenticatedError,
    UnavailableError,
)
from fc_operator.kit.backoff import Backoff
from fc_operator.kit.event_streams import EventParser, ServerEvent

PREFIX = "/api/v1"
Parameters = Mapping[str, str | int | bool | None]

_TRIES = 4
_BACKOFF = Backoff(base_s=0.1, factor=3, cap_s=2)
_LINE_BYTES_MAX = 8 * 1024 * 1024
_SILENCE_S_MAX = 60.0
"""A stream sends a comment at least every 15 s; one that is silent for longer is dead."""
_BY_STATUS: Mapping[int, type[FcError]] = {
    400: InvalidError,
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    405: InvalidError,
    409: ConflictError,
    410: NotFoundError,
    412: ConflictError,
    413: InvalidError,
    415: InvalidError,
    422: InvalidError,
}
_HINTS = {
    401: "give a key: --key, FC_API_KEY or the file ~/.config/fc/key; `fc key create` makes one",
    403: "the key's role does not allow this; `fc key create --role …` makes another",
}


class ApiClient:
    """One server. Use it as a context; ``url`` is the server's root, ``key`` may be empty."""

    def __init__(self, url: str, key: str = "", *, timeout_s: float = 60) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise InvalidError(f"{url!r} is no http or https address", hint="see --url and FC_URL")
        self._headers = {"Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=10),
            read_bufsize=_LINE_BYTES_MAX,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, parameters: Parameters | None = None) -> Any:
        """The JSON value at ``path`` (below ``/api/v1``).

        Raises:
            FcError: by the answer's status; UnavailableError if there was none after four tries.
        """
        async with self._answer("GET", path, parameters) as response:
            return await _json(response)

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        parameters: Parameters | None = None,
    ) -> Any:
        """A write; ``body`` goes as JSON. The answer's JSON value, None where it is empty.

        Raises:
            FcError: by the answer's status; UnavailableError if there was none.
        """
        data = orjson.dumps(body) if body is not None else None
        async with self._answer(method, path, parameters, data=data) as response:
            return await _json(response)

    async def items(
        self, path: str, parameters: Parameters | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Every item of a list, page after page."""
        cursor: str | None = None
        while True:
            page = await self.get(path, {**(parameters or {}), "cursor": cursor})
            for item in page["items"]:
                yield item
            cursor = page.get("next")
            if not cursor:
                return

    async def all(
        self, path: str, parameters: Parameters | None = None, *, most: int | None = None
    ) -> list[dict[str, Any]]:
        """The items of a list, all or the first ``most``."""
        found: list[dict[str, Any]] = []
        async with aclosing(self.items(path, parameters)) as items:
            async for item in items:
                if most is not None and len(found) >= most:
                    break
                found.append(item)
        return found

    async def text(
        self, path: str, parameters: Parameters | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A text body (a log) as it arrives."""
        async with self._answer("GET", path, parameters, accept="text/plain") as response:
            try:
                async for part in response.content.iter_any():
                    yield part
            except aiohttp.ClientError as error:
                raise UnavailableError(f"{self.url} broke off: {error}") from error

    async def events(
        self, path: str, parameters: Parameters | None = None, *, last_id: str = ""
    ) -> AsyncGenerator[ServerEvent, None]:
        """Events of a stream, over reconnects without gap or double (by ``Last-Event-ID``).

        Ends when the server says so (204 to a reconnect) or the caller closes it.

        Raises:
            FcError: by the answer's status; UnavailableError if it can't be reached any more.
        """
        parser = EventParser(last_id)
        failures = 0
        while True:
            failures += 1
            said = "the stream gave nothing"
            try:
                async with self._answer(
                    "GET",
                    path,
                    parameters,
                    accept="text/event-stream",
                    headers=_resume(parser),
                    endless=True,
                ) as response:
                    if response.status == 204:
                        return
                    async for event in _events(response, parser):
                        failures = 0
                        yield event
            except (aiohttp.ClientError, TimeoutError) as error:
                said = str(error) or "it was silent for too long"
            if failures >= _TRIES:
                raise UnavailableError(f"{self.url} broke off: {said}")
            # What was not completed goes with the connection; the server sends it again.
            parser = _renewed(parser)
            await asyncio.sleep(parser.retry_s or _BACKOFF.delay_s(max(failures, 1)))

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        parameters: Parameters | None,
        *,
        data: bytes | None = None,
        accept: str = "application/json",
        headers: Mapping[str, str] | None = None,
        endless: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer of the 2xx kind, or the error that the other kinds stand for."""
        response = await self._request(
            method,
            path,
            params=_query(parameters),
            data=data,
            headers={
                "Accept": accept,
                **({"Content-Type": "application/json"} if data is not None else {}),
                **(headers or {}),
            },
            **({"timeout": aiohttp.ClientTimeout(sock_read=_SILENCE_S_MAX)} if endless else {}),
        )
        async with response:
            if response.status >= 300:
                raise await _error(response)
            yield response

    async def _request(self, method: str, path: str, **options: Any) -> aiohttp.ClientResponse:
        assert self._session is not None, "an ApiClient is used as a context"
        tries = 0
        while True:
            tries += 1
            try:
                return await self._session.request(
                    method, self.url + PREFIX + path, allow_redirects=method == "GET", **options
                )
            except aiohttp.ClientConnectorError as error:
                if method == "GET" and tries < _TRIES:
                    await asyncio.sleep(_BACKOFF.delay_s(tries))
                    continue
                raise UnavailableError(
                    f"{self.url} does not answer: {error.strerror or error}",
                    hint="is `fc up` running there? --url or FC_URL names another server",
                ) from error
            except aiohttp.InvalidURL as error:
                raise InvalidError(f"{self.url} is no address") from error
            except (aiohttp.ClientError, TimeoutError) as error:
                said = str(error) or "it took too long"
                raise UnavailableError(f"{self.url} broke off: {said}") from error


def _query(parameters: Parameters | None) -> dict[str, str]:
    """Parameters as text; those that are None are left out."""
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in (parameters or {}).items()
        if value is not None
    }


async def _events(
    response: aiohttp.ClientResponse, parser: EventParser
) -> AsyncIterator[ServerEvent]:
    async for line in response.content:
        event = parser.feed(line.decode("utf-8", "replace").rstrip("\r\n"))
        if event is not None:
            yield event


def _resume(parser: EventParser) -> dict[str, str]:
    return {"Last-Event-ID": parser.completed_id} if parser.completed_id else {}


def _renewed(parser: EventParser) -> EventParser:
    renewed = EventParser(parser.completed_id)
    renewed.retry_s = parser.retry_s
    return renewed


async def _json(response: aiohttp.ClientResponse) -> Any:
    body = await response.read()
    if not body:
        return None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(
            f"{response.url} did not answer in JSON", hint="is this an FC Operator?"
        ) from error


async def _error(response: aiohttp.ClientResponse) -> FcError:
    """The error that an answer stands for."""
    problem: dict[str, Any] = {}
    if "json" in response.content_type:
        try:
            loaded = orjson.loads(await response.read())
        except orjson.JSONDecodeError:
            loaded = None
        problem = loaded if isinstance(loaded, dict) else {}
    said = problem.get("detail") or problem.get("title") or response.reason or ""
    hint = problem.get("hint") or _HINTS.get(response.status, "")
    kind = _BY_STATUS.get(response.status)
    if kind is not None:
        return kind(str(said), hint=str(hint))
    wait = response.headers.get("Retry-After", "")
    return UnavailableError(
        f"{response.url.origin()} answered {response.status}: {said}",
        hint=str(hint),
        delay_s=float(wait) if wait.isdigit() else None,
    )
