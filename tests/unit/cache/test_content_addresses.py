"""Paths that name themselves: the same that Nix makes (values of Nix 2.8)."""

from __future__ import annotations

import base64
import hashlib

import pytest

from fc_operator.cache import content_addresses, hashes
from fc_operator.clients.registrations import nix32
from fc_operator.errors import InvalidError

STORE = "/nix/store"


def test_hashes_in_all_spellings_are_one():
    digest = hashlib.sha256(b"x").digest()
    for text in (
        f"sha256:{digest.hex()}",
        f"sha256:{nix32(digest)}",
        f"sha256-{base64.b64encode(digest).decode()}",
        f"sha256:{base64.b64encode(digest).decode()}",
    ):
        assert hashes.parse(text) == ("sha256", digest)
    for text in ("sha256", "sha256:", f"sha3:{digest.hex()}", f"sha256:{digest.hex()[1:]}",
                 "sha256:" + "e" * 52, "sha256:" + "z" * 52, f"sha256:{'g' * 64}"):  # fmt: skip
        with pytest.raises(InvalidError):
            hashes.parse(text)


NAR = "1xmr8jicvzszfzpz46g37mlpvbzjl2wpwvl2b05psipssyp1sm8h"
FLAT = "1r3v22qkypccqifzbww5lrn6hf1chi23m6zzkyvb8bvg457nxslq"
SHA1 = "kj2lgi6kqfap560mmnz4hw91732dbxgv"


@pytest.mark.parametrize(
    ("address", "path"),
    [
        (f"fixed:r:sha256:{NAR}", "lf590qsfmmmvi6g78dz6p0iilb60xvy2-e-hi"),
        (f"fixed:sha256:{FLAT}", "1q97m81yp13iahx8pxiiz3mpgqvycp4s-e-hi"),
        (f"fixed:r:sha1:{SHA1}", "wvmcylkic8l17fb4kxcmws844mpz009f-e-hi"),
    ],
)
def test_added_files_are_where_nix_puts_them(address, path):
    """``nix-store --add`` and ``--add-fixed`` of a file that says hi."""
    parsed = content_addresses.parse(address)
    assert content_addresses.path_of(parsed, "e-hi", (), store_dir=STORE) == f"{STORE}/{path}"


def test_a_text_with_a_reference_is_where_nix_puts_it():
    reference = "g76zcpqc540lrc8i6g7xy6ip0npn2hnp-a"
    content = f"see {STORE}/{reference}".encode()
    address = content_addresses.parse(f"text:sha256:{hashlib.sha256(content).hexdigest()}")
    found = content_addresses.path_of(address, "txt", (reference,), store_dir=STORE)
    assert found == f"{STORE}/cb8ghf059cz5nw2db3qhzvz8imkz24qh-txt"


@pytest.mark.parametrize("text", ["", "nar:sha256:x", "text:sha1:" + "0" * 40, "fixed:r:x"])
def test_what_is_no_content_address(text):
    with pytest.raises(InvalidError):
        content_addresses.parse(text)


def test_a_fixed_output_of_another_hash_has_no_references():
    address = content_addresses.parse("fixed:r:sha1:" + "0" * 40)
    assert content_addresses.path_of(address, "x", (), store_dir=STORE).startswith(STORE)
    with pytest.raises(InvalidError):
        content_addresses.path_of(address, "x", (f"{'a' * 32}-y",), store_dir=STORE)
