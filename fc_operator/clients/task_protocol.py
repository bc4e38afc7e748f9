"""The agent's side of the task protocol: one task's requests to `fc server`, below
``/api/v1/tasks/<id>/``.

A request is made again, with backoff, for as long as nobody answers or the server asks to wait, so
a server that restarts costs nothing: every request may be repeated (a sequence number, an offset or
its own meaning makes the second one empty). Who has had enough of waiting cancels the call. Only an
answer that would come again ends it: 410 says that the task is over.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
import orjson

from fc_operator.errors import (
    ConflictError,
    FcError,
    ForbiddenError,
    InvalidError,
    LeaseLostError,
    NotFoundError,
    ProtocolError,
    UnauthenticatedError,
)
from fc_operator.kit import compression, logs
from fc_operator.kit.backoff import Backoff
from fc_operator.model.ids import StepId, TaskId
from fc_operator.model.work import (
    CheckoutReport,
    Credentials,
    EvaluationReport,
    Fetched,
    Heartbeat,
    HeartbeatAnswer,
    NumberedEvent,
    Opened,
    OpenRequest,
    StepsEnd,
    bodies,
)

_log = logs.get_logger()
_BACKOFF = Backoff(base_s=0.1, factor=2, cap_s=5)
_REQUEST_S = 60.0
_CONNECT_S = 10.0
_ANSWER_BYTES_MAX = 16 * 1024 * 1024
_BY_STATUS: Mapping[int, type[FcError]] = {
    401: UnauthenticatedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: LeaseLostError,
}
_WAIT_STATUSES = frozenset({408, 425, 429})
"""Besides all from 500 on: the same request may fare better later."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Any
    wait_s: float | None


