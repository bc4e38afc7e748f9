"""The one ``authorize``: a table of what each role may do, and nothing else anywhere.

What is in no row is forbidden. Who may not see a private project is told that it does not exist;
that is done by the ``Reader`` of every query, before ``authorize`` is asked.
"""

from __future__ import annotations

from enum import StrEnum

from fc_operator.access.principals import Principal
from fc_operator.errors import ForbiddenError, UnauthenticatedError
from fc_operator.model.ids import ProjectId
from fc_operator.model.readers import Reader
from fc_operator.model.statuses import Role


class Action(StrEnum):
    """What a route does; each route declares one."""

    PUBLIC = "public"
    """Open to everybody: health, documents, schemas."""
    SIGNED = "signed"
    """A forge's webhook, which proves itself by its signature."""
    CACHE = "cache"
    """The binary cache, which asks by itself: of Nix come passwords, of agents the tokens of tasks,
    and each path has its own readers."""
    TASK = "task"
    """An agent's own task, which it proves to have by the token of its phase."""
    READ = "read"
    """Projects and all that hangs on them."""
    INSPECT = "inspect"
    """The installation itself: builders, config repositories, declared resources."""
    PLAN = "plan"
    """Ask what manifests would change."""
    APPLY = "apply"
    EVALUATE = "evaluate"
    RESTART = "restart"
    CANCEL = "cancel"
    BUMP = "bump"
    KEEP = "keep"
    SYNC = "sync"
    BUILDERS = "builders"
    """Have builders looked at, and say whose host keys are trusted."""
    KEYS = "keys"
    """Make, list and revoke API keys."""


_ANYBODY = frozenset({Action.PUBLIC, Action.SIGNED, Action.CACHE, Action.TASK})
_ANY_KEY = _ANYBODY | {Action.READ, Action.INSPECT, Action.PLAN}
_MEMBER = frozenset({Action.EVALUATE, Action.RESTART, Action.CANCEL})
_MAINTAINER = _MEMBER | {Action.BUMP, Action.KEEP}

BY_ROLE: dict[Role, frozenset[Action]] = {
    Role.ADMIN: frozenset(Action),
    Role.CREATE_PROJECTS: _ANY_KEY | {Action.APPLY},
    Role.RESTART_JOBS: _ANY_KEY | {Action.RESTART},
    Role.CANCEL_BUILD: _ANY_KEY | {Action.CANCEL},
    Role.BUMP_TO_FRONT: _ANY_KEY | {Action.BUMP},
    Role.EVAL_JOBSET: _ANY_KEY | {Action.EVALUATE},
    Role.READ_ONLY: _ANY_KEY,
}
"""What a key may do in every project that it can read."""

BY_MEMBERSHIP: dict[str, frozenset[Action]] = {
    "member": _MEMBER,
    "maintainer": _MAINTAINER,
    "admin": _MAINTAINER,
}
"""What its user may do besides, in the projects of which they are a member."""


def may(principal: Principal, action: Action, project: ProjectId | None = None) -> bool:
    """Whether ``principal`` may do ``action``, in ``project`` where it is about one."""
    if action in _ANYBODY:
        return True
    if principal.role is None:
        return (action is Action.READ and principal.may_read) or (
            action is Action.INSPECT and principal.may_inspect
        )
    if action in BY_ROLE[principal.role]:
        return True
    if project is None:
        return False
    return action in BY_MEMBERSHIP.get(principal.memberships.get(project, ""), frozenset())


def authorize(principal: Principal, action: Action, project: ProjectId | None = None) -> None:
    """Return if ``may``.

    Raises:
        UnauthenticatedError: a key is needed.
        ForbiddenError: the key does not allow it.
    """
    if may(principal, action, project):
        return
    if principal.is_anonymous:
        raise UnauthenticatedError(
            "this needs an API key",
            hint="send `Authorization: Bearer fc_…`; `fc key create` makes a key",
        )
    raise ForbiddenError(
        f"a key with the role {principal.role} may not {action}",
        hint="an administrator can make a key with another role",
    )


def reader_of(principal: Principal) -> Reader:
    """Whose private projects the principal sees."""
    if principal.role is Role.ADMIN:
        return Reader(all_projects=True)
    return Reader(projects=tuple(principal.memberships))
