"""Pods: which tasks have one, what was asked for, how far it is and how it ended."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from fc_operator.model.conditions import Condition
from fc_operator.model.desired import PodsSpec
from fc_operator.model.ids import JobsetId, StepId, TaskId
from fc_operator.store.claims import Lease
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("pods")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What decides where pods of a jobset run."""

    project: str
    namespace: str
    """Of the project's object."""
    pods: PodsSpec
    jobset: str = ""
    has_unreviewed: bool = False
    """Some evaluation of it that is not over is of code that nobody reviewed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodTask:
    """A live task that has or shall have a pod."""

    id: TaskId
    kind: str
    """``evaluation`` or ``steps``."""
    target: str
    namespace: str
    name: str
    uid: str | None
    phase: str | None
    is_created: bool
    """The API server said that it made it."""
    has_begun: bool
    """Its agent has spoken."""
    has_told: bool
    """Its agent has told its end."""
    ending: dict[str, str] | None
    """Why its pod is over, as it was noted; None while it is not."""
    age_s: float
    pod_age_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingLease:
    """An attempt that a pod holds."""

    lease: Lease
    cancel_requested: bool


async def list_placements(
    connection: Connection, jobset_ids: Collection[JobsetId]
) -> dict[JobsetId, Placement]:
    """Of some jobsets, by their ids."""
    return {
        JobsetId(row["jobset_id"]): Placement(
            project=row["project"],
            jobset=row["jobset"],
            namespace=row["namespace"],
            pods=PodsSpec.from_dict(row["pods"]),
            has_unreviewed=row["has_unreviewed"],
        )
        async for row in _sql.list_placements(connection, jobset_ids=list(jobset_ids))
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredProject:
    """A project with what is said of its declaration."""

    placement: Placement
    resource_id: UUID
    generation: int
    conditions: tuple[Condition, ...]


async def list_projects(connection: Connection) -> list[DeclaredProject]:
    """All that are declared and not on their way out."""
    return [
        DeclaredProject(
            placement=Placement(
                project=row["project"],
                namespace=row["namespace"],
                pods=PodsSpec.from_dict(row["pods"]),
            ),
            resource_id=row["resource_id"],
            generation=row["generation"],
            conditions=tuple(Condition.from_dict(each) for each in row["conditions"]),
        )
        async for row in _sql.list_projects(connection)
    ]


async def set_conditions(
    connection: Connection, of: DeclaredProject, conditions: Sequence[Condition]
) -> bool:
    """Say something else of a declaration; False when somebody did so meanwhile."""
    row = await _sql.set_conditions(
        connection,
        resource_id=of.resource_id,
        generation=of.generation,
        before=[each.as_dict() for each in of.conditions],
        conditions=[each.as_dict() for each in conditions],
    )
    return row is not None


async def set_intent(
    connection: Connection,
    task_id: TaskId,
    *,
    target: str,
    definition: Mapping[str, Any],
    work: Mapping[str, Any] | None,
) -> bool:
    """Write which pod a task shall have, and its work; False when it is over or has one."""
    row = await _sql.set_intent(
        connection,
        task_id=task_id,
        target=target,
        pod_namespace=definition["metadata"]["namespace"],
        pod_name=definition["metadata"]["name"],
        definition=definition,
        work=work,
    )
    return row is not None


async def list_live(connection: Connection) -> list[PodTask]:
    """All of them, oldest first."""
    return [
        PodTask(
            id=TaskId(row["id"]),
            kind=row["kind"],
            target=row["target"],
            namespace=row["pod_namespace"],
            name=row["pod_name"],
            uid=row["pod_uid"],
            phase=row["pod_phase"],
            is_created=row["is_created"],
            has_begun=row["has_begun"],
            has_told=row["has_told"],
            ending=row["pod_ending"],
            age_s=row["age_s"],
            pod_age_s=row["pod_age_s"],
        )
        async for row in _sql.list_live(connection)
    ]


async def count_live(connection: Connection, kind: str) -> int:
    """How many live tasks of a kind have or shall have a pod."""
    return int(await _sql.count_live(connection, kind=kind))


async def list_alive(connection: Connection, task_ids: Collection[TaskId]) -> set[TaskId]:
    """Those of some tasks that are live."""
    rows = _sql.list_alive(connection, task_ids=list(task_ids))
    return {TaskId(row["id"]) async for row in rows}


async def fetch_definition(connection: Connection, task_id: TaskId) -> dict[str, Any] | None:
    """The pod of a live task, without its token."""
    found: dict[str, Any] | None = await _sql.fetch_definition(connection, task_id=task_id)
    return found


async def note_created(connection: Connection, task_id: TaskId, uid: str) -> bool:
    """Its pod is there; False when the task is over."""
    return await _sql.note_created(connection, task_id=task_id, uid=uid) is not None


async def note_phases(connection: Connection, phases: Mapping[TaskId, str]) -> None:
    """How far some pods are."""
    await _sql.note_phases(connection, task_ids=list(phases), phases=list(phases.values()))


async def note_ending(
    connection: Connection, task_id: TaskId, phase: str, ending: Mapping[str, str]
) -> bool:
    """Why a pod is over; False when that is known already, or its task is over."""
    row = await _sql.note_ending(connection, task_id=task_id, phase=phase, ending=dict(ending))
    return row is not None


def _waiting(row: Any) -> WaitingLease:
    return WaitingLease(
        lease=Lease(
            step_id=StepId(row["step_id"]), attempt=row["attempt"], task_id=TaskId(row["task_id"])
        ),
        cancel_requested=row["cancel_requested"],
    )


async def renew_waiting(
    connection: Connection, task_ids: Collection[TaskId], lease_s: float
) -> list[WaitingLease]:
    """Renew what tasks hold whose agents have not spoken yet; the attempts of all the tasks."""
    rows = _sql.renew_waiting(connection, task_ids=list(task_ids), lease_s=lease_s)
    return [_waiting(row) async for row in rows]


async def list_leases(connection: Connection, task_ids: Collection[TaskId]) -> list[WaitingLease]:
    """The attempts that some tasks hold."""
    return [_waiting(row) async for row in _sql.list_leases(connection, task_ids=list(task_ids))]


async def fetch_evaluation(connection: Connection, task_id: TaskId) -> tuple[JobsetId, bool] | None:
    """The jobset that a live task evaluates, and whether its code was reviewed."""
    row = await _sql.fetch_evaluation(connection, task_id=task_id)
    return None if row is None else (JobsetId(row["jobset_id"]), row["trust"] == "trusted")
