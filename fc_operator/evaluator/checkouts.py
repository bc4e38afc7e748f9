"""From a revision to a request: mirrors fetched, trees exported, inputs put where Nix sees them.

Everything of one evaluation lies in one folder, ``source`` for its own tree (a constant name, since
Nix names what it copies after its folder) and ``inputs/<name>/source`` for the others.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fc_operator.clients.git import CommitInfo, Git, GitCredentials, Mirror
from fc_operator.errors import EvaluationError, LimitReachedError, PrerequisiteError
from fc_operator.evaluator import arguments, flakes, locks, roots
from fc_operator.evaluator.requests import Argument, EvaluationRequest, Tree
from fc_operator.kit import processes
from fc_operator.model.evaluations import ResolvedInput
from fc_operator.model.ids import CommitId, DrvPath, StorePath

_VERSION = re.compile(r"-(?=[^A-Za-z])")

CredentialsFor = Callable[[str], Awaitable[GitCredentials | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutOrder:
    """What to check out, and what is to be evaluated in it."""

    repository_url: str
    credentials_for: CredentialsFor
    """The credentials that a URL may see."""
    commit: CommitId
    expression: str
    is_flake: bool
    inputs: tuple[ResolvedInput, ...] = ()
    input_urls: Mapping[str, str] = field(default_factory=dict)
    """Of git inputs, by their names."""
    builds: Mapping[str, tuple[DrvPath, str]] = field(default_factory=dict)
    """Of build inputs, by their names: derivation, and its name with version."""
    paths: Mapping[str, Path] = field(default_factory=dict)
    """Of inputs that are folders of this machine, by their names; judged already."""
    systems: tuple[str, ...] = ()
    allow_import_from_derivation: bool = False
    timeout_s: float = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A request, and what its commit says of itself."""

    request: EvaluationRequest
    commit: asyncio.Task[CommitInfo]
    """Still being read where the evaluator need not know it; counting commits may take long."""


