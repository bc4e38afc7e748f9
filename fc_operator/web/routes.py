"""What a route is: method, path, who may, what goes in and what comes out.

Each module of ``web.api`` and ``web.pages`` lists its routes; ``web.application`` binds them. The
action is not optional, so a route without a policy can't be written.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeAlias, TypeVar
from uuid import UUID

import msgspec
from sanic import HTTPResponse, Request

from fc_operator.access.authorization import Action
from fc_operator.access.principals import Principal
from fc_operator.model.ids import ProjectId
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection

if TYPE_CHECKING:
    from fc_operator.web.context import Context

PAGE_SIZE = 50
PAGE_SIZE_MAX = 200


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A route that takes no parameters, or no body."""


class Page(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every list takes."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=PAGE_SIZE_MAX)] = PAGE_SIZE
    """Rows at most, 1 to 200."""
    cursor: str | None = None
    """``next`` of the page before."""


Q = TypeVar("Q")
B = TypeVar("B")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a change is about, found before anybody is asked whether it is allowed."""

    id: UUID
    project_id: ProjectId | None
    name: str
    """For the audit log."""


@dataclass(slots=True, kw_only=True)
class Call(Generic[Q, B]):
    """One request, parsed and allowed."""

    web: Context
    request: Request
    principal: Principal
    reader: Reader
    path: Mapping[str, str]
    query: Q
    body: B
    subject: Subject | None = None


Handler: TypeAlias = Callable[[Any], Awaitable[HTTPResponse | None]]
"""Takes a ``Call``; None where it has answered by itself, in pieces."""
Finder: TypeAlias = Callable[[Connection, Reader, Mapping[str, str]], Awaitable[Subject]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What comes out, for the OpenAPI document."""

    body: Any = None
    """A type that msgspec understands; None for no JSON."""
    status: int = 200
    media: str = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    """With ``<name>`` for its parts that vary."""
    handler: Handler
    action: Action
    summary: str
    query: type[Any] = Nothing
    body: type[Any] | None = None
    answer: Answer = field(default_factory=Answer)
    subject: Finder | None = None
    """For changes inside a project: finds it, or raises NotFoundError for who may not see it."""
    streams: bool = False
    """It may take as long as it wants."""
    records_itself: bool = False
    """Its operation writes the audit log."""
    identifies_itself: bool = False
    """Its handler tells who asks; the principal is nobody, and no header is looked at before."""
    takes_stream: bool = False
    """Its body comes in pieces, through ``request.stream``, and has no limit but the handler's."""
    is_page: bool = False
    """HTML or another protocol, and not in the OpenAPI document."""

    @property
    def changes(self) -> bool:
        """Whether it may change something."""
        return self.method not in {"GET", "HEAD"}


def get(path: str, handler: Handler, summary: str, **more: Any) -> Route:
    """A route that only reads; ``action`` is READ unless said otherwise."""
    return Route(
        method="GET",
        path=path,
        handler=handler,
        summary=summary,
        **{"action": Action.READ, **more},
    )


def post(path: str, handler: Handler, summary: str, *, action: Action, **more: Any) -> Route:
    """A route that changes something."""
    return Route(method="POST", path=path, handler=handler, summary=summary, action=action, **more)


SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


def secured(response: HTTPResponse) -> HTTPResponse:
    """``response`` with the headers that every answer of ours has."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)
    return response
