"""Git repositories as bare mirrors: asked, fetched, read and exported.

Every git command runs through ``kit.processes``: in a group of its own, with an empty environment
but for what stands here, no configuration of system or user, no hooks, no submodules, no prompts,
and only the allowed protocols. What reaches its argument list passed ``git_urls`` and, as a second
opinion that is kept up by others, GitPython's own refusals; GitPython can start git only with our
whole environment and in our process group, which is why it judges here and does not run.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from fc_operator.clients import addresses, git_urls
from fc_operator.clients.git_urls import GitUrl
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import (
    FcError,
    InvalidError,
    LimitReachedError,
    NotFoundError,
    PrerequisiteError,
    SecretError,
    UnavailableError,
)
from fc_operator.kit import logs, processes
from fc_operator.model.ids import CommitId
from fc_operator.settings import GitSettings

_log = logs.get_logger()
_PATH = "/usr/local/bin:/usr/bin:/bin:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin"
_ASK_TIMEOUT_S = 60
_READ_TIMEOUT_S = 120
_OUTPUT_BYTES = 256 * 1024**2
_SUBJECT_CHARACTERS = 500
_BRANCHES = "refs/heads/"
_TAGS = "refs/tags/"

_ALWAYS = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.attributesFile=/dev/null",
    "protocol.file.allow=never", "protocol.ext.allow=never", "credential.helper=",
    "core.askPass=", "submodule.recurse=false", "fetch.recurseSubmodules=false",
    "transfer.fsckObjects=true", "fetch.fsck.zeroPaddedFilemode=ignore",
    "fetch.fsck.missingSpaceBeforeDate=ignore", "fetch.fsck.badTimezone=ignore",
    "transfer.unpackLimit=1", "fetch.writeCommitGraph=false", "gc.auto=0", "maintenance.auto=false",
    "http.followRedirects=false", "http.lowSpeedLimit=1000", "http.lowSpeedTime=60",
    "core.protectHFS=true", "core.protectNTFS=true", "core.symlinks=true", "core.autocrlf=false",
    "advice.detachedHead=false",
)  # fmt: skip
"""Old histories have the three harmless faults of ``fetch.fsck``; all others end a fetch. What git
would tidy up after a fetch, while somebody waits, is done by ``Git._tend`` now and then."""
_PACKS_MAX = 24
"""So many packs make a mirror slow to read."""
_SEEN_MAX = 1_000
"""So many commits are remembered of a mirror."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitCredentials:
    """How to prove who we are to one host; made from the keys of one secret."""

    source: str
    """Where it came from, ``namespace/name``: mirrors fetched with it are shared by that name."""
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)
    known_hosts: str = field(default="", repr=False)
    url: str = ""
    """If set, the only URL, or folder of URLs, that gets to see it."""

    @classmethod
    def from_secret(cls, source: str, values: Mapping[str, bytes]) -> GitCredentials:
        """From ``identity`` and ``known_hosts`` (ssh), or ``username`` and ``password`` (https),
        and perhaps ``url``, which binds them to a host and path.

        Raises:
            SecretError: neither pair is whole, or a value is not text.
        """
        known = ("username", "password", "identity", "known_hosts", "url")
        try:
            texts = {key: values[key].decode().strip("\r\n") for key in known if key in values}
        except UnicodeDecodeError as error:
            raise SecretError(f"the secret {source} holds bytes that are not text") from error
        if not {"identity", "known_hosts"} <= texts.keys() and "password" not in texts:
            raise SecretError(
                f"the secret {source} can't open a repository",
                hint="keys for ssh: identity and known_hosts; for https: username and password",
            )
        return cls(source=source, **texts)


