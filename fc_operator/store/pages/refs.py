"""How people name things: a uuid, a number or a name, in one word."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

_DIGITS_MAX = 18
"""Fits a bigint."""


class Ref(NamedTuple):
    """One word, in every way it can be meant; a name that looks like a uuid is still a name."""

    name: str
    number: int | None
    id: UUID | None


def parse(word: str) -> Ref:
    """What ``word`` may mean."""
    number = int(word) if word.isascii() and word.isdigit() and len(word) <= _DIGITS_MAX else None
    return Ref(word, number, _uuid(word))


def _uuid(word: str) -> UUID | None:
    try:
        return UUID(word) if len(word) == 36 else None
    except ValueError:
        return None
