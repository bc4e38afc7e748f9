import asyncio
import os
import subprocess
from dataclasses import replace

import pytest

from fc_operator.clients.git import Git, GitCredentials
from fc_operator.errors import (
    FcError,
    InvalidError,
    LimitReachedError,
    NotFoundError,
    SecretError,
    UnavailableError,
)
from fc_operator.settings import GitSettings


@pytest.fixture
def settings(git_host):
    return GitSettings(allowed_schemes=("https", "ssh", "http"), allowed_hosts=(git_host.listed,))


@pytest.fixture
def git(settings, tmp_path):
    return Git(settings, tmp_path / "mirrors")


@pytest.fixture
def team(git_host):
    return git_host.make("team")


async def test_a_host_is_asked_for_branches_tags_and_its_default_branch(git, team):
    first = team.commit({"a": "1"})
    team.git("tag", "-a", "v1", "-m", "one")
    team.git("checkout", "-q", "-b", "stable/26.05")
    second = team.commit({"a": "2"})
    team.git("checkout", "-q", "main")
    refs = await git.ls_remote(team.url)
    assert refs.head_branch == "main"
    assert refs.branch(None) == refs.branch("main") == first
    assert refs.branch("stable/26.05") == second
    assert refs.refs["refs/tags/v1"] == first
    with pytest.raises(NotFoundError, match=r"no branch nope.*main, stable/26\.05"):
        refs.branch("nope")


async def test_an_empty_repository_says_so(git, team):
    refs = await git.ls_remote(team.url)
    with pytest.raises(NotFoundError, match="the repository is empty"):
        refs.branch(None)
    mirror = await git.fetch(team.url)
    with pytest.raises(NotFoundError):
        await mirror.commit("main")


async def test_a_mirror_is_fetched_read_and_exported(git, team, tmp_path):
    team.commit({"fc/a.yaml": "one", "fc/deep/b.yaml": "two", "other": "x"})
    (team.path / "fc/link.yaml").symlink_to("/etc/passwd")
    (team.path / "run.sh").write_text("#!/bin/sh")
    (team.path / "run.sh").chmod(0o755)
    head = team.commit({}, "Add a link: ünïcode")
    mirror = await git.fetch(team.url)
    info = await mirror.commit("main")
    assert (info.id, info.rev_count) == (head, 2)
    assert (info.subject, info.author) == ("Add a link: ünïcode", "Ada Author <ada@example.org>")
    assert info.committed_at.tzinfo is not None
    assert (await mirror.commit(head)).tree == info.tree == await mirror.tree(info.id)
    blobs = await mirror.blobs(info.id, "fc")
    assert sorted(blobs) == ["a.yaml", "deep/b.yaml"], "links are not content"
    assert await mirror.read(blobs.values(), 100) == {
        blobs["a.yaml"]: b"one",
        blobs["deep/b.yaml"]: b"two",
    }
    assert await mirror.read([], 0) == {}
    with pytest.raises(LimitReachedError, match="6 bytes, more than 5"):
        await mirror.read(blobs.values(), 5)
    with pytest.raises(NotFoundError, match="no blob"):
        await mirror.read(["0" * 40], 5)
    with pytest.raises(NotFoundError, match="no folder"):
        await mirror.blobs(info.id, "fc/a.yaml")
    into = tmp_path / "work" / "tree"
    await mirror.export(info.id, into)
    assert (into / "fc/deep/b.yaml").read_text() == "two"
    assert os.access(into / "run.sh", os.X_OK)
    assert not (into / ".git").exists()
    assert sorted(path.name for path in into.parent.iterdir()) == ["tree"]


async def test_a_forced_push_and_a_deleted_branch_are_followed(git, team):
    team.commit({"a": "1"})
    team.git("branch", "dead")
    mirror = await git.fetch(team.url)
    await mirror.commit("dead")
    team.git("branch", "-D", "dead")
    team.git("branch", "dead/child")
    team.git("commit", "-q", "--amend", "--allow-empty", "-m", "rewritten")
    mirror = await git.fetch(team.url)
    assert (await mirror.commit("main")).subject == "rewritten"
    with pytest.raises(NotFoundError):
        await mirror.commit("dead")
    await mirror.commit("dead/child")


async def test_wanted_commits_that_are_there_ask_nobody(git, git_host, team):
    head = team.commit({"a": "1"})
    await git.fetch(team.url)
    git_host.requests.clear()
    mirror = await git.fetch(team.url, wants=[head])
    assert git_host.requests == []
    team.git("checkout", "-q", "--detach")
    loose = team.commit({"a": "2"})
    team.git("checkout", "-q", "main")
    mirror = await git.fetch(team.url, wants=[loose])
    assert (await mirror.commit(loose)).rev_count == 2


