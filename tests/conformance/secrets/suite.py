"""What every keeper of secrets must do; run over a folder here and over Kubernetes in its suite.

Whoever takes these tests in gives them the fixture ``keeper``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import pytest

from fc_operator.clients.secrets import Secrets
from fc_operator.errors import SecretError


class Keeper(Protocol):
    """An implementation, and a hand that changes what it keeps, as people do."""

    secrets: Secrets
    namespace: str

    async def put(self, name: str, values: Mapping[str, bytes]) -> None:
        """Make a secret, or turn it to other values, all at once."""

    async def remove(self, name: str) -> None:
        """Take it away."""


NAMES = ["", ".", "..", "../git", "/etc", "git/../x", "a/b", "A", "x" * 254, "a\0b", "a b", "a?b"]
KEYS = ["", ".", "..", "../x", "/etc/passwd", "a/b", "..data", "a\0b", "a b", "x" * 254]
BINARY = bytes(range(256))


async def test_a_value_comes_as_it_is_but_for_the_newline_of_an_editor(keeper):
    await keeper.put("git", {"username": b"ada\n", "password": b"s3cret", "two": b"a\r\n\n"})
    assert await keeper.secrets.read(keeper.namespace, "git", "username") == b"ada"
    assert await keeper.secrets.read(keeper.namespace, "git", "password") == b"s3cret"
    assert await keeper.secrets.read(keeper.namespace, "git", "two") == b"a\r\n"


async def test_a_value_may_be_any_bytes_and_empty(keeper):
    await keeper.put("git", {"binary": BINARY, "nothing": b""})
    assert await keeper.secrets.read(keeper.namespace, "git", "binary") == BINARY
    assert await keeper.secrets.read(keeper.namespace, "git", "nothing") == b""


async def test_all_values_come_together_in_the_order_of_their_keys(keeper):
    values = {"b": b"2", "a": b"1", "A.pem": b"3", "_x-y": b"4"}
    await keeper.put("git", values)
    found = await keeper.secrets.values(keeper.namespace, "git")
    assert dict(found) == values
    assert list(found) == sorted(values)


async def test_a_secret_without_keys_is_there(keeper):
    await keeper.put("git", {})
    assert await keeper.secrets.values(keeper.namespace, "git") == {}
    with pytest.raises(SecretError, match="no key a"):
        await keeper.secrets.read(keeper.namespace, "git", "a")


async def test_what_is_missing_is_named_and_nothing_is_told_of_the_rest(keeper):
    await keeper.put("git", {"password": b"canary"})
    with pytest.raises(SecretError, match="no secret nope") as missing:
        await keeper.secrets.read(keeper.namespace, "nope", "password")
    assert missing.value.hint
    with pytest.raises(SecretError, match="no secret nope"):
        await keeper.secrets.values(keeper.namespace, "nope")
    with pytest.raises(SecretError, match="secret git has no key nope") as missing:
        await keeper.secrets.read(keeper.namespace, "git", "nope")
    assert "canary" not in f"{missing.value} {missing.value!r} {keeper.secrets!r}"


async def test_a_rotation_is_seen_at_the_next_look(keeper):
    await keeper.put("git", {"password": b"old", "gone": b"x"})
    assert await keeper.secrets.read(keeper.namespace, "git", "password") == b"old"
    await keeper.put("git", {"password": b"new"})
    assert await keeper.secrets.read(keeper.namespace, "git", "password") == b"new"
    assert await keeper.secrets.values(keeper.namespace, "git") == {"password": b"new"}
    await keeper.remove("git")
    with pytest.raises(SecretError, match="no secret git"):
        await keeper.secrets.read(keeper.namespace, "git", "password")
    await keeper.put("git", {"password": b"newer"})
    assert await keeper.secrets.read(keeper.namespace, "git", "password") == b"newer"


async def test_values_that_belong_together_never_come_from_two_rotations(keeper):
    turns = 40
    await keeper.put("git", {"username": b"0", "password": b"0"})

    async def rotate() -> None:
        for turn in range(1, turns + 1):
            await keeper.put("git", {"username": b"%d" % turn, "password": b"%d" % turn})

    rotation = asyncio.create_task(rotate())
    seen = set()
    while not rotation.done():
        found = await keeper.secrets.values(keeper.namespace, "git")
        assert found["username"] == found["password"]
        seen.add(found["username"])
    await rotation
    assert len(seen) > 1, "it was read while it was turned"


async def test_many_at_once_get_what_they_asked_for(keeper):
    await keeper.put("git", {f"key-{nr}": b"%d" % nr for nr in range(40)})
    keys = [f"key-{nr}" for nr in range(40)]
    found = await asyncio.gather(
        *(keeper.secrets.read(keeper.namespace, "git", key) for key in keys)
    )
    assert found == [b"%d" % nr for nr in range(40)]


async def test_s12_unbounded_input_a_large_value_is_read_and_too_many_keys_are_not(keeper):
    large = b"x" * 700_000
    await keeper.put("git", {"large": large})
    assert await keeper.secrets.read(keeper.namespace, "git", "large") == large
    await keeper.put("git", {f"key-{nr}": b"" for nr in range(300)})
    with pytest.raises(SecretError, match="more than 256 keys"):
        await keeper.secrets.values(keeper.namespace, "git")


@pytest.mark.parametrize("name", NAMES)
async def test_s08_path_traversal_names_that_are_none_are_refused(keeper, name):
    await keeper.put("git", {"password": b"canary"})
    with pytest.raises(SecretError, match="is no name of a secret"):
        await keeper.secrets.read(keeper.namespace, name, "password")
    with pytest.raises(SecretError, match="is no name of a secret"):
        await keeper.secrets.values(keeper.namespace, name)


@pytest.mark.parametrize("key", KEYS)
async def test_s08_path_traversal_keys_that_are_none_are_refused(keeper, key):
    await keeper.put("git", {"password": b"canary"})
    with pytest.raises(SecretError, match="is no key of a secret"):
        await keeper.secrets.read(keeper.namespace, "git", key)
