"""What would have to change so that recorded objects become the desired ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, TypeVar

from fc_operator.model import desired as nouns
from fc_operator.model.desired import Desired
from fc_operator.model.resources import Key

T = TypeVar("T")

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
        case nouns.DesiredProject():
            return replace(
                declared,
                webhooks=_sorted(declared.webhooks, "forge"),
                notifications=_sorted(declared.notifications, "type", "name"),
                channels=_sorted(declared.channels, "name"),
                members=_sorted(_one_per_user(declared.members), "user"),
            )
        case nouns.DesiredJobset():
            return replace(declared, inputs=_sorted(declared.inputs, "name"))
        case nouns.DesiredConfigRepository():
            return replace(declared, webhooks=_sorted(declared.webhooks, "forge"))
        case _:
            return declared


def _sorted(parts: tuple[T, ...], *names: str) -> tuple[T, ...]:
    if len(parts) < 2:
        return parts
    return tuple(sorted(parts, key=lambda part: tuple(getattr(part, name) for name in names)))


def _one_per_user(members: tuple[nouns.MemberSpec, ...]) -> tuple[nouns.MemberSpec, ...]:
    """User names are the same in any case; of several entries the last one counts."""
    by_name = {each.user.lower(): replace(each, user=each.user.lower()) for each in members}
    return tuple(by_name.values())


def order_of(key: Key) -> tuple[int, str]:
    """Where an object stands among others: what it needs comes before it."""
    return nouns.KINDS.index(key[0]), key[1]


def diff(recorded: Mapping[Key, Desired], wanted: Mapping[Key, Desired]) -> tuple[Change, ...]:
    """The changes that make ``recorded`` into ``wanted``, needed objects first."""
    changes = []
    for key in sorted(recorded.keys() | wanted.keys(), key=order_of):
        before, after = recorded.get(key), wanted.get(key)
        before = None if before is None else normal(before)
        after = None if after is None else normal(after)
        if before != after:
            changes.append(Change(key=key, before=before, after=after))
    return tuple(changes)


def patch(recorded: Mapping[Key, Desired], changes: tuple[Change, ...]) -> dict[Key, Desired]:
    """``recorded`` after ``changes``: what applying them to the tables comes to."""
    result = {key: normal(each) for key, each in recorded.items()}
    for change in changes:
        if change.after is None:
            result.pop(change.key, None)
        else:
            result[change.key] = change.after
    return result
