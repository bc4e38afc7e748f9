"""Store paths to and from a binary cache, by Nix itself: `nix copy` and substitution.

For a store that lives no longer than its pod. Nix proves who we are with a netrc file of ours that
only these calls know; builds and evaluators get another configuration, without it. Nix never tries
a transfer twice by itself (2.8 hangs when it has to send a body again), the caller does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from fc_operator.clients.nix import Missing, Nix, environment
from fc_operator.errors import (
    ForbiddenError,
    PrerequisiteError,
    ProtocolError,
    UnavailableError,
)
from fc_operator.kit import logs, processes
from fc_operator.kit.backoff import Backoff
from fc_operator.model.ids import DrvPath, StorePath
from fc_operator.settings import NixSettings

_log = logs.get_logger()
T = TypeVar("T")
PATIENCE_S = 900.0
"""How long a transfer is tried while the cache does not answer."""
_BACKOFF = Backoff(base_s=0.5, factor=2, cap_s=10)
_COPY_S_MAX = 6 * 3600
"""Longest single call; Nix itself gives up on a transfer that stands still for a minute."""
_OUTPUT_BYTES = 64 * 1024 * 1024
_ARGUMENTS_MAX = 2000
_OPTIONS = {
    "extra-experimental-features": "nix-command",
    "download-attempts": "1",
    "connect-timeout": "15",
    "stalled-download-timeout": "60",
    "narinfo-cache-negative-ttl": "0",
    "http-connections": "25",
    "max-substitution-jobs": "16",
    "builders": "",
    "fallback": "false",
}
"""As lines of NIX_CONFIG; what an older Nix does not know, it warns of and leaves."""
_HTTP_ERROR = re.compile(r"HTTP error (\d{3})")
_LINK = re.compile(
    r"unable to (?:down|up)load|HTTP error \d|does not appear to be a binary cache|timed out"
    r"|(?i:connect|connection|resolve|transfer)"
)
"""The way to the cache failed, or it does; trying again may help."""
_WORDS_MAX = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheAccess:
    """A binary cache and how to use it."""

    url: str
    """Such as ``http://fc-server/cache``."""
    password: str = field(default="", repr=False)
    """Given to it with every request; empty: none is asked for."""
    public_keys: tuple[str, ...] = ()
    """Whose signatures on its paths count."""


