"""Declared objects: who owns each, from which commit, and whether all is well with it."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.model.desired import Kind
from fc_operator.store.pages import managed_resources
from fc_operator.web import answers, cursors
from fc_operator.web.routes import Answer, Call, Page, get

Condition = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z]+(=(True|False|Unknown))?$")]


class ResourcesQuery(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filters of declared objects."""

    kind: Kind | None = None
    source_kind: str | None = None
    """ConfigRepository, Kubernetes, Apply or InRepository."""
    source: str | None = None
    """The name of the config repository, or of the key that applied it."""
    project: str | None = None
    condition: Condition | None = None
    """``Type`` for those where it is true, or ``Type=Status``: ``Ready=False``."""


async def handle_list(call: Call[ResourcesQuery, Any]) -> HTTPResponse:
    """Declared objects by kind and name."""
    query = call.query
    async with call.web.database.session() as connection:
        rows = await managed_resources.list_managed_resources(
            connection,
            call.reader,
            kind=query.kind,
            source_kind=query.source_kind,
            source=query.source,
            project=query.project,
            condition=query.condition,
            after=cursors.decode(query.cursor, tuple[str, str, UUID]),
            page_size=query.limit + 1,
        )
    return answers.page(
        call, rows, query.limit, lambda row: (row["kind"], row["identity"], row["id"])
    )


ROUTES = (
    get(
        "/api/v1/managed-resources",
        handle_list,
        "Declared objects, their owners and conditions.",
        action=Action.INSPECT,
        query=ResourcesQuery,
        answer=Answer(body=answers.Items[managed_resources.ManagedResourceRow]),
    ),
)
