"""What a forge tells about a push, in one form for all forges."""

from __future__ import annotations

from dataclasses import dataclass

_BRANCH, _TAG = "refs/heads/", "refs/tags/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """A branch or a tag moved. Only a hint: what it points at now is asked of the forge."""

    ref: str
    """``refs/heads/…`` or ``refs/tags/…``."""
    default_branch: str | None
    """What the payload calls the repository's default branch."""
    is_deletion: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What a declaration may call this ref."""
        for prefix in (_BRANCH, _TAG):
            if self.ref.startswith(prefix):
                return (self.ref, self.ref.removeprefix(prefix))
        return (self.ref,)

    @property
    def is_default(self) -> bool:
        """Whether it moves the default branch."""
        return self.default_branch is not None and self.ref == _BRANCH + self.default_branch

    def moves(self, branch: str | None) -> bool:
        """Whether who follows ``branch`` (None: the default one) has to look."""
        return self.is_default if branch is None else branch in self.names
