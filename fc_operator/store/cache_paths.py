"""Reads and writes ``cache_paths``, ``cache_nars`` and ``cache_path_projects``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fc_operator.model.ids import BuildId, DrvPath, ProjectId, StepId, StorePath, TaskId
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_queries = load("cache_paths")


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePath:
    """A store path that the cache has, and who may read it."""

    store_path: str
    nar_hash: str
    """``sha256:<nix32>``."""
    nar_size_bytes: int
    file_hash: str
    """Nix32 of the sha256 of the compressed NAR."""
    file_size_bytes: int
    object_key: str
    references: tuple[str, ...]
    """Base names."""
    deriver: str | None
    content_address: str | None
    signatures: tuple[str, ...]
    """Of others; ours are made when it is asked for."""
    projects: frozenset[UUID]
    """None at all: an administrator brought it, for everybody who has a key or a task."""
    is_public: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheNar:
    """A NAR that was read to its end and lies in the object store."""

    nar_hash: str
    nar_size_bytes: int
    flat_hash: str | None
    """``sha256:<nix32>`` of the content where it is one plain file."""
    file_hash: str
    file_size_bytes: int
    object_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """Where the NAR of a path is."""

    nar_hash: str
    nar_size_bytes: int
    object_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheTask:
    """A task that lives, as the cache has to know it."""

    id: TaskId
    kind: str
    """``evaluation`` or ``steps``."""
    project_id: ProjectId | None
    fetch_token_hash: bytes | None
    """Of a phase that only reads."""
    work_token_hash: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedBuild:
    """A build that ended well and may lack in the cache."""

    id: BuildId
    project_id: ProjectId
    paths: tuple[StorePath, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """How much the cache holds."""

    paths: int
    nar_bytes: int
    file_bytes: int


async def list_paths(connection: Connection, hash_parts: Collection[str]) -> dict[str, CachePath]:
    """The paths with these hash parts, by hash part."""
    rows = _queries.list_paths(connection, hash_parts=list(hash_parts))
    paths = [_path(row) async for row in rows]
    return {path.store_path.rsplit("/", 1)[-1][:32]: path for path in paths}


async def fetch_of_file(
    connection: Connection, file_hash: str, reader: Reader, *, is_known: bool
) -> CacheNar | None:
    """The NAR in the file with this hash, if ``reader`` may read one of its paths; ``is_known``:
    also those that are no project's.
    """
    row = await _queries.fetch_of_file(
        connection,
        file_hash=file_hash,
        all_projects=reader.all_projects,
        projects=list(reader.projects),
        is_known=is_known,
    )
    if row is None:
        return None
    return CacheNar(
        nar_hash=row["nar_hash"],
        nar_size_bytes=row["nar_size"],
        flat_hash=None,
        file_hash=row["file_hash"],
        file_size_bytes=row["file_size"],
        object_key=row["object_key"],
    )


async def list_by_path(
    connection: Connection, store_paths: Collection[str]
) -> dict[str, Registered]:
    """Those of ``store_paths`` that the cache has."""
    rows = _queries.list_by_path(connection, store_paths=list(store_paths))
    return {
        row["store_path"]: Registered(
            nar_hash=row["nar_hash"], nar_size_bytes=row["nar_size"], object_key=row["object_key"]
        )
        async for row in rows
    }


async def list_known(connection: Connection, hash_parts: Iterable[str]) -> dict[str, str]:
    """Store paths by hash part, of those that the cache has."""
    rows = _queries.list_known(connection, hash_parts=list(hash_parts))
    return {row["hash_part"]: row["store_path"] async for row in rows}


async def insert_nar(
    connection: Connection, uploaded_by: str, upload_hash: str, compression: str, nar: CacheNar
) -> None:
    """Note a verified NAR under the name that its uploader gave it."""
    await _queries.insert_nar(
        connection,
        uploaded_by=uploaded_by,
        upload_hash=upload_hash,
        compression=compression,
        nar_hash=nar.nar_hash,
        nar_size=nar.nar_size_bytes,
        flat_hash=nar.flat_hash,
        file_hash=nar.file_hash,
        file_size=nar.file_size_bytes,
        object_key=nar.object_key,
    )


async def fetch_nar(
    connection: Connection, uploaded_by: str, upload_hash: str, compression: str
) -> CacheNar | None:
    """What an uploader brought before under this name."""
    row = await _queries.fetch_nar(
        connection, uploaded_by=uploaded_by, upload_hash=upload_hash, compression=compression
    )
    if row is None:
        return None
    return CacheNar(
        nar_hash=row["nar_hash"],
        nar_size_bytes=row["nar_size"],
        flat_hash=row["flat_hash"],
        file_hash=row["file_hash"],
        file_size_bytes=row["file_size"],
        object_key=row["object_key"],
    )


async def insert_path(
    connection: Connection,
    *,
    hash_part: str,
    store_path: str,
    nar: CacheNar,
    references: Collection[str],
    deriver: str | None,
    content_address: str | None,
    signatures: Collection[str],
    uploaded_by: str,
) -> bool:
    """Register a path; False where there is one already, which stays."""
    row = await _queries.insert_path(
        connection,
        hash_part=hash_part,
        store_path=store_path,
        nar_hash=nar.nar_hash,
        nar_size=nar.nar_size_bytes,
        file_hash=nar.file_hash,
        file_size=nar.file_size_bytes,
        object_key=nar.object_key,
        reference_names=list(references),
        deriver=deriver,
        content_address=content_address,
        signatures=list(signatures),
        uploaded_by=uploaded_by,
    )
    return row is not None


async def fetch_registered(
    connection: Connection, hash_part: str
) -> tuple[str, str, tuple[str, ...]] | None:
    """(store path, NAR hash, references) of what stands under a hash part."""
    row = await _queries.fetch_registered(connection, hash_part=hash_part)
    if row is None:
        return None
    return row["store_path"], row["nar_hash"], tuple(row["reference_names"])


async def link_projects(
    connection: Connection, hash_part: str, project_ids: Iterable[UUID]
) -> None:
    """Let readers of these projects read the path."""
    await _queries.link_projects(connection, hash_part=hash_part, project_ids=list(project_ids))


async def fetch_task(connection: Connection, task_id: UUID) -> CacheTask | None:
    """The task with this id, while it lives."""
    row = await _queries.fetch_task(connection, task_id=task_id)
    if row is None:
        return None
    return CacheTask(
        id=TaskId(row["id"]),
        kind=row["kind"],
        project_id=row["project_id"],
        fetch_token_hash=row["fetch_token_hash"],
        work_token_hash=row["work_token_hash"],
    )


async def hold_task(connection: Connection, task_id: TaskId) -> bool:
    """Whether a task lives, and will until the transaction's end."""
    return await _queries.hold_task(connection, task_id=task_id) is not None


