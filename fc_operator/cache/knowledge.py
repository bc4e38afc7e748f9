"""What is known of derivations and outputs where there is no Nix store, only the binary cache.

It answers what ``operations.ingest`` asks (its ``Knowledge``). A derivation's file is read from its
NAR, which was verified when it came; what must be built follows from the files and from which
outputs the cache has.
"""

from __future__ import annotations

import asyncio
import io
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from fc_operator.cache import nars
from fc_operator.clients.nix import Missing
from fc_operator.clients.objects import ObjectStore
from fc_operator.errors import InvalidError, NotFoundError, ProtocolError
from fc_operator.kit.compression import CompressionError, Decompressor
from fc_operator.model import derivations
from fc_operator.model.ids import DrvPath, StorePath
from fc_operator.model.jobs import Derivation
from fc_operator.store import cache_paths
from fc_operator.store.cache_paths import Registered
from fc_operator.store.database import Database

_DRV_BYTES_MAX = 64 * 1024 * 1024
_TOGETHER_MAX = 16
_REMEMBERED_MAX = 50_000


class CacheKnowledge:
    """Questions to the binary cache. All methods may be called side by side."""

    def __init__(self, database: Database, objects: ObjectStore, *, store_dir: str) -> None:
        self._database = database
        self._objects = objects
        self._store_dir = store_dir
        self._read: OrderedDict[DrvPath, Derivation] = OrderedDict()
        """A .drv never changes, and every evaluation needs most of those of the one before."""
        self._reading = asyncio.Semaphore(_TOGETHER_MAX)

    @property
    def store_dir(self) -> str:
        """Folder of the store."""
        return self._store_dir

    async def derivations(self, drv_paths: Collection[DrvPath]) -> Mapping[DrvPath, Derivation]:
        """Facts of those derivations that the cache has and that can be understood.

        Raises:
            UnavailableError: the database or the object store does not answer.
        """
        found = {}
        asked = []
        for drv_path in drv_paths:
            known = self._read.get(drv_path)
            if known is None:
                asked.append(drv_path)
            else:
                self._read.move_to_end(drv_path)
                found[drv_path] = known
        if asked:
            async with self._database.session() as connection:
                rows = await cache_paths.list_by_path(connection, asked)
            async with asyncio.TaskGroup() as group:
                reads = {
                    drv_path: group.create_task(self._derivation(drv_path, rows[drv_path]))
                    for drv_path in asked
                    if drv_path in rows
                }
            for drv_path, read in reads.items():
                derivation = read.result()
                if derivation is not None:
                    found[drv_path] = self._remember(drv_path, derivation)
        return found

    def _remember(self, drv_path: DrvPath, derivation: Derivation) -> Derivation:
        self._read[drv_path] = derivation
        while len(self._read) > _REMEMBERED_MAX:
            self._read.popitem(last=False)
        return derivation

    async def _derivation(self, drv_path: DrvPath, row: Registered) -> Derivation | None:
        if row.nar_size_bytes > _DRV_BYTES_MAX:
            return None
        async with self._reading:
            try:
                packed = await self._objects.get(row.object_key)
                return await asyncio.to_thread(_parse, drv_path, packed, row.nar_size_bytes)
            except (NotFoundError, ProtocolError, InvalidError, CompressionError):
                return None

    async def missing(self, drv_paths: Iterable[DrvPath]) -> Missing:
        """What must be built before all outputs of ``drv_paths`` are in the cache.

        It goes from each derivation to those that it needs, and stops where all wanted outputs are
        there; so it reads about what will be built, not the whole closure.

        Raises:
            UnavailableError: the database or the object store does not answer.
        """
        needs: dict[DrvPath, tuple[DrvPath, ...]] = {}
        unknown: set[str] = set()
        seen: dict[DrvPath, set[str]] = {}
        """Outputs of each derivation that were looked for."""
        asked = dict.fromkeys(drv_paths, frozenset[str]())
        """Outputs that are wanted; none named: all."""
        while asked:
            facts = await self.derivations(asked)
            unknown.update(drv for drv in asked if drv not in facts)
            wanted = {
                drv: set(used) or set(facts[drv].outputs)
                for drv, used in asked.items()
                if drv in facts
            }
            there = await self._known(
                {
                    path
                    for drv, names in wanted.items()
                    for path in _paths(facts[drv], names)
                    if path is not None
                }
            )
            following: dict[DrvPath, set[str]] = {}
            for drv, names in wanted.items():
                seen.setdefault(drv, set()).update(names)
                if drv in needs or all(path in there for path in _paths(facts[drv], names)):
                    continue
                needs[drv] = tuple(facts[drv].input_drvs)
                for needed, used in facts[drv].input_drvs.items():
                    following.setdefault(needed, set()).update(used)
            asked = {
                drv: frozenset(used)
                for drv, used in following.items()
                if drv not in needs and drv not in unknown and not used <= seen.get(drv, set())
            }
        return Missing(will_build=tuple(_needed_first(needs)), unknown=frozenset(unknown))

    async def registrations(self, paths: Iterable[str]) -> dict[str, tuple[str, int]]:  # noqa: ARG002
        """NAR hash and NAR size of files that can be read here, which are none.

        What the cache has would have to be unpacked to be read; whoever built it did so already.
        """
        return {}

    async def present(self, paths: Collection[str]) -> bool:
        """Whether the cache has all ``paths``."""
        asked = set(paths)
        return len(await self._known(asked)) == len(asked)

    async def add_roots(self, paths: Collection[StorePath], link: Path) -> None:
        """Nothing: what the cache keeps is decided by retention."""

    async def _known(self, paths: Collection[str]) -> set[str]:
        if not paths:
            return set()
        async with self._database.session() as connection:
            return set(await cache_paths.list_by_path(connection, paths))


def _parse(drv_path: DrvPath, packed: bytes, nar_size: int) -> Derivation:
    """The derivation in a stored NAR; blocks."""
    pieces: list[bytes] = []
    facts = nars.read(
        Decompressor("zstd", io.BytesIO(packed)),
        size_max=nar_size,
        content=lambda piece: pieces.append(bytes(piece)),
    )
    if facts.flat_sha256 is None:
        raise ProtocolError(f"{drv_path} is no file")
    text = b"".join(pieces).decode("utf-8", "replace")
    return derivations.without_env(derivations.parse(drv_path, text))


def _paths(derivation: Derivation, names: Iterable[str]) -> list[StorePath | None]:
    """Paths of outputs; None, which is nowhere, for one that only its build tells."""
    return [derivation.outputs.get(name) for name in names]


def _needed_first(needs: Mapping[DrvPath, tuple[DrvPath, ...]]) -> list[DrvPath]:
    """All keys, each after those of its needs that are keys too. Derivations have no cycles."""
    ordered: dict[DrvPath, None] = {}
    for start in needs:
        stack = [start]
        while stack:
            drv = stack[-1]
            waiting = [need for need in needs[drv] if need in needs and need not in ordered]
            if drv in ordered or not waiting:
                ordered.setdefault(drv)
                stack.pop()
            else:
                stack.extend(waiting)
    return list(ordered)
