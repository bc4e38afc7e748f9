"""Config repositories: where manifests come from, and what is wrong with them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.store.pages import config_repositories
from fc_operator.web import answers, cursors
from fc_operator.web.routes import Answer, Call, Page, get, post


class Sync(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to sync."""

    confirm: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    """The revision that may prune more than the guard allows."""


class Syncing(msgspec.Struct, frozen=True):
    """What will be synced."""

    name: str


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


async def handle_sync(call: Call[Any, Sync]) -> HTTPResponse:
    """Sync a config repository now; allow what its guard holds back, where that is said."""
    # Brings the reconciler and all that it knows of manifests; a server need not have it to start.
    from fc_operator.operations import sources

    async with call.web.database.session() as connection:
        found = await config_repositories.fetch(connection, call.path["repository"])
    if call.body.confirm is None:
        await sources.request_sync(call.web.database, found["name"])
    else:
        await sources.confirm(call.web.database, found["name"], call.body.confirm)
    return answers.json(call, {"name": found["name"]}, status=202)


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
    post(
        "/api/v1/config-repositories/<repository>/sync",
        handle_sync,
        "Sync a config repository now.",
        action=Action.SYNC,
        body=Sync,
        answer=Answer(body=Syncing, status=202),
    ),
)
