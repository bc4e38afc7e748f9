"""The Nix of this machine, asked in bulk: what is valid, what must be built, facts of .drv files.

One process per question, however many paths; only an argument list beyond what the kernel takes is
split. Building is ``executors``', evaluating is ``evaluator``'s.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fc_operator.clients import registrations
from fc_operator.clients.registrations import PathInfo
from fc_operator.errors import PrerequisiteError, ProtocolError, UnavailableError
from fc_operator.kit import processes
from fc_operator.model import derivations
from fc_operator.model.ids import DrvPath, StorePath
from fc_operator.model.jobs import Derivation
from fc_operator.settings import NixSettings

_KEPT = frozenset(
    {
        *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LOCALE_ARCHIVE", "TZDIR"),
        *("NIX_REMOTE", "NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_LOG_DIR", "NIX_CONF_DIR"),
        *("NIX_USER_CONF_FILES", "NIX_CONFIG", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    }
)
_ARGUMENT_BYTES_MAX = 1024 * 1024
"""Half of what Linux takes for arguments and environment together."""
_LIMITS = processes.Limits(timeout_s=300, output_bytes=512 * 1024 * 1024)

_PIECE_BYTES = 256 * 1024

_WILL_BUILD = re.compile(r"^(?:this|these \d+) derivations? will be built:")
_WILL_FETCH = re.compile(r"^(?:this|these \d+) paths? will be fetched")
_UNKNOWN = re.compile(r"^don't know how to build (?:this|these) paths?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """What Nix would have to do for some derivations, from one dry run."""

    will_build: tuple[DrvPath, ...] = ()
    """All that must be built, needed ones included."""
    will_fetch: frozenset[StorePath] = frozenset()
    """Paths that a substituter has."""
    unknown: frozenset[str] = frozenset()
    """Asked for, but there is no such .drv (it was never written, or was collected)."""


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Of ``env`` only what Nix itself needs; no credential of ours is ever in reach of a build."""
    kept = {name: value for name, value in env.items() if name in _KEPT}
    kept.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    return kept


def parse_dry_run(text: str) -> Missing:
    """What ``nix-store --realise --dry-run`` says on stderr."""
    lists: dict[str, list[str]] = {"build": [], "fetch": [], "unknown": []}
    kind = ""
    for line in text.splitlines():
        if line.startswith("  /"):
            if kind:
                lists[kind].append(line.strip())
        elif _WILL_BUILD.match(line):
            kind = "build"
        elif _WILL_FETCH.match(line):
            kind = "fetch"
        elif _UNKNOWN.match(line):
            kind = "unknown"
        else:
            kind = ""
    return Missing(
        will_build=tuple(map(DrvPath, lists["build"])),
        will_fetch=frozenset(map(StorePath, lists["fetch"])),
        unknown=frozenset(lists["unknown"]),
    )