class Copies:
    """One cache for one local store. ``folder`` is a private one for the netrc file; ``env`` the
    environment of which Nix gets the few variables that it needs.
    """

    def __init__(
        self,
        cache: CacheAccess,
        *,
        nix: NixSettings,
        env: Mapping[str, str],
        folder: Path,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.cache = cache
        self._patience_s = patience_s
        self._is_prepared = False
        self._transfers = 0
        self._netrc = folder / "netrc"
        own = environment(env)
        own["NIX_CONFIG"] = "\n".join(
            (
                own.get("NIX_CONFIG", ""),
                *(f"{name} = {value}" for name, value in _OPTIONS.items()),
                *((f"netrc-file = {self._netrc}",) if cache.password else ()),
            )
        )
        self._env = own
        every = replace(
            nix,
            substituters=(cache.url, *nix.substituters),
            trusted_public_keys=(*cache.public_keys, *nix.trusted_public_keys),
        )
        self._keys = ["--option", "trusted-public-keys", " ".join(every.trusted_public_keys)]
        self._substituters = ["--option", "substituters", " ".join(every.substituters)]
        self._stores = every.substituters
        self._nix = Nix(every, own)

    async def prepare(self) -> None:
        """Make the store, and meet the cache; again does nothing.

        Raises:
            PrerequisiteError: Nix is missing or can't open its store.
            UnavailableError: the cache does not answer.
        """
        if self._is_prepared:
            return
        # Several processes that meet an empty store would race for its making.
        try:
            await self._run(["nix-store", "--init"])
        except UnavailableError as error:
            raise PrerequisiteError(str(error), hint="see nix.conf") from error
        # A substituter that Nix meets while it does not answer is passed over without an error;
        # once met, it is not.
        await self._insist(lambda: self._run(["nix", "store", "ping", "--store", self.cache.url]))
        self._is_prepared = True

    @contextlib.contextmanager
    def _identified(self) -> Iterator[None]:
        """Have the netrc file while a transfer runs and no longer: builds run as the same user."""
        if not self.cache.password:
            yield
            return
        self._transfers += 1
        try:
            if self._transfers == 1:
                self._write_netrc()
            yield
        finally:
            self._transfers -= 1
            if not self._transfers:
                self._netrc.unlink(missing_ok=True)

    def _write_netrc(self) -> None:
        host = urlsplit(self.cache.url).hostname or ""
        text = f"machine {host} login fc password {self.cache.password}\n"
        self._netrc.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._netrc.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(self._netrc, flags, 0o600), "w") as file:
            file.write(text)

    async def missing(self, drv_paths: Iterable[DrvPath]) -> Missing:
        """What must be built, and what fetched, before all outputs of ``drv_paths`` are here; the
        cache and all substituters are asked.

        Raises:
            UnavailableError: Nix or a substituter does not answer well.
        """
        asked = list(drv_paths)
        return await self._insist(lambda: self._nix.missing(asked))

    async def valid(self, paths: Iterable[StorePath]) -> set[StorePath]:
        """Those of ``paths`` that are in the local store."""
        return await self._nix.valid(paths)

    async def closure(self, paths: Collection[str]) -> set[str]:
        """``paths`` of the local store and all that they refer to."""
        found: set[str] = set()
        for some in _portions(paths):
            found.update((await self._run(["nix-store", "--query", "--requisites", *some])).split())
        return found

    async def available(self, paths: Collection[StorePath]) -> set[StorePath]:
        """Those of ``paths`` that the cache or a substituter has; slow, for few.

        Raises:
            UnavailableError: one of them does not answer.
        """
        found: set[StorePath] = set()
        for store in self._stores:
            left = [path for path in paths if path not in found]
            for some in _portions(left):
                argv = ["nix", "path-info", "--json", "--store", store, *some]
                found |= _valid_in(await self._insist(partial(self._run, argv)))
        return found

    async def upload(self, paths: Collection[StorePath]) -> None:
        """Bring ``paths`` and all that they refer to into the cache; what it has is passed over.

        Raises:
            ForbiddenError: the cache refuses one of them; it would do so again.
            UnavailableError: it could not be done this time.
        """
        await self._copy(["--to", f"{self.cache.url}?compression=zstd"], paths)

    async def upload_derivations(self, drv_paths: Collection[DrvPath]) -> None:
        """The same for .drv files, all that they need and their sources."""
        await self._copy(["--derivation", "--to", f"{self.cache.url}?compression=zstd"], drv_paths)

    async def fetch_derivations(self, drv_paths: Collection[DrvPath]) -> None:
        """Have .drv files, all that they need and their sources here.

        Raises:
            UnavailableError: the cache does not have one of them, or does not answer.
        """
        await self._copy(["--derivation", "--from", self.cache.url], drv_paths)

    async def fetch(self, paths: Collection[StorePath]) -> None:
        """Have ``paths`` here, from the cache or a substituter; nothing is ever built for it.

        Raises:
            UnavailableError: nobody has one of them, or its signature does not count.
        """
        for some in _portions(paths):
            argv = ["nix-store", "--realise", *self._substituters, *self._keys, *some]
            await self._insist(partial(self._run, argv))

    async def _copy(self, words: Sequence[str], paths: Collection[str]) -> None:
        for some in _portions(paths):
            argv = ["nix", "copy", *words, *self._keys, *some]
            await self._insist(partial(self._run, argv))

    async def _insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do ``work``, again while it is the way to the cache that fails."""
        deadline_s = time.monotonic() + self._patience_s
        tries = 0
        while True:
            try:
                with self._identified():
                    return await work()
            except UnavailableError as error:
                tries += 1
                delay_s = _BACKOFF.delay_s(tries)
                if not _LINK.search(error.message) or time.monotonic() + delay_s > deadline_s:
                    raise
                _log.warning("nix.copy_waits", error=error.message[-300:], tries=tries)
                await asyncio.sleep(delay_s)

    async def _run(self, argv: list[str]) -> str:
        limits = processes.Limits(timeout_s=_COPY_S_MAX, output_bytes=_OUTPUT_BYTES)
        try:
            finished = await processes.run(argv, env=self._env, limits=limits)
        except OSError as error:
            raise PrerequisiteError(f"Nix can't be run: {error}", hint="install Nix") from error
        except processes.ProcessLimitError as error:
            raise UnavailableError(f"Nix did not come to an end: {error}") from error
        if finished.code == 0:
            return finished.stdout.decode()
        said = _last_words(finished.stderr.decode("utf-8", "replace"))
        status = _HTTP_ERROR.search(said)
        if status and status[1].startswith("4") and status[1] not in {"408", "425", "429"}:
            raise ForbiddenError(f"the binary cache refuses it: {said}")
        raise UnavailableError(f"{' '.join(argv[:2])} failed: {said}")


def _portions(paths: Collection[str]) -> Iterable[list[str]]:
    words = sorted(set(paths))
    for start in range(0, len(words), _ARGUMENTS_MAX):
        yield words[start : start + _ARGUMENTS_MAX]


def _valid_in(text: str) -> set[StorePath]:
    """Of `nix path-info --json`: a list of objects until 2.18, then an object of objects."""
    try:
        said = json.loads(text)
    except ValueError as error:
        raise ProtocolError("nix path-info printed something unknown") from error
    if isinstance(said, dict):
        return {StorePath(path) for path, info in said.items() if info}
    return {StorePath(each["path"]) for each in said if each.get("valid", True)}


def _last_words(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error" in line or "warning" in line or "signature" in line]
    return "\n".join(told or lines)[-_WORDS_MAX:].strip()
