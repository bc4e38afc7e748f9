"""The whole table: each role by each action, in an own project, in another and in none."""

import itertools
import uuid

import pytest

from fc_operator.access.authorization import (
    BY_MEMBERSHIP,
    BY_ROLE,
    Action,
    authorize,
    may,
    reader_of,
)
from fc_operator.access.principals import Principal, anonymous
from fc_operator.errors import ForbiddenError, UnauthenticatedError
from fc_operator.model.statuses import Role

OWN, OTHER = uuid.uuid4(), uuid.uuid4()
OWN_PROOF = {Action.SIGNED, Action.CACHE, Action.TASK}
WRITES = set(Action) - OWN_PROOF - {Action.PUBLIC, Action.READ, Action.INSPECT, Action.PLAN}
GRANTED = {
    Role.ADMIN: WRITES,
    Role.CREATE_PROJECTS: {Action.APPLY},
    Role.RESTART_JOBS: {Action.RESTART},
    Role.CANCEL_BUILD: {Action.CANCEL},
    Role.BUMP_TO_FRONT: {Action.BUMP},
    Role.EVAL_JOBSET: {Action.EVALUATE},
    Role.READ_ONLY: set(),
}
MEMBERS = {
    "member": {Action.EVALUATE, Action.RESTART, Action.CANCEL},
    "maintainer": {Action.EVALUATE, Action.RESTART, Action.CANCEL, Action.BUMP, Action.KEEP},
    "admin": {Action.EVALUATE, Action.RESTART, Action.CANCEL, Action.BUMP, Action.KEEP},
}


def test_every_role_has_a_row():
    assert set(BY_ROLE) == set(Role) == set(GRANTED)


@pytest.mark.parametrize(("role", "action"), [*itertools.product(Role, Action)])
def test_c12_a_key_may_what_its_row_says_and_nothing_else(role, action):
    key = Principal(name="k", role=role)
    wanted = action not in WRITES or action in GRANTED[role]
    assert may(key, action) == may(key, action, OTHER) == wanted


@pytest.mark.parametrize(("member", "action"), [*itertools.product(BY_MEMBERSHIP, sorted(WRITES))])
def test_a_member_may_more_in_their_own_project_only(member, action):
    key = Principal(name="k", role=Role.READ_ONLY, memberships={OWN: member})
    assert may(key, action, OWN) == (action in MEMBERS[member])
    assert not may(key, action, OTHER)
    assert not may(key, action)


@pytest.mark.parametrize("action", Action)
def test_strangers_never_change_anything(action):
    for reads, inspects in itertools.product((True, False), repeat=2):
        stranger = anonymous(may_read=reads, may_inspect=inspects)
        wanted = (
            action in OWN_PROOF | {Action.PUBLIC}
            or (action is Action.READ and reads)
            or (action is Action.INSPECT and inspects)
        )
        assert may(stranger, action) == may(stranger, action, OWN) == wanted


def test_who_needs_a_key_is_told_apart_from_who_needs_another():
    with pytest.raises(UnauthenticatedError):
        authorize(anonymous(may_read=True, may_inspect=True), Action.CANCEL)
    with pytest.raises(ForbiddenError):
        authorize(Principal(name="k", role=Role.READ_ONLY), Action.CANCEL)


def test_only_administrators_and_members_see_private_projects():
    assert reader_of(Principal(name="k", role=Role.ADMIN)).all_projects
    member = Principal(name="k", role=Role.READ_ONLY, memberships={OWN: "member"})
    assert reader_of(member).projects == (OWN,)
    assert not reader_of(anonymous(may_read=True, may_inspect=True)).projects
