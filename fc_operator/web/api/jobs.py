"""Job pages' links: the last success of a job, and how it stands, for badges."""

from __future__ import annotations

from typing import Any

from sanic import HTTPResponse

from fc_operator.errors import NotFoundError
from fc_operator.model.statuses import BuildStatus
from fc_operator.store.pages import builds
from fc_operator.web import answers, badges
from fc_operator.web.routes import Answer, Call, get

_PATH = "/job/<project>/<jobset>/<job>"


async def handle_latest(call: Call[Any, Any]) -> HTTPResponse:
    """To the last success of a job, for one system where the path names it."""
    async with call.web.database.session() as connection:
        number = await builds.fetch_latest(
            connection,
            call.reader,
            project=call.path["project"],
            jobset=call.path["jobset"],
            job=call.path["job"],
            system=call.path.get("system"),
        )
    return _to_build(call, number)


async def handle_latest_finished(call: Call[Any, Any]) -> HTTPResponse:
    """To the last success of a job in an evaluation whose builds have all ended."""
    async with call.web.database.session() as connection:
        number = await builds.fetch_latest_finished(
            connection,
            call.reader,
            project=call.path["project"],
            jobset=call.path["jobset"],
            job=call.path["job"],
        )
    return _to_build(call, number)


def _to_build(call: Call[Any, Any], number: int | None) -> HTTPResponse:
    """A redirect to the build: to its page for browsers, to its JSON for all others."""
    if number is None:
        raise NotFoundError("this job has no successful build")
    is_browser = "text/html" in call.request.headers.get("accept", "")
    root = "" if is_browser else "/api/v1"
    return HTTPResponse(
        status=302,
        headers={
            "Location": f"{root}/builds/{number}",
            "Cache-Control": "no-cache",
            "Vary": "Accept",
        },
    )


async def handle_shield(call: Call[Any, Any]) -> HTTPResponse:
    """A job's badge as JSON for shields.io."""
    return answers.json(call, badges.shield(call.path["job"], await _status(call)))


async def handle_badge(call: Call[Any, Any]) -> HTTPResponse:
    """A job's badge as a picture."""
    picture = badges.svg(call.path["job"], await _status(call)).encode()
    return answers.tagged(
        call,
        picture,
        "image/svg+xml",
        headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
    )


async def _status(call: Call[Any, Any]) -> BuildStatus | None:
    async with call.web.database.session() as connection:
        found = await builds.fetch_newest_ended(
            connection,
            call.reader,
            project=call.path["project"],
            jobset=call.path["jobset"],
            job=call.path["job"],
        )
    return None if found is None else BuildStatus(found[1])


_FOUND = Answer(status=302, media="")
ROUTES = (
    get(f"{_PATH}/latest", handle_latest, "To the last success of a job.", answer=_FOUND),
    get(
        f"{_PATH}/latest-for/<system>",
        handle_latest,
        "To the last success of a job for one system.",
        answer=_FOUND,
    ),
    get(
        f"{_PATH}/latest-finished",
        handle_latest_finished,
        "To the last success of a job in an evaluation whose builds have all ended.",
        answer=_FOUND,
    ),
    get(
        f"{_PATH}/shield",
        handle_shield,
        "A job's badge as JSON for shields.io.",
        answer=Answer(body=badges.Shield),
    ),
    get(
        f"{_PATH}/badge",
        handle_badge,
        "A job's badge as a picture.",
        answer=Answer(media="image/svg+xml"),
    ),
    get(
        f"{_PATH}/badge.svg",
        handle_badge,
        "A job's badge as a picture, for who needs the ending.",
        answer=Answer(media="image/svg+xml"),
    ),
)
