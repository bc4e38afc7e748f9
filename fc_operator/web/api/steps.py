"""Steps: derivations shared by all builds that need them, and every try at them."""

from __future__ import annotations

from typing import Any

from sanic import HTTPResponse

from fc_operator.store.pages import steps
from fc_operator.web import answers, cursors
from fc_operator.web.routes import Answer, Call, Page, get


async def handle_one(call: Call[Any, Any]) -> HTTPResponse:
    """One step."""
    async with call.web.database.session() as connection:
        found = await steps.fetch(connection, call.reader, call.path["step"])
    return answers.json(call, found)


async def handle_attempts(call: Call[Page, Any]) -> HTTPResponse:
    """Tries at a step, oldest first."""
    after = cursors.decode(call.query.cursor, tuple[int])
    async with call.web.database.session() as connection:
        step = await steps.fetch(connection, call.reader, call.path["step"])
        rows = await steps.list_attempts(
            connection,
            step["id"],
            after=after[0] if after else 0,
            page_size=call.query.limit + 1,
        )
    return answers.page(call, rows, call.query.limit, lambda row: (row["attempt"],))


ROUTES = (
    get("/api/v1/steps/<step>", handle_one, "One step, by id.", answer=Answer(body=steps.Step)),
    get(
        "/api/v1/steps/<step>/attempts",
        handle_attempts,
        "Tries at a step, oldest first.",
        query=Page,
        answer=Answer(body=answers.Items[steps.AttemptRow]),
    ),
)
