"""YAML and JSON in and out: hostile bytes become plain values with line numbers, or problems.

Only here is ``yaml`` known. Values are what JSON can hold: dict, list, str, int, float, bool, None.

Scalars are read as kubectl reads them (YAML 1.1): ``yes``, ``no``, ``on``, ``off``, ``y`` and ``n``
are booleans unless quoted, so that a value means the same through either door; a schema that wants
text then refuses it loudly. Timestamps stay text, sexagesimal numbers too. Keys are always text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

_LOADER: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: type[Any] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

Path = tuple[str | int, ...]
"""The way to a value: keys and positions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on what is read; the defaults suit manifests."""

    size_bytes: int = 1024 * 1024
    depth: int = 50
    nodes: int = 10_000
    """In one document, counted after aliases are expanded."""
    nodes_total: int = 200_000
    """In all documents of a file."""
    documents: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProblem:
    """Why bytes could not be read, and where; ``line`` counts from 1."""

    line: int
    message: str
    hint: str = ""


@dataclass(slots=True)
class Lines:
    """The lines of a value, in the value's own shape. A key's line is the line of the key."""

    line: int
    children: dict[str, Lines] | list[Lines] | None = None
    size: int = 1

    def at(self, path: Sequence[str | int]) -> int:
        """The line of the value at ``path``, or of the nearest parent that exists."""
        here = self
        for part in path:
            children: Any = here.children
            known = range(len(children)) if isinstance(children, list) else children or ()
            if part not in known:
                break
            here = children[part]
        return here.line


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of a file. ``value`` may be shared where aliases were: never change it."""

    value: Any
    lines: Lines

    @property
    def line(self) -> int:
        """Where it begins."""
        return self.lines.line


