"""Channels: names that follow the latest good evaluation of a jobset."""

from __future__ import annotations

from typing import Any

from sanic import HTTPResponse

from fc_operator.errors import NotFoundError
from fc_operator.store.pages import channels, projects
from fc_operator.web import answers, cursors
from fc_operator.web.routes import Answer, Call, Page, get


async def handle_list(call: Call[Page, Any]) -> HTTPResponse:
    """Channels by project and name; of one project where the path names it."""
    word = call.path.get("project")
    async with call.web.database.session() as connection:
        project = await projects.fetch(connection, call.reader, word) if word else None
        rows = await channels.list_channels(
            connection,
            call.reader,
            project=project["id"] if project else None,
            after=cursors.decode(call.query.cursor, tuple[str, str]),
            page_size=call.query.limit + 1,
        )
    return answers.page(call, rows, call.query.limit, lambda row: (row["project"], row["name"]))


async def handle_one(call: Call[Any, Any]) -> HTTPResponse:
    """One channel."""
    async with call.web.database.session() as connection:
        found = await channels.fetch(
            connection, call.reader, call.path["channel"], project=call.path.get("project")
        )
    return answers.json(call, found)


async def handle_revision(call: Call[Any, Any]) -> HTTPResponse:
    """The commit that a channel points at, as text."""
    async with call.web.database.session() as connection:
        found = await channels.fetch(
            connection, call.reader, call.path["channel"], project=call.path["project"]
        )
    if found["commit_hash"] is None:
        raise NotFoundError(f"the channel {found['name']} points nowhere yet")
    return answers.tagged(call, found["commit_hash"].encode(), "text/plain; charset=utf-8")


_LIST = Answer(body=answers.Items[channels.ChannelRow])
_ONE = Answer(body=channels.ChannelRow)
ROUTES = (
    get(
        "/api/v1/channels",
        handle_list,
        "Channels by project and name.",
        query=Page,
        answer=_LIST,
    ),
    get("/api/v1/channels/<channel>", handle_one, "One channel, by id.", answer=_ONE),
    get(
        "/api/v1/projects/<project>/channels",
        handle_list,
        "Channels of a project by name.",
        query=Page,
        answer=_LIST,
    ),
    get(
        "/api/v1/projects/<project>/channels/<channel>",
        handle_one,
        "One channel of a project, by name.",
        answer=_ONE,
    ),
    get(
        "/channel/<project>/<channel>/git-revision",
        handle_revision,
        "The commit that a channel points at.",
        answer=Answer(media="text/plain"),
    ),
)
