"""Whether we live, whether we are of use, and what we count.

``/live`` is for whoever restarts dead processes and asks nothing else. ``/health`` is 503 when
something that ran is gone: the database, or a scheduler that stopped beating. ``/ready`` is 503
also while there is no scheduler at all: nothing would be built then. ``/serving`` is for whoever
leads requests to one of several servers: it asks for no scheduler, since pages and what agents
report go on without one.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, TypedDict

from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.errors import FcError
from fc_operator.kit import metrics
from fc_operator.store import health
from fc_operator.web import answers
from fc_operator.web.context import Context
from fc_operator.web.routes import Answer, Call, get

HEARTBEAT_S_MAX = 30.0
"""A scheduler not seen for this long is taken for dead."""
SCHEDULER_KINDS = ("scheduler", "up")
_CHECK_S = 2.0


class Check(TypedDict):
    """One thing that must be well."""

    name: str
    ok: bool
    detail: str


class Health(TypedDict):
    """All checks, and whether all are well."""

    status: str
    checks: list[Check]


class Version(TypedDict):
    """What runs here."""

    name: str
    version: str


async def handle_live(call: Call[Any, Any]) -> HTTPResponse:
    """This process answers."""
    return answers.json(call, {"status": "ok", "checks": []})


async def handle_health(call: Call[Any, Any]) -> HTTPResponse:
    """Nothing that ran is gone."""
    return _answer(await check(call.web, scheduler_needed=False))


async def handle_ready(call: Call[Any, Any]) -> HTTPResponse:
    """Requests can be served and builds will run."""
    return _answer(await check(call.web, scheduler_needed=True))


async def handle_serving(call: Call[Any, Any]) -> HTTPResponse:
    """Requests can be served: the database answers."""
    return _answer((await check(call.web, scheduler_needed=False))[:1])


async def handle_version(call: Call[Any, Any]) -> HTTPResponse:
    """Name and version of this program."""
    return answers.json(call, {"name": "fc-operator", "version": version("fc-operator")})


async def handle_metrics(call: Call[Any, Any]) -> HTTPResponse:
    """Counters in the Prometheus text format; never a query."""
    return HTTPResponse(call.web.measures.registry.render(), content_type=metrics.MEDIA)


async def check(web: Context, *, scheduler_needed: bool) -> list[Check]:
    """Look at the database and at the scheduler's heartbeat, for two seconds at most."""
    try:
        async with asyncio.timeout(_CHECK_S), web.database.session() as connection:
            seen_s_ago = await health.seen_s_ago(connection, SCHEDULER_KINDS)
    except TimeoutError:
        return [{"name": "database", "ok": False, "detail": "no answer within 2 s"}]
    except FcError as error:
        return [{"name": "database", "ok": False, "detail": error.message}]
    database: Check = {"name": "database", "ok": True, "detail": "answers"}
    return [database, judge_heartbeat(seen_s_ago, needed=scheduler_needed)]


def judge_heartbeat(seen_s_ago: float | None, *, needed: bool) -> Check:
    """What the age of the newest heartbeat means."""
    if seen_s_ago is None:
        return {"name": "scheduler", "ok": not needed, "detail": "none is running"}
    return {
        "name": "scheduler",
        "ok": seen_s_ago <= HEARTBEAT_S_MAX,
        "detail": f"last seen {seen_s_ago:.0f} s ago",
    }


def _answer(checks: list[Check]) -> HTTPResponse:
    is_well = all(check["ok"] for check in checks)
    return HTTPResponse(
        answers.dump({"status": "ok" if is_well else "unavailable", "checks": checks}),
        status=HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


_HEALTH = Answer(body=Health)
ROUTES = (
    get("/live", handle_live, "This process answers.", action=Action.PUBLIC, answer=_HEALTH),
    get(
        "/health", handle_health, "Nothing that ran is gone.", action=Action.PUBLIC, answer=_HEALTH
    ),
    get(
        "/ready",
        handle_ready,
        "Requests can be served and builds will run.",
        action=Action.PUBLIC,
        answer=_HEALTH,
    ),
    get(
        "/serving",
        handle_serving,
        "Requests can be served.",
        action=Action.PUBLIC,
        answer=_HEALTH,
    ),
    get(
        "/metrics",
        handle_metrics,
        "Counters for Prometheus.",
        action=Action.INSPECT,
        answer=Answer(media="text/plain"),
    ),
    get(
        "/prometheus",
        handle_metrics,
        "Counters for Prometheus, where Hydra has them.",
        action=Action.INSPECT,
        answer=Answer(media="text/plain"),
    ),
    get(
        "/api/v1/version",
        handle_version,
        "What runs here.",
        action=Action.PUBLIC,
        answer=Answer(body=Version),
    ),
)
