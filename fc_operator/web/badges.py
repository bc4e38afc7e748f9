"""Badges: a status as a small picture, and as the JSON that shields.io draws from."""

from __future__ import annotations

from typing import TypedDict
from xml.sax.saxutils import escape

from fc_operator.model.statuses import BuildStatus

_GREEN, _RED, _GREY, _ORANGE = "#2f8f4e", "#c4432b", "#7a7f87", "#b7791f"
_COLOURS: dict[BuildStatus, str] = {
    BuildStatus.SUCCEEDED: _GREEN,
    BuildStatus.FAILED_WITH_OUTPUT: _ORANGE,
    BuildStatus.NON_DETERMINISTIC: _ORANGE,
    BuildStatus.CANCELLED: _GREY,
    BuildStatus.ABORTED: _GREY,
    BuildStatus.UNSUPPORTED_SYSTEM: _GREY,
    BuildStatus.PENDING: _GREY,
    BuildStatus.RUNNING: _GREY,
}
_WORDS: dict[BuildStatus, str] = {
    BuildStatus.SUCCEEDED: "passing",
    BuildStatus.FAILED: "failing",
    BuildStatus.CACHED_FAILURE: "failing",
    BuildStatus.DEPENDENCY_FAILED: "dependency failing",
}
_WIDTH_OF_LETTER = 6.6
_PADDING = 10


class Shield(TypedDict):
    """As https://shields.io/badges/endpoint-badge reads it."""

    schemaVersion: int
    label: str
    message: str
    color: str


def word(status: BuildStatus | None) -> str:
    """A status in the words of a badge; None is a job that never ended."""
    if status is None:
        return "unknown"
    return _WORDS.get(status, status.value.replace("_", " "))


def colour(status: BuildStatus | None) -> str:
    """Green is good, red is the job's fault, grey is nobody's."""
    return _GREY if status is None else _COLOURS.get(status, _RED)


def shield(label: str, status: BuildStatus | None) -> Shield:
    """The badge as JSON."""
    return {
        "schemaVersion": 1,
        "label": label,
        "message": word(status),
        "color": colour(status),
    }


def svg(label: str, status: BuildStatus | None) -> str:
    """The badge as a picture; ``label`` may be any text."""
    left, right = label[:60], word(status)
    left_width, right_width = _width(left), _width(right)
    whole = left_width + right_width
    name = escape(f"{left}: {right}", {'"': "&quot;"})
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{whole}" height="20" role="img" '
        f'aria-label="{name}"><title>{name}</title>'
        f'<clipPath id="r"><rect width="{whole}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><rect width="{left_width}" height="20" fill="#40464f"/>'
        f'<rect x="{left_width}" width="{right_width}" height="20" fill="{colour(status)}"/></g>'
        '<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" '
        'font-size="11">'
        f'<text x="{left_width / 2}" y="14">{escape(left)}</text>'
        f'<text x="{left_width + right_width / 2}" y="14">{escape(right)}</text></g></svg>'
    )


def _width(text: str) -> int:
    return round(len(text) * _WIDTH_OF_LETTER) + _PADDING
