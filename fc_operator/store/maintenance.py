"""What keeps the tables in order: duties, steps that nobody can build, rows that are old."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fc_operator.model.ids import ClassId, Owner, StepId
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("maintenance")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepClass:
    """A system with required features."""

    id: ClassId
    system: str
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferRow:
    """What a builder says that it has."""

    name: str
    systems: tuple[str, ...]
    features: tuple[str, ...]
    mandatory: tuple[str, ...]
    slots: int = 0
    free: int = 0
    is_live: bool = False
    """A scheduler that lives said so; otherwise it is only declared."""
    problem: str = ""
    """Why it can build nothing now, in its own words."""


async def take_duty(connection: Connection, name: str, owner: Owner, lease_s: float) -> int | None:
    """Take or keep a duty; its epoch, or None while another process has it."""
    epoch: int | None = await _sql.take_duty(connection, name=name, owner=owner, lease_s=lease_s)
    return epoch


async def drop_duty(connection: Connection, name: str, owner: Owner) -> None:
    """Let another process have the duty."""
    await _sql.drop_duty(connection, name=name, owner=owner)


async def list_waiting_classes(connection: Connection) -> list[tuple[StepClass, float]]:
    """Classes of which steps are ready, and for how many seconds the first of them has been."""
    return [
        (
            StepClass(id=ClassId(row["id"]), system=row["system"], features=tuple(row["features"])),
            row["waits_s"],
        )
        async for row in _sql.list_waiting_classes(connection)
    ]


async def list_unsupported_classes(connection: Connection) -> list[StepClass]:
    """Classes of which steps were given up because nobody could build them."""
    return [
        StepClass(id=ClassId(row["id"]), system=row["system"], features=tuple(row["features"]))
        async for row in _sql.list_unsupported_classes(connection)
    ]


async def list_offers(connection: Connection, alive_s: float) -> list[OfferRow]:
    """What schedulers that live, and declared builders that are enabled, can build."""
    return [
        OfferRow(
            name=row["name"],
            systems=tuple(row["systems"]),
            features=tuple(row["features"]),
            mandatory=tuple(row["mandatory"]),
            slots=row["slots"],
            free=row["free"],
            is_live=row["is_live"],
            problem=row["problem"],
        )
        async for row in _sql.list_offers(connection, alive_s=alive_s)
    ]


async def list_given_up(
    connection: Connection, class_id: ClassId, after_s: float, limit: int
) -> list[StepId]:
    """Ready steps of a class that have waited for longer than ``after_s``."""
    return [
        StepId(row["id"])
        async for row in _sql.list_given_up(
            connection, class_id=class_id, after_s=after_s, limit=limit
        )
    ]


async def list_unsupported(
    connection: Connection, class_ids: Collection[ClassId], limit: int
) -> list[StepId]:
    """Steps of some classes that ended as unsupported."""
    return [
        StepId(row["id"])
        async for row in _sql.list_unsupported(connection, class_ids=list(class_ids), limit=limit)
    ]


async def list_orphans(connection: Connection, limit: int) -> list[tuple[StepId, bool]]:
    """Waiting steps filed under a jobset that may not run; True where it is gone."""
    return [
        (StepId(row["step_id"]), row["is_gone"])
        async for row in _sql.list_orphans(connection, limit=limit)
    ]


async def refile(connection: Connection, step_ids: Collection[StepId]) -> set[StepId]:
    """File steps under other jobsets that want them; those that found one."""
    return {
        StepId(row["step_id"]) async for row in _sql.refile(connection, step_ids=list(step_ids))
    }


async def prune(
    connection: Connection,
    *,
    tasks_age_s: float,
    deliveries_age_s: float,
    usage_age_s: float,
    limit: int,
) -> None:
    """Delete old rows of the small tables, at most ``limit`` of each."""
    await _sql.prune_tasks(connection, age_s=tasks_age_s, limit=limit)
    await _sql.prune_deliveries(connection, age_s=deliveries_age_s, limit=limit)
    await _sql.prune_failures(connection, limit=limit)
    await _sql.prune_usage(connection, age_s=usage_age_s)
    await _sql.prune_heartbeats(connection, age_s=tasks_age_s)
