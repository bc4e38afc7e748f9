"""Git over ssh: a real server with a key of its own, our key or no way in."""

import asyncio
import contextlib
import socket

import asyncssh
import pytest

from fc_operator.clients.git import Git, GitCredentials, read_credentials
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.errors import FcError, InvalidError, SecretError
from fc_operator.settings import GitSettings


class Door(asyncssh.SSHServer):
    def __init__(self, host):
        self.host = host

    def begin_auth(self, username):
        self.host.asked.append(username)
        return True

    def public_key_auth_supported(self):
        return True

    def validate_public_key(self, username, key):
        return key == self.host.client_key.convert_to_public()


class SshHost:
    """Serves `git-upload-pack` of a folder to one key."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.client_key = asyncssh.generate_private_key("ssh-ed25519")
        self.server = None
        self.port = 0

    async def start(self):
        self.server = await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=lambda: Door(self),
            server_host_keys=[self.host_key],
            process_factory=self.serve,
            encoding=None,
        )
        self.port = self.server.get_port()

    async def serve(self, process):
        command, path = process.command.split(" ", 1)
        assert command == "git-upload-pack"
        child = await asyncio.create_subprocess_exec(
            "git", "-c", "safe.directory=*", "upload-pack", path.strip("'").lstrip("/"),
            cwd=self.folder, stdin=-1, stdout=-1, stderr=-1,
        )  # fmt: skip
        await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
        process.exit(await child.wait())
        await process.wait_closed()

    def known_hosts(self, key=None):
        public = (key or self.host_key).export_public_key().decode().strip()
        return f"[127.0.0.1]:{self.port} {public}"

    def credentials(self, **other):
        values = {
            "identity": self.client_key.export_private_key().decode(),
            "known_hosts": self.known_hosts(),
            **other,
        }
        return GitCredentials.from_secret(
            "default/x", {key: text.encode() for key, text in values.items()}
        )

    def url(self, name):
        return f"ssh://git@127.0.0.1:{self.port}/{name}"

    async def close(self):
        self.server.close()
        await self.server.wait_closed()


@pytest.fixture
async def host(git_host):
    host = SshHost(git_host.folder)
    await host.start()
    yield host
    await host.close()


@pytest.fixture
def git(host, tmp_path):
    return Git(GitSettings(allowed_hosts=(f"127.0.0.1:{host.port}",)), tmp_path / "mirrors")


@pytest.fixture
def team(git_host):
    team = git_host.make("team")
    team.commit({"a": "1"})
    return team


async def test_a_repository_is_fetched_over_ssh(git, host, team, tmp_path):
    url = host.url("team")
    refs = await git.ls_remote(url, credentials=host.credentials())
    assert refs.head_branch == "main"
    mirror = await git.fetch(url, credentials=host.credentials())
    assert (await mirror.commit("main")).id == team.repo.head.commit.hexsha
    assert set(host.asked) == {"git"}


async def test_credentials_come_from_a_secret_of_two_keys(git, host, team, tmp_path):
    folder = tmp_path / "secrets" / "team-git"
    folder.mkdir(parents=True)
    (folder / "identity").write_bytes(host.client_key.export_private_key())
    (folder / "known_hosts").write_text(host.known_hosts() + "\n")
    credentials = await read_credentials(DirectorySecrets(tmp_path / "secrets"), "ns", "team-git")
    assert (await git.ls_remote(host.url("team"), credentials=credentials)).refs


async def test_s18_ssh_host_key_another_key_ends_it_before_we_say_who_we_are(git, host, team):
    other = asyncssh.generate_private_key("ssh-ed25519")
    wrong = host.credentials(known_hosts=host.known_hosts(other))
    with pytest.raises(SecretError, match="Host key verification failed"):
        await git.ls_remote(host.url("team"), credentials=wrong)
    assert host.asked == []


async def test_s18_ssh_host_key_an_unknown_host_is_never_trusted_at_first_sight(git, host, team):
    unknown = host.credentials(known_hosts="git.example.org ssh-ed25519 AAAA")
    with pytest.raises(SecretError):
        await git.ls_remote(host.url("team"), credentials=unknown)
    assert host.asked == []


async def test_without_a_key_or_with_a_wrong_one_there_is_no_way_in(git, host, team):
    with pytest.raises(SecretError, match="needs a key"):
        await git.ls_remote(host.url("team"))
    with pytest.raises(SecretError, match="needs a key"):
        await git.ls_remote(
            host.url("team"), credentials=GitCredentials(source="x", username="a", password="b")
        )
    wrong = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    with pytest.raises(SecretError, match="refuses us"):
        await git.ls_remote(host.url("team"), credentials=host.credentials(identity=wrong))


async def test_keys_leave_no_file_behind(git, host, team, tmp_path, monkeypatch):
    from fc_operator.clients import git as module

    monkeypatch.setattr(module, "_memory_dir", lambda: str(tmp_path))
    await git.fetch(host.url("team"), credentials=host.credentials())
    with contextlib.suppress(FcError):
        await git.ls_remote(host.url("nothing"), credentials=host.credentials())
    secret = host.client_key.export_private_key().decode().splitlines()[2]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert not list(tmp_path.glob("fc-ssh-*"))


async def test_c02_ssrf_ssh_to_a_private_host_is_refused(host, team, tmp_path):
    git = Git(GitSettings(), tmp_path / "m")
    for url in (host.url("team"), "git@localhost:team", "ssh://git@[::1]/team"):
        with pytest.raises(InvalidError):
            await git.ls_remote(url, credentials=host.credentials())
    assert host.asked == []


async def test_the_name_is_pinned_to_the_judged_address(host, team, tmp_path, monkeypatch):
    """A name that no resolver knows is reached, so ssh did not resolve it again."""
    loop = asyncio.get_running_loop()

    async def once(*_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", host.port))]

    monkeypatch.setattr(loop, "getaddrinfo", once)
    git = Git(GitSettings(allowed_hosts=("git.invalid",)), tmp_path / "m")
    public = host.host_key.export_public_key().decode().strip()
    credentials = host.credentials(known_hosts=f"[git.invalid]:{host.port} {public}")
    refs = await git.ls_remote(f"ssh://git@git.invalid:{host.port}/team", credentials=credentials)
    assert refs.head_branch == "main"
