"""The demo's surroundings: its git repositories, made from ``config/demo`` and served on loopback.

The repositories are real ones below the state directory, with commits that are the same on every
machine. The manifests are those of ``config/demo``; only the address of the repositories and the
system are replaced where this machine's differ, so that the files can be read as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fc_operator.app import diagnosis
from fc_operator.app.state import StateDirectory
from fc_operator.clients.git_server import GitServer
from fc_operator.errors import HumanNeededError, PrerequisiteError
from fc_operator.executors.local import own_system
from fc_operator.kit import processes
from fc_operator.model.ids import CommitId
from fc_operator.settings import Settings

GIT_PORT = 8418
"""Where the manifests of ``config/demo`` say that the repositories are."""
CONFIG_REPOSITORY = "config"
"""The repository that holds the manifests."""
_HOST = "127.0.0.1"
_WRITTEN_SYSTEM = "x86_64-linux"
_BRANCH = "main"
_IDENTITY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in {
        "NAME": "FC Operator demo",
        "EMAIL": "demo@fc-operator.invalid",
        "DATE": "2026-01-01T00:00:00+0000",
    }.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the demo runs in."""

    git_url: str
    """What comes before ``/<repository>.git``."""
    commits: Mapping[str, CommitId]
    """The newest commit of each repository, by its name."""
    expected: str
    """Text of ``expected.yaml``, for this machine."""

    @property
    def config_url(self) -> str:
        """The config repository's address."""
        return f"{self.git_url}/{CONFIG_REPOSITORY}.git"

    def settings(self, state_dir: Path, *, web_port: int) -> dict[str, Any]:
        """The settings in which the demo differs from any other installation."""
        return {
            "state.dir": state_dir,
            "config.source": self.config_url,
            "config.branch": _BRANCH,
            "config.interval_s": 5,
            "git.allowed_schemes": ["https", "ssh", "http"],
            "git.allowed_hosts": [self.git_url.removeprefix("http://")],
            "web.port": web_port,
        }


def default_folder() -> Path:
    """``config/demo`` of the source tree that this program runs from.

    Raises:
        PrerequisiteError: it runs from somewhere else.
    """
    folder = Path(__file__).resolve().parents[2] / "config" / "demo"
    if not (folder / "expected.yaml").is_file():
        raise PrerequisiteError(
            f"{folder} is not there", hint="run from a clone of the repository, or name --source"
        )
    return folder