async def read_credentials(
    secrets: Secrets, namespace: str, name: str | None
) -> GitCredentials | None:
    """The credentials that a manifest refers to by name; None for no name.

    Raises:
        SecretError: the secret is missing or does not fit.
    """
    if name is None:
        return None
    values = await secrets.values(namespace, name)
    return GitCredentials.from_secret(f"{namespace}/{name}", values)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteRefs:
    """What a host said of its branches and tags."""

    head_branch: str | None
    """The default branch; None where the host does not say or its HEAD is detached."""
    refs: Mapping[str, CommitId]
    """``refs/heads/…`` and ``refs/tags/…`` (the tagged commit, not the tag), and ``HEAD``."""

    def branch(self, name: str | None) -> CommitId:
        """The tip of a branch, or of the default branch for None.

        Raises:
            NotFoundError: there is none; the message names some that exist.
        """
        if not self.refs:
            raise NotFoundError("the repository is empty")
        key = "HEAD" if name is None else _BRANCHES + name
        if (found := self.refs.get(key)) is not None:
            return found
        there = sorted(ref.removeprefix(_BRANCHES) for ref in self.refs if _BRANCHES in ref)
        hint = f"it has {', '.join(there[:8])}{', …' if len(there) > 8 else ''}" if there else ""
        if name is None:
            raise NotFoundError("the repository has no default branch", hint=hint)
        raise NotFoundError(f"the repository has no branch {name}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitInfo:
    """One commit."""

    id: CommitId
    tree: str
    subject: str
    author: str
    """``Name <mail>``."""
    committed_at: datetime
    rev_count: int
    """How many commits lead to it, itself included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """A bare mirror on this machine; reading it asks nobody."""

    path: Path
    url: str
    _git: Git = field(repr=False, compare=False)

    async def commit(self, commit_or_ref: str) -> CommitInfo:
        """A commit by its full id, branch, tag or full ref.

        Raises:
            NotFoundError: the mirror has no such commit.
            InvalidError: it is neither an id nor the name of a ref.
        """
        for name in _candidates(commit_or_ref):
            form = "%H%x00%T%x00%an <%ae>%x00%cI%x00%s"
            argv = [
                "log",
                "-1",
                "--no-show-signature",
                f"--format={form}",
                f"{name}^{{commit}}",
                "--",
            ]
            done = await self._run(argv, check=False)
            if done.code == 0:
                break
        else:
            raise NotFoundError(f"the repository has no {commit_or_ref}")
        text = done.stdout.decode(errors="replace").rstrip("\n")
        id_, tree, author, at, subject = text.split("\0", 4)
        counted = await self._run(["rev-list", "--count", id_, "--"])
        return CommitInfo(
            id=CommitId(id_),
            tree=tree,
            subject=subject[:_SUBJECT_CHARACTERS],
            author=author[:_SUBJECT_CHARACTERS],
            committed_at=datetime.fromisoformat(at),
            rev_count=int(counted.stdout),
        )

    async def tip(self, branch: str) -> CommitId | None:
        """Where a branch stood at the last fetch; None if there was none.

        Raises:
            InvalidError: it can't be the name of a branch.
        """
        name = git_urls.check_ref(_BRANCHES + branch)
        found = await asyncio.to_thread(_loose_ref, self.path / name)
        if found is None:
            done = await self._run(
                ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"],
                check=False,
            )
            found = CommitId(done.stdout.decode().strip()) if done.code == 0 else None
        if found is not None:
            self._git.remember(self.path, found)
        return found

    async def has(self, commits: Iterable[CommitId]) -> bool:
        """Whether all these commits are here."""
        wanted = [_checked_id(commit) for commit in commits]
        asked = "".join(f"{commit}^{{commit}}\n" for commit in wanted)
        done = await self._run(["cat-file", "--batch-check"], stdin=asked.encode())
        return b" missing" not in done.stdout and b" ambiguous" not in done.stdout

    async def contains(self, commit: CommitId, older: CommitId) -> bool:
        """Whether ``older`` is in the history of ``commit``; not if it is no longer here at all."""
        argv = ["merge-base", "--is-ancestor", _checked_id(older), _checked_id(commit)]
        return (await self._run(argv, check=False)).code == 0

    async def tree(self, commit: CommitId, folder: str = "") -> str:
        """The id of a folder's tree: equal ids mean equal content.

        Raises:
            NotFoundError: the commit has no such folder.
        """
        name = f"{_checked_id(commit)}:{git_urls.check_folder(folder)}"
        done = await self._run(
            ["rev-parse", "--verify", "--quiet", "--end-of-options", name], check=False
        )
        if done.code != 0:
            raise NotFoundError(f"the commit has no folder {folder}")
        return done.stdout.decode().strip().splitlines()[-1]

    async def blobs(self, commit: CommitId, folder: str = "") -> dict[str, str]:
        """The plain files below a folder: path relative to it → blob id.

        Links and submodules are left out: what they point to is not content of this commit.

        Raises:
            NotFoundError: the commit has no such folder.
            LimitReachedError: the listing is beyond all measure.
        """
        name = f"{_checked_id(commit)}:{git_urls.check_folder(folder)}"
        done = await self._run(["ls-tree", "-r", "-z", "--full-tree", name], check=False)
        if done.code != 0:
            raise NotFoundError(f"the commit has no folder {folder or '/'}")
        found = {}
        for entry in done.stdout.split(b"\0"):
            head, _, path = entry.partition(b"\t")
            if head.startswith(b"100"):
                found[path.decode(errors="replace")] = head.split(b" ")[2].decode()
        return found

    async def sizes(self, blob_ids: Iterable[str]) -> dict[str, int]:
        """Sizes of blobs in bytes."""
        wanted = [_checked_id(each) for each in dict.fromkeys(blob_ids)]
        if not wanted:
            return {}
        asked = "".join(f"{each}\n" for each in wanted).encode()
        done = await self._run(
            ["cat-file", "--batch-check=%(objectname) %(objectsize)", "--buffer"], stdin=asked
        )
        lines = (line.split() for line in done.stdout.decode().splitlines())
        return {name: int(size) for name, size in lines if size.isdigit()}

    async def read(
        self,
        blob_ids: Iterable[str],
        max_bytes: int,
        *,
        sizes: Mapping[str, int] | None = None,
    ) -> dict[str, bytes]:
        """The content of blobs, by one process; ``sizes`` spares another if they are known.

        Raises:
            LimitReachedError: together they are larger than ``max_bytes``.
            NotFoundError: one of them is not here.
        """
        wanted = [_checked_id(each) for each in dict.fromkeys(blob_ids)]
        known = await self.sizes(wanted) if sizes is None else sizes
        if missing := next((each for each in wanted if each not in known), None):
            raise NotFoundError(f"the repository has no blob {missing}")
        total = sum(known[each] for each in wanted)
        if total > max_bytes:
            raise LimitReachedError(f"the files hold {total} bytes, more than {max_bytes}")
        if not wanted:
            return {}
        asked = "".join(f"{each}\n" for each in wanted).encode()
        done = await self._run(["cat-file", "--batch", "--buffer"], stdin=asked)
        return _split_batch(done.stdout)

    async def export(self, commit: CommitId, into: Path) -> None:
        """Write the files of a commit into an empty or new folder.

        There is no ``.git`` in it; submodules are empty folders; no hook or filter runs.

        Raises:
            NotFoundError: the mirror has no such commit.
            UnavailableError: the disk is full, or the folder can't be written.
        """
        name = _checked_id(commit)
        target = await asyncio.to_thread(into.absolute)
        try:
            await asyncio.to_thread(into.mkdir, parents=True, exist_ok=True)
            descriptor, index = await asyncio.to_thread(
                tempfile.mkstemp, ".index", ".", into.parent
            )
        except OSError as error:
            raise UnavailableError(f"can't write to {into}: {error.strerror}") from error
        os.close(descriptor)
        Path(index).unlink()  # noqa: ASYNC240 - git wants the name, not the file
        try:
            await self._run(
                ["read-tree", "-u", "--reset", f"{name}^{{tree}}"],
                env={"GIT_WORK_TREE": str(target), "GIT_INDEX_FILE": index},
                timeout_s=self._git.settings.timeout_s,
            )
        finally:
            for leftover in (index, f"{index}.lock"):
                Path(leftover).unlink(missing_ok=True)  # noqa: ASYNC240 - one small file

    async def _run(self, argv: Sequence[str], **options: Any) -> processes.Finished:
        return await self._git.run([f"--git-dir={self.path}", *argv], url=self.url, **options)


class Git:
    """The one way to git: what settings allow, below ``mirrors_dir``.

    ``env`` is what git's own environment gets besides, such as PATH or SSL_CERT_FILE.
    """

    def __init__(
        self, settings: GitSettings, mirrors_dir: Path, *, env: Mapping[str, str] | None = None
    ) -> None:
        self.settings = settings
        self._dir = mirrors_dir.absolute()
        self._path = (env or {}).get("PATH", _PATH)
        protocols = [
            each for each in settings.allowed_schemes if each in {"https", "http", "ssh", "git"}
        ]
        self._env = {
            **(env or {}),
            "PATH": self._path,
            "HOME": "/nonexistent",
            "LC_ALL": "C",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_LITERAL_PATHSPECS": "1",
            "GIT_ALLOW_PROTOCOL": ":".join(protocols) or "none",
            "GIT_PROTOCOL_FROM_USER": "0",
        }
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tended: dict[Path, asyncio.Task[None]] = {}
        self._seen: dict[Path, set[CommitId]] = {}

    def check_url(self, url: str) -> GitUrl:
        """Judge a URL without asking anybody.

        Raises:
            InvalidError: scheme, host or form is refused; the message says which and why.
        """
        parsed = git_urls.parse(
            url, schemes=self.settings.allowed_schemes, hosts=self.settings.allowed_hosts
        )
        _second_opinion_on_url(url)
        return parsed

    async def ls_remote(self, url: str, *, credentials: GitCredentials | None = None) -> RemoteRefs:
        """Ask a host for its branches and tags.

        Raises:
            InvalidError: the URL or its host is refused.
            UnavailableError: the host did not answer well in a minute.
            NotFoundError: the host has no such repository, or shows it to nobody.
            SecretError: the credentials are refused, do not fit the URL, or are needed.
        """
        async with self._access(self.check_url(url), credentials) as access:
            options = _second_opinion(["--quiet", "--symref"])
            argv = [*access.options, "ls-remote", *options, "--", url]
            done = await self.run(argv, url=url, env=access.env, timeout_s=_ASK_TIMEOUT_S)
        return _parse_refs(done.stdout)

    def mirror(self, url: str, *, credentials: GitCredentials | None = None) -> Mirror:
        """The mirror of a URL as it is, fetched or not. One URL with two secrets is two mirrors,
        so that who may not fetch can't read either.
        """
        who = credentials.source if credentials else ""
        tag = hashlib.sha256(f"{url}\0{who}".encode()).hexdigest()[:32]
        return Mirror(path=self._dir / f"{tag}.git", url=url, _git=self)

    async def fetch(
        self,
        url: str,
        *,
        credentials: GitCredentials | None = None,
        wants: Sequence[CommitId] = (),
    ) -> Mirror:
        """Bring the mirror of a URL up to date with all branches and tags.

        If ``wants`` are all there already, nobody is asked; those that no branch or tag leads to
        are asked for by id. At most one fetch per mirror runs, also across processes.

        Raises:
            LimitReachedError: it took longer, or the mirror is larger, than the settings allow.
            InvalidError, UnavailableError, NotFoundError, SecretError: as ``ls_remote``.
        """
        target = self.check_url(url)
        mirror = self.mirror(url, credentials=credentials)
        if wants and self._seen.get(mirror.path, set()).issuperset(wants):
            return mirror
        async with self._locked(mirror.path):
            if wants and await _exists(mirror.path) and await mirror.has(wants):
                return mirror
            async with self._access(target, credentials) as access:
                await self._fetch(mirror, access)
                if wants and not await mirror.has(wants):
                    ids = [_checked_id(each) for each in wants]
                    await self._fetch_refs(mirror, access, ids)
        if await asyncio.to_thread(_packs, mirror.path) > _PACKS_MAX:
            self._tend_soon(mirror)
        return mirror

    def remember(self, path: Path, commit: CommitId) -> None:
        """Note that a mirror has a commit, so that nobody need look again."""
        seen = self._seen.setdefault(path, set())
        if len(seen) > _SEEN_MAX:
            seen.clear()
        seen.add(commit)

    def _tend_soon(self, mirror: Mirror) -> None:
        """Join what many fetches left, once nobody waits for it."""
        if mirror.path not in self._tended:
            task = asyncio.create_task(self._tend(mirror), name="tend")
            self._tended[mirror.path] = task
            task.add_done_callback(lambda _: self._tended.pop(mirror.path, None))

    async def _tend(self, mirror: Mirror) -> None:
        try:
            async with self._locked(mirror.path):
                for argv in (
                    ["repack", "-d", "-q", "--geometric=2", "--write-midx"],
                    ["pack-refs", "--all"],
                    ["commit-graph", "write", "--reachable", "--split", "--no-progress"],
                ):
                    await self.run(
                        [f"--git-dir={mirror.path}", *argv],
                        url=mirror.url,
                        timeout_s=self.settings.timeout_s,
                    )
        except FcError as error:
            # It is as good as before, and tried again after the next fetch.
            _log.warning("clients.mirror_not_tended", url=mirror.url, error=str(error))

    async def _fetch(self, mirror: Mirror, access: _Access) -> None:
        refs = [f"+{_BRANCHES}*:{_BRANCHES}*", f"+{_TAGS}*:{_TAGS}*"]
        object_format = "sha1"
        for fresh in (False, True):
            try:
                await self._prepare(mirror, fresh=fresh, object_format=object_format)
                await self._fetch_refs(mirror, access, refs, prune=True)
            except _BrokenMirrorError as error:
                if fresh:
                    raise UnavailableError(
                        f"the mirror of {mirror.url} can't be made: {error}"
                    ) from error
                _log.warning("clients.mirror_broken", url=mirror.url, error=str(error))
                # The host speaks of its own kind of ids only once a fetch has begun.
                object_format = "sha256" if "server sha256" in error.message else "sha1"
            else:
                return

    async def _prepare(self, mirror: Mirror, *, fresh: bool, object_format: str) -> None:
        if fresh:
            self._seen.pop(mirror.path, None)
            await asyncio.to_thread(shutil.rmtree, mirror.path, ignore_errors=True)
        if await _exists(mirror.path):
            # We hold the lock, so what looks locked or half-written was left by a killed fetch.
            await asyncio.to_thread(_sweep, mirror.path)
            return
        await asyncio.to_thread(self._dir.mkdir, mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(shutil.rmtree, mirror.path, ignore_errors=True)
        options = ["--quiet", "--bare", "--template=", f"--object-format={object_format}"]
        await self.run(["init", *options, "--", str(mirror.path)], url=mirror.url)

    async def _fetch_refs(
        self, mirror: Mirror, access: _Access, refs: Sequence[str], *, prune: bool = False
    ) -> None:
        options = ["--quiet", "--no-tags", "--force", "--no-recurse-submodules"]
        options += ["--no-write-fetch-head", *(["--prune"] if prune else [])]
        argv = [*access.options, f"--git-dir={mirror.path}", "fetch", *_second_opinion(options)]
        argv += ["--", mirror.url, *_second_opinion(refs)]
        work = asyncio.ensure_future(
            self.run(argv, url=mirror.url, env=access.env, timeout_s=self.settings.timeout_s)
        )
        watch = asyncio.ensure_future(self._outgrown(mirror.path))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            too_large = (watch.done() and watch.result()) or await self._too_large(mirror.path)
            if not too_large:
                await work
                return
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
        self._seen.pop(mirror.path, None)
        await asyncio.to_thread(shutil.rmtree, mirror.path, ignore_errors=True)
        raise LimitReachedError(
            f"the repository {mirror.url} is larger than {self.settings.max_bytes} bytes",
            hint="the setting git.max_bytes bounds mirrors",
        )

    async def _outgrown(self, path: Path) -> bool:
        while not await self._too_large(path):  # noqa: ASYNC110 - a growing folder has no event
            await asyncio.sleep(0.25)
        return True

    async def _too_large(self, path: Path) -> bool:
        return await asyncio.to_thread(_size_bytes, path) > self.settings.max_bytes

    @contextlib.asynccontextmanager
    async def _locked(self, path: Path) -> AsyncIterator[None]:
        lock = self._locks.setdefault(path.name, asyncio.Lock())
        async with lock:
            await asyncio.to_thread(self._dir.mkdir, mode=0o700, parents=True, exist_ok=True)
            file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                while True:
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    await asyncio.sleep(0.05)
                yield
            finally:
                os.close(file)

    @contextlib.asynccontextmanager
    async def _access(
        self, url: GitUrl, credentials: GitCredentials | None
    ) -> AsyncIterator[_Access]:
        """How to reach one host: its judged addresses pinned, its credentials at hand."""
        if credentials is not None and credentials.url:
            bound = self.check_url(credentials.url)
            if not git_urls.covers(bound, url):
                raise SecretError(
                    f"the secret {credentials.source} is bound to {bound.text}, not to {url.text}"
                )
        found = await addresses.resolve(url.host, url.port, self.settings.allowed_hosts)
        if url.scheme == "ssh":
            async with _ssh(url, credentials, found[0]) as access:
                yield access
            return
        options = [] if url.scheme == "git" else _pin(url, found)
        env = {} if credentials is None else _authorization(url, credentials, self.settings)
        yield _Access(options=tuple(options), env=env)

    async def run(
        self,
        argv: Sequence[str],
        *,
        url: str,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        timeout_s: float = _READ_TIMEOUT_S,
        check: bool = True,
    ) -> processes.Finished:
        """Run one git command under all our rules.

        Raises:
            PrerequisiteError: git is missing.
            LimitReachedError: it ran too long or printed too much.
            FcError: with ``check``, it failed; the class says what to do next.
        """
        settings = [word for each in _ALWAYS for word in ("-c", each)]
        program = shutil.which("git", path=self._path)
        if program is None:
            raise PrerequisiteError("git is missing", hint="apt-get install git")
        limits = processes.Limits(timeout_s=timeout_s, output_bytes=_OUTPUT_BYTES)
        try:
            done = await processes.run(
                [program, *settings, *argv],
                env={**self._env, **(env or {})},
                stdin=stdin,
                limits=limits,
            )
        except processes.ProcessLimitError as error:
            raise LimitReachedError(f"{url}: {error}") from error
        except OSError as error:
            raise UnavailableError(f"git can't be started: {error}") from error
        if check and done.code != 0:
            raise _failure(url, done.stderr.decode(errors="replace"), str(self._dir))
        return done


@dataclass(frozen=True, slots=True, kw_only=True)
class _Access:
    options: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)


def _pin(url: GitUrl, found: Sequence[str]) -> list[str]:
    """Have curl connect to the addresses that were judged, whatever the name means by then."""
    if ":" in url.host or url.host in found:
        return []
    shown = ",".join(f"[{each}]" if ":" in each else each for each in found)
    return ["-c", f"http.curloptResolve={url.host}:{url.port}:{shown}"]


def _authorization(
    url: GitUrl, credentials: GitCredentials, settings: GitSettings
) -> dict[str, str]:
    """A header for this origin alone, in the environment: argument lists are public."""
    if not credentials.password:
        raise SecretError(
            f"the secret {credentials.source} has no password for {url.origin}",
            hint="keys for https: username and password",
        )
    if url.scheme != "https" and not addresses.is_listed(
        url.host, url.port, settings.allowed_hosts
    ):
        raise SecretError(f"a password is not sent in clear to {url.origin}", hint="use https")
    pair = f"{credentials.username}:{credentials.password}".encode()
    value = f"Authorization: Basic {base64.b64encode(pair).decode()}"
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"http.{url.origin}/.extraHeader",
        "GIT_CONFIG_VALUE_0": value,
    }


@contextlib.asynccontextmanager
async def _ssh(
    url: GitUrl, credentials: GitCredentials | None, address: str
) -> AsyncIterator[_Access]:
    """SSH with one key and the pinned host keys, and nothing of this machine's own set-up."""
    if credentials is None or not credentials.identity or not credentials.known_hosts:
        raise SecretError(
            f"ssh to {url.host} needs a key and the host's keys",
            hint="credentialsSecretRef: a secret with the keys identity and known_hosts",
        )
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="fc-ssh-", dir=_memory_dir()))
    try:
        for name, text in (("identity", credentials.identity), ("hosts", credentials.known_hosts)):
            await asyncio.to_thread(_write_private, folder / name, text + "\n")
        alias = url.host if url.port == 22 else f"[{url.host}]:{url.port}"
        options = (
            "BatchMode=yes", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes",
            "IdentityAgent=none", f"UserKnownHostsFile={folder / 'hosts'}",
            "GlobalKnownHostsFile=/dev/null", f"HostKeyAlias={alias}", f"HostName={address}",
            "CheckHostIP=no", "ForwardAgent=no", "PermitLocalCommand=no", "ProxyCommand=none",
            "ConnectTimeout=20", "ServerAliveInterval=15", "LogLevel=ERROR",
        )  # fmt: skip
        words = ["ssh", "-F", "/dev/null", "-i", str(folder / "identity")]
        words += [word for each in options for word in ("-o", each)]
        yield _Access(env={"GIT_SSH_COMMAND": shlex.join(words), "GIT_SSH_VARIANT": "ssh"})
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _memory_dir() -> str | None:
    """Where files never reach a disk, if there is such a place."""
    shared = Path("/dev/shm")  # noqa: S108 - a private folder is made in it
    return str(shared) if os.access(shared, os.W_OK) else None


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


