"""Signing keys in Nix's format, and signatures of others."""

from __future__ import annotations

import base64

import pytest

from fc_operator.cache import signing
from fc_operator.errors import SettingsError
from fc_operator.kit.ciphers import Cipher, Ed25519Key

KEY = signing.SigningKey("ci.example.org-1", Ed25519Key(b"1" * 32))
OTHER = signing.SigningKey("ci.example.org-2", Ed25519Key(b"2" * 32))


def test_a_key_is_read_back_as_it_is_written():
    again = signing.parse_secret_key(f"{KEY.secret}\n")
    assert (again.name, again.public) == (KEY.name, KEY.public)
    assert again.sign(b"x") == KEY.sign(b"x")
    assert KEY.secret.partition(":")[2] not in repr(KEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        f"{KEY.public}",
        f":{KEY.secret.partition(':')[2]}",
        f"with space:{KEY.secret.partition(':')[2]}",
        "name:!!!",
        f"name:{base64.b64encode(b'1' * 64).decode()}",  # the halves of two keys
    ],
)
def test_what_is_no_key_is_told_without_repeating_it(text):
    with pytest.raises(SettingsError) as raised:
        signing.parse_secret_key(text)
    digits = text.partition(":")[2]
    assert not digits or digits not in str(raised.value)


def test_keys_of_settings_and_files_and_none_at_all(tmp_path):
    file = tmp_path / "key"
    file.write_text(f"{OTHER.secret}\n")
    keys = signing.load([KEY.secret], [str(file)], seed=b"s" * 32)
    assert [key.name for key in keys] == [KEY.name, OTHER.name]
    seed = Cipher(b"k" * 32).derive("cache/signing/1")
    (own,) = signing.load([], [], seed=seed)
    assert own.name.startswith("fc-")
    assert own.public == signing.load([], [], seed=seed)[0].public, "the same in every process"
    with pytest.raises(SettingsError, match="same name"):
        signing.load([KEY.secret, KEY.secret], [], seed=seed)
    with pytest.raises(SettingsError, match="can't be read"):
        signing.load([], [str(tmp_path / "none")], seed=seed)


def test_only_signatures_of_trusted_keys_over_the_same_words_count():
    trusted = signing.TrustedKeys([KEY.public])
    good = KEY.sign(b"words")
    forged = f"{KEY.name}:{OTHER.sign(b'words').partition(':')[2]}"
    all_ = [good, good, OTHER.sign(b"words"), forged, KEY.sign(b"others"), f"{KEY.name}:!", "x"]
    assert trusted.good(all_, b"words") == (good,)
    with pytest.raises(SettingsError):
        signing.TrustedKeys(["no key"])
