"""Declarations as they are kept: who declared what, who owns it, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from fc_operator.model.conditions import Condition
from fc_operator.model.desired import Desired, Kind
from fc_operator.model.sources import Source

Key = tuple[Kind, str]
"""Kind and identity; one object in the whole installation."""
Place = tuple[Kind, str, str]
"""Kind, namespace and ``metadata.name``; one declaration of a source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """A row of ``managed_resources``: one declaration by one source."""

    id: UUID
    source: Source
    kind: Kind
    namespace: str
    name: str
    identity: str
    owns: bool
    """Whether it is the one owner of its identity."""
    object_id: UUID | None = None
    """The row that it stands for; None while it waits or is refused."""
    path: str = ""
    line: int = 0
    uid: str | None = None
    revision: str = ""
    """The revision that last changed this declaration."""
    spec_hash: str = ""
    generation: int = 1
    observed_generation: int = -1
    last_handled_request: str | None = None
    conditions: tuple[Condition, ...] = ()
    pruning_since: datetime | None = None
    spec: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """None where it was not read; its hash says whether it is another."""

    @property
    def key(self) -> Key:
        """The object that it claims."""
        return self.kind, self.identity

    @property
    def place(self) -> Place:
        """What its source calls it."""
        return self.kind, self.namespace, self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """An object as its rows have it."""

    id: UUID
    declared: Desired
    namespace: str | None = None
    """Where its secrets are; None for kinds whose rows do not say."""
    deleting: bool = False
    """Whether its declaration went; nothing is scheduled for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRow:
    """A row of ``webhook_configs`` with its secret, still encrypted."""

    id: UUID
    parent_id: UUID
    """Its project or config repository."""
    forge: str
    secret_name: str
    secret_key: str
    ciphertext: bytes | None = field(repr=False)
    """None while the secret is missing: every delivery is refused then."""
    enabled: bool = True
