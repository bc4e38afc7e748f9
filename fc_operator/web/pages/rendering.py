"""How pages are made: templates, their words for times and sizes, and the headers of a page.

No inline script or style is allowed anywhere, and nothing comes from another host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson
from sanic import HTTPResponse

from fc_operator.model.statuses import BuildStatus
from fc_operator.web import answers
from fc_operator.web.routes import Call

if TYPE_CHECKING:
    from fc_operator.kit.templates import Templates

HERE = Path(__file__).parents[1]
HTML = "text/html; charset=utf-8"
NOTHING = "\N{EN DASH}"
"""Where there is no value."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
}
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[@-Z\\-_]?")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_GOOD_FIRST = (
    BuildStatus.SUCCEEDED, BuildStatus.RUNNING, BuildStatus.PENDING,
    BuildStatus.FAILED_WITH_OUTPUT, BuildStatus.NON_DETERMINISTIC, BuildStatus.FAILED,
    BuildStatus.CACHED_FAILURE, BuildStatus.TIMEOUT, BuildStatus.LOG_LIMIT_EXCEEDED,
    BuildStatus.NAR_SIZE_LIMIT_EXCEEDED, BuildStatus.DEPENDENCY_FAILED, BuildStatus.ABORTED,
    BuildStatus.UNSUPPORTED_SYSTEM, BuildStatus.CANCELLED,
)  # fmt: skip


def page(
    call: Call[Any, Any], name: str, *, refresh_s: int | None = None, **values: Any
) -> HTTPResponse:
    """A page with its ETag; ``refresh_s`` lets a browser look again while something moves."""
    text = templates().render(name, refresh_s=refresh_s, path=call.request.path, **values)
    return answers.tagged(call, text.encode(), HTML, headers=HEADERS)


def problem_page(answer: HTTPResponse) -> HTTPResponse:
    """A problem as a page, with the status and headers that it has."""
    problem = orjson.loads(answer.body or b"{}")
    text = templates().render("problem.html", problem=problem, refresh_s=None, path="")
    kept = {
        name: value
        for name, value in answer.headers.items()
        if name.lower() not in {"content-type", "content-length"}
    }
    return HTTPResponse(text, status=answer.status, content_type=HTML, headers={**kept, **HEADERS})


@cache
def templates() -> Templates:
    """All templates; loaded with the first page."""
    from fc_operator.kit.templates import Templates

    return Templates(
        HERE / "templates",
        filters={
            "ago": ago,
            "bar": bar,
            "duration": duration,
            "plain": plain,
            "segment": segment,
            "short": short,
            "size": size,
            "stamp": stamp,
            "words": words,
        },
        values={"ready": ready},
    )


def words(code: str) -> str:
    """``dependency_failed`` and ``SourceInvalid`` for people."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", code.replace("_", " ")).lower()


def segment(name: str) -> str:
    """A name as one part of a path, whatever is in it: a job may have slashes in its name."""
    return quote(name, safe="")


def short(revision: str | None) -> str:
    """The first digits of a revision."""
    return (revision or NOTHING)[:12]


def stamp(at: datetime | str | None) -> str:
    """A moment for machines and for titles."""
    moment = _moment(at)
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(at: datetime | str | None) -> str:
    """How long ago, or in how long, a moment is."""
    moment = _moment(at)
    if moment is None:
        return NOTHING
    seconds = (datetime.now(UTC) - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{_amount(seconds)} ago" if seconds > 0 else f"in {_amount(-seconds)}"


def duration(start: datetime | str | None, end: datetime | str | None) -> str:
    """How long something took, or takes so far."""
    first, last = _moment(start), _moment(end)
    if first is None:
        return NOTHING
    return _amount(max(0.0, ((last or datetime.now(UTC)) - first).total_seconds()))


def _amount(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, left_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left_s} s" if minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def size(count: float | None) -> str:
    """Bytes for people."""
    if count is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def plain(text: str) -> str:
    """A log's text without what steers terminals."""
    text = _ESCAPES.sub("", text)
    lines = (line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n"))
    return _CONTROLS.sub("", "\n".join(lines))


def bar(counts: Mapping[str, int] | None) -> list[tuple[str, float, float, int]]:
    """(status, left, width, count) of a bar of 100, good ones first."""
    total = sum((counts or {}).values())
    parts, left = [], 0.0
    for status in _GOOD_FIRST:
        count = (counts or {}).get(status, 0)
        if count:
            width = 100 * count / total
            parts.append((status.value, round(left, 3), round(width, 3), count))
            left += width
    return parts


def ready(conditions: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The condition that sums up an object."""
    for condition in conditions or ():
        if condition.get("type") == "Ready":
            return condition
    return {"status": "Unknown", "reason": "", "message": ""}


def _moment(at: datetime | str | None) -> datetime | None:
    moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
