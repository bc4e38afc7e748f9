import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.clients import git_urls
from fc_operator.clients.git import GitCredentials
from fc_operator.errors import InvalidError, SecretError

SCHEMES = ("https", "ssh")


def check(url, schemes=SCHEMES, hosts=()):
    return git_urls.parse(url, schemes=schemes, hosts=hosts)


GOOD = {
    "https://git.example.org/team/demo.git": ("https://git.example.org", "/team/demo.git"),
    "https://GIT.example.org./x": ("https://git.example.org", "/x"),
    "https://git.example.org:8443/x": ("https://git.example.org:8443", "/x"),
    "https://git.example.org:443/x": ("https://git.example.org", "/x"),
    "ssh://git@git.example.org/x.git": ("ssh://git.example.org", "/x.git"),
    "ssh://git@git.example.org:2222/~ada/x": ("ssh://git.example.org:2222", "/~ada/x"),
    "git@git.example.org:team/x.git": ("ssh://git.example.org", "/team/x.git"),
    "https://[2606:4700:4700::1111]/x": ("https://[2606:4700:4700::1111]", "/x"),
    "https://git.example.org/$HOME/%7e": ("https://git.example.org", "/$HOME/%7e"),
}


@pytest.mark.parametrize(("url", "expected"), GOOD.items())
def test_good_urls_are_read(url, expected):
    parsed = check(url)
    assert (parsed.origin, parsed.path) == expected
    assert parsed.text == url


HELPERS = ["ext", "EXT", "fd", "file", "transport", "testgit", "hg", "persistent-https", ""]
BAD = [
    "", " ", "x", "/srv/repo.git", "./repo", "../repo", "~/repo", "repo:", ":", "//host/x",
    "-uhttps://x/", "--upload-pack=touch x", "-oProxyCommand=touch x", "--",
    "file:///etc/passwd", "FILE:///etc", "file://localhost/etc", "file:/etc",
    "http://git.example.org/x", "git://git.example.org/x", "ftp://git.example.org/x",
    "gopher://git.example.org/x", "rsync://git.example.org/x", "javascript://x/%0a",
    "https://", "https:///x", "https://:443/x", "https://git.example.org:0/x",
    "https://git.example.org:65536/x", "https://git.example.org:99999999/x", "https://a:b:c/x",
    "https://ada@git.example.org/x", "https://ada:pw@git.example.org/x", "https://@x.example/x",
    "ssh://ada:pw@git.example.org/x", "ssh://-oProxyCommand=x@git.example.org/x",
    "ssh://-oProxyCommand=touch/x", "ssh://git@-oProxyCommand=x/y", "ssh://git@host.example/-x",
    "-git@host:x", "git@-host:x", "git@host.example:-x", "git@host.example:", "git@:x",
    "https://good.example\\@evil.example/x", "https://good.example/x\ny", "https://x.example/a b",
    "https://x.example/\u00fc", "https://m\u00fcnchen.de/x", "https://x.example/\x00", "https://x.example/\x7f",
    "https://x.example/?ref=main", "https://x.example/#main", "https://x.example/a/../b",
    "https://[::1]/x", "https://[::1%25eth0]/x", "https://[zz]/x", "https://localhost/x",
    "https://127.0.0.1/x", "https://2130706433/x", "https://0x7f.1/x", "https://169.254.169.254/x",
    "https://[::ffff:10.0.0.1]/x", "git@127.0.0.1:x", "ssh://git@localhost/x",
    "https://x.example/" + "y" * 2048, "https://.example.org/x", "https://a..b/x",
    *[f"{helper}::{rest}" for helper in HELPERS for rest in
      ("sh -c 'touch /tmp/x'", "https://x.example/y", "/etc", "touch%20x", "git@x.example:y")],
]  # fmt: skip


@pytest.mark.parametrize("url", BAD)
def test_s10_option_injection_and_c01_bad_urls_are_refused(url):
    with pytest.raises(InvalidError) as caught:
        check(url)
    assert "pw" not in caught.value.message or "pw" not in url


def test_c01_what_is_always_refused_is_so_whatever_the_settings_allow():
    everything = ("https", "http", "ssh", "git", "file", "ext", "fd")
    for url in ("file:///etc", "ext::sh", "ext://sh/x", "fd::17", "https://a:b@x.example/y"):
        with pytest.raises(InvalidError):
            check(url, schemes=everything, hosts=("localhost", "etc", "sh"))