async def fetch_own_output(
    connection: Connection, task_id: TaskId, store_path: str
) -> tuple[StepId, DrvPath] | None:
    """The step, held by a task at this moment, of which a path is an output."""
    row = await _queries.fetch_own_output(connection, task_id=task_id, store_path=store_path)
    return None if row is None else (StepId(row["id"]), DrvPath(row["drv_path"]))


async def list_projects_of_step(connection: Connection, step_id: StepId) -> list[ProjectId]:
    """Projects that want a step."""
    rows = _queries.list_projects_of_step(connection, step_id=step_id)
    return [ProjectId(row["project_id"]) async for row in rows]


async def fetch_log_step(connection: Connection, drv_path: str, reader: Reader) -> StepId | None:
    """The step of a derivation, if ``reader`` may see a project that wants it."""
    row = await _queries.fetch_log_step(
        connection,
        drv_path=drv_path,
        all_projects=reader.all_projects,
        projects=list(reader.projects),
    )
    return None if row is None else StepId(row["id"])


async def fetch_totals(connection: Connection) -> Totals:
    """How much there is."""
    row = await _queries.fetch_totals(connection)
    return Totals(paths=row["paths"], nar_bytes=row["nar_bytes"], file_bytes=row["file_bytes"])


async def list_unsigned(
    connection: Connection, *, age_s: float, skipped: Collection[BuildId], limit: int
) -> list[UnsignedBuild]:
    """Builds that ended well ``age_s`` ago at most and are not known to be in the cache."""
    return [
        UnsignedBuild(
            id=BuildId(row["id"]), project_id=row["project_id"], paths=tuple(row["paths"])
        )
        async for row in _queries.list_unsigned(
            connection, age_s=age_s, skipped=list(skipped), limit=limit
        )
    ]


async def mark_signed(connection: Connection, build_ids: Collection[BuildId]) -> set[BuildId]:
    """Note those builds of which the cache has all outputs; returns them."""
    rows = _queries.mark_signed(connection, build_ids=list(build_ids))
    return {BuildId(row["id"]) async for row in rows}


def _path(row: Any) -> CachePath:
    return CachePath(
        store_path=row["store_path"],
        nar_hash=row["nar_hash"],
        nar_size_bytes=row["nar_size"],
        file_hash=row["file_hash"],
        file_size_bytes=row["file_size"],
        object_key=row["object_key"],
        references=tuple(row["reference_names"]),
        deriver=row["deriver"],
        content_address=row["content_address"],
        signatures=tuple(row["signatures"]),
        projects=frozenset(row["projects"]),
        is_public=row["is_public"],
    )
