"""Lock files of flakes: what they may make Nix fetch."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.clients import git_urls
from fc_operator.errors import EvaluationError
from fc_operator.evaluator import locks


def check_url(url):
    git_urls.parse(url, schemes=("https", "ssh"), hosts=("git.lan:8443",))


def uris(*locked):
    nodes = {f"n{n}": {"locked": each, "original": {}} for n, each in enumerate(locked)}
    lock = {"version": 7, "root": "root", "nodes": {"root": {"inputs": {}}, **nodes}}
    return locks.allowed_uris(lock, check_url)


def git(url):
    return {"type": "git", "url": url, "rev": "a" * 40, "narHash": "sha256-x"}


def test_what_a_jobset_might_fetch_too_is_allowed_with_what_nix_makes_of_it():
    assert uris(git("https://e.org/team/x.git")) == (
        "https://e.org/team/x.git",
        "git+https://e.org/team/x.git",
        "https://e.org/team/",
        "git+https://e.org/team/",
    )
    assert uris({"type": "github", "owner": "NixOS", "repo": "nixpkgs", "rev": "a" * 40}) == (
        "github:NixOS/",
        "https://github.com/",
        "https://api.github.com/",
        "https://codeload.github.com/",
    )
    gitlab = {"type": "gitlab", "owner": "o", "repo": "r", "host": "git.lan:8443"}
    assert uris(gitlab) == ("gitlab:o/", "https://git.lan:8443/")
    tarball = {"type": "tarball", "url": "https://e.org/a/x.tar.gz?rev=1", "narHash": "y"}
    assert uris(tarball) == (
        "https://e.org/a/x.tar.gz?rev=1",
        "https://e.org/a/",
        "tarball+https://e.org/a/x.tar.gz?rev=1",
        "tarball+https://e.org/a/",
    )
    assert uris({"type": "path", "path": "./sub"}) == ()
    assert locks.allowed_uris(None, check_url) == ()


@pytest.mark.parametrize(
    "locked",
    [
        {"type": "path", "path": "/root", "narHash": "sha256-x"},
        git("file:///var/lib/secret"),
        git("/var/lib/secret"),
        git("ext::sh -c id"),
        git("https://user:password@e.org/x.git"),
        git("http://169.254.169.254/x.git"),
        git("https://127.0.0.1/x.git"),
        git("https://e.org/x.git https://e.org/"),
        {"type": "github", "owner": "o", "repo": "r", "host": "localhost"},
        {"type": "github", "owner": "o", "repo": "r", "host": "e.org/../x"},
        {"type": "github", "repo": "r"},
        {"type": "tarball", "url": "file:///etc"},
        {"type": "tarball", "url": "https://[/x"},
        {"type": "file", "url": "https://169.254.169.254/latest/meta-data"},
        {"type": "tarball", "url": "https://e.org@127.0.0.1/x"},
        {"type": "hg", "url": "https://e.org/x"},
        {"type": "indirect", "id": "nixpkgs"},
        {"url": "https://e.org/x"},
        {"type": ["git"]},
    ],
)
def test_cve_class_flake_lock_fetches_from_this_machine(locked):
    with pytest.raises(EvaluationError, match=r"flake\.lock: the input n1: "):
        uris(git("https://e.org/x.git"), locked)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    _JSON | st.fixed_dictionaries({"nodes": _JSON | st.dictionaries(st.text(max_size=3), _JSON)})
)
def test_no_lock_file_surprises(lock):
    with contextlib.suppress(EvaluationError):
        locks.allowed_uris(lock, check_url)
