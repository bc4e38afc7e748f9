"""The queue: what runs, then what waits, and how much of it there is."""

from __future__ import annotations

from typing import Any

import msgspec
from sanic import HTTPResponse

from fc_operator.store.pages import builds, queue
from fc_operator.web import answers, cursors
from fc_operator.web.routes import Answer, Call, Page, get


class QueueSummary(msgspec.Struct, frozen=True):
    """How much waits and runs."""

    pending_builds: int
    running_builds: int
    pending_evaluations: int
    running_evaluations: int
    steps_in_backoff: int
    classes: list[queue.ClassRow]


async def handle_list(call: Call[Page, Any]) -> HTTPResponse:
    """Builds that run, newest first, then builds that wait, oldest first."""
    limit = call.query.limit
    after = cursors.decode(call.query.cursor, tuple[str, int])
    rows: list[queue.QueuedRow] = []
    async with call.web.database.session() as connection:
        if after is None or after[0] == "running":
            rows = await queue.list_running(
                connection,
                call.reader,
                before=after[1] if after else builds.NUMBER_MAX,
                page_size=limit + 1,
            )
        if len(rows) <= limit:
            rows += await queue.list_pending(
                connection,
                call.reader,
                after=after[1] if after is not None and after[0] == "pending" else 0,
                page_size=limit + 1 - len(rows),
            )
    return answers.page(call, rows, limit, lambda row: (row["status"], row["number"]))


async def handle_summary(call: Call[Any, Any]) -> HTTPResponse:
    """How much waits and runs, by what it needs."""
    async with call.web.database.session() as connection:
        counts = await queue.fetch_counts(connection)
        classes = await queue.list_classes(connection)
    return answers.json(call, {**counts, "classes": classes})


ROUTES = (
    get(
        "/api/v1/queue",
        handle_list,
        "Builds that run, newest first, then builds that wait, oldest first.",
        query=Page,
        answer=Answer(body=answers.Items[queue.QueuedRow]),
    ),
    get(
        "/api/v1/queue/summary",
        handle_summary,
        "How much waits and runs, by what it needs.",
        answer=Answer(body=QueueSummary),
    ),
)