def free_port(wanted: int) -> int:
    """``wanted`` if it can be listened on, else 0, which takes a free one."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, wanted))
        except OSError:
            return 0
    return wanted


@contextlib.asynccontextmanager
async def surroundings(
    folder: Path, state_dir: Path, *, git_port: int | None = None
) -> AsyncIterator[Surroundings]:
    """Make what has changed of the repositories and serve them while the block runs.

    ``git_port`` None means the port of the last run on this state, else ``GIT_PORT``, else any
    free one: a repository's address should not change from run to run.

    Raises:
        HumanNeededError: ``folder`` is not a demo, git or Nix is missing, ``git_port`` is taken, or
            another demo runs on this state.
    """
    if not (folder / "manifests").is_dir() or not (folder / "sources").is_dir():
        raise HumanNeededError(f"{folder} holds no manifests and sources")
    await _require_programs()
    repositories = state_dir / "repositories"
    # A lock of its own: what a running demo serves must not change under it.
    lock = StateDirectory(repositories).acquire()
    try:
        async with _served(folder, repositories, git_port) as here:
            yield here
    finally:
        lock.release()


async def _require_programs() -> None:
    """Say at once what would be missing only much later.

    Raises:
        PrerequisiteError: git or Nix is missing or does not work.
    """
    for check in (diagnosis.git, diagnosis.nix):
        found = await check(Settings(), os.environ)
        if found.state is diagnosis.State.MISSING:
            raise PrerequisiteError(f"{found.name}: {found.detail}", hint=found.cure)


@contextlib.asynccontextmanager
async def _served(
    folder: Path, repositories: Path, git_port: int | None
) -> AsyncIterator[Surroundings]:
    remembered = repositories / "port"
    server = await _serve(repositories, git_port, otherwise=_last_port(remembered))
    try:
        remembered.write_text(f"{server.port}\n")
        replacements = {
            f"http://{_HOST}:{GIT_PORT}/": f"{server.url}/",
            _WRITTEN_SYSTEM: own_system(),
        }
        contents = {CONFIG_REPOSITORY: files_of(folder / "manifests", replacements)}
        for source in sorted((folder / "sources").iterdir()):
            contents[source.name] = files_of(source, {})
        commits = {
            name: await commit(repositories / f"{name}.git", files)
            for name, files in contents.items()
        }
        expected = _replaced((folder / "expected.yaml").read_text(), replacements)
        yield Surroundings(git_url=server.url, commits=commits, expected=expected)
    finally:
        await server.stop()


async def _serve(repositories: Path, port: int | None, *, otherwise: int) -> GitServer:
    """The started server; without a wish at ``otherwise``, or where that is taken anywhere."""
    try:
        server = GitServer(repositories, port=otherwise if port is None else port)
        await server.start()
    except HumanNeededError:
        if port is not None:
            raise
        server = GitServer(repositories)
        await server.start()
    return server


def _last_port(file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return GIT_PORT


def files_of(folder: Path, replacements: Mapping[str, str]) -> dict[str, bytes]:
    """Content of every file below ``folder`` by its relative path, texts replaced."""
    return {
        file.relative_to(folder).as_posix(): _replaced(file.read_text(), replacements).encode()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def _replaced(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


async def commit(repository: Path, files: Mapping[str, bytes]) -> CommitId:
    """Bring the branch of a bare repository to ``files``, by one commit if they differ.

    Raises:
        PrerequisiteError: git is missing.
        HumanNeededError: git refuses; the message holds its words.
    """
    repository = await asyncio.to_thread(
        repository.absolute
    )  # git runs in another folder than ours
    if not (repository / "HEAD").is_file():
        # Aside first: a repository is there whole or not at all.
        with tempfile.TemporaryDirectory(dir=repository.parent, prefix=".new-") as aside:
            made = Path(aside) / repository.name
            await _git("init", "--quiet", "--bare", f"--initial-branch={_BRANCH}", str(made))
            shutil.rmtree(repository, ignore_errors=True)
            made.rename(repository)
    with tempfile.TemporaryDirectory(dir=repository.parent, prefix=".tree-") as tree:
        for path, content in files.items():
            target = Path(tree) / "files" / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        where = {
            "GIT_DIR": str(repository),
            "GIT_WORK_TREE": str(Path(tree) / "files"),
            "GIT_INDEX_FILE": str(Path(tree) / "index"),
        }
        await _git("add", "--all", "--force", ".", cwd=Path(tree) / "files", variables=where)
        wanted = await _git("write-tree", variables=where)
        refs = await _git("for-each-ref", "--format=%(objectname) %(tree)", _ref(), variables=where)
        head, _, there = refs.partition(" ")
        if there == wanted:
            return CommitId(head)
        parent = ["-p", head] if head else []
        made_commit = await _git("commit-tree", wanted, *parent, "-m", "The demo", variables=where)
        await _git("update-ref", _ref(), made_commit, variables=where)
        return CommitId(made_commit)


def _ref() -> str:
    return f"refs/heads/{_BRANCH}"


async def _git(
    *words: str, cwd: Path | None = None, variables: Mapping[str, str] | None = None
) -> str:
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        # Neither the machine's nor the user's configuration may change what a commit is.
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **_IDENTITY,
        **(variables or {}),
    }
    try:
        done = await processes.run(["git", *words], env=env, cwd=cwd)
    except OSError as error:
        raise PrerequisiteError("git is missing", hint="apt-get install git") from error
    if done.code != 0:
        said = done.stderr.decode(errors="replace").strip()
        raise HumanNeededError(f"git {words[0]} failed: {said}")
    return done.stdout.decode().strip()
