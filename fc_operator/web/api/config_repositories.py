"""Config repositories: where manifests come from, and what is wrong with them."""

from __future__ import annotations

from typing import Any

from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.store.pages import config_repositories
from fc_operator.web import answers, cursors
from fc_operator.web.routes import Answer, Call, Page, get


async def handle_list(call: Call[Page, Any]) -> HTTPResponse:
    """Config repositories by name."""
    after = cursors.decode(call.query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        rows = await config_repositories.list_config_repositories(
            connection, after=after[0] if after else None, page_size=call.query.limit + 1
        )
    return answers.page(call, rows, call.query.limit, lambda row: (row["name"],))


async def handle_one(call: Call[Any, Any]) -> HTTPResponse:
    """One config repository, with the problems of its files."""
    async with call.web.database.session() as connection:
        found = await config_repositories.fetch(connection, call.path["repository"])
    return answers.json(call, found)


ROUTES = (
    get(
        "/api/v1/config-repositories",
        handle_list,
        "Config repositories by name.",
        action=Action.INSPECT,
        query=Page,
        answer=Answer(body=answers.Items[config_repositories.ConfigRepositoryRow]),
    ),
    get(
        "/api/v1/config-repositories/<repository>",
        handle_one,
        "One config repository, by name or id, with the problems of its files.",
        action=Action.INSPECT,
        answer=Answer(body=config_repositories.ConfigRepository),
    ),
)
