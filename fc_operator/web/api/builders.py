"""Builders: declared ones, and the machines that build by themselves."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.store.pages import builders
from fc_operator.web import answers, cursors
from fc_operator.web.routes import Answer, Call, Page, get, post


class Builders(msgspec.Struct, frozen=True):
    """Declared builders, and on the first page the machines that build by themselves."""

    items: list[builders.BuilderRow]
    next: str | None
    machines: list[builders.MachineRow]


class Testing(msgspec.Struct, frozen=True):
    """What will be looked at; `tested_at` of the builder moves when that has ended."""

    name: str
    tested_at: str | None


class Pin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which host key to trust."""

    host_key: Annotated[str, msgspec.Meta(max_length=8192)] | None = None
    """The key, as a look at it showed it. Without one, it is only shown."""


class Pinned(msgspec.Struct, frozen=True):
    """The host key that a builder shows."""

    name: str
    host_key: str
    """What it shows now, to a stranger."""
    fingerprint: str
    trusted: str
    """What is trusted; empty: nothing, so nothing is sent there."""
    is_trusted: bool


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


async def handle_test(call: Call[Any, Any]) -> HTTPResponse:
    """Have a scheduler look at a builder."""
    # What follows brings asyncssh, in part; a server need not have it to start.
    from fc_operator.operations import builders as operations

    before = await operations.request_test(call.web.database, call.path["builder"])
    told = before["tested_at"].isoformat() if before["tested_at"] else None
    return answers.json(call, {"name": before["name"], "tested_at": told}, status=202)


async def handle_pin(call: Call[Any, Pin]) -> HTTPResponse:
    """Show the host key of a builder; trust it, where that is said."""
    from fc_operator.operations import builders as operations

    found = await operations.pin(call.web.database, call.path["builder"], call.body.host_key)
    return answers.json(
        call,
        {
            "name": found.name,
            "host_key": found.host_key,
            "fingerprint": found.fingerprint,
            "trusted": found.trusted,
            "is_trusted": found.is_trusted,
        },
    )


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
    post(
        "/api/v1/builders/<builder>/test",
        handle_test,
        "Have a scheduler try all that a build needs on a builder.",
        action=Action.BUILDERS,
        answer=Answer(body=Testing, status=202),
    ),
    post(
        "/api/v1/builders/<builder>/pin",
        handle_pin,
        "Show the host key of a builder; with `host_key`, trust it where its manifest names none.",
        action=Action.BUILDERS,
        body=Pin,
        answer=Answer(body=Pinned),
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
