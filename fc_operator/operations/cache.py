"""What the binary cache takes in and gives out, and who may do which.

A NAR comes first and is noted under its uploader and the name that he gave it; the narinfo that
follows makes a path of it, in one transaction with its fence. A task may bring what names itself
by its content, outputs of steps that it holds at that moment, and what a trusted key signed; an
administrator may bring everything whose NAR is as he says. Whoever may read one of the projects
that a path or its derivation came from may read the path.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar
from uuid import UUID

import orjson

from fc_operator.cache import content_addresses, hashes, narinfos, nars
from fc_operator.cache.arrivals import Arrivals, Arrived
from fc_operator.cache.narinfos import Narinfo
from fc_operator.cache.signing import SigningKey, TrustedKeys
from fc_operator.clients.nix import Nix
from fc_operator.clients.objects import ObjectStore
from fc_operator.clients.registrations import PathInfo
from fc_operator.errors import (
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnauthenticatedError,
)
from fc_operator.kit import logs
from fc_operator.model.ids import StepId, StorePath
from fc_operator.model.readers import EVERYTHING, Reader
from fc_operator.settings import CacheSettings
from fc_operator.store import audit
from fc_operator.store import cache_paths as store
from fc_operator.store.cache_paths import CacheNar, CachePath, CacheTask, Totals
from fc_operator.store.database import Connection, Database

_log = logs.get_logger()
_REMEMBERED_S = 5.0
"""How long an answer is given without asking again; so long may somebody read who no longer may."""
_REMEMBERED_MAX = 50_000
_LISTING_ENTRIES_MAX = 200_000
_PIECE_BYTES = 1024 * 1024
_LOOKUP_S = 20.0

LOCAL = "local"
"""The name of this installation's own machines."""
LOCAL_PREFIX = "fcl_"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks the cache."""

    name: str
    """``task/<id>``, ``key/<id>`` or ``anonymous``; what one brought only the same one uses."""
    reader: Reader | None
    """None: may read nothing at all."""
    task: CacheTask | None = None
    is_admin: bool = False

    @property
    def is_known(self) -> bool:
        """Whether it came with a key or a token."""
        return self.task is not None or self.name != "anonymous"

    def may_read(self, path: CachePath) -> bool:
        """Whether ``path`` is for this caller."""
        if self.reader is None:
            return False
        if self.reader.all_projects or path.is_public:
            return True
        if not path.projects:
            return self.is_known
        return not path.projects.isdisjoint(self.reader.projects)


class BinaryCache:
    """One per process. Several processes may serve the same cache."""

    def __init__(
        self,
        *,
        database: Database,
        objects: ObjectStore,
        settings: CacheSettings,
        store_dir: str,
        keys: Sequence[SigningKey],
        trusted: TrustedKeys,
        local_secret: bytes = b"",
    ) -> None:
        """``keys`` sign all that is served, ``trusted`` are others' whose signatures count.

        Who knows ``local_secret`` reads everything: Nix of this installation's own machines.
        """
        self.settings = settings
        self.store_dir = store_dir.rstrip("/")
        self.public_keys = tuple(key.public for key in keys)
        self._local_token = local_token(local_secret) if local_secret else ""
        self._database = database
        self._objects = objects
        self._keys = tuple(keys)
        self._trusted = trusted
        self._arrivals = Arrivals(
            together_max=settings.uploads_max, nar_bytes_max=settings.nar_bytes_max
        )
        self._lookups = _Lookups(database)
        self._paths: _Remembered[_Shown] = _Remembered()
        self._files: _Remembered[CacheNar] = _Remembered()

    def close(self) -> None:
        """Let go of what only this process has."""
        self._arrivals.close()

    def local_caller(self, token: str) -> Caller | None:
        """Who has the token of this installation's own machines; None where it is another."""
        own = self._local_token
        if not own or not hmac.compare_digest(own.encode(), token.encode()):
            return None
        return Caller(name=LOCAL, reader=EVERYTHING)

    # Out --------------------------------------------------------------------------------------

    def info(self) -> bytes:
        """``nix-cache-info``."""
        return (
            f"StoreDir: {self.store_dir}\nWantMassQuery: 1\nPriority: {self.settings.priority}\n"
        ).encode()

    async def totals(self) -> Totals:
        """How much there is."""
        async with self._database.session() as connection:
            return await store.fetch_totals(connection)

    async def narinfo(self, caller: Caller, hash_part: str) -> bytes:
        """What is said of a path, signed by all keys of the present.

        Raises:
            UnauthenticatedError: strangers may read nothing here.
            NotFoundError: there is no such path, or not for this caller.
        """
        return (await self._shown(caller, hash_part)).text

    async def find_nar(self, caller: Caller, name: str) -> CacheNar:
        """The stored NAR with the file name ``name``.

        Raises:
            UnauthenticatedError: strangers may read nothing here.
            NotFoundError: there is none, or not for this caller.
        """
        _require_reader(caller)
        match = narinfos.NAR_NAME.fullmatch(name)
        if match is not None and match[2] == "zst":
            nar = await self._nar_of_file(caller, match[1])
            if nar is not None:
                return nar
        raise NotFoundError("the cache has no such NAR")

    async def has_nar(self, caller: Caller, name: str) -> bool:
        """Whether ``caller`` may read a NAR, or brought it before and need not do so again.

        Raises:
            UnauthenticatedError: strangers may read nothing here.
        """
        try:
            await self.find_nar(caller, name)
        except NotFoundError:
            match = narinfos.NAR_NAME.fullmatch(name)
            if match is None or not caller.is_known:
                return False
            async with self._database.session() as connection:
                brought = await store.fetch_nar(
                    connection, caller.name, match[1], narinfos.COMPRESSION_OF[match[2]]
                )
            return brought is not None
        return True

    async def read_nar(self, nar: CacheNar, start: int, end: int) -> AsyncIterator[bytes]:
        """Bytes ``[start, end)`` of a compressed NAR."""
        while start < end:
            stop = min(end, start + _PIECE_BYTES)
            piece = await self._objects.get_range(nar.object_key, start, stop)
            if not piece:
                raise NotFoundError("a NAR is shorter than it was when it came")
            start += len(piece)
            yield piece

    async def listing(self, caller: Caller, hash_part: str) -> bytes:
        """The files of a path as JSON; read from its NAR once, then kept.

        Raises:
            UnauthenticatedError: strangers may read nothing here.
            NotFoundError: there is no such path, or not for this caller.
            InvalidError: it has too many files.
        """
        path = (await self._shown(caller, hash_part)).path
        key = f"cache/ls/{path.file_hash}.json"
        try:
            return await self._objects.get(key)
        except NotFoundError:
            tree = await self._arrivals.read(
                self._objects.stream(path.object_key),
                partial(
                    nars.listing,
                    size_max=path.nar_size_bytes,
                    entries_max=_LISTING_ENTRIES_MAX,
                ),
            )
            text = orjson.dumps(tree)
            await self._objects.put(key, text)
            return text

    async def _shown(self, caller: Caller, hash_part: str) -> _Shown:
        _require_reader(caller)
        shown = self._paths.get(hash_part)
        if shown is None:
            path = await self._lookups.find(hash_part)
            if path is not None:
                shown = _Shown(path=path, text=self._render(path))
                self._paths.put(hash_part, shown)
        if shown is None or not caller.may_read(shown.path):
            raise NotFoundError("the cache has no such path")
        return shown

    def _render(self, path: CachePath) -> bytes:
        signed = narinfos.fingerprint(
            path.store_path, path.nar_hash, path.nar_size_bytes, path.references
        )
        return narinfos.render(
            Narinfo(
                store_path=path.store_path,
                url=f"nar/{path.file_hash}.nar.zst",
                compression="zstd",
                file_hash=f"sha256:{path.file_hash}",
                file_size_bytes=path.file_size_bytes,
                nar_hash=path.nar_hash,
                nar_size_bytes=path.nar_size_bytes,
                references=path.references,
                deriver=path.deriver,
                signatures=(*(key.sign(signed) for key in self._keys), *path.signatures),
                content_address=path.content_address,
            )
        )

    async def _nar_of_file(self, caller: Caller, file_hash: str) -> CacheNar | None:
        """What a stored file holds, if ``caller`` may read one of the paths that it is of."""
        if caller.reader is None:
            return None
        key = f"{file_hash}/{caller.name}"
        nar = self._files.get(key)
        if nar is None:
            async with self._database.session() as connection:
                nar = await store.fetch_of_file(
                    connection, file_hash, caller.reader, is_known=caller.is_known
                )
            if nar is not None:
                self._files.put(key, nar)
        return nar

    # In ---------------------------------------------------------------------------------------

    def require_uploader(self, caller: Caller) -> None:
        """Return if ``caller`` may bring anything at all.

        Raises:
            UnauthenticatedError: it came without a key or token.
            ForbiddenError: its key is no administrator's.
        """
        if caller.task is not None or caller.is_admin:
            return
        if not caller.is_known:
            raise UnauthenticatedError(
                "uploads need a key",
                hint="put an administrator's key as a password into the netrc file of Nix",
            )
        raise ForbiddenError("only tasks and keys with the role admin may upload")

    async def put_nar(self, caller: Caller, name: str, parts: AsyncIterator[bytes]) -> None:
        """Take in a NAR under the name that its narinfo will say.

        Raises:
            UnauthenticatedError, ForbiddenError: as ``require_uploader``.
            InvalidError: it is damaged, is no NAR, or has another hash; nothing of it is kept.
            UnavailableError: the object store does not answer.
        """
        self.require_uploader(caller)
        match = narinfos.NAR_NAME.fullmatch(name)
        if match is None:
            raise InvalidError("a NAR is called <hash>.nar, .nar.zst, .nar.xz or .nar.bz2")
        upload_hash, kind = match[1], narinfos.COMPRESSION_OF[match[2]]
        nar = await self._receive(parts, kind, upload_hash)
        async with self._database.session() as connection:
            await store.insert_nar(connection, caller.name, upload_hash, kind, nar)

    async def _receive(
        self, parts: AsyncIterator[bytes], kind: str, upload_hash: str | None
    ) -> CacheNar:
        # By its hash where we keep it as it came: the same bytes are the same object.
        name = upload_hash if kind == "zstd" and upload_hash else secrets.token_hex(16)
        key = f"cache/nar/{name}.nar.zst"
        arrived = await self._arrivals.receive(
            parts,
            compression_name=kind,
            upload_hash=upload_hash,
            store=partial(self._objects.put_stream, key),
        )
        return _arrived_nar(arrived, key)

    async def put_narinfo(self, caller: Caller, hash_part: str, data: bytes) -> None:
        """Make a path of a NAR that ``caller`` brought before; the same again changes nothing.

        Raises:
            UnauthenticatedError, ForbiddenError: as ``require_uploader``; or the path is none that
                the caller may bring; or its task is over.
            InvalidError: it contradicts itself or the NAR, or refers to what is not there.
            ConflictError: another content stands under this path.
        """
        self.require_uploader(caller)
        try:
            await self._put_narinfo(caller, hash_part, data)
        except (ForbiddenError, InvalidError, ConflictError, UnauthenticatedError) as error:
            _log.warning(
                "cache.upload_refused", caller=caller.name, path=hash_part, reason=error.message
            )
            raise

    async def _put_narinfo(self, caller: Caller, hash_part: str, data: bytes) -> None:
        info = narinfos.parse(data, store_dir=self.store_dir)
        if info.hash_part != hash_part:
            raise InvalidError("StorePath is not what the address says")
        nar = await self._brought(caller, info)
        _require_same(info, nar)
        nar = await self._require_content_address(info, nar)
        signed = narinfos.fingerprint(
            info.store_path, info.nar_hash, info.nar_size_bytes, info.references
        )
        info = replace(info, signatures=self._trusted.good(info.signatures, signed))
        await self._register(
            info, nar, uploaded_by=caller.name, allow=partial(_allow, caller, info)
        )

    async def _brought(self, caller: Caller, info: Narinfo) -> CacheNar:
        """The NAR that a narinfo means: the caller's own upload, or one that it may read."""
        match = narinfos.NAR_NAME.fullmatch(info.url.removeprefix("nar/"))
        assert match is not None
        async with self._database.session() as connection:
            nar = await store.fetch_nar(connection, caller.name, match[1], info.compression)
        if nar is None and match[2] == "zst":
            nar = await self._nar_of_file(caller, match[1])
        if nar is None:
            raise InvalidError("URL names a NAR that was not uploaded before")
        return nar

    async def _require_content_address(self, info: Narinfo, nar: CacheNar) -> CacheNar:
        """Return if a path that claims to be named after its content is; others need no look."""
        if info.content_address is None:
            return nar
        address = content_addresses.parse(info.content_address)
        name = info.store_path.rsplit("/", 1)[-1][33:]
        path = content_addresses.path_of(address, name, info.references, store_dir=self.store_dir)
        if path != info.store_path:
            raise InvalidError("CA is not what StorePath was made from")
        if await self._digest(address, nar) != address.digest:
            raise InvalidError("CA is not the hash of the content")
        return nar

    async def _digest(self, address: content_addresses.ContentAddress, nar: CacheNar) -> bytes:
        if address.algorithm == "sha256" and address.of_nar:
            return hashes.parse(nar.nar_hash)[1]
        if address.algorithm == "sha256" and nar.flat_hash is not None:
            return hashes.parse(nar.flat_hash)[1]
        # Seldom: old fixed-output hashes. The NAR is read once more.
        read = _digest_of_nar if address.of_nar else _digest_of_file
        return await self._arrivals.read(
            self._objects.stream(nar.object_key),
            partial(read, algorithm=address.algorithm, size_max=nar.nar_size_bytes),
        )

    async def _register(
        self,
        info: Narinfo,
        nar: CacheNar,
        *,
        uploaded_by: str,
        allow: Callable[[Connection], Awaitable[Allowed]],
    ) -> None:
        async def change(connection: Connection) -> None:
            allowed = await allow(connection)
            await self._require_references(connection, info)
            is_new = await store.insert_path(
                connection,
                hash_part=info.hash_part,
                store_path=info.store_path,
                nar=nar,
                references=info.references,
                deriver=allowed.deriver or info.deriver,
                content_address=info.content_address,
                signatures=info.signatures,
                uploaded_by=uploaded_by,
            )
            if not is_new:
                there = await store.fetch_registered(connection, info.hash_part)
                if there != (info.store_path, info.nar_hash, info.references):
                    raise ConflictError("the cache has another content under this path")
            if allowed.projects:
                await store.link_projects(connection, info.hash_part, allowed.projects)

        await self._database.run(change)
        self._paths.forget(info.hash_part)

    async def _require_references(self, connection: Connection, info: Narinfo) -> None:
        own = info.store_path.rsplit("/", 1)[-1]
        wanted = {name[:32]: name for name in info.references if name != own}
        if own[:32] in wanted:
            raise InvalidError("References name another path with its own hash")
        if not wanted:
            return
        known = await store.list_known(connection, wanted)
        missing = [
            name for part, name in wanted.items() if known.get(part) != f"{self.store_dir}/{name}"
        ]
        if missing:
            raise InvalidError(f"References name {missing[0]}, which the cache does not have")

    async def add_local(
        self,
        info: Narinfo,
        parts: AsyncIterator[bytes],
        *,
        projects: Collection[UUID],
    ) -> None:
        """Take in a path of this machine's own store, whose Nix says ``info`` of it.

        Raises:
            InvalidError: its content is not what Nix says, or a reference is missing.
            ConflictError: another content stands under this path.
            UnavailableError: the object store or the database does not answer.
        """
        nar = await self._receive(parts, "none", None)
        _require_same(info, nar)

        async def allow(_: Connection) -> Allowed:
            return Allowed(projects=tuple(projects), deriver=None)

        await self._register(info, nar, uploaded_by=LOCAL, allow=allow)

    async def link(self, store_paths: Collection[str], projects: Collection[UUID]) -> None:
        """Let readers of ``projects`` read paths that are there."""

        async def change(connection: Connection) -> None:
            for path in store_paths:
                await store.link_projects(connection, narinfos.hash_part_of(path), projects)

        await self._database.run(change)


