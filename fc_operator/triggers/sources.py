"""Where the sources of jobsets stand: one question per repository, whoever asks."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from fc_operator.clients.git import Git, GitCredentials, Mirror, RemoteRefs, read_credentials
from fc_operator.clients.secrets import Secrets
from fc_operator.errors import InvalidError, NotFoundError
from fc_operator.model.desired import InputSpec
from fc_operator.model.evaluations import ResolvedInput
from fc_operator.model.ids import CommitId
from fc_operator.store.checks import BuildInput, DueJobset
from fc_operator.triggers import inputs

FindBuild = Callable[[inputs.BuildInputRef], Awaitable[BuildInput | None]]
_LISTED_MAX = 100_000


class WaitingForBuild(Exception):  # noqa: N818 - it is no error: the jobset waits
    """An input names a job of which there is no good build yet."""


def may_use(credentials_url: str, url: str) -> bool:
    """Whether a project's credentials may be shown to the host of another repository: only where
    scheme, host and port are the same.
    """
    ours, theirs = urlsplit(credentials_url), urlsplit(url)
    return bool(ours.scheme) and (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc)


async def credentials_for(
    secrets: Secrets, *, namespace: str, secret: str | None, repository_url: str, url: str
) -> GitCredentials | None:
    """The credentials for ``url`` of a project whose repository is ``repository_url``.

    Raises:
        SecretError: the secret is missing or does not fit.
    """
    if secret is None or (url != repository_url and not may_use(repository_url, url)):
        return None
    return await read_credentials(secrets, namespace, secret)


class Remotes:
    """What hosts say of their refs; asks each repository once. One instance serves one batch."""

    def __init__(self, git: Git, secrets: Secrets) -> None:
        self._git = git
        self._secrets = secrets
        self._asked: dict[tuple[str, str, str | None], asyncio.Task[RemoteRefs]] = {}
        self._fetched: dict[tuple[str, str, str | None], asyncio.Task[Mirror]] = {}

    def fetch(self, jobset: DueJobset) -> asyncio.Task[Mirror]:
        """Begin to fetch a jobset's repository, once for all jobsets of the batch.

        It is never shared with another batch: a fetch that began before a push does not show it.
        """
        key = (jobset.repository_url, jobset.namespace, jobset.credentials_secret)
        if key not in self._fetched:
            self._fetched[key] = asyncio.create_task(self._fetch(jobset), name="fetch")
        return self._fetched[key]

    async def _fetch(self, jobset: DueJobset) -> Mirror:
        credentials = await self._credentials(jobset, jobset.repository_url)
        return await self._git.fetch(jobset.repository_url, credentials=credentials)

    async def fetched_tip(self, jobset: DueJobset) -> CommitId | None:
        """Where the jobset's branch stands, if it is named, being fetched, and there."""
        key = (jobset.repository_url, jobset.namespace, jobset.credentials_secret)
        if jobset.branch is None or key not in self._fetched:
            return None
        # Shielded as below.
        return await (await asyncio.shield(self._fetched[key])).tip(jobset.branch)

    async def refs(self, jobset: DueJobset, url: str) -> RemoteRefs:
        """The refs of ``url`` as the jobset's project may see them.

        Raises:
            FcError: the URL is refused, the host does not answer, the secret is missing, …
        """
        own = jobset.credentials_secret
        visible = (
            own if url == jobset.repository_url or may_use(jobset.repository_url, url) else None
        )
        key = (url, jobset.namespace, visible)
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._ask(jobset, url))
        # Shielded: one jobset that stops waiting does not take the answer from the others.
        return await asyncio.shield(self._asked[key])

    async def _ask(self, jobset: DueJobset, url: str) -> RemoteRefs:
        credentials = await self._credentials(jobset, url)
        return await self._git.ls_remote(url, credentials=credentials)

    async def _credentials(self, jobset: DueJobset, url: str) -> GitCredentials | None:
        return await credentials_for(
            self._secrets,
            namespace=jobset.namespace,
            secret=jobset.credentials_secret,
            repository_url=jobset.repository_url,
            url=url,
        )

    async def close(self) -> None:
        """End the questions that nobody waits for any more."""
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)


