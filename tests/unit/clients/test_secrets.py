import os

import pytest

from fc_operator.clients.secrets import BYTES_MAX, DirectorySecrets
from fc_operator.errors import SecretError


@pytest.fixture
def folder(tmp_path):
    secret = tmp_path / "secrets" / "demo-git"
    secret.mkdir(parents=True)
    (secret / "username").write_text("ada\n")
    (secret / "password").write_bytes(b"s3cret")
    return tmp_path / "secrets"


@pytest.fixture
def secrets(folder):
    return DirectorySecrets(folder)


async def test_a_key_is_read_without_its_last_newline(secrets):
    assert await secrets.read("default", "demo-git", "username") == b"ada"
    assert await secrets.read("any", "demo-git", "password") == b"s3cret"
    assert list(await secrets.values("default", "demo-git")) == ["password", "username"]


async def test_a_mounted_kubernetes_secret_is_read_through_its_links(secrets, folder):
    mounted = folder / "mounted"
    (mounted / "..2026_01_01").mkdir(parents=True)
    (mounted / "..2026_01_01" / "token").write_text("one")
    (mounted / "..data").symlink_to("..2026_01_01")
    (mounted / "token").symlink_to("..data/token")
    assert await secrets.read("default", "mounted", "token") == b"one"
    assert await secrets.values("default", "mounted") == {"token": b"one"}
    (mounted / "..2026_01_02").mkdir()
    (mounted / "..2026_01_02" / "token").write_text("two")
    (mounted / "..new").symlink_to("..2026_01_02")
    (mounted / "..new").replace(mounted / "..data")
    assert await secrets.read("default", "mounted", "token") == b"two"


async def test_what_is_missing_says_where_it_would_be(secrets, folder):
    with pytest.raises(SecretError, match="no secret nope") as caught:
        await secrets.read("default", "nope", "key")
    assert str(folder / "nope") in caught.value.hint
    with pytest.raises(SecretError, match="no key nope"):
        await secrets.read("default", "demo-git", "nope")
    with pytest.raises(SecretError):
        await secrets.values("default", "nope")


NAMES = [
    "",
    ".",
    "..",
    "../demo-git",
    "/etc",
    "demo-git/../x",
    "a/b",
    "A",
    "x" * 254,
    "a\0b",
    "a b",
]
KEYS = ["", ".", "..", "../x", "/etc/passwd", "a/b", "..data", "a\0b", "a b", "x" * 254]


@pytest.mark.parametrize("name", NAMES)
async def test_s08_path_traversal_names_that_are_none_are_refused(secrets, name):
    with pytest.raises(SecretError):
        await secrets.read("default", name, "username")
    with pytest.raises(SecretError):
        await secrets.values("default", name)


@pytest.mark.parametrize("key", KEYS)
async def test_s08_path_traversal_keys_that_are_none_are_refused(secrets, key):
    with pytest.raises(SecretError):
        await secrets.read("default", "demo-git", key)


async def test_s08_path_traversal_a_link_out_of_the_secret_is_refused(secrets, folder, tmp_path):
    (tmp_path / "outside").write_text("canary")
    (folder / "demo-git" / "link").symlink_to(tmp_path / "outside")
    (folder / "other").mkdir()
    (folder / "other" / "value").write_text("canary")
    (folder / "demo-git" / "sibling").symlink_to("../other/value")
    (folder / "demo-git" / "self").symlink_to("/proc/self/environ")
    os.mkfifo(folder / "demo-git" / "pipe")
    for key in ("link", "sibling", "self", "pipe"):
        with pytest.raises(SecretError) as caught:
            await secrets.read("default", "demo-git", key)
        assert "canary" not in str(caught.value)


async def test_s12_unbounded_input_a_value_of_any_size_is_bounded(secrets, folder):
    (folder / "demo-git" / "most").write_bytes(b"x" * BYTES_MAX)
    (folder / "demo-git" / "more").write_bytes(b"x" * (BYTES_MAX + 1))
    assert len(await secrets.read("default", "demo-git", "most")) == BYTES_MAX
    with pytest.raises(SecretError):
        await secrets.read("default", "demo-git", "more")
