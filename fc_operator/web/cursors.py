"""Keyset cursors: where a page ended, as an opaque word in a URL."""

from __future__ import annotations

import base64
import binascii
from typing import Any, TypeVar

import msgspec

from fc_operator.errors import InvalidError

T = TypeVar("T")
_LENGTH_MAX = 2_000


def encode(*keys: Any) -> str:
    """The cursor after the row with these sort keys."""
    return base64.urlsafe_b64encode(msgspec.json.encode(keys)).decode().rstrip("=")


def decode(cursor: str | None, form: type[T]) -> T | None:
    """The sort keys of a cursor, or None where there is none; ``form`` is their tuple's type.

    Raises:
        InvalidError: it is not one of ours, or of another list.
    """
    if not cursor:
        return None
    try:
        if len(cursor) > _LENGTH_MAX:
            raise InvalidError("the cursor is too long")
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(data, type=form)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise InvalidError(
            "the cursor is not one of this list", hint="pass `next` of the page before as it is"
        ) from error
