"""What forges send: whose signature proves a body, and what the body tells. Pure.

Gitea and Forgejo also send GitHub's headers, so the URL says which forge it is, never the headers.
A secret may hold several lines: each is good, so that it can be changed without a gap.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets as secrets_module
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import msgspec

from fc_operator.errors import InvalidError
from fc_operator.model.pushes import Push
from fc_operator.model.statuses import Forge

Headers = Mapping[str, str]
_DELIVERY_LENGTH_MAX = 200
_REF_LENGTH_MAX = 1_000
_SIGNED_S_MAX = 300
_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one forge speaks."""

    events: tuple[str, ...]
    """Headers that name the event, first one sent wins."""
    deliveries: tuple[str, ...]
    """Headers that name the delivery."""
    pushes: frozenset[str]
    """Names of the events that are pushes of branches or tags."""
    prove: Callable[[Sequence[bytes], Headers, bytes], bool]


def secrets_of(stored: bytes) -> tuple[bytes, ...]:
    """The good secrets of a stored value, one a line; none of an empty one."""
    return tuple(line.strip() for line in stored.splitlines() if line.strip())


def is_proven(forge: Forge, secrets: Sequence[bytes], headers: Headers, body: bytes) -> bool:
    """Whether one of ``secrets`` signed ``body``; False without any. Takes the same time always."""
    # Without a secret the work is done with one that nobody knows.
    known = secrets or (_UNKNOWABLE,)
    return DIALECTS[forge].prove(known, headers, body) and bool(secrets)


def event_of(forge: Forge, headers: Headers) -> str:
    """What the forge calls this event; empty when it does not say."""
    return _first(headers, DIALECTS[forge].events)


def delivery_of(forge: Forge, headers: Headers, body: bytes) -> str:
    """The delivery's id; where none is sent, one that is equal for equal bodies."""
    sent = _first(headers, DIALECTS[forge].deliveries)
    if 0 < len(sent) <= _DELIVERY_LENGTH_MAX and sent.isprintable():
        return sent
    return "sha256:" + hashlib.sha256(sent.encode("utf-8", "replace") + b"\0" + body).hexdigest()


def push_of(forge: Forge, headers: Headers, body: bytes) -> Push | None:
    """The push that the body tells of; None for any other event.

    Raises:
        InvalidError: the body is no JSON object.
    """
    if event_of(forge, headers) not in DIALECTS[forge].pushes:
        return None
    payload = _payload(headers, body)
    ref = payload.get("ref")
    if (
        not isinstance(ref, str)
        or not ref.startswith(("refs/heads/", "refs/tags/"))
        or len(ref) > _REF_LENGTH_MAX
        or "\0" in ref
    ):
        return None
    repository = payload.get("project" if forge is Forge.GITLAB else "repository")
    default = repository.get("default_branch") if isinstance(repository, dict) else None
    after = payload.get("after")
    return Push(
        ref=ref,
        default_branch=default if isinstance(default, str) and default else None,
        is_deletion=payload.get("deleted") is True
        or (isinstance(after, str) and bool(after) and not after.strip("0")),
    )


def _payload(headers: Headers, body: bytes) -> dict[str, Any]:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        text: bytes | str = body
        if kind == _FORM:
            text = parse_qs(body.decode(), errors="strict", max_num_fields=50)["payload"][0]
        payload = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        raise InvalidError("the body is no JSON") from error
    except RecursionError as error:
        raise InvalidError("the body is nested too deeply") from error
    if not isinstance(payload, dict):
        raise InvalidError("the body is no JSON object")
    return payload


def _first(headers: Headers, names: Sequence[str]) -> str:
    return next((headers[name] for name in names if name in headers), "")


def _digest(secret: bytes, body: bytes) -> str:
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def _is_any(wanted: Sequence[bytes], given: bytes) -> bool:
    """Compare with all, so that the time does not tell which one fits."""
    return sum(hmac.compare_digest(each, given) for each in wanted) > 0


def _by_digest(*names: str, prefix: str = "") -> Callable[[Sequence[bytes], Headers, bytes], bool]:
    def prove(secrets: Sequence[bytes], headers: Headers, body: bytes) -> bool:
        given = _first(headers, names).encode("utf-8", "replace")
        return _is_any([(prefix + _digest(each, body)).encode() for each in secrets], given)

    return prove


def _by_token(secrets: Sequence[bytes], headers: Headers, body: bytes) -> bool:
    """GitLab: its signature if it is sent, else its token."""
    if "webhook-signature" in headers:
        return _by_standard_webhook(secrets, headers, body)
    given = headers.get("x-gitlab-token", "").encode("utf-8", "replace")
    # Equal lengths, so that the comparison does not tell the token's.
    return _is_any(
        [hashlib.sha256(each).digest() for each in secrets], hashlib.sha256(given).digest()
    )


def _by_standard_webhook(secrets: Sequence[bytes], headers: Headers, body: bytes) -> bool:
    stamp = headers.get("webhook-timestamp", "")
    if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 12:
        return False
    if abs(time.time() - int(stamp)) > _SIGNED_S_MAX:
        return False
    signed = b".".join((headers.get("webhook-id", "").encode(), stamp.encode(), body))
    wanted = [
        base64.b64encode(hmac.new(_raw(each), signed, hashlib.sha256).digest()) for each in secrets
    ]
    given = [
        word.removeprefix("v1,").encode("utf-8", "replace")
        for word in headers["webhook-signature"].split(" ")[:10]
        if word.startswith("v1,")
    ]
    return sum(_is_any(wanted, each) for each in given) > 0


def _raw(secret: bytes) -> bytes:
    """Standard webhooks write a secret as ``whsec_`` and base64."""
    if not secret.startswith(b"whsec_"):
        return secret
    try:
        return base64.b64decode(secret.removeprefix(b"whsec_"), validate=True)
    except binascii.Error:
        return secret


_UNKNOWABLE = secrets_module.token_bytes(32)
DIALECTS: dict[Forge, Dialect] = {
    Forge.GITHUB: Dialect(
        events=("x-github-event",),
        deliveries=("x-github-delivery",),
        pushes=frozenset({"push"}),
        prove=_by_digest("x-hub-signature-256", prefix="sha256="),
    ),
    Forge.GITEA: Dialect(
        events=("x-gitea-event",),
        deliveries=("x-gitea-delivery",),
        pushes=frozenset({"push"}),
        prove=_by_digest("x-gitea-signature"),
    ),
    Forge.FORGEJO: Dialect(
        events=("x-forgejo-event", "x-gitea-event"),
        deliveries=("x-forgejo-delivery", "x-gitea-delivery"),
        pushes=frozenset({"push"}),
        prove=_by_digest("x-forgejo-signature", "x-gitea-signature"),
    ),
    Forge.GITLAB: Dialect(
        events=("x-gitlab-event",),
        deliveries=("x-gitlab-event-uuid", "idempotency-key"),
        pushes=frozenset({"Push Hook", "Tag Push Hook"}),
        prove=_by_token,
    ),
}
