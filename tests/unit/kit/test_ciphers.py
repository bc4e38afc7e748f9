import base64
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.kit import ciphers
from fc_operator.kit.ciphers import Cipher, CipherError

KEY = bytes(range(32))


@given(st.binary(max_size=200), st.text(max_size=20))
def test_what_was_encrypted_comes_back_in_its_context(plain, context):
    cipher = Cipher(KEY)
    assert cipher.decrypt(cipher.encrypt(plain, context=context), context=context) == plain


def test_equal_values_look_different():
    cipher = Cipher(KEY)
    assert cipher.encrypt(b"x", context="a") != cipher.encrypt(b"x", context="a")


def test_another_key_context_or_any_changed_byte_is_refused():
    sealed = Cipher(KEY).encrypt(b"value", context="webhook_configs/1")
    with pytest.raises(CipherError):
        Cipher(bytes(32)).decrypt(sealed, context="webhook_configs/1")
    with pytest.raises(CipherError):
        Cipher(KEY).decrypt(sealed, context="webhook_configs/2")
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(CipherError):
            Cipher(KEY).decrypt(bytes(changed), context="webhook_configs/1")
    for cut in range(len(sealed)):
        with pytest.raises(CipherError):
            Cipher(KEY).decrypt(sealed[:cut], context="webhook_configs/1")


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_has_32_bytes(size):
    with pytest.raises(CipherError):
        Cipher(bytes(size))
    with pytest.raises(CipherError):
        ciphers.decode_key(base64.b64encode(bytes(size)).decode())


def test_a_key_is_made_once_also_by_many_at_once(tmp_path):
    path = tmp_path / "state" / "encryption.key"
    found = []
    barrier = threading.Barrier(16)

    def make():
        barrier.wait()
        found.append(ciphers.load_or_make_key(path))

    threads = [threading.Thread(target=make) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {ciphers.load_or_make_key(path)}
    assert len(found) == 16
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["encryption.key"]


def test_a_damaged_key_is_said_and_not_replaced(tmp_path):
    path = tmp_path / "key"
    path.write_text("garbage")
    with pytest.raises(CipherError):
        ciphers.load_or_make_key(path)
    assert path.read_text() == "garbage"
