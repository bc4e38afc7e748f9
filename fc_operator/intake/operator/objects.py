"""What we remember of each object of a cluster: enough to tell whether anything changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fc_operator.model import desired as nouns
from fc_operator.model.desired import Kind
from fc_operator.model.resources import Place

FINALIZER: Final = "fc-operator.dev/finalizer"
"""Keeps a deleted object until its declaration is known to be gone."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What of an object asks for something; two equal ones ask for the same."""

    uid: str
    generation: int
    requested_at: str | None
    deleting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """An object as the API server last told of it, without its spec."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    version: str
    """``resourceVersion``; grows."""
    generation: int
    requested_at: str | None
    deleting: bool
    finalizers: tuple[str, ...]
    created_at: str = ""
    """As the API server writes it: sorts by time."""
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> Place:
        """Where it is declared."""
        return self.kind, self.namespace, self.name

    @property
    def mark(self) -> Mark:
        """What it asks for."""
        return Mark(self.uid, self.generation, self.requested_at, self.deleting)

    @property
    def held(self) -> bool:
        """Whether it waits for us before it can go."""
        return FINALIZER in self.finalizers


def seen(kind: Kind, body: Mapping[str, Any]) -> Seen:
    """From an object as JSON."""
    metadata = body["metadata"]
    annotations = metadata.get("annotations") or {}
    return Seen(
        kind=kind,
        namespace=metadata.get("namespace") or nouns.DEFAULT_NAMESPACE,
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        version=metadata.get("resourceVersion") or "",
        generation=metadata.get("generation") or 1,
        requested_at=annotations.get(nouns.REQUESTED_AT),
        deleting=metadata.get("deletionTimestamp") is not None,
        finalizers=tuple(metadata.get("finalizers") or ()),
        created_at=metadata.get("creationTimestamp") or "",
        status=body.get("status") or {},
    )


class Mirror:
    """The objects of the cluster as last seen, by place; the newest view of each stays."""

    def __init__(self) -> None:
        self._objects: dict[Place, Seen] = {}
        self._gone: dict[Place, str] = {}
        """Versions at which objects ended, so that no older view brings one back."""
        self._gone_before: dict[Place, str] = {}

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, place: Place) -> Seen | None:
        """What is there, as far as we know."""
        return self._objects.get(place)

    def places(self) -> Iterable[Place]:
        """All places where something is."""
        return self._objects.keys()

    def put(self, new: Seen) -> bool:
        """Remember a view; False if a newer one is here already, or the object has ended."""
        old = self._objects.get(new.place)
        if old is not None and _is_older(new.version, old.version):
            return False
        ended = self._gone.get(new.place) or self._gone_before.get(new.place)
        if ended is not None and not _is_older(ended, new.version):
            return False
        self._objects[new.place] = new
        return True

    def drop(self, place: Place, uid: str = "", version: str = "") -> bool:
        """Forget an object that ended, at ``version`` if it is known; not one that took its place,
        if ``uid`` says whose end it was.
        """
        old = self._objects.get(place)
        if old is None or (uid and old.uid != uid):
            return False
        self._gone[place] = version or old.version
        del self._objects[place]
        return True

    def forget_ends(self) -> None:
        """Remember the ends of objects no longer than for two calls of this."""
        self._gone, self._gone_before = {}, self._gone


def _is_older(one: str, other: str) -> bool:
    """Versions of one resource are numbers that grow, for a recreated object too."""
    return one.isdecimal() and other.isdecimal() and int(one) < int(other)