async def test_sixteen_fetches_at_once_make_one_whole_mirror(git, team):
    head = team.commit({"a": "1"})
    mirrors = await asyncio.gather(*(git.fetch(team.url, wants=[head]) for _ in range(16)))
    assert {mirror.path for mirror in mirrors} == {mirrors[0].path}
    assert (await mirrors[0].commit("main")).id == head


async def test_a_killed_fetch_leaves_nothing_that_stops_the_next(git, team):
    team.commit({"a": "1"})
    mirror = await git.fetch(team.url)
    for leftover in ("config.lock", "refs/heads/main.lock", "packed-refs.lock", "shallow.lock"):
        (mirror.path / leftover).touch()
    (mirror.path / "objects/pack/tmp_pack_abc").write_bytes(b"half")
    head = team.commit({"a": "2"})
    mirror = await git.fetch(team.url)
    assert (await mirror.commit("main")).id == head
    assert not (mirror.path / "objects/pack/tmp_pack_abc").exists()


async def test_a_broken_mirror_is_made_again(git, team):
    head = team.commit({"a": "1"})
    mirror = await git.fetch(team.url)
    for pack in mirror.path.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(b"garbage")
    (mirror.path / "config").write_text("")
    mirror = await git.fetch(team.url)
    assert (await mirror.commit("main")).id == head
    (mirror.path / "HEAD").unlink()
    mirror = await git.fetch(team.url)
    assert (await mirror.commit("main")).id == head


async def test_a_repository_beyond_the_limit_is_refused_and_leaves_no_mirror(
    git_host, settings, tmp_path
):
    big = git_host.make("big")
    big.commit({"blob": os.urandom(400_000)})
    git = Git(replace(settings, max_bytes=200_000), tmp_path / "mirrors")
    with pytest.raises(LimitReachedError, match="larger than 200000 bytes"):
        await git.fetch(big.url)
    assert not git.mirror(big.url).path.exists()


async def test_passwords_reach_their_host_and_no_argument_list(git, git_host, team):
    team.commit({"a": "1"})
    git_host.need_password("ada", "s3cret")
    with pytest.raises(SecretError, match="credentialsSecretRef"):
        await git.ls_remote(team.url)
    right = GitCredentials(source="default/team", username="ada", password="s3cret")
    assert (await git.ls_remote(team.url, credentials=right)).head_branch == "main"
    mirror = await git.fetch(team.url, credentials=right)
    assert mirror.path != git.mirror(team.url).path, "who may not fetch may not read"
    wrong = replace(right, password="other")
    with pytest.raises(SecretError) as caught:
        await git.ls_remote(team.url, credentials=wrong)
    assert "other" not in str(caught.value)
    assert "s3cret" not in repr(right)
    assert not [
        path for path in mirror.path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()
    ]


async def test_what_the_host_lacks_is_not_found(git, git_host):
    with pytest.raises(NotFoundError, match="no repository"):
        await git.ls_remote(git_host.url("nothing"))


async def test_an_unreachable_host_is_unavailable(tmp_path):
    git = Git(GitSettings(allowed_schemes=("http",), allowed_hosts=("127.0.0.1:1",)), tmp_path)
    with pytest.raises(UnavailableError):
        await git.ls_remote("http://127.0.0.1:1/team")


def _make_sha256(path):
    path.mkdir()
    (path / "a.yaml").write_text("one")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (
        ("init", "-q", "-b", "main", "--object-format=sha256", "."),
        ("add", "-A"),
        (*who, "commit", "-qm", "x"),
    ):
        subprocess.run(["git", *words], cwd=path, check=True, capture_output=True)


async def test_a_sha256_repository_is_mirrored_too(git, git_host):
    _make_sha256(git_host.folder / "modern")
    head = (await git.ls_remote(git_host.url("modern"))).branch("main")
    assert len(head) == 64
    for _ in range(2):
        mirror = await git.fetch(git_host.url("modern"))
        assert (await mirror.commit("main")).id == head
    blobs = await mirror.blobs(head)
    assert list((await mirror.read(blobs.values(), 10)).values()) == [b"one"]


# Security -----------------------------------------------------------------------------------


async def test_s09_credential_to_user_host_redirects_are_not_followed(
    git, git_host, team, tmp_path
):
    sink = type(git_host)(tmp_path)
    try:
        git_host.status, git_host.headers = 302, {"Location": f"http://{sink.listed}/x/info/refs"}
        credentials = GitCredentials(source="default/team", username="ada", password="s3cret")
        with pytest.raises(InvalidError, match="leads elsewhere"):
            await git.ls_remote(team.url, credentials=credentials)
        assert sink.requests == []
    finally:
        sink.close()


