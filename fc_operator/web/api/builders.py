"""Builders: declared ones, and the machines that build by themselves."""

from __future__ import annotations

from typing import Any

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.store.pages import builders
from fc_operator.web import answers, cursors
from fc_operator.web.routes import Answer, Call, Page, get


class Builders(msgspec.Struct, frozen=True):
    """Declared builders, and on the first page the machines that build by themselves."""

    items: list[builders.BuilderRow]
    next: str | None
    machines: list[builders.MachineRow]


async def handle_list(call: Call[Page, Any]) -> HTTPResponse:
    """Builders by name."""
    limit = call.query.limit
    after = cursors.decode(call.query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        rows = await builders.list_builders(
            connection, after=after[0] if after else None, page_size=limit + 1
        )
        machines = [] if after else await builders.list_machines(connection)
    shown = rows[:limit]
    more = cursors.encode(shown[-1]["name"]) if len(rows) > limit else None
    return answers.json(call, {"items": shown, "next": more, "machines": machines})


async def handle_one(call: Call[Any, Any]) -> HTTPResponse:
    """One builder."""
    async with call.web.database.session() as connection:
        found = await builders.fetch(connection, call.path["builder"])
    return answers.json(call, found)


_LIST = Answer(body=Builders)
_ONE = Answer(body=builders.Builder)
ROUTES = (
    get(
        "/api/v1/builders",
        handle_list,
        "Builders by name, and the machines that build by themselves.",
        action=Action.INSPECT,
        query=Page,
        answer=_LIST,
    ),
    get(
        "/api/v1/builders/<builder>",
        handle_one,
        "One builder, by name or id.",
        action=Action.INSPECT,
        answer=_ONE,
    ),
    get(
        "/api/v1/admin/builders",
        handle_list,
        "As /builders, where FC has it.",
        action=Action.INSPECT,
        query=Page,
        answer=_LIST,
    ),
    get(
        "/api/v1/admin/builders/<builder>",
        handle_one,
        "As /builders/…, where FC has it.",
        action=Action.INSPECT,
        answer=_ONE,
    ),
)