def test_s10_what_gitpython_refuses_is_refused_by_us_too():
    import git

    for url in [*BAD, *GOOD]:
        try:
            git.Git.check_unsafe_protocols(url)
        except git.exc.UnsafeProtocolError:
            with pytest.raises(InvalidError):
                check(url)


@given(st.text(max_size=40))
def test_no_text_is_read_as_an_option_or_helper(text):
    try:
        parsed = check(text)
    except InvalidError:
        return
    assert not parsed.text.startswith("-")
    assert "::" not in parsed.text.split("[")[0]
    assert parsed.scheme in SCHEMES


REFS = [
    "main",
    "release/26.05",
    "v1.0",
    "feature_x",
    "user@thing",
    "refs/heads/main",
    "a+b",
    "#1x"[1:],
]
BAD_REFS = [
    "", "-x", "--upload-pack=x", "/x", "x/", "x//y", "a..b", ".x", "x/.y", "x.lock", "x.lock/y",
    "x y", "x~1", "x^", "x:y", "x?", "x*", "x[", "x\\y", "x@{1}", "@{u}", "x\x00", "x\ny", "ü",
    "x" * 256, "x.", "$(x)", "`x`", ":/x", "!x",
]  # fmt: skip


@pytest.mark.parametrize("name", REFS)
def test_good_refs_pass(name):
    assert git_urls.check_ref(name) == name


@pytest.mark.parametrize("name", BAD_REFS)
def test_s10_option_injection_bad_refs_are_refused(name):
    with pytest.raises(InvalidError):
        git_urls.check_ref(name)


@pytest.mark.parametrize(
    "path", ["..", "../x", "x/../../y", "/etc", "x\x00y", "x\ny", "x/..", "\x7f"]
)
def test_s08_path_traversal_bad_folders_are_refused(path):
    with pytest.raises(InvalidError):
        git_urls.check_folder(path)


def test_folders_lose_their_dots_and_slashes():
    assert git_urls.check_folder("./fc//deep/") == "fc/deep"
    assert git_urls.check_folder(".") == git_urls.check_folder("") == ""


def test_commit_ids_are_whole_and_lower_case():
    assert git_urls.is_commit("a" * 40)
    assert git_urls.is_commit("a" * 64)
    for bad in ("a" * 39, "A" * 40, "g" * 40, "a" * 41, "a" * 40 + "\n", "HEAD", ""):
        assert not git_urls.is_commit(bad)


BOUND = [
    ("https://x.example/team", "https://x.example/team/repo.git", True),
    ("https://x.example/team/", "https://x.example/team", True),
    ("https://x.example/", "https://x.example/any", True),
    ("https://x.example/team", "https://x.example/team2/repo", False),
    ("https://x.example/team", "https://x.example/Team", False),
    ("https://x.example/team", "https://x.example:8443/team", False),
    ("https://x.example/team", "https://x.example.evil.example/team", False),
    ("https://x.example/team", "ssh://git@x.example/team", False),
    ("https://x.example/team", "https://X.example./team", True),
]


@pytest.mark.parametrize(("prefix", "url", "expected"), BOUND)
def test_s09_credential_to_user_host_a_bound_credential_covers_only_its_own(prefix, url, expected):
    assert git_urls.covers(check(prefix), check(url)) is expected


def test_credentials_are_whole_pairs():
    whole = {"identity": b"key\n", "known_hosts": b"host ssh-ed25519 A\n", "url": b"https://x/y\n"}
    found = GitCredentials.from_secret("ns/x", whole)
    assert (found.identity, found.url) == ("key", "https://x/y")
    assert GitCredentials.from_secret("ns/x", {"password": b"p"}).username == ""
    for missing in ({}, {"identity": b"k"}, {"known_hosts": b"h"}, {"username": b"u"}):
        with pytest.raises(SecretError, match="ns/x"):
            GitCredentials.from_secret("ns/x", missing)
    with pytest.raises(SecretError):
        GitCredentials.from_secret("ns/x", {"password": b"\xff"})
    for value in itertools.chain(whole.values(), (b"p",)):
        assert value.decode().strip() not in repr(found).replace("https://x/y", "")
