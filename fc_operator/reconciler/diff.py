"""What would have to change so that recorded objects become the desired ones. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Literal

from fc_operator.model import desired as nouns
from fc_operator.model.desired import Desired
from fc_operator.model.resources import Key

_ORDER = {kind: index for index, kind in enumerate(nouns.KINDS)}

Action = Literal["create", "update", "delete"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One object that differs."""

    key: Key
    before: Desired | None
    after: Desired | None

    @property
    def action(self) -> Action:
        """What happens to the object."""
        if self.before is None:
            return "create"
        return "delete" if self.after is None else "update"

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that differ, of an update."""
        if self.before is None or self.after is None:
            return ()
        return tuple(
            each.name
            for each in fields(self.after)
            if getattr(self.before, each.name) != getattr(self.after, each.name)
        )


def normal(declared: Desired) -> Desired:
    """The same with its named parts in the order of their names: their order means nothing."""
    match declared:
        case nouns.DesiredJobset():
            parts: dict[str, Any] = {"inputs": _sorted(declared.inputs, _name)}
        case nouns.DesiredProject():
            parts = {
                "webhooks": _sorted(declared.webhooks, _forge),
                "notifications": _sorted(declared.notifications, _type_and_name),
                "channels": _sorted(declared.channels, _name),
                "members": _sorted(_one_per_user(declared.members), _user),
            }
        case nouns.DesiredConfigRepository():
            parts = {"webhooks": _sorted(declared.webhooks, _forge)}
        case _:
            parts = {}
    changed = {name: part for name, part in parts.items() if part != getattr(declared, name)}
    # Most are in order already, and thousands are compared at every sync.
    return replace(declared, **changed) if changed else declared


_name, _forge, _user = attrgetter("name"), attrgetter("forge"), attrgetter("user")
_type_and_name = attrgetter("type", "name")


def _sorted(parts: tuple[Any, ...], key: Callable[[Any], Any]) -> tuple[Any, ...]:
    return parts if len(parts) < 2 else tuple(sorted(parts, key=key))


def _one_per_user(members: tuple[nouns.MemberSpec, ...]) -> tuple[nouns.MemberSpec, ...]:
    """User names are the same in any case; of several entries the last one counts."""
    if not members:
        return members
    by_name = {each.user.lower(): replace(each, user=each.user.lower()) for each in members}
    return tuple(by_name.values())


def order_of(key: Key) -> tuple[int, str]:
    """Where an object stands among others: what it needs comes before it."""
    return _ORDER[key[0]], key[1]


def diff(recorded: Mapping[Key, Desired], wanted: Mapping[Key, Desired]) -> tuple[Change, ...]:
    """The changes that make ``recorded`` into ``wanted``, needed objects first."""
    changes = []
    for key in recorded.keys() | wanted.keys():
        before, after = recorded.get(key), wanted.get(key)
        if before == after:
            continue
        before = None if before is None else normal(before)
        after = None if after is None else normal(after)
        if before != after:
            changes.append(Change(key=key, before=before, after=after))
    return tuple(sorted(changes, key=lambda change: order_of(change.key)))


def patch(recorded: Mapping[Key, Desired], changes: tuple[Change, ...]) -> dict[Key, Desired]:
    """``recorded`` after ``changes``: what applying them to the tables comes to."""
    result = {key: normal(each) for key, each in recorded.items()}
    for change in changes:
        if change.after is None:
            result.pop(change.key, None)
        else:
            result[change.key] = change.after
    return result