class Nix:
    """Questions to the Nix that ``env`` names. All methods may be called side by side."""

    def __init__(self, settings: NixSettings, env: Mapping[str, str]) -> None:
        self._settings = settings
        self.env = environment(env)

    @property
    def store_dir(self) -> str:
        """Folder of the store."""
        return self._settings.store_dir

    async def version(self) -> str:
        """Such as ``2.8.0``.

        Raises:
            PrerequisiteError: Nix is not there or does not work.
        """
        finished = await self._run(["nix-store", "--version"])
        return finished.stdout.decode().strip().rsplit(" ", 1)[-1]

    async def valid(self, paths: Iterable[StorePath]) -> set[StorePath]:
        """Those of ``paths`` that are in the store, whole and registered."""
        asked = set(paths)
        invalid: set[str] = set()
        for some in _portions(sorted(asked)):
            finished = await self._run(["nix-store", "--check-validity", "--print-invalid", *some])
            invalid.update(finished.stdout.decode().split())
        return asked - invalid

    async def missing(self, drv_paths: Iterable[DrvPath]) -> Missing:
        """What must be built or fetched before all outputs of ``drv_paths`` are valid."""
        found = []
        for some in _portions(sorted(set(drv_paths))):
            argv = ["nix-store", "--realise", "--dry-run", *self._options(), *some]
            finished = await self._run(argv)
            found.append(parse_dry_run(finished.stderr.decode("utf-8", "replace")))
        return Missing(
            will_build=tuple(dict.fromkeys(drv for part in found for drv in part.will_build)),
            will_fetch=frozenset().union(*(part.will_fetch for part in found)),
            unknown=frozenset().union(*(part.unknown for part in found)),
        )

    async def registrations(self, paths: Iterable[str]) -> dict[str, tuple[str, int]]:
        """``(sha256:<nix32>, NAR size)`` of those of ``paths`` that are valid."""
        asked = sorted(set(paths))
        found: dict[str, tuple[str, int]] = {}
        for some in _portions(asked):
            finished = await self._run(["nix-store", "--dump-db", *some], check=False)
            if finished.code != 0:
                # One of them is not valid (any more), and Nix then tells of none.
                still = await self.valid(map(StorePath, some))
                if not still:  # without arguments it would dump all
                    continue
                finished = await self._run(["nix-store", "--dump-db", *sorted(still)])
            found |= registrations.parse_registrations(finished.stdout.decode())
        return {path: found[path] for path in asked if path in found}

    async def closure(self, paths: Iterable[StorePath]) -> list[PathInfo]:
        """``paths`` and all that they refer to, each after what it refers to.

        Raises:
            UnavailableError: one of them is not valid.
        """
        ordered: dict[str, None] = {}
        for some in _portions(sorted(set(paths))):
            finished = await self._run(["nix-store", "--query", "--requisites", *some])
            ordered.update(dict.fromkeys(finished.stdout.decode().split()))
        infos: dict[str, PathInfo] = {}
        for some in _portions(sorted(ordered)):
            finished = await self._run(["nix-store", "--dump-db", *some])
            infos |= {
                info.path: info for info in registrations.parse_infos(finished.stdout.decode())
            }
        return [infos[path] for path in ordered]

    async def dump(self, path: StorePath) -> AsyncIterator[bytes]:
        """The NAR of a path, in pieces.

        Raises:
            PrerequisiteError: Nix is not there.
            UnavailableError: it ended before the NAR did, or stood still.
        """
        try:
            process = await processes.start(["nix-store", "--dump", path], env=self.env)
        except OSError as error:
            raise PrerequisiteError(f"Nix can't be run: {error}", hint="install Nix") from error
        stream = process.inner.stdout
        assert stream is not None
        try:
            while True:
                async with asyncio.timeout(_LIMITS.timeout_s):
                    piece = await stream.read(_PIECE_BYTES)
                if not piece:
                    break
                yield piece
            if await process.wait() != 0:
                raise UnavailableError(f"nix-store --dump {path} failed")
        except TimeoutError as error:
            raise UnavailableError(f"nix-store --dump {path} stood still") from error
        finally:
            await process.stop("nobody reads it")

    async def derivations(self, drv_paths: Collection[DrvPath]) -> dict[DrvPath, Derivation]:
        """Facts of the .drv files that can be read and understood, without their environments."""
        return await asyncio.to_thread(read_derivations, tuple(drv_paths))

    async def present(self, paths: Collection[str]) -> bool:
        """Whether all ``paths`` are there as files; such as .drv files, which are never half."""
        return await asyncio.to_thread(lambda: all(map(os.path.exists, paths)))

    async def add_roots(self, paths: Collection[StorePath], link: Path) -> None:
        """Keep ``paths`` from the garbage collector while links named ``link``, ``link-2``, … are
        there.

        Raises:
            UnavailableError: one of them is not valid.
        """
        link.parent.mkdir(parents=True, exist_ok=True)
        for number, some in enumerate(_portions(sorted(set(paths)))):
            name = link if not number else link.with_name(f"{link.name}.{number}")
            argv = ["nix-store", "--realise", *self._options(), *some]
            await self._run([*argv, "--add-root", str(name.absolute()), "--indirect"])

    def _options(self) -> list[str]:
        return [
            *("--option", "substituters", " ".join(self._settings.substituters)),
            *("--option", "trusted-public-keys", " ".join(self._settings.trusted_public_keys)),
        ]

    async def _run(self, argv: list[str], *, check: bool = True) -> processes.Finished:
        try:
            finished = await processes.run(argv, env=self.env, limits=_LIMITS)
        except OSError as error:
            raise PrerequisiteError(f"Nix can't be run: {error}", hint="install Nix") from error
        except processes.ProcessLimitError as error:
            raise UnavailableError(f"Nix did not answer: {error}") from error
        if check and finished.code != 0:
            words = finished.stderr.decode("utf-8", "replace").strip()[-2000:]
            raise UnavailableError(f"{argv[0]} {argv[1]} failed: {words}", hint="see nix.conf")
        return finished


def _portions(words: Iterable[str]) -> Iterator[list[str]]:
    """``words`` in lists that fit on a command line; no list is empty."""
    portion: list[str] = []
    size = 0
    for word in words:
        size += len(word) + 9  # its end and its pointer
        if portion and size > _ARGUMENT_BYTES_MAX:
            yield portion
            portion, size = [], len(word) + 9
        portion.append(word)
    if portion:
        yield portion


def read_derivations(drv_paths: Iterable[DrvPath]) -> dict[DrvPath, Derivation]:
    """As ``Nix.derivations``; blocks."""
    found = {}
    for drv_path in drv_paths:
        try:
            # Without Path, which would cost more than all the rest where there are many.
            with open(drv_path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                text = file.read()
            found[drv_path] = derivations.without_env(derivations.parse(drv_path, text))
        except (OSError, ProtocolError):
            continue
    return found
