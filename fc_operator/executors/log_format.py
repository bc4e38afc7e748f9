"""Nix's ``--log-format internal-json``: one line in, one small event out. Pure.

Nix writes ``@nix {…}`` lines to stderr. What a builder prints arrives *inside* result lines, so it
can't be mistaken for Nix's own; but Nix also obeys ``@nix`` lines that a builder prints, and passes
its messages on. Those lack ``raw_msg``, which Nix adds only to errors of its own: ``from_nix``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_PREFIX = b"@nix "
_BUILD = 105
_SUBSTITUTE = 108
_COPY_PATH = 100
_LOG_LINE = 101
_SET_PHASE = 104
_POST_BUILD_LOG_LINE = 107
# Progress and expectations are most of the stream and nobody shows them.
_DROPPED_ENDS = (b'"type":105}', b'"type":106}')

_PHASE_CHARS_MAX = 200
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")


@dataclass(frozen=True, slots=True)
class BuildStarted:
    """A builder starts; ``drv_path`` may be another one than the one asked for."""

    id: int
    drv_path: str
    machine: str = ""


@dataclass(frozen=True, slots=True)
class TransferStarted:
    """A path is substituted or copied."""

    id: int
    path: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """An activity of any kind ended; it carries no outcome."""

    id: int


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a builder (or the post-build hook) printed, without its newline."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class PhaseSet:
    """A builder entered a phase."""

    id: int
    phase: str
    """What the builder calls it, but for what can't be printed (or stored: a null)."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message; level 0 is an error, 1 a warning. Colours are as Nix sent them."""

    level: int
    text: str
    from_nix: bool
    """Nix itself raised it; False for what a builder made Nix say."""


@dataclass(frozen=True, slots=True)
class Text:
    """A line without the prefix: a remote builder's, or of a program that Nix ran."""

    text: str


Event = BuildStarted | TransferStarted | Stopped | LogLine | PhaseSet | Message | Text


def strip_ansi(text: str) -> str:
    """``text`` without terminal escapes."""
    return _ANSI.sub("", text)


def parse_line(line: bytes) -> Event | None:
    """The event of one line, or None for what does not matter or is not known. Never raises."""
    if not line.startswith(_PREFIX):
        return Text(line.decode("utf-8", "replace")) if line else None
    if line.endswith(_DROPPED_ENDS) and line.startswith(b'@nix {"action":"result"'):
        return None
    try:
        record = json.loads(line[len(_PREFIX) :])
    except (ValueError, RecursionError):
        return Text(line.decode("utf-8", "replace"))
    return _parse_record(record) if isinstance(record, dict) else None


def _parse_record(record: dict[str, Any]) -> Event | None:
    action = record.get("action")
    if action == "msg":
        text = record.get("raw_msg", record.get("msg"))
        level = record.get("level")
        if isinstance(text, str):
            return Message(
                level=level if isinstance(level, int) else 3,
                text=text,
                from_nix=isinstance(record.get("raw_msg"), str),
            )
        return None
    number = record.get("id")
    if not isinstance(number, int):
        return None
    if action == "stop":
        return Stopped(number)
    fields = record.get("fields")
    words = fields if isinstance(fields, list) else []
    first = words[0] if words and isinstance(words[0], str) else None
    if first is None:
        return None
    kind = record.get("type")
    if action == "start":
        if kind == _BUILD:
            machine = words[1] if len(words) > 1 and isinstance(words[1], str) else ""
            return BuildStarted(number, first, machine)
        if kind in {_SUBSTITUTE, _COPY_PATH}:
            return TransferStarted(number, first)
    elif action == "result":
        if kind in {_LOG_LINE, _POST_BUILD_LOG_LINE}:
            return LogLine(number, first)
        if kind == _SET_PHASE:
            return PhaseSet(number, "".join(filter(str.isprintable, first))[:_PHASE_CHARS_MAX])
    return None