async def test_s09_credential_to_user_host_bound_credentials_stay_with_their_url(git, git_host):
    elsewhere = GitCredentials(
        source="default/team", password="s3cret", url=f"http://{git_host.listed}/team"
    )
    for path in ("teams/x", "other", "team-2"):
        with pytest.raises(SecretError, match="is bound to"):
            await git.ls_remote(f"http://{git_host.listed}/{path}", credentials=elsewhere)
    assert git_host.requests == []


async def test_s11_env_exfiltration_nothing_is_expanded_and_nothing_of_ours_is_sent(
    git, git_host, monkeypatch
):
    monkeypatch.setenv("CANARY", "canary-value")
    for word in ("$CANARY", "${CANARY}", "%CANARY%", "~CANARY", "$(touch)", "`id`"):
        with pytest.raises((NotFoundError, UnavailableError, InvalidError)):
            await git.ls_remote(f"http://{git_host.listed}/{word}")
    assert git_host.requests
    assert "canary-value" not in repr(git_host.requests)


async def test_c02_ssrf_a_private_host_is_never_asked(git_host, tmp_path):
    git = Git(GitSettings(allowed_schemes=("http",)), tmp_path / "m")
    port = git_host.port
    for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
        with pytest.raises(InvalidError):
            await git.ls_remote(f"http://{host}:{port}/team")
        with pytest.raises(InvalidError):
            await git.fetch(f"http://{host}:{port}/team")
    assert git_host.requests == []


async def test_c02_ssrf_a_name_that_leads_inside_is_refused(git_host, tmp_path, monkeypatch):
    """The resolver is the outside here: the name is public, its address is not."""
    loop = asyncio.get_running_loop()

    async def rebound(*_: object, **__: object):
        return [(2, 1, 6, "", ("127.0.0.1", git_host.port))]

    monkeypatch.setattr(loop, "getaddrinfo", rebound)
    git = Git(GitSettings(allowed_schemes=("http",)), tmp_path / "m")
    with pytest.raises(InvalidError, match=r"leads to 127\.0\.0\.1"):
        await git.ls_remote(f"http://git.example.org:{git_host.port}/team")
    assert git_host.requests == []


async def test_c02_ssrf_the_judged_address_is_the_one_that_is_asked(
    git_host, tmp_path, monkeypatch
):
    """A name that no resolver knows is reached, so git did not resolve it again."""
    loop = asyncio.get_running_loop()

    async def once(*_: object, **__: object):
        return [(2, 1, 6, "", ("127.0.0.1", git_host.port))]

    monkeypatch.setattr(loop, "getaddrinfo", once)
    git_host.make("team").commit({"a": "1"})
    git = Git(
        GitSettings(allowed_schemes=("http",), allowed_hosts=("git.invalid",)), tmp_path / "m"
    )
    refs = await git.ls_remote(f"http://git.invalid:{git_host.port}/team/.git")
    assert refs.head_branch == "main"


async def test_c01_hooks_filters_and_submodules_of_a_repository_never_run(git, team, tmp_path):
    canary = tmp_path / "canary"
    team.commit({"a": "x", ".gitattributes": "* filter=evil\n"})
    team.git("update-index", "--add", "--cacheinfo", f"160000,{team.repo.head.commit.hexsha},sub")
    team.commit(
        {".gitmodules": f'[submodule "sub"]\n\tpath = sub\n\turl = ext::touch {canary}\n'},
        "submodule",
    )
    mirror = await git.fetch(team.url)
    hook = mirror.path / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {canary}\n")
    hook.chmod(0o755)
    head = (await mirror.commit("main")).id
    await mirror.export(head, tmp_path / "tree")
    assert (tmp_path / "tree/a").read_text() == "x"
    assert not canary.exists()


@pytest.mark.parametrize("name", ["..", ".git", ".GIT", "GIT~1"])
async def test_s08_path_traversal_a_crafted_tree_writes_nothing_outside(git, team, tmp_path, name):
    (team.path / "payload").write_text("owned")
    blob = team.git("hash-object", "-w", "payload")
    inner = _make_tree(team, f"100644 blob {blob}\tpayload\n")
    made = _make_tree(team, f"040000 tree {inner}\t{name}\n")
    who = ("-c", "user.name=e", "-c", "user.email=e@e")
    commit = team.git(*who, "commit-tree", made, "-m", "evil")
    team.git("update-ref", "refs/heads/main", commit)
    with pytest.raises((UnavailableError, InvalidError)):
        await git.fetch(team.url)
    with pytest.raises((UnavailableError, InvalidError)):
        await git.mirror(team.url).export(commit, tmp_path / "out" / "tree")
    assert not (tmp_path / "out" / "payload").exists()
    assert not (tmp_path / "out" / "tree" / name / "payload").exists()


