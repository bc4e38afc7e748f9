"""Binds the route table to Sanic: identify, authorize, parse, call, answer, count.

Authorization is decided by the route that was found, never by the spelling of a path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import SanicException

from fc_operator.access.authorization import authorize, reader_of
from fc_operator.access.principals import Principal
from fc_operator.errors import NotFoundError
from fc_operator.kit import logs
from fc_operator.model.ids import new_uuid
from fc_operator.store import audit
from fc_operator.web import problems, requests
from fc_operator.web.context import Context
from fc_operator.web.measures import Measures
from fc_operator.web.routes import Call, Route, secured

_log = logs.get_logger()
_DEADLINE_S = 20.0


def build(web: Context, routes: Iterable[Route], measures: Measures) -> Sanic[Any, Any]:
    """An application with these routes and nothing else."""
    app: Sanic[Any, Any] = Sanic(f"fc-{new_uuid().hex}", configure_logging=False)
    settings = web.settings.web
    app.config.update(
        {
            "REQUEST_MAX_SIZE": settings.body_bytes_max,
            "ACCESS_LOG": False,
            "AUTO_EXTEND": False,
            "MOTD": False,
            # Sanic rewrites its own methods without the signals that nobody uses; they stay so for
            # the whole process, and a second time would break them.
            "TOUCHUP": not getattr(Sanic, "__touched__", False),
            "KEEP_ALIVE_TIMEOUT": 75,
            "REQUEST_TIMEOUT": 30,
            "RESPONSE_TIMEOUT": 60,
            "GRACEFUL_SHUTDOWN_TIMEOUT": 2.0,
        }
    )
    for route in routes:
        methods = ["GET", "HEAD"] if route.method == "GET" else [route.method]
        app.add_route(
            _Bound(web, route, measures),
            route.path,
            methods=methods,
            name=_name(route),
            stream=route.takes_stream,
        )
    app.error_handler.add(Exception, _Unrouted(measures))
    return app


def _name(route: Route) -> str:
    words = "".join(letter if letter.isalnum() else "_" for letter in route.path)
    return f"{route.method.lower()}_{words}"


class _Bound:
    """One route as Sanic calls it."""

    def __init__(self, web: Context, route: Route, measures: Measures) -> None:
        self.route = route
        self._web = web
        self._measures = measures
        self.__name__ = _name(route)

    async def __call__(self, request: Request, **path: Any) -> HTTPResponse | None:
        started_s = time.perf_counter()
        try:
            if self.route.streams:
                response = await self._serve(request, path)
            else:
                async with asyncio.timeout(_DEADLINE_S):
                    response = await self._serve(request, path)
        except Exception as error:  # noqa: BLE001 - each becomes an answer
            if request.responded:
                break_off(request, error)
                return None
            response = answer_error(request, error)
        status = HTTPStatus.OK if response is None else response.status
        self._measures.answered(self.route, status, time.perf_counter() - started_s)
        return response if response is None else secured(response)

    async def _serve(self, request: Request, path: dict[str, Any]) -> HTTPResponse | None:
        web, route = self._web, self.route
        principal = (
            web.identities.nobody
            if route.identifies_itself
            else await web.identities.identify(request)
        )
        reader = reader_of(principal)
        call: Call[Any, Any] = Call(
            web=web,
            request=request,
            principal=principal,
            reader=reader,
            path=requests.parse_path(path),
            query=None,
            body=None,
        )
        await self._authorize(principal, call)
        call.query = requests.parse_query(request, route.query)
        if route.body is not None:
            call.body = requests.parse_body(request, route.body)
        response = await route.handler(call)
        if route.changes and not route.records_itself and not principal.is_anonymous:
            await self._record(call)
        return response

    async def _authorize(self, principal: Principal, call: Call[Any, Any]) -> None:
        """Ask for the action; where it is about a project, after looking whether it is seen."""
        if self.route.subject is None:
            authorize(principal, self.route.action)
            return
        try:
            async with self._web.database.session() as connection:
                call.subject = await self.route.subject(connection, call.reader, call.path)
        except NotFoundError:
            # A stranger learns that a key is needed, whether the object exists or not.
            if principal.is_anonymous:
                authorize(principal, self.route.action)
            raise
        authorize(principal, self.route.action, call.subject.project_id)

    async def _record(self, call: Call[Any, Any]) -> None:
        async with self._web.database.session() as connection:
            await audit.insert(
                connection,
                actor=call.principal.name,
                action=f"{self.route.action}",
                object=call.subject.name if call.subject else call.request.path,
                details={"path": call.request.path, "key": str(call.principal.key_id)},
            )


class _Unrouted:
    """Errors outside any route: no such path, a wrong method, a body too large."""

    def __init__(self, measures: Measures) -> None:
        self._measures = measures

    def __call__(self, request: Request, error: Exception) -> HTTPResponse:
        response = answer_error(request, error)
        if isinstance(error, SanicException):
            self._measures.refused(response.status)
        return secured(response)


def answer_error(request: Request, error: Exception) -> HTTPResponse:
    """A problem: a page for a browser that looks at pages, problem+json for all others."""
    answer = problems.handle_exception(request, error)
    if request.path.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
        return answer
    from fc_operator.web.pages import rendering

    return rendering.problem_page(answer)


def break_off(request: Request, error: Exception) -> None:
    """Half an answer is out: only a broken connection tells the truth now."""
    _log.warning("web.answer_broken_off", path=request.path, error=str(error) or repr(error))
    transport: Any = request.transport
    if transport is not None:
        transport.abort()
