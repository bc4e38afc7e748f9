"""API keys: made once, listed without their text, revoked."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.errors import InvalidError
from fc_operator.model.statuses import Role
from fc_operator.operations import keys
from fc_operator.store import api_keys
from fc_operator.web import answers, cursors
from fc_operator.web.routes import Answer, Call, Page, Route, get, post


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key shall be."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=keys.NAME_LENGTH_MAX)]
    role: Role
    user: Annotated[str, msgspec.Meta(max_length=255)] | None = None
    """Whose it is; it ends with them and may what they may in their projects."""
    expires_at: datetime | None = None


class CreatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """The one answer that holds a key's text."""

    id: UUID
    name: str
    role: Role
    prefix: str
    key: str
    expires_at: datetime | None


async def handle_create(call: Call[Any, NewKey]) -> HTTPResponse:
    """Make a key; its text is in this answer and never again."""
    body = call.body
    if body.expires_at is not None and body.expires_at.tzinfo is None:
        raise InvalidError("expires_at has no time zone", hint="end it with Z or an offset")
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise InvalidError("expires_at is past")
    made = await keys.create(
        call.web.database,
        body.name,
        body.role,
        user=body.user,
        expires_at=body.expires_at,
        actor=call.principal.name,
    )
    shown = {name: getattr(made, name) for name in CreatedKey.__struct_fields__}
    return HTTPResponse(
        answers.dump(shown),
        status=201,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


async def handle_list(call: Call[Page, Any]) -> HTTPResponse:
    """Keys, newest first."""
    async with call.web.database.session() as connection:
        rows = await api_keys.list_keys(
            connection,
            after=cursors.decode(call.query.cursor, tuple[datetime, UUID]),
            page_size=call.query.limit + 1,
        )
    return answers.page(call, rows, call.query.limit, lambda row: (row["created_at"], row["id"]))


async def handle_revoke(call: Call[Any, Any]) -> HTTPResponse:
    """End a key; every server refuses it within a second."""
    await keys.revoke(call.web.database, call.path["key"], actor=call.principal.name)
    return HTTPResponse(status=204)


ROUTES = (
    get(
        "/api/v1/api-keys",
        handle_list,
        "Keys, newest first; none is shown whole.",
        action=Action.KEYS,
        query=Page,
        answer=Answer(body=answers.Items[api_keys.KeyRow]),
    ),
    post(
        "/api/v1/api-keys",
        handle_create,
        "Make a key; its text is in this answer and never again.",
        action=Action.KEYS,
        records_itself=True,
        body=NewKey,
        answer=Answer(body=CreatedKey, status=201),
    ),
    Route(
        method="DELETE",
        path="/api/v1/api-keys/<key>",
        handler=handle_revoke,
        action=Action.KEYS,
        records_itself=True,
        summary="End a key, by id or by its shown first characters.",
        answer=Answer(status=204, media=""),
    ),
)