class TaskClient:
    """One phase of a task at one server. Use it as a context; ``server`` is the server's root,
    ``token`` that of the phase (its text), good once the phase is opened.
    """

    def __init__(
        self, server: str, task_id: TaskId, token: str, *, request_s: float = _REQUEST_S
    ) -> None:
        if not server.startswith(("http://", "https://")):
            raise InvalidError(
                f"{server!r} is no http or https address", hint="see FC_AGENT_SERVER"
            )
        self.server = server.rstrip("/")
        self._token = token
        self._root = f"{self.server}/api/v1/tasks/{task_id}"
        self._request_s = request_s
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._request_s, sock_connect=_CONNECT_S),
            # The agent runs a few requests at a time; a kept connection to a server that is gone
            # is noticed and made anew.
            connector=aiohttp.TCPConnector(limit=8, keepalive_timeout=30),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def open(self, opening_token: str, request: OpenRequest) -> Opened:
        """Begin a phase.

        Raises:
            LeaseLostError: the task is over.
            ConflictError: somebody else has opened this phase: this is a second pod of the task.
            UnauthenticatedError: the opening token is not the task's.
        """
        return Opened.from_json(await self._send("open", request.to_json(), token=opening_token))

    async def credentials(self) -> Credentials:
        """What opens the repositories of an evaluation; only before ``fetched``.

        Raises:
            FcError: LeaseLostError, UnauthenticatedError, NotFoundError (``fetched`` was told).
        """
        return Credentials.from_json(await self._call("GET", "credentials"))

    async def fetched(self, checkout: CheckoutReport) -> None:
        """The checkout is made; the server forgets the credentials."""
        await self._send("fetched", Fetched(checkout=checkout).to_json())

    async def heartbeat(self, running: Sequence[tuple[StepId, int]]) -> HeartbeatAnswer:
        """We live."""
        beat = Heartbeat(running=tuple(running))
        return HeartbeatAnswer.from_json(await self._send("heartbeat", beat.to_json()))

    async def events(self, events: Sequence[NumberedEvent]) -> int:
        """Tell events; the number of the next one that the server wants.

        It may be smaller than what follows the last of ``events``: then it lacks some.
        """
        wanted = 0
        for body in bodies(event.to_json() for event in events):
            wanted = await self._told("events", body, {}, "next")
        return wanted

    async def rows(self, seq: int, body: bytes) -> int:
        """Tell report ``seq`` of an evaluation, one of ``model.work.bodies``; the number of the
        next one that the server wants.
        """
        return await self._told("rows", body, {"seq": seq}, "next")

    async def log(self, step_id: StepId, attempt: int, offset: int, data: bytes) -> int:
        """Tell a piece of an attempt's log that begins at ``offset`` (bytes, uncompressed); the
        offset that the server wants next.

        It may be smaller than the end of ``data``: then it wants to hear from there on.
        """
        parameters = {"step": step_id, "attempt": attempt, "offset": offset}
        return await self._told("log", data, parameters, "next_offset")

    async def end(self, report: StepsEnd | EvaluationReport) -> None:
        """The last word of a task."""
        await self._send("end", report.to_json())

    async def _told(self, name: str, data: bytes, parameters: Mapping[str, int], key: str) -> int:
        """Send ``data``; what the server wants next, also where it wanted something else now."""
        answer = await self._answer(
            "POST",
            name,
            data=await asyncio.to_thread(compression.compress_frame, data),
            parameters=parameters,
            headers={"Content-Encoding": "zstd", "Content-Type": "application/octet-stream"},
            accepts=lambda answer: answer.status == 409 and "expected" in _dict(answer.body),
        )
        body = _dict(answer.body)
        wanted = body.get("expected" if answer.status == 409 else key)
        if not isinstance(wanted, int):
            raise ProtocolError(f"the server answered {name} without {key}")
        return wanted

    async def _send(self, name: str, body: Mapping[str, Any], *, token: str = "") -> Any:
        return await self._call("POST", name, data=orjson.dumps(body), token=token)

    async def _call(
        self, method: str, name: str, *, data: bytes | None = None, token: str = ""
    ) -> Any:
        headers = {} if data is None else {"Content-Type": "application/json"}
        answer = await self._answer(method, name, data=data, token=token, headers=headers)
        return answer.body

    async def _answer(
        self,
        method: str,
        name: str,
        *,
        data: bytes | None,
        headers: Mapping[str, str],
        token: str = "",
        parameters: Mapping[str, int] | None = None,
        accepts: Callable[[_Answer], bool] = lambda _: False,
    ) -> _Answer:
        """The first answer that is not to be waited out; an error unless it is well or accepted."""
        tries = 0
        while True:
            problem = ""
            try:
                answer = await self._once(
                    method, name, data=data, headers=headers, token=token, parameters=parameters
                )
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                answer, problem = None, str(error) or type(error).__name__
            if answer is not None:
                if answer.status < 300 or accepts(answer):
                    return answer
                if answer.status < 500 and answer.status not in _WAIT_STATUSES:
                    raise _error(name, answer)
                problem = f"{answer.status}: {_said(answer)}"
            tries += 1
            delay_s = _BACKOFF.delay_s(tries)
            if answer is not None and answer.wait_s is not None:
                delay_s = max(delay_s, min(answer.wait_s, 60.0))
            # Once per outage and then less often: a pod's log is small.
            level = _log.warning if tries in {1, 10} or tries % 60 == 0 else _log.debug
            level("agent.server_waits", request=name, error=problem, retry_in_s=round(delay_s, 2))
            await asyncio.sleep(delay_s)

    async def _once(
        self,
        method: str,
        name: str,
        *,
        data: bytes | None,
        headers: Mapping[str, str],
        token: str,
        parameters: Mapping[str, int] | None,
    ) -> _Answer:
        assert self._http is not None, "use it as a context"
        async with self._http.request(
            method,
            f"{self._root}/{name}",
            # Large bytes as such would hold up the loop while they are written.
            data=data if data is None or len(data) < 2**20 else io.BytesIO(data),
            params={key: str(value) for key, value in (parameters or {}).items()},
            headers={
                "Accept": "application/json",
                "Authorization": f"Bearer {token or self._token}",
                **headers,
            },
            allow_redirects=False,
        ) as response:
            body = await _body(response)
            wait = response.headers.get("Retry-After", "")
            return _Answer(
                status=response.status,
                body=_json(body),
                wait_s=float(wait) if wait.isdigit() else None,
            )


async def _body(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_chunked(65536):
        body += part
        if len(body) > _ANSWER_BYTES_MAX:
            raise ProtocolError(f"the server's answer is larger than {_ANSWER_BYTES_MAX} bytes")
    return bytes(body)


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body) if body else None
    except orjson.JSONDecodeError:
        return None


def _dict(body: Any) -> dict[str, Any]:
    return body if isinstance(body, dict) else {}


def _said(answer: _Answer) -> str:
    body = _dict(answer.body)
    return str(body.get("detail") or body.get("title") or "")


def _error(name: str, answer: _Answer) -> FcError:
    if 300 <= answer.status < 400:
        # Never followed: the token would go along.
        return ProtocolError(f"the server redirects {name}", hint="see FC_AGENT_SERVER")
    kind = _BY_STATUS.get(answer.status, InvalidError)
    said = _said(answer) or f"the server answered {answer.status} to {name}"
    return kind(said, hint=str(_dict(answer.body).get("hint") or ""))