def _make_tree(repository, entries):
    done = subprocess.run(
        ["git", "mktree"],
        cwd=repository.path,
        input=entries,
        text=True,
        capture_output=True,
        check=True,
    )
    return done.stdout.strip()


async def test_the_mirror_refuses_ids_refs_and_folders_that_are_none(git, team):
    head = team.commit({"a": "1"})
    mirror = await git.fetch(team.url)
    for bad in ("--output=x", "-p", "main..x", "main@{1}", ":/x", "main^", "a b", "x.lock", ""):
        with pytest.raises(InvalidError):
            await mirror.commit(bad)
        with pytest.raises(InvalidError):
            await mirror.tree(bad)
    for bad in ("../x", "/etc", "a/../../b", "a\nb"):
        with pytest.raises(InvalidError):
            await mirror.blobs(head, bad)
    with pytest.raises(InvalidError):
        await git.fetch(team.url, wants=["--upload-pack=touch x"])


OPTIONS = ["-x", "--upload-pack=touch {c}", "--exec=touch {c}", "-utouch {c}", "--config=x=!touch {c}",
           "-c core.sshCommand=touch {c}", "-oProxyCommand=touch {c}", "--output={c}", "--", "--no-index",
           "--template={c}", "--separate-git-dir={c}", "--receive-pack=touch {c}", "--git-dir={c}"]  # fmt: skip
COMMANDS = ["ext::sh -c 'touch {c}'", "ext::touch% {c}", "fd::7", "$(touch {c})", "`touch {c}`", ";touch {c}",
            "|touch {c}", "&touch {c}", "\ntouch {c}\n", "%0atouch%20{c}", "${{IFS}}touch {c}", "!touch {c}",
            "file://{c}", "file::{c}", "transport::{c}", "{c}", "@{{u}}", "HEAD^{{/x}}", ":/touch", "a..b",
            "main@{{1}}", "refs/heads/../../x", "\x00", "\x1b[2J", " ", "\t--upload-pack=touch {c}"]  # fmt: skip
PREFIXES = [
    "",
    "http://{h}/",
    "http://{h}/x ",
    "git@{h}:",
    "ssh://git@{h}/",
    "ssh://{p}@127.0.0.1/",
]


async def test_s10_option_injection_300_payloads_on_every_field_and_no_canary(
    git, git_host, team, tmp_path
):
    head = team.commit({"a": "1"})
    mirror = await git.fetch(team.url)
    canary = tmp_path / "canary"
    payloads = [each.format(c=canary) for each in (*OPTIONS, *COMMANDS)]
    urls = [
        prefix.format(h=git_host.listed, p="-oX=y") + each
        for prefix in PREFIXES
        for each in payloads
    ]
    fields = [
        *((git.ls_remote, (url,), {}) for url in urls),
        *((mirror.commit, (each,), {}) for each in payloads),
        *((mirror.tree, (each,), {}) for each in payloads),
        *((mirror.blobs, (head, each), {}) for each in payloads),
        *((mirror.read, ([each], 10), {}) for each in payloads),
        *((git.fetch, (team.url,), {"wants": [each]}) for each in payloads),
        *((mirror.export, (each, tmp_path / "out"), {}) for each in payloads),
    ]
    assert len(fields) >= 300
    for call, arguments, options in fields:
        with pytest.raises(FcError):
            await call(*arguments, **options)
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


async def test_a_mirror_tells_where_a_branch_stands_loose_or_packed(git, team):
    first = team.commit({"a": "1"})
    team.git("branch", "feature/x")
    second = team.commit({"a": "2"})
    mirror = await git.fetch(team.url)
    for _ in range(2):
        assert await mirror.tip("main") == second
        assert await mirror.tip("feature/x") == first
        assert await mirror.tip("nope") is None
        await git.run([f"--git-dir={mirror.path}", "pack-refs", "--all"], url=team.url)
    with pytest.raises(InvalidError):
        await mirror.tip("a..b")
    # What is known to be there is not asked for again, even while the host is gone.
    assert await Git(git.settings, mirror.path.parent).fetch(team.url, wants=[second]) == mirror
    assert (await git.fetch(team.url, wants=[second])).path == mirror.path


async def test_a_mirror_is_tidied_up_after_many_fetches_while_nobody_waits(git, team):
    for number in range(30):
        head = team.commit({"a": str(number)})
        mirror = await git.fetch(team.url)
        await asyncio.gather(*git._tended.values())
    packs = list((mirror.path / "objects/pack").glob("*.pack"))
    assert len(packs) < 20
    assert (mirror.path / "packed-refs").is_file()
    assert (await mirror.commit("main")).id == head == await mirror.tip("main")
    assert (await mirror.commit(head)).rev_count == 30
