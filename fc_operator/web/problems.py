"""Every error as RFC 9457 problem+json; pages get the same as a small page.

Which of our errors means which status stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, NotRequired, TypedDict

import orjson
from sanic import HTTPResponse, Request
from sanic.exceptions import SanicException

from fc_operator import errors
from fc_operator.kit import logs

_log = logs.get_logger()

MEDIA = "application/problem+json"

STATUSES: tuple[tuple[type[errors.FcError], HTTPStatus], ...] = (
    (errors.TooLargeError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (errors.InvalidError, HTTPStatus.BAD_REQUEST),
    (errors.NotFoundError, HTTPStatus.NOT_FOUND),
    (errors.GoneError, HTTPStatus.GONE),
    (errors.ConflictError, HTTPStatus.CONFLICT),
    (errors.UnauthenticatedError, HTTPStatus.UNAUTHORIZED),
    (errors.ForbiddenError, HTTPStatus.FORBIDDEN),
    (errors.CallerError, HTTPStatus.BAD_REQUEST),
    (errors.BusyError, HTTPStatus.TOO_MANY_REQUESTS),
    (errors.RetryLaterError, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.HumanNeededError, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.GiveUpError, HTTPStatus.UNPROCESSABLE_ENTITY),
)
"""The first row that fits decides."""

RETRY_AFTER_S = 5


class Problem(TypedDict):
    """The body of every answer that is an error."""

    type: str
    title: str
    status: int
    detail: str
    hint: NotRequired[str]
    problems: NotRequired[list[dict[str, Any]]]


def problem(
    status: HTTPStatus, detail: str, *, hint: str = "", more: Mapping[str, Any] | None = None
) -> Problem:
    """A problem's body; what is empty is left out."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": detail or status.phrase,
        **({"hint": hint} if hint else {}),
        **(more or {}),
    }
    return body  # type: ignore[return-value]  # ``more`` adds members that RFC 9457 allows


def answer(
    body: Problem | Mapping[str, Any], *, headers: Mapping[str, str] | None = None
) -> HTTPResponse:
    """``body`` as a response."""
    return HTTPResponse(
        orjson.dumps(body),
        status=body["status"],
        content_type=MEDIA,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def from_error(error: Exception) -> tuple[Problem, dict[str, str]]:
    """What an error says to a caller, and the headers that go with it.

    An error that is none of ours says nothing: its text may hold what must not leave.
    """
    if isinstance(error, errors.FcError):
        for kind, status in STATUSES:
            if isinstance(error, kind):
                return (
                    problem(status, error.message, hint=error.hint, more=_more(error)),
                    _headers(status, error),
                )
    if isinstance(error, TimeoutError):
        status = HTTPStatus.SERVICE_UNAVAILABLE
        return problem(status, "this took too long and was given up"), _headers(status, error)
    if isinstance(error, SanicException):
        status = HTTPStatus(error.status_code)
        return problem(status, _harmless(error, status)), _library_headers(error)
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "an unexpected error; it is in our log"), {}


def _more(error: errors.FcError) -> dict[str, Any]:
    expected = getattr(error, "expected", None)
    return {} if expected is None else {"expected": expected}


def _headers(status: HTTPStatus, error: Exception) -> dict[str, str]:
    if status is HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": 'Bearer realm="fc-operator"'}
    if status in {HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS}:
        delay_s = getattr(error, "delay_s", None) or RETRY_AFTER_S
        return {"Retry-After": str(max(1, round(delay_s)))}
    return {}


def _library_headers(error: SanicException) -> dict[str, str]:
    allowed = getattr(error, "allowed_methods", None)
    headers = dict(getattr(error, "headers", None) or {})
    if allowed:
        headers["Allow"] = ", ".join(sorted(allowed))
    return headers


def _harmless(error: SanicException, status: HTTPStatus) -> str:
    """Sanic's own words repeat the URL or internals; ours are fixed, but for bad requests."""
    if status is HTTPStatus.BAD_REQUEST:
        return str(error) or status.description
    return status.description or status.phrase


def handle_exception(request: Request, error: Exception) -> HTTPResponse:
    """Sanic's last resort: log what is our fault, answer with a problem."""
    body, headers = from_error(error)
    if body["status"] == HTTPStatus.INTERNAL_SERVER_ERROR:
        _log.error(
            "web.request_failed",
            method=request.method,
            path=request.path,
            error=type(error).__name__,
            exc_info=error,
        )
    return answer(body, headers=headers)
