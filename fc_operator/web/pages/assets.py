"""What pages are made of besides their text: the style, the one script, the page of the API."""

from __future__ import annotations

from functools import cache
from typing import Any

from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.errors import NotFoundError
from fc_operator.web import answers, openapi
from fc_operator.web.pages import rendering
from fc_operator.web.routes import Answer, Call, get

_MEDIA = {
    "style.css": "text/css; charset=utf-8",
    "log.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
_ROBOTS = b"User-agent: *\nDisallow: /api/\nDisallow: /job/\nDisallow: /builds/\nCrawl-delay: 5\n"


async def handle_static(call: Call[Any, Any]) -> HTTPResponse:
    """A file of ours; no path is ever made of a name."""
    name = call.path["name"]
    if name not in _MEDIA:
        raise NotFoundError(f"no file {name[:50]}")
    return answers.tagged(
        call, _read(name), _MEDIA[name], headers={"Cache-Control": "public, max-age=300"}
    )


async def handle_robots(call: Call[Any, Any]) -> HTTPResponse:
    """Crawlers stay on the few pages that say something new."""
    return answers.tagged(call, _ROBOTS, "text/plain; charset=utf-8")


async def handle_api(call: Call[Any, Any]) -> HTTPResponse:
    """The API for people: every route with what it takes and gives."""
    from fc_operator.web import route_table

    return rendering.page(call, "api.html", groups=openapi.groups(route_table.ROUTES))


@cache
def _read(name: str) -> bytes:
    return (rendering.HERE / "static" / name).read_bytes()


def _asset(path: str, handler: Any, summary: str) -> Any:
    return get(
        path, handler, summary, action=Action.PUBLIC, is_page=True, answer=Answer(media="text/html")
    )


ROUTES = (
    _asset("/static/<name>", handle_static, "A file of the pages."),
    _asset("/robots.txt", handle_robots, "What crawlers may look at."),
    _asset("/api", handle_api, "The API for people."),
)
