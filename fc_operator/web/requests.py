"""What comes in, made strict: parameters and bodies of declared types, or a 400 that says why.

A parameter given twice, one that nobody declared, a list where a word was expected, a NUL, text
that is no UTF-8: all are refused before a handler sees them.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import msgspec
from sanic import Request

from fc_operator.errors import InvalidError

T = TypeVar("T")
_FIELDS_MAX = 50
_TEXT_MAX = 2_000


def parse_query(request: Request, form: type[T]) -> T:
    """The query string as a ``form``; lists are comma-separated.

    Raises:
        InvalidError: it does not fit.
    """
    text = request.query_string
    if not text:
        return _convert({}, form)
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_FIELDS_MAX)
    except ValueError as error:
        raise InvalidError("the query string can't be read") from error
    values: dict[str, Any] = {}
    lists = _lists(form)  # type: ignore[arg-type]  # a type is hashable, mypy is not sure of T
    for name, value in pairs:
        if name in values:
            raise InvalidError(f"the parameter {name} is given twice")
        check_text(name, value)
        values[name] = value.split(",") if name in lists else value
    return _convert(values, form)


def parse_body(request: Request, form: type[T]) -> T:
    """The JSON body as a ``form``; no body at all is an empty object.

    Raises:
        InvalidError: it does not fit.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if request.body and kind.lower() != "application/json":
        raise InvalidError(f"the body is {kind}, not application/json")
    try:
        return msgspec.json.decode(request.body or b"{}", type=form)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise InvalidError(f"the body is wrong: {error}") from error
    except RecursionError as error:
        raise InvalidError("the body is nested too deeply") from error


def parse_path(path: Mapping[str, Any]) -> dict[str, str]:
    """The varying parts of a path, decoded once.

    Raises:
        InvalidError: a part can't be a name.
    """
    try:
        parts = {name: unquote(value, errors="strict") for name, value in path.items()}
    except UnicodeDecodeError as error:
        raise InvalidError("the path is no UTF-8") from error
    for name, value in parts.items():
        check_text(name, value)
    return parts


def check_text(name: str, value: str) -> None:
    """Refuse what PostgreSQL could not hold or nobody means.

    Raises:
        InvalidError: too long, or with a NUL or a broken character.
    """
    if len(value) > _TEXT_MAX:
        raise InvalidError(f"{name[:50]} is longer than {_TEXT_MAX} characters")
    if "\0" in value or "\ufffd" in value:
        raise InvalidError(f"{name[:50].replace(chr(0), '')} has characters that can't be meant")


@cache
def _lists(form: Any) -> frozenset[str]:
    """Names of the fields that hold lists."""
    hints = typing.get_type_hints(form)
    return frozenset(
        name
        for name, hint in hints.items()
        if list in {typing.get_origin(part) for part in (hint, *typing.get_args(hint))}
    )


def _convert(values: dict[str, Any], form: type[T]) -> T:
    try:
        return msgspec.convert(values, form, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidError(f"the parameters are wrong: {error}") from error
