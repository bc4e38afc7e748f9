"""Webhooks in: a forge tells of a push, we look at once instead of at the next poll.

No such project, no webhook configured, no secret, a wrong signature: one and the same 401, after
the same work. What is proven and of no use to us is answered and ignored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.errors import NotFoundError, UnauthenticatedError
from fc_operator.kit import logs
from fc_operator.kit.ciphers import CipherError
from fc_operator.model.pushes import Push
from fc_operator.model.statuses import Forge
from fc_operator.operations import webhooks
from fc_operator.store import webhook_deliveries
from fc_operator.store.database import Connection, Database
from fc_operator.store.webhook_deliveries import Hook
from fc_operator.web import answers, forges
from fc_operator.web.context import Context
from fc_operator.web.routes import Answer, Call, post

_log = logs.get_logger()

Find = Callable[[Connection, str, Forge], Awaitable[Hook | None]]
Accept = Callable[[Database, Hook, str, Push], Awaitable[webhooks.Received]]


class Delivered(msgspec.Struct, frozen=True, kw_only=True):
    """What a delivery did."""

    event: str
    woken: list[str]
    """Jobsets, or the config repository, that look at their source now."""
    ignored: str | None
    """Why nothing was woken."""


async def handle_project(call: Call[Any, Any]) -> HTTPResponse:
    """A push to a project's repository."""
    return await _receive(
        call,
        call.path["project"],
        webhook_deliveries.fetch_hook_of_project,
        webhooks.accept_push,
    )


async def handle_config_repository(call: Call[Any, Any]) -> HTTPResponse:
    """A push to a config repository."""
    return await _receive(
        call,
        call.path["repository"],
        webhook_deliveries.fetch_hook_of_config_repository,
        webhooks.accept_config_push,
    )


async def _receive(call: Call[Any, Any], word: str, find: Find, accept: Accept) -> HTTPResponse:
    forge = _forge(call.path["forge"])
    deliveries = call.web.measures.deliveries
    headers, body = call.request.headers, call.request.body
    async with call.web.database.session() as connection:
        hook = await find(connection, word, forge)
    if not forges.is_proven(forge, _secrets(call.web, hook), headers, body) or hook is None:
        deliveries.labels(forge, "refused").inc()
        raise UnauthenticatedError("the delivery is not signed by a webhook that we know")
    event = forges.event_of(forge, headers)
    push = forges.push_of(forge, headers, body)
    if push is None:
        deliveries.labels(forge, "ignored").inc()
        return _answer(event, (), "only pushes of branches and tags wake anything")
    delivery_id = forges.delivery_of(forge, headers, body)
    received = await accept(call.web.database, hook, delivery_id, push)
    why = _why_nothing(received, push)
    deliveries.labels(forge, "ignored" if why else "accepted").inc()
    _log.info(
        "web.webhook_received",
        parent=hook.parent,
        forge=forge.value,
        ref=push.ref,
        woken=len(received.woken),
    )
    return _answer(event, received.woken, why)


def _forge(word: str) -> Forge:
    try:
        return Forge(word)
    except ValueError as error:
        raise NotFoundError("no such forge", hint="github, gitea, forgejo or gitlab") from error


def _secrets(web: Context, hook: Hook | None) -> tuple[bytes, ...]:
    if hook is None or hook.secret_ciphertext is None:
        return ()
    try:
        plain = web.cipher.decrypt(
            bytes(hook.secret_ciphertext), context=f"webhook_configs/{hook.id}"
        )
    except CipherError as error:
        _log.error("web.webhook_secret_unreadable", parent=hook.parent, error=str(error))
        return ()
    return forges.secrets_of(plain)


def _why_nothing(received: webhooks.Received, push: Push) -> str | None:
    if received.is_duplicate:
        return "this delivery came before"
    if push.is_deletion:
        return "the ref was deleted"
    return None if received.woken else "nothing follows this ref"


def _answer(event: str, woken: tuple[str, ...], ignored: str | None) -> HTTPResponse:
    return HTTPResponse(
        answers.dump({"event": event[:100], "woken": woken, "ignored": ignored}),
        status=202,
        content_type="application/json",
    )


_DELIVERED = Answer(body=Delivered, status=202)
ROUTES = (
    post(
        "/api/v1/webhooks/<project>/<forge>",
        handle_project,
        "A forge tells of a push to a project's repository.",
        action=Action.SIGNED,
        answer=_DELIVERED,
    ),
    post(
        "/api/v1/webhooks/config-repositories/<repository>/<forge>",
        handle_config_repository,
        "A forge tells of a push to a config repository.",
        action=Action.SIGNED,
        answer=_DELIVERED,
    ),
)
