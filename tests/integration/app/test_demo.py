"""The demo's repositories: the same on every machine, served as a forge would, and only read."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from fc_operator.app import demo
from fc_operator.errors import HumanNeededError, PrerequisiteError
from fc_operator.executors.local import own_system
from fc_operator.spec import manifests


def git(*words, cwd=None, fails=False):
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=cwd, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout.strip()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "demo"
    (folder / "manifests").mkdir(parents=True)
    (folder / "sources" / "one").mkdir(parents=True)
    (folder / "manifests" / "a.yaml").write_text(
        "url: http://127.0.0.1:8418/one.git\nsystem: x86_64-linux\n"
    )
    (folder / "sources" / "one" / "file").write_text("x86_64-linux\n")
    (folder / "expected.yaml").write_text("projects: {}\n")
    return folder


async def test_commits_are_the_same_in_every_state_directory(folder, tmp_path):
    async with demo.surroundings(folder, tmp_path / "a", git_port=0) as first:
        pass
    async with demo.surroundings(folder, tmp_path / "b", git_port=0) as second:
        pass
    assert first.commits["one"] == second.commits["one"]


async def test_a_state_directory_may_be_named_from_where_one_stands(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    async with demo.surroundings(folder, Path("state"), git_port=0) as here:
        pass
    assert git("rev-parse", "main", cwd="state/repositories/one.git") == here.commits["one"]


async def test_nothing_changed_means_no_new_commit_and_a_change_is_one_on_top(folder, tmp_path):
    async with demo.surroundings(folder, tmp_path / "state") as before:
        pass
    async with demo.surroundings(folder, tmp_path / "state") as again:
        pass
    assert again.commits == before.commits
    (folder / "sources" / "one" / "file").write_text("changed\n")
    async with demo.surroundings(folder, tmp_path / "state") as after:
        pass
    assert after.commits["config"] == before.commits["config"]
    bare = tmp_path / "state" / "repositories" / "one.git"
    assert git("rev-parse", "main^", cwd=bare) == before.commits["one"]


async def test_a_forges_answers_to_a_git_client(folder, tmp_path):
    async with demo.surroundings(folder, tmp_path / "state", git_port=0) as here:

        async def ask(*words, fails=False):
            import asyncio

            return await asyncio.to_thread(git, *words, fails=fails)

        said = await ask("ls-remote", here.config_url, "HEAD")
        assert said.split()[0] == here.commits["config"]
        clone = tmp_path / "clone"
        await ask("clone", "--quiet", "--depth=1", f"{here.git_url}/one.git", str(clone))
        assert (clone / "file").read_text() == "x86_64-linux\n"
        assert "403" in await ask("-C", str(clone), "push", "origin", "main:other", fails=True)
        assert "not found" in await ask("ls-remote", f"{here.git_url}/two.git", fails=True)
        await ask("ls-remote", f"{here.git_url}/../state/repositories/one.git/x", fails=True)


async def test_addresses_and_system_are_this_machines(folder, tmp_path):
    async with demo.surroundings(folder, tmp_path / "state", git_port=0) as here:
        bare = tmp_path / "state" / "repositories" / "config.git"
        text = git("show", "main:a.yaml", cwd=bare)
        assert text == f"url: {here.git_url}/one.git\nsystem: {own_system()}"
        settings = here.settings(tmp_path, web_port=0)
        assert f"http://{settings['git.allowed_hosts'][0]}" == here.git_url


async def test_the_port_is_that_of_the_last_run(folder, tmp_path):
    state = tmp_path / "state"
    async with demo.surroundings(folder, state, git_port=0) as first:
        pass
    async with demo.surroundings(folder, state) as second:
        assert second.git_url == first.git_url
    # Somebody else has it now: another one is taken, and the manifests say so.
    with socket.create_server(("127.0.0.1", int(first.git_url.rpartition(":")[2]))):
        async with demo.surroundings(folder, state) as third:
            assert third.git_url != first.git_url
            assert third.commits["config"] != first.commits["config"]


async def test_a_port_that_was_asked_for_must_be_free(folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(HumanNeededError, match=str(port)):
            async with demo.surroundings(folder, tmp_path / "state", git_port=port):
                pass


async def test_two_at_once_on_one_state_are_refused(folder, tmp_path):
    async with demo.surroundings(folder, tmp_path / "state", git_port=0):
        with pytest.raises(HumanNeededError, match="another FC Operator"):
            async with demo.surroundings(folder, tmp_path / "state", git_port=0):
                pass


async def test_a_missing_nix_is_said_at_once(folder, tmp_path, monkeypatch):
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(bare))
    with pytest.raises(PrerequisiteError) as caught:
        async with demo.surroundings(folder, tmp_path / "state"):
            pass
    assert caught.value.hint == "apt-get install nix-bin"


async def test_a_folder_that_is_no_demo_is_refused(tmp_path):
    with pytest.raises(HumanNeededError, match="no manifests"):
        async with demo.surroundings(tmp_path, tmp_path / "state"):
            pass


def test_the_manifests_are_valid_as_they_lie_there():
    folder = demo.default_folder() / "manifests"
    parsed = manifests.parse({file.name: file.read_bytes() for file in folder.iterdir()})
    assert [str(problem) for problem in parsed.problems] == []
    assert len(parsed.declarations) >= 6


def test_the_editors_schema_is_the_present_one():
    import json

    from fc_operator.spec import schemas

    file = demo.default_folder() / "manifest.schema.json"
    assert json.loads(file.read_text()) == schemas.json_schema("all"), f"run: fc schema > {file}"
