"""A builder gets work of everybody, so in a cluster not each namespace may bring one in."""

import pytest

from fc_operator.settings import ConfigSettings

BUILDER = """apiVersion: fc-operator.dev/v1alpha1
kind: RemoteBuilder
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  sshUri: ssh://nix@builder-1.example.org
  systems: [x86_64-linux]
  sshKeySecretRef: {{name: key}}
  publicHostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJL0mGmTnZ1m1Zc8nX9mTq0Yy0mJrQ0n1S8QbY5e6r1K
"""


def builder(name, namespace):
    return BUILDER.format(name=name, namespace=namespace)


async def names(door):
    rows = await door.rows("SELECT name FROM remote_builders WHERE deleting_at IS NULL ORDER BY 1")
    return [name for (name,) in rows]


@pytest.fixture(autouse=True)
def _key(door):
    door.secret("key", identity="x")


@pytest.mark.parametrize("kind", ["ConfigRepository", "Kubernetes", "Apply"])
async def test_s09_confused_deputy_through_no_door_does_a_team_bring_a_builder_in(door, kind):
    door.config = ConfigSettings(builder_namespaces=("ci",))
    await door.sync(builder("ours", "ci"), builder("theirs", "team-a"), kind=kind)
    assert await names(door) == ["ours"]
    assert (await door.ready("ours"))[:2] == ("True", "Reconciled")
    status, reason, message = await door.ready("theirs")
    assert (status, reason) == ("False", "NotPermitted")
    assert message == "objects of the namespace team-a may not bring builders in"


async def test_where_nothing_is_said_all_may(door):
    await door.sync(builder("a", "default"), builder("b", "team-a"))
    assert await names(door) == ["a", "b"]


async def test_a_name_that_was_refused_is_still_the_administrators_to_take(door):
    door.config = ConfigSettings(builder_namespaces=("ci",))
    await door.sync(builder("big", "team-a"), source="team-a")
    await door.sync(builder("big", "ci"), source="admins")
    assert await names(door) == ["big"]
    assert (await door.ready("big", source="admins"))[1] == "Reconciled"
    assert (await door.ready("big", source="team-a"))[1] == "NotPermitted"


async def test_it_comes_into_force_once_it_is_permitted(door):
    door.config = ConfigSettings(builder_namespaces=("ci",))
    await door.sync(builder("big", "team-a"))
    assert await names(door) == []
    door.config = ConfigSettings(builder_namespaces=("ci", "team-a"))
    await door.sync(builder("big", "team-a"))
    assert await names(door) == ["big"]
    assert (await door.ready("big"))[1] == "Reconciled"
