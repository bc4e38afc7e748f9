"""What a source says now: read as little as possible, parse only what changed.

A git source is compared by commit, then by tree, then by blobs; a directory by the hashes of its
files. Parsed files are kept by content, so that a moved file is not parsed again.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fc_operator.clients import git as git_clients
from fc_operator.clients.git import Git, Mirror
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import InvalidError, NotFoundError
from fc_operator.intake import directories
from fc_operator.model.desired import Declaration
from fc_operator.model.ids import CommitId
from fc_operator.spec import manifests
from fc_operator.spec.manifests import Parsed, ParsedFile
from fc_operator.store.config_repositories import DueSource

_READ_BYTES_MAX = 256 * 1024 * 1024
"""All manifests of a source together."""
_MANY = 1_000
_TOO_LARGE = b"#" * (directories.FILE_BYTES_MAX + 1)
"""Stands for a file that is not read because it is too large; the parser says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """All that a source says at one revision."""

    revision: str
    tree: str
    """Names the content alone."""
    parsed: Parsed
    rewritten_from: str | None = None
    """The revision in force before, if the branch no longer contains it."""
    news: tuple[Declaration, ...] = ()
    """The few declarations among many that are new or other than last time; empty when they are
    not few. They can come into force at once, before all others are compared with their rows."""


@dataclass(slots=True)
class Memory:
    """What was read of a source last; one per source and process, lost with it."""

    what: tuple[str, ...] = ()
    """Which URL, branch, folder and namespace it is about."""
    namespace: str | None = None
    """Where all that it declares belongs to; None: each manifest says so itself."""
    loaded: Loaded | None = None
    files: dict[str, ParsedFile] = field(default_factory=dict)
    """By content id."""

    def of(self, source: DueSource) -> Memory:
        """Itself if it is about what the source says it is now, else an empty one."""
        namespace = source.own_namespace
        what = (source.kind, source.url, source.branch or "", source.path, namespace or "")
        return self if self.what == what else Memory(what=what, namespace=namespace)


async def load(source: DueSource, memory: Memory, *, git: Git, secrets: Secrets) -> Loaded:
    """Read a source. ``memory`` is brought up to date only when all went well.

    Raises:
        FcError: it can't be read; the class says what to do next.
    """
    if source.kind == "directory":
        loaded = await _load_directory(source, memory)
    else:
        loaded = await _load_git(source, memory, git=git, secrets=secrets)
    before, memory.loaded = memory.loaded, loaded
    if before is None or before.parsed is loaded.parsed:
        return loaded
    return replace(loaded, news=_news(before.parsed.declarations, loaded.parsed.declarations))


def _news(before: Sequence[Declaration], now: Sequence[Declaration]) -> tuple[Declaration, ...]:
    if len(now) < _MANY:
        return ()
    known = {(each.kind, each.namespace, each.name): each for each in before}
    news = []
    for each in now:
        old = known.get((each.kind, each.namespace, each.name))
        if old is not each and (
            old is None or old.spec_hash != each.spec_hash or old.requested_at != each.requested_at
        ):
            news.append(each)
    return tuple(news) if len(news) * 10 < len(now) else ()


async def _load_directory(source: DueSource, memory: Memory) -> Loaded:
    snapshot = await asyncio.to_thread(directories.read, Path(source.url) / source.path)
    if memory.loaded is not None and memory.loaded.revision == snapshot.revision:
        return memory.loaded
    parsed = await _parse(snapshot.ids, snapshot.files, memory)
    return Loaded(revision=snapshot.revision, tree=snapshot.revision, parsed=parsed)


async def _load_git(source: DueSource, memory: Memory, *, git: Git, secrets: Secrets) -> Loaded:
    credentials = await git_clients.read_credentials(
        secrets, source.namespace, source.credentials_secret
    )
    remote = await git.ls_remote(source.url, credentials=credentials)
    commit = remote.branch(source.branch)
    before = memory.loaded
    if before is not None and before.revision == commit:
        return before
    mirror = await git.fetch(source.url, credentials=credentials, wants=[commit])
    try:
        rewritten_from, tree = await asyncio.gather(
            _rewritten(mirror, source.last_revision, commit), mirror.tree(commit, source.path)
        )
    except NotFoundError as error:
        raise InvalidError(f"at {commit[:12]} there is no folder {source.path}") from error
    if before is not None and before.tree == tree:
        parsed = before.parsed
    else:
        parsed = await _read_and_parse(mirror, commit, source.path, memory)
    return Loaded(revision=commit, tree=tree, parsed=parsed, rewritten_from=rewritten_from)


async def _rewritten(mirror: Mirror, before: str | None, commit: CommitId) -> str | None:
    if before is None or before == commit:
        return None
    return None if await mirror.contains(commit, CommitId(before)) else before


async def _read_and_parse(mirror: Mirror, commit: CommitId, folder: str, memory: Memory) -> Parsed:
    ids = {
        path: blob
        for path, blob in (await mirror.blobs(commit, folder)).items()
        if manifests.is_manifest(path)
    }
    if len(ids) > directories.FILES_MAX:
        raise InvalidError(f"the folder holds more than {directories.FILES_MAX} manifest files")
    unknown = [blob for blob in ids.values() if blob not in memory.files]
    sizes = await mirror.sizes(unknown)
    small = [blob for blob, size in sizes.items() if size <= directories.FILE_BYTES_MAX]
    content = await mirror.read(small, _READ_BYTES_MAX, sizes=sizes)
    files = {
        path: content.get(blob, _TOO_LARGE)
        for path, blob in ids.items()
        if blob not in memory.files
    }
    return await _parse(ids, files, memory)


async def _parse(ids: Mapping[str, str], files: Mapping[str, bytes], memory: Memory) -> Parsed:
    """Parses what is not remembered, off the event loop, and forgets what is gone."""
    known, namespace = memory.files, memory.namespace

    def work() -> tuple[Parsed, dict[str, ParsedFile]]:
        kept: dict[str, ParsedFile] = {}
        parsed = []
        for path in sorted(ids):
            id_ = ids[path]
            file = known.get(id_) or kept.get(id_)
            if file is None:
                file = manifests.parse_file(path, files[path], namespace)
            kept[id_] = file
            parsed.append(file if file.path == path else manifests.relocate(file, path))
        return manifests.link(parsed), kept

    result, memory.files = await asyncio.to_thread(work)
    if len(files) >= _MANY:
        # What was parsed stays for as long as we run; walking it in every full garbage collection
        # would double the time of a sync that finds nothing new.
        gc.collect(1)
        gc.freeze()
    return result