# What git said ------------------------------------------------------------------------------

_BOILERPLATE = re.compile(
    r"@|fatal: Could not read from remote|Please make sure you have the correct|and the repository"
)
_MISSING = re.compile(
    r"repository .* not found|not found: did you run|returned error: 404|returned error: 410"
    r"|does not appear to be a git repository|Repository not found|no such repository",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"Authentication failed|could not read Username|could not read Password|terminal prompts"
    r"|Permission denied|returned error: 40[13]|Host key verification failed|Invalid credentials",
    re.IGNORECASE,
)
_REDIRECTED = re.compile(r"returned error: 30[1-8]|unable to update url base from redirection")
_BROKEN = re.compile(
    r"not a git repository|object file .* is empty|loose object .* is corrupt|unable to read tree"
    r"|bad object refs/|does not point to a valid object|missing (blob|tree)|mismatched algorithms",
    re.IGNORECASE,
)
"""The disk's fault, not the host's; so is whatever names a file of ours."""


class _BrokenMirrorError(UnavailableError):
    """The mirror on our disk is damaged; a fresh one helps."""


def _failure(url: str, stderr: str, mirrors_dir: str) -> FcError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    telling = [line for line in lines if not _BOILERPLATE.match(line)] or lines
    said = "; ".join(telling[-3:])[:500] or "git said nothing"
    if _REFUSED.search(stderr):
        return SecretError(f"{url} refuses us: {said}", hint="check credentialsSecretRef")
    if _MISSING.search(stderr):
        return NotFoundError(f"there is no repository {url}, or we may not see it: {said}")
    if _REDIRECTED.search(stderr):
        return InvalidError(
            f"{url} leads elsewhere, which is not followed: {said}",
            hint="write the repository's present URL",
        )
    if "transport '" in stderr and "not allowed" in stderr:
        return InvalidError(f"{url}: {said}")
    if mirrors_dir in stderr or _BROKEN.search(stderr):
        return _BrokenMirrorError(f"{url}: {said}")
    return UnavailableError(f"{url}: {said}")