def local_token(secret: bytes) -> str:
    """The password with which Nix of this installation's own machines reads the cache."""
    return LOCAL_PREFIX + base64.urlsafe_b64encode(secret).rstrip(b"=").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """Brings what the Nix of this machine has into the cache."""

    cache: BinaryCache
    nix: Nix
    database: Database

    async def publish_step(self, step_id: StepId, outputs: Collection[StorePath]) -> None:
        """Bring the outputs of a step, with all that they refer to.

        Raises:
            UnavailableError, InvalidError: as ``publish``.
        """
        async with self.database.session() as connection:
            projects = await store.list_projects_of_step(connection, step_id)
        await self.publish(outputs, projects)

    async def publish(self, paths: Collection[StorePath], projects: Collection[UUID]) -> None:
        """Bring ``paths``, which are valid, with all that they refer to.

        Raises:
            UnavailableError: Nix, the object store or the database does not answer; try again.
            InvalidError: a path is not what Nix registered: this machine's store is damaged.
        """
        infos = await self.nix.closure(paths)
        async with self.database.session() as connection:
            known = await store.list_by_path(connection, [info.path for info in infos])
        for info in infos:
            if info.path in known:
                continue
            try:
                nar = self.nix.dump(info.path)
                await self.cache.add_local(_local(info), nar, projects=projects)
            except ConflictError:
                # Built elsewhere meanwhile, not bit by bit alike; the first one stays.
                _log.warning("cache.another_content", path=info.path)
        await self.cache.link(set(known), projects)