async def commit_of(jobset: DueJobset, remotes: Remotes) -> CommitId:
    """The commit to evaluate: the requested one, or the tip of the jobset's branch.

    Raises:
        FcError: see ``Remotes.refs``; NotFoundError when there is no such branch.
    """
    if jobset.reason == "request" and jobset.requested_commit:
        return jobset.requested_commit
    if (tip := await remotes.fetched_tip(jobset)) is not None:
        return tip
    return (await remotes.refs(jobset, jobset.repository_url)).branch(jobset.branch)


def build_refs(jobset: DueJobset) -> list[inputs.BuildInputRef]:
    """The jobs that build inputs of a jobset name; those that can't be read are left out."""
    refs = []
    for each in jobset.inputs:
        if each.type == "build":
            with contextlib.suppress(InvalidError):
                refs.append(
                    inputs.parse_build(each.value, project=jobset.project, jobset=jobset.name)
                )
    return refs


async def resolve(
    jobset: DueJobset,
    remotes: Remotes,
    *,
    allowed_paths: Sequence[str],
    find_build: FindBuild,
) -> tuple[ResolvedInput, ...]:
    """What the inputs of a jobset stand for now.

    Raises:
        WaitingForBuild: a build input has no good build yet.
        FcError: an input can't be resolved; the message names it.
    """
    resolved = await asyncio.gather(
        *(_resolve(jobset, each, remotes, allowed_paths, find_build) for each in jobset.inputs)
    )
    return tuple(resolved)


async def _resolve(
    jobset: DueJobset,
    given: InputSpec,
    remotes: Remotes,
    allowed_paths: Sequence[str],
    find_build: FindBuild,
) -> ResolvedInput:
    revision: str | None = None
    store_path = None
    if given.type == "git":
        revision = await _git_revision(jobset, given, remotes)
    elif given.type == "build":
        ref = inputs.parse_build(given.value, project=jobset.project, jobset=jobset.name)
        found = await find_build(ref)
        if found is None or found.store_path is None:
            job = f"{ref.project}:{ref.jobset}:{ref.job}"
            raise WaitingForBuild(f"input {given.name}: {job} has no successful build yet")
        revision, store_path = str(found.id), found.store_path
    elif given.type == "path" and given.value.startswith("/"):
        path = allowed_path(given, allowed_paths)
        revision = await asyncio.to_thread(listing_hash, path)
    return ResolvedInput(
        name=given.name,
        type=given.type,
        value=given.value,
        revision=revision,
        store_path=store_path,
    )


async def _git_revision(jobset: DueJobset, given: InputSpec, remotes: Remotes) -> CommitId:
    source = inputs.parse_git(given.value)
    if source.ref is not None and inputs.is_commit(source.ref):
        return CommitId(source.ref)
    refs = await remotes.refs(jobset, source.url)
    if source.ref is not None:
        for name in (source.ref, f"refs/heads/{source.ref}", f"refs/tags/{source.ref}"):
            if name.startswith("refs/") and (found := refs.refs.get(name)) is not None:
                return found
    try:
        return refs.branch(source.ref)
    except NotFoundError as error:
        raise NotFoundError(f"input {given.name}: {error.message}", hint=error.hint) from error


def allowed_path(given: InputSpec, allowed_paths: Sequence[str]) -> Path:
    """The real place of an absolute path input, below one of the allowed folders.

    Raises:
        InvalidError: it is outside of them all, also by way of a link, or does not exist.
    """
    path = Path(given.value)
    try:
        real = path.resolve(strict=True)
        roots = [Path(each).resolve() for each in allowed_paths]
    except OSError as error:
        raise InvalidError(f"input {given.name}: {given.value} can't be read") from error
    if not any(real.is_relative_to(root) for root in roots):
        raise InvalidError(
            f"input {given.name}: {given.value} lies outside of the allowed folders",
            hint="the setting evaluation.allowed_paths lists them",
        )
    return real


def listing_hash(path: Path) -> str:
    """A hash of names, sizes and times below a path: whether something in it changed.

    Raises:
        InvalidError: it holds more files than we are ready to look at.
    """
    digest = hashlib.sha256()
    count = 0
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted([*files, *folders]):
            status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 - hot loop
            digest.update(
                f"{folder}/{name}\0{status.st_mode}\0{status.st_size}\0{status.st_mtime_ns}\n".encode()
            )
            count += 1
            if count > _LISTED_MAX:
                raise InvalidError(f"{path} holds more than {_LISTED_MAX} files")
    if not path.is_dir():
        status = path.stat()
        digest.update(f"{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()