def _parse_refs(output: bytes) -> RemoteRefs:
    head_branch: str | None = None
    refs: dict[str, CommitId] = {}
    for line in output.decode(errors="replace").splitlines():
        value, _, name = line.partition("\t")
        if value.startswith("ref: ") and name == "HEAD":
            head_branch = value.removeprefix(f"ref: {_BRANCHES}")
        elif git_urls.is_commit(value) and (name == "HEAD" or name.startswith((_BRANCHES, _TAGS))):
            # A tag's own line comes first, the commit that it means (`^{}`) after it.
            refs[name.removesuffix("^{}")] = CommitId(value)
    return RemoteRefs(head_branch=head_branch, refs=refs)


def _split_batch(output: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    at = 0
    while at < len(output):
        end = output.index(b"\n", at)
        name, _, size = output[at:end].decode().split(" ")
        start = end + 1
        found[name] = output[start : start + int(size)]
        at = start + int(size) + 1
    return found


def _candidates(commit_or_ref: str) -> list[str]:
    if git_urls.is_commit(commit_or_ref):
        return [commit_or_ref]
    name = git_urls.check_ref(commit_or_ref)
    return [name] if name.startswith("refs/") else [_BRANCHES + name, _TAGS + name]


def _checked_id(text: str) -> str:
    if not git_urls.is_commit(text):
        raise InvalidError(f"{text[:128]!r} is not a full object id")
    return text


async def _exists(path: Path) -> bool:
    return await asyncio.to_thread((path / "HEAD").is_file)


def _packs(path: Path) -> int:
    return sum(1 for _ in (path / "objects" / "pack").glob("*.pack"))


def _loose_ref(path: Path) -> CommitId | None:
    """The commit in the file of a ref; None where it is kept in another way, or is no commit id."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return CommitId(text) if git_urls.is_commit(text) else None


def _sweep(path: Path) -> None:
    for pattern in ("*.lock", "refs/**/*.lock", "objects/**/*.lock", "objects/pack/tmp_*"):
        for leftover in path.glob(pattern):
            leftover.unlink(missing_ok=True)
    for leftover in (path / "objects").glob("tmp_objdir-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _size_bytes(path: Path) -> int:
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - hot loop
    return total


# The second opinion -------------------------------------------------------------------------


@cache
def _gitpython() -> Any:
    try:
        import git
    except ImportError as error:
        raise PrerequisiteError("git is missing", hint="apt-get install git") from error
    return git


def _second_opinion_on_url(url: str) -> None:
    git = _gitpython()
    try:
        git.Git.check_unsafe_protocols(url)
    except git.exc.UnsafeProtocolError as error:
        raise InvalidError(f"{url[:128]}: {error}") from error


def _second_opinion(options: Sequence[str]) -> Sequence[str]:
    """The options of a command that talks to a host, none of which GitPython knows as unsafe."""
    git = _gitpython()
    unsafe = [*git.Repo.unsafe_git_clone_options, *git.Remote.unsafe_git_fetch_options]
    try:
        git.Git.check_unsafe_options(options=list(options), unsafe_options=unsafe)
    except git.exc.UnsafeOptionError as error:
        raise InvalidError(str(error)) from error
    return options
