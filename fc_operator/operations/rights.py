"""What a key may declare that is no administrator's: projects of its own, and nothing that opens
what belongs to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fc_operator.access.principals import Principal
from fc_operator.errors import ForbiddenError
from fc_operator.model.desired import JOBSET, PROJECT, Declaration, DesiredJobset
from fc_operator.model.ids import ProjectId
from fc_operator.model.sources import Source
from fc_operator.model.statuses import Role
from fc_operator.reconciler.secrets import references
from fc_operator.store import managed_resources
from fc_operator.store.database import Connection
from fc_operator.store.managed_resources import ProjectOwner

_KINDS = frozenset({PROJECT, JOBSET})
_ADDING = frozenset({"maintainer", "admin"})
"""Members of these roles may add jobsets to a project that somebody else declares."""


async def check(
    connection: Connection,
    principal: Principal,
    source: Source,
    declarations: Iterable[Declaration],
) -> None:
    """Return if the key may declare all of it. Call it in the transaction that writes it.

    Raises:
        ForbiddenError: it may not; the message names the first that is too much.
    """
    if principal.role is Role.ADMIN:
        return
    told = tuple(declarations)
    await managed_resources.lock(connection)  # so that it still is so when it is written
    names = {project_of(each) for each in told if each.kind in _KINDS}
    owners = {
        each.name: each
        for each in await managed_resources.list_project_owners(connection, sorted(names))
    }
    own = {each.identity for each in told if each.kind == PROJECT}
    for each in told:
        problem = _problem(each, owners, own, source, principal.memberships)
        if problem:
            raise ForbiddenError(
                f"a key with the role {principal.role} may not declare {each.kind} "
                f"{each.identity}: {problem}",
                hint="only a key of the role admin may",
            )


def project_of(declaration: Declaration) -> str:
    """The project that a declaration is about."""
    declared = declaration.desired
    return declared.project if isinstance(declared, DesiredJobset) else declaration.identity


def _problem(
    declaration: Declaration,
    owners: Mapping[str, ProjectOwner],
    own: set[str],
    source: Source,
    memberships: Mapping[ProjectId, str],
) -> str:
    if declaration.kind not in _KINDS:
        return "it is the installation's"
    for _, field in references(declaration):
        # A secret says nowhere whom it is for: a project could send it to any host.
        return f"{field} refers to a secret"
    owner = owners.get(project_of(declaration))
    if declaration.kind == PROJECT:
        # One with another owner is refused by name, and says whose it is.
        return "it has a history and no owner" if owner and owner.source is None else ""
    if owner is None:
        return "" if project_of(declaration) in own else "there is no such project"
    if owner.source == source or memberships.get(owner.id) in _ADDING:
        return ""
    # With its credentials and its shares, and perhaps into a private one.
    return f"the project {owner.name} is not its own"