class Checkouts:
    """Makes requests out of orders. ``env`` and ``home`` are those of the evaluators."""

    def __init__(self, git: Git, *, env: Mapping[str, str], home: Path) -> None:
        self._git = git
        self._env = arguments.environment(env, home=home)

    async def make(self, order: CheckoutOrder, *, work_dir: Path, roots_dir: Path) -> Checkout:
        """Check out everything below ``work_dir``, which is new or empty.

        Raises:
            FcError: a repository can't be had, an input is not there; the message says which.
        """
        await asyncio.to_thread(work_dir.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(roots_dir.mkdir, parents=True, exist_ok=True)
        mirror = await self._fetch(order, order.repository_url, order.commit)
        commit = asyncio.create_task(mirror.commit(order.commit))
        try:
            source = await self._export(mirror, order.commit, work_dir / "source")
            if order.is_flake:
                source = await _dated(source, await commit)
            given = [
                await self._argument(order, each, source, work_dir, roots_dir)
                for each in order.inputs
            ]
            uris = await self._locked_uris(source, given) if order.is_flake else ()
        except BaseException:
            commit.cancel()
            await asyncio.gather(commit, return_exceptions=True)
            raise
        request = EvaluationRequest(
            source=source,
            expression=order.expression,
            is_flake=order.is_flake,
            arguments=tuple(given),
            systems=order.systems,
            allow_import_from_derivation=order.allow_import_from_derivation,
            allowed_uris=uris,
            timeout_s=order.timeout_s,
            work_dir=work_dir,
            roots_dir=roots_dir,
        )
        return Checkout(request=request, commit=commit)

    async def _locked_uris(self, source: Tree, given: Sequence[Argument]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        for tree in (source, *(each.tree for each in given)):
            if tree is not None:
                lock = await asyncio.to_thread(flakes.read_lock, tree.path)
                found |= dict.fromkeys(locks.allowed_uris(lock, self._git.check_url))
        return tuple(found)

    async def _fetch(self, order: CheckoutOrder, url: str, commit: CommitId) -> Mirror:
        credentials = await order.credentials_for(url)
        return await self._git.fetch(url, credentials=credentials, wants=[commit])

    async def _export(self, mirror: Mirror, commit: CommitId, into: Path) -> Tree:
        await mirror.export(commit, into)
        return Tree(path=into, revision=commit)

    async def _argument(
        self,
        order: CheckoutOrder,
        given: ResolvedInput,
        source: Tree,
        work_dir: Path,
        roots_dir: Path,
    ) -> Argument:
        if given.type == "git":
            commit = CommitId(given.revision or "")
            mirror = await self._fetch(order, order.input_urls[given.name], commit)
            into = work_dir / "inputs" / given.name.replace("/", "%") / "source"
            info, tree = await asyncio.gather(
                mirror.commit(commit), self._export(mirror, commit, into)
            )
            tree = (
                await _dated(tree, info)
                if order.is_flake
                else replace(tree, rev_count=info.rev_count)
            )
            stored = None if order.is_flake else await self._add(tree.path, roots_dir)
            return Argument(name=given.name, type="git", tree=tree, store_path=stored)
        if given.type == "path":
            path = order.paths.get(given.name)
            if path is None:
                path = await asyncio.to_thread(_inside, source.path, given)
            return Argument(name=given.name, type="path", tree=Tree(path=path))
        if given.type == "build":
            return await asyncio.to_thread(_build_argument, order, given, roots_dir)
        return Argument(name=given.name, type=given.type, value=given.value)

    async def _add(self, path: Path, roots_dir: Path) -> StorePath:
        try:
            done = await processes.run(
                ["nix-store", "--add", path],
                env=self._env,
                limits=processes.Limits(timeout_s=600, output_bytes=1 << 20),
            )
        except OSError as error:
            raise PrerequisiteError(
                f"nix-store can't be run: {error}", hint="install Nix"
            ) from error
        except processes.ProcessLimitError as error:
            raise LimitReachedError(str(error), limit="time") from error
        if done.code != 0:
            said = done.stderr.decode("utf-8", "replace")[-2000:].strip()
            raise EvaluationError(f"the input can't be put into the store: {said}")
        stored = StorePath(done.stdout.decode().strip())
        await asyncio.to_thread(roots.keep, stored, roots_dir)
        return stored


def _build_argument(order: CheckoutOrder, given: ResolvedInput, roots_dir: Path) -> Argument:
    known = order.builds.get(given.name)
    if known is None or given.store_path is None:
        raise EvaluationError(f"input {given.name}: the build is not known any more")
    if not roots.keep(given.store_path, roots_dir):
        raise EvaluationError(
            f"input {given.name}: {given.store_path} is not in the store any more"
        )
    drv_path, name = known
    return Argument(
        name=given.name,
        type="build",
        value=drv_path,
        store_path=given.store_path,
        version=version_of(name),
    )


def version_of(name: str) -> str:
    """The version part of a derivation's name: what follows the first dash before a non-letter."""
    found = _VERSION.split(name, maxsplit=1)
    return found[1] if len(found) == 2 else ""


def _inside(source: Path, given: ResolvedInput) -> Path:
    root = source.resolve()
    path = (root / given.value.lstrip("/")).resolve()
    if given.value.startswith("/") or not path.is_relative_to(root):
        raise EvaluationError(f"input {given.name}: {given.value} lies outside of the checkout")
    if not path.exists():
        raise EvaluationError(f"input {given.name}: the checkout has no {given.value}")
    return path


async def _dated(tree: Tree, commit: CommitInfo) -> Tree:
    """A flake's tree: what Nix tells of its age and number is that of its commit."""
    at_s = int(commit.committed_at.timestamp())
    await asyncio.to_thread(_set_times, tree.path, at_s)
    return replace(tree, rev_count=commit.rev_count, last_modified=at_s)


def _set_times(folder: Path, at_s: int) -> None:
    times = (at_s, at_s)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.utime(os.path.join(parent, name), times, follow_symlinks=False)  # noqa: PTH118 - hot loop
    os.utime(folder, times)