def _local(info: PathInfo) -> Narinfo:
    deriver = info.deriver.rsplit("/", 1)[-1]
    return Narinfo(
        store_path=info.path,
        url="",
        compression="none",
        nar_hash=info.nar_hash,
        nar_size_bytes=info.nar_size_bytes,
        references=tuple(sorted(path.rsplit("/", 1)[-1] for path in info.references)),
        deriver=deriver if narinfos.is_base_name(deriver) else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """What follows from the right to bring a path."""

    projects: tuple[UUID, ...]
    deriver: str | None
    """Base name of the derivation where the database knows it."""


async def _allow(caller: Caller, info: Narinfo, connection: Connection) -> Allowed:
    """Return if ``caller`` may bring the path, which then stays so until the transaction ends.

    Raises:
        UnauthenticatedError: its task is over.
        ForbiddenError: it may not.
    """
    task = caller.task
    if task is None:
        # An administrator may bring anything, so who it was is written down.
        await audit.insert(
            connection, actor=caller.name, action="cache", object=info.store_path, details={}
        )
        return Allowed(projects=(), deriver=None)
    if not await store.hold_task(connection, task.id):
        raise UnauthenticatedError("the task is over; its token is good for nothing")
    if task.project_id is None:
        raise ForbiddenError("the task holds no step any more")
    projects = (task.project_id,)
    if info.content_address is not None:
        return Allowed(projects=projects, deriver=None)
    if task.kind != "steps":
        raise ForbiddenError("an evaluation may only bring what names itself by its content")
    own = await store.fetch_own_output(connection, task.id, info.store_path)
    if own is not None:
        wanted = await store.list_projects_of_step(connection, own[0])
        deriver = own[1].rsplit("/", 1)[-1]
        return Allowed(projects=(*projects, *wanted), deriver=deriver)
    if info.signatures:
        return Allowed(projects=projects, deriver=None)
    raise ForbiddenError("the path is no output of a step that this task holds")


def _require_reader(caller: Caller) -> None:
    if caller.reader is None:
        raise UnauthenticatedError(
            "this cache needs a key",
            hint="put a key as a password into the netrc file of Nix",
        )


def _require_same(info: Narinfo, nar: CacheNar) -> None:
    """A narinfo says of its NAR exactly what was found.

    What it says of the compressed file is of the one that was uploaded; its hash is in its name.
    """
    if info.nar_hash != nar.nar_hash:
        raise InvalidError("NarHash is not the hash of the NAR")
    if info.nar_size_bytes != nar.nar_size_bytes:
        raise InvalidError("NarSize is not the size of the NAR")
    if info.file_hash is not None and info.url.startswith("nar/"):
        named = info.url.removeprefix("nar/").partition(".")[0]
        if info.file_hash != f"sha256:{named}":
            raise InvalidError("FileHash is not the hash of the file")
        is_kept = named == nar.file_hash
        if is_kept and info.file_size_bytes not in {None, nar.file_size_bytes}:
            raise InvalidError("FileSize is not the size of the file")


def _digest_of_nar(source: nars.Readable, *, algorithm: str, size_max: int) -> bytes:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    size = 0
    while piece := source.read(_PIECE_BYTES):
        size += len(piece)
        if size > size_max:
            raise InvalidError("a stored NAR is larger than it was")
        digest.update(piece)
    return digest.digest()


def _digest_of_file(source: nars.Readable, *, algorithm: str, size_max: int) -> bytes:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    facts = nars.read(source, size_max=size_max, content=digest.update)
    if facts.flat_sha256 is None:
        raise InvalidError("CA is of one plain file, the NAR is more")
    return digest.digest()


def _arrived_nar(arrived: Arrived, key: str) -> CacheNar:
    return CacheNar(
        nar_hash=arrived.nar_hash,
        nar_size_bytes=arrived.nar_size_bytes,
        flat_hash=arrived.flat_hash,
        file_hash=arrived.file_hash,
        file_size_bytes=arrived.file_size_bytes,
        object_key=key,
    )


@dataclass(frozen=True, slots=True)
class _Shown:
    path: CachePath
    text: bytes


class _Lookups:
    """Finds paths; those asked for while one question is on its way are asked for together.

    Clients ask for all paths of a closure at once, dozens side by side.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[str, asyncio.Future[CachePath | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def find(self, hash_part: str) -> CachePath | None:
        """The path with this hash part.

        Raises:
            UnavailableError: PostgreSQL does not answer.
        """
        answer = self._waiting.get(hash_part)
        if answer is None:
            answer = self._waiting[hash_part] = asyncio.get_running_loop().create_future()
            if self._asking is None:
                self._asking = asyncio.create_task(self._ask())
        # Others may wait for the same answer when who asked first goes away.
        return await asyncio.shield(answer)

    async def _ask(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, {}
                try:
                    async with (
                        asyncio.timeout(_LOOKUP_S),
                        self._database.session() as connection,
                    ):
                        found = await store.list_paths(connection, asked)
                except Exception as error:  # noqa: BLE001 - each of those who wait gets it
                    for answer in asked.values():
                        answer.set_exception(error)
                        # Who asked may be gone; then nobody looks at it.
                        answer.exception()
                else:
                    for hash_part, answer in asked.items():
                        answer.set_result(found.get(hash_part))
        finally:
            self._asking = None


class _Remembered(Generic[T]):
    """Answers of the last seconds, the least used of them forgotten first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def get(self, key: str) -> T | None:
        found = self._kept.get(key)
        if found is None or found[0] < time.monotonic():
            return None
        self._kept.move_to_end(key)
        return found[1]

    def put(self, key: str, value: T) -> None:
        self._kept[key] = time.monotonic() + _REMEMBERED_S, value
        self._kept.move_to_end(key)
        while len(self._kept) > _REMEMBERED_MAX:
            self._kept.popitem(last=False)

    def forget(self, key: str) -> None:
        self._kept.pop(key, None)