class _RefusedError(Exception):
    def __init__(self, line: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.problem = LoadProblem(line=line, message=message, hint=hint)


_STANDARD = "tag:yaml.org,2002:"
_SCALAR_TAGS = {_STANDARD + name for name in ("str", "int", "float", "bool", "null", "timestamp")}
_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_NULL = frozenset(["", "~", "null", "Null", "NULL"])
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z|[-+]?(Infinity|NaN|nan|inf)\Z")
_INT = re.compile(r"[-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)\Z")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\Z")
_MAX_INT = 2**63


def _resolve(text: str, line: int) -> Any:
    """The value of a plain scalar."""
    if text in _NULL:
        return None
    first = text[0]
    if first.isdigit() or first in "-+.":
        return _number(text, line)
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if first in "NIni" and _NOT_FINITE.match(text):
        raise _not_kept(text, line)
    return text


def _not_kept(text: str, line: int) -> _RefusedError:
    hint = "quote it if it is text"
    return _RefusedError(line, f"{text} is not a number that can be kept", hint)


def _short(text: str) -> str:
    """What is shown of a text that somebody else chose."""
    return text if len(text) <= 80 else text[:77] + "..."


def _number(text: str, line: int) -> Any:
    if len(text) <= 64 and _INT.match(text):
        return _integer(text, line)
    if _NOT_FINITE.match(text):
        raise _not_kept(text, line)
    if len(text) <= 64 and _FLOAT.match(text):
        value = float(text.replace("_", ""))
        if not math.isfinite(value):
            raise _RefusedError(line, f"{text} is too large a number")
        return value
    return text


def _integer(text: str, line: int) -> int:
    digits = text.replace("_", "")
    body = digits.lstrip("+-")
    base = 0
    if len(body) > 1 and body[0] == "0" and body[1] in "01234567":
        base = 8
    try:
        value = int(digits, base)
    except ValueError as error:
        raise _RefusedError(line, f"{text} is not a number", "quote it if it is text") from error
    if not -_MAX_INT <= value < _MAX_INT:
        raise _RefusedError(line, f"{text} is too large a number", "quote it if it is text")
    return value


@dataclass(slots=True)
class _Open:
    """A collection that is being read."""

    value: Any
    lines: Lines
    anchor: str | None
    key: str | None = None
    key_line: int = 0
    merges: list[tuple[Any, Lines]] = field(default_factory=list)


def _children(lines: Lines) -> Any:
    return lines.children


class _Reader:
    """Builds values from events with a stack of its own: no recursion, so no depth hurts."""

    def __init__(self, text: str, limits: Limits) -> None:
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self.limits = limits
        self.total = 0

    def documents(self) -> Iterator[Document]:
        begun = 0
        for event in self.events:
            kind = type(event)
            if kind is yaml.DocumentStartEvent:
                begun += 1
                if begun > self.limits.documents:
                    line = event.start_mark.line + 1
                    raise _RefusedError(
                        line, f"the file holds more than {self.limits.documents} documents"
                    )
                document = self._document()
                if document is not None:
                    yield document

    def _document(self) -> Document | None:
        stack: list[_Open] = []
        anchors: dict[str, tuple[Any, Lines] | None] = {}
        root: tuple[Any, Lines] | None = None
        count = 0
        for event in self.events:
            kind = type(event)
            if kind is yaml.DocumentEndEvent:
                break
            line = event.start_mark.line + 1
            if kind is yaml.ScalarEvent:
                if stack and type(stack[-1].value) is dict and stack[-1].key is None:
                    self._key(stack[-1], event, line)
                    self._count(count := count + 1, line)
                    continue
                done = (self._scalar(event, line), Lines(line))
                if event.anchor:
                    anchors[event.anchor] = done
            elif kind is yaml.AliasEvent:
                found = anchors.get(event.anchor)
                if found is None:
                    inside = event.anchor in anchors
                    raise _RefusedError(
                        line,
                        f"the alias *{_short(event.anchor)} "
                        + ("contains itself" if inside else "has no anchor before it"),
                    )
                value, lines = found
                if len(stack) + _depth(value, self.limits.depth) > self.limits.depth:
                    raise self._too_deep(line)
                done = (value, Lines(line, lines.children, lines.size))
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                closed = stack.pop()
                if closed.merges:
                    _merge(closed)
                done = (closed.value, closed.lines)
                if closed.anchor:
                    anchors[closed.anchor] = done
            else:
                if len(stack) >= self.limits.depth:
                    raise self._too_deep(line)
                self._open(stack, event, line)
                if event.anchor:
                    anchors[event.anchor] = None
                self._count(count := count + 1, line)
                continue
            if kind is yaml.AliasEvent or kind is yaml.ScalarEvent:
                self._count(count := count + done[1].size, line)
            if stack:
                self._place(stack[-1], done, line)
            else:
                root = done
        self.total += count
        if self.total > self.limits.nodes_total:
            raise _RefusedError(root[1].line if root else 1, "the file holds too many values")
        if root is None or root[0] is None:
            return None
        return Document(value=root[0], lines=root[1])

    def _count(self, count: int, line: int) -> None:
        if count > self.limits.nodes:
            raise _RefusedError(
                line,
                f"the document has more than {self.limits.nodes} values, aliases expanded",
                "split it into several documents",
            )

    def _too_deep(self, line: int) -> _RefusedError:
        return _RefusedError(line, f"nested deeper than {self.limits.depth} levels")

    @staticmethod
    def _open(stack: list[_Open], event: Any, line: int) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        wanted = "map" if mapping else "seq"
        if event.tag not in {None, "!", _STANDARD + wanted}:
            raise _RefusedError(
                line, f"the tag {_short(event.tag)} is not allowed", "leave tags out"
            )
        if stack and type(stack[-1].value) is dict and stack[-1].key is None:
            raise _RefusedError(line, "a key must be text, not a mapping or a list")
        if mapping:
            stack.append(_Open({}, Lines(line, {}), event.anchor))
        else:
            stack.append(_Open([], Lines(line, []), event.anchor))

    @staticmethod
    def _key(parent: _Open, event: Any, line: int) -> None:
        if event.tag not in {None, "!", _STANDARD + "str", _STANDARD + "merge"}:
            raise _RefusedError(
                line, f"the tag {_short(event.tag)} is not allowed", "leave tags out"
            )
        if event.anchor:
            raise _RefusedError(line, "an anchor on a key is not allowed")
        key = event.value
        merge = key == "<<" and not event.style
        if not merge and key in parent.value:
            first = parent.lines.at((key,))
            raise _RefusedError(
                line,
                f"the key {_short(key)!r} is given twice (first on line {first})",
                "keep one of them",
            )
        parent.key, parent.key_line = key, -1 if merge else line

    @staticmethod
    def _scalar(event: Any, line: int) -> Any:
        tag, text = event.tag, event.value
        if "\0" in text:
            raise _RefusedError(line, "the text holds a NUL character, which nothing can keep")
        if tag is None:
            return text if event.style else _resolve(text, line)
        if tag in {"!", _STANDARD + "str", _STANDARD + "timestamp"}:
            return text
        if tag not in _SCALAR_TAGS:
            raise _RefusedError(line, f"the tag {_short(tag)} is not allowed", "leave tags out")
        value = _resolve(text, line)
        wanted: dict[str, tuple[type, ...]] = {
            "int": (int,), "float": (int, float), "bool": (bool,), "null": (type(None),),
        }  # fmt: skip
        if type(value) not in wanted[tag.removeprefix(_STANDARD)]:
            raise _RefusedError(line, f"{_short(text)!r} does not fit its tag {tag}")
        return value

    @staticmethod
    def _place(parent: _Open, done: tuple[Any, Lines], line: int) -> None:
        value, lines = done
        parent.lines.size += lines.size
        if type(parent.value) is list:
            parent.value.append(value)
            _children(parent.lines).append(lines)
            return
        key = parent.key
        assert key is not None
        if parent.key_line < 0:
            values = value if isinstance(value, list) else [value]
            each = lines.children if isinstance(lines.children, list) else [lines]
            for one, at in zip(values, each, strict=True):
                if not isinstance(one, dict):
                    raise _RefusedError(line, "<< takes a mapping or a list of mappings")
                parent.merges.append((one, at))
        else:
            parent.lines.size += 1
            parent.value[key] = value
            lines.line = parent.key_line
            _children(parent.lines)[key] = lines
        parent.key = None


def _merge(closed: _Open) -> None:
    """Keys merged by ``<<`` yield to those written out; of several, the first wins."""
    for value, lines in closed.merges:
        for key, item in value.items():
            if key not in closed.value:
                closed.value[key] = item
                _children(closed.lines)[key] = _children(lines)[key]


def _depth(value: Any, most: int) -> int:
    """How deep a value is nested, level by level; stops counting beyond ``most``."""
    level, depth = [value], 0
    while level and depth <= most:
        below: dict[int, Any] = {}
        for item in level:
            if isinstance(item, dict):
                below.update((id(child), child) for child in item.values())
            elif isinstance(item, list):
                below.update((id(child), child) for child in item)
        containers = any(isinstance(item, dict | list) for item in level)
        if not containers:
            break
        depth += 1
        level = list(below.values())
    return depth


_JSON = re.compile(r'\s*(\{\s*["}]|\[\s*["\[{\]0-9tfn-])')
_PAIR = re.compile(
    r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
)


def _json_for_yaml(text: str) -> str:
    """JSON as the YAML parser takes it, line by line the same.

    Two things of JSON are no YAML: tabs between values, and a character beyond 16 bits written as
    two escapes.
    """
    if not _JSON.match(text):
        return text
    return _PAIR.sub(
        lambda found: found[1] + bytes.fromhex(found[2] + found[3]).decode("utf-16-be"),
        text.replace("\t", " "),
    )


def load(data: bytes, *, limits: Limits | None = None) -> tuple[list[Document], list[LoadProblem]]:
    """Reads all documents; empty ones are left out. Never raises.

    What stands before a problem is still read, what stands after it is not.
    """
    limits = limits or Limits()
    documents: list[Document] = []
    if len(data) > limits.size_bytes:
        message = f"the file has {len(data)} bytes, more than {limits.size_bytes}"
        return [], [LoadProblem(line=1, message=message, hint="split it into several files")]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return [], [LoadProblem(line=line, message="this is not UTF-8", hint="save it as UTF-8")]
    try:
        documents.extend(_Reader(_json_for_yaml(text), limits).documents())
    except _RefusedError as error:
        return documents, [error.problem]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(part for part in (error.context, error.problem) if part)
        line = mark.line + 1 if mark else 1
        return documents, [LoadProblem(line=line, message=f"this is not YAML: {words}")]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        return documents, [LoadProblem(line=1, message=f"this is not YAML: {words}")]
    return documents, []


class _PlainDumper(_DUMPER):  # type: ignore[misc]
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - yaml's signature
        return True


def _is_plain_text(text: str) -> bool:
    """Whether :func:`load` reads it as text without quotes."""
    try:
        return _resolve(text, 0) is text
    except _RefusedError:
        return False


def _represent_text(dumper: Any, text: str) -> Any:
    # What kubectl would take for something else is quoted, beyond what the library quotes.
    style = "|" if "\n" in text else None if _is_plain_text(text) else "'"
    return dumper.represent_scalar(_STANDARD + "str", text, style=style)


_PlainDumper.add_representer(str, _represent_text)


def dump(*values: Any) -> str:
    """YAML text of one or more documents, keys in their order, without aliases."""
    return str(
        yaml.dump_all(
            values,
            Dumper=_PlainDumper,
            sort_keys=False,
            allow_unicode=True,
            width=100,
            explicit_start=len(values) > 1,
        )
    )
