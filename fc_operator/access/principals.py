"""Who asks: nobody in particular, or the holder of an API key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import UUID

from fc_operator.model.ids import ProjectId
from fc_operator.model.statuses import Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """What is known of who asks, for one request."""

    name: str
    """For the audit log and as the name of the source ``Apply``: the key's name."""
    role: Role | None = None
    """None without a key."""
    key_id: UUID | None = None
    memberships: Mapping[ProjectId, str] = field(default_factory=dict)
    """Projects of which the key's user is member, maintainer or admin."""
    may_read: bool = True
    """Without a key: whether reads are open at all."""
    may_inspect: bool = False
    """Without a key: whether the installation itself (builders, sources) is open too."""

    @property
    def is_anonymous(self) -> bool:
        """Whether it came without a key."""
        return self.role is None


def anonymous(*, may_read: bool, may_inspect: bool) -> Principal:
    """Who comes without a key."""
    return Principal(name="anonymous", may_read=may_read, may_inspect=may_inspect)
