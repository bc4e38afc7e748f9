"""Tasks as their agents see them: opened by phase, kept alive, reported on, in order.

Which pod a task runs in is ``store.pods``'; claims and ends of steps are ``store.claims``' and
``store.steps``'.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fc_operator.model.ids import EvaluationId, StepId, StorePath, TaskId
from fc_operator.model.tasks import PhaseChanged
from fc_operator.store.claims import HeldLease, Lease
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTask:
    """A task as its agent may know it."""

    id: TaskId
    kind: str
    """evaluation or steps."""
    evaluation_id: EvaluationId | None
    is_live: bool
    """It is held, its lease has not run out, and its agent has not told the end."""
    is_told: bool
    """Its agent has told the end."""
    is_fetched: bool
    has_work: bool
    fetch_token_hash: bytes | None
    work_token_hash: bytes | None
    next_report: int
    next_event: int
    cancel_requested: bool
    status_reason: str
    """Of its evaluation: why it shall end, where that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reports:
    """How far the reports of a task have come."""

    next: int
    is_told: bool
    is_over: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a scheduler that waits for a pod's evaluation looks at."""

    is_live: bool
    is_begun: bool
    is_told: bool
    next_report: int
    checkout: Mapping[str, Any] | None
    pod_phase: str | None
    pod_ending: Mapping[str, Any] | None
    """``reason``, ``message`` and ``class``; None while the pod is there."""
    silent_s: float | None
    """Since its agent last spoke; None before it began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedPath:
    """A store path as the binary cache verified it."""

    nar_hash: str
    nar_size: int


async def fetch(connection: Connection, task_id: TaskId) -> AgentTask | None:
    """The task; None when there is no such (any more)."""
    row = await _sql.fetch(connection, task_id=task_id)
    if row is None:
        return None
    return AgentTask(
        id=TaskId(row["id"]),
        kind=row["kind"],
        evaluation_id=row["evaluation_id"],
        is_live=row["state"] == "live" and not row["is_expired"] and not row["is_told"],
        is_told=row["is_told"],
        is_fetched=row["is_fetched"],
        has_work=row["has_work"],
        fetch_token_hash=row["fetch_token_hash"],
        work_token_hash=row["work_token_hash"],
        next_report=row["next_report"],
        next_event=row["next_event"],
        cancel_requested=row["cancel_requested"],
        status_reason=row["status_reason"],
    )


async def set_work(
    connection: Connection,
    task_id: TaskId,
    work: Mapping[str, Any],
    *,
    credentials: bytes | None,
) -> bool:
    """Write what an evaluation's agent has to do; false when the task is over or has work."""
    row = await _sql.set_work(connection, task_id=task_id, work=work, credentials=credentials)
    return row is not None


async def set_sandbox(connection: Connection, task_id: TaskId, sandbox: str) -> None:
    """Say whose sandbox the agent of a task has to use (``NixWork.sandbox``)."""
    await _sql.set_sandbox(connection, task_id=task_id, sandbox=sandbox)


async def open_fetch(
    connection: Connection, task_id: TaskId, token_hash: bytes, agent: Mapping[str, str]
) -> Any:
    """Open the phase that fetches; its work, or None where it can't be opened (any more)."""
    row = await _sql.open_fetch(connection, task_id=task_id, token_hash=token_hash, agent=agent)
    return None if row is None else row["work"]


async def open_work(
    connection: Connection, task_id: TaskId, token_hash: bytes, agent: Mapping[str, str]
) -> Any:
    """Open the phase that works; its work, or None where it can't be opened (any more)."""
    row = await _sql.open_work(connection, task_id=task_id, token_hash=token_hash, agent=agent)
    return None if row is None else row["work"]


async def fetch_credentials(connection: Connection, task_id: TaskId) -> bytes | None:
    """The encrypted credentials of a fetch step that has not ended; None when there are none."""
    row = await _sql.fetch_credentials(connection, task_id=task_id)
    return None if row is None else row["credentials_ciphertext"]


async def set_fetched(connection: Connection, task_id: TaskId, checkout: Mapping[str, Any]) -> bool:
    """The checkout is there: its description stays, the credentials go. False when it is over."""
    return await _sql.set_fetched(connection, task_id=task_id, checkout=checkout) is not None


async def beat(connection: Connection, task_id: TaskId, *, lease_s: float) -> bool:
    """Its agent lives; false when the task is over."""
    return await _sql.beat(connection, task_id=task_id, lease_s=lease_s) is not None


async def renew_leases(
    connection: Connection, task_id: TaskId, *, lease_s: float
) -> list[HeldLease]:
    """Renew all attempts of a task; those that it holds."""
    return [
        HeldLease(
            step_id=StepId(row["step_id"]),
            attempt=row["attempt"],
            cancel_requested=row["cancel_requested"],
        )
        async for row in _sql.renew_leases(connection, task_id=task_id, lease_s=lease_s)
    ]


async def list_leases(connection: Connection, task_id: TaskId) -> list[Lease]:
    """The attempts that a task holds."""
    return [
        Lease(
            step_id=StepId(row["step_id"]), attempt=row["attempt"], task_id=TaskId(row["task_id"])
        )
        async for row in _sql.list_leases(connection, task_id=task_id)
    ]


# Reports of evaluations ---------------------------------------------------------------------------


async def lock_reports(connection: Connection, task_id: TaskId) -> Reports | None:
    """How far the reports have come, locked until commit; None when there is no such task."""
    row = await _sql.lock_reports(connection, task_id=task_id)
    if row is None:
        return None
    return Reports(next=row["next_report"], is_told=row["is_told"], is_over=row["is_over"])


async def count_reports(connection: Connection, task_id: TaskId) -> int:
    """Reports that nobody has taken yet."""
    return int(await _sql.count_reports(connection, task_id=task_id))


async def insert_report(
    connection: Connection, task_id: TaskId, seq: int, payload: bytes, *, is_end: bool = False
) -> None:
    """Write the next report; ``is_end`` says that it is the last."""
    await _sql.insert_report(connection, task_id=task_id, seq=seq, payload=payload, is_end=is_end)


async def list_reports(
    connection: Connection, task_id: TaskId, *, start: int, limit: int
) -> list[tuple[int, bytes]]:
    """(number, zstd of JSON lines) of reports from ``start`` on that were not taken."""
    return [
        (row["seq"], row["payload"])
        async for row in _sql.list_reports(connection, task_id=task_id, start=start, limit=limit)
    ]


async def delete_reports(connection: Connection, task_id: TaskId, *, below: int) -> None:
    """Reports below ``below`` were taken."""
    await _sql.delete_reports(connection, task_id=task_id, below=below)


async def fetch_progress(connection: Connection, task_id: TaskId) -> Progress | None:
    """How it goes; None when there is no such task."""
    row = await _sql.fetch_progress(connection, task_id=task_id)
    if row is None:
        return None
    return Progress(
        is_live=row["state"] == "live",
        is_begun=row["is_begun"],
        is_told=row["is_told"],
        next_report=row["next_report"],
        checkout=row["checkout"],
        pod_phase=row["pod_phase"],
        pod_ending=row["pod_ending"],
        silent_s=row["silent_s"],
    )


async def fetch_last_ending(
    connection: Connection, evaluation_id: EvaluationId
) -> Mapping[str, Any] | None:
    """Why the last pod of an evaluation is gone that told no end; see ``Progress.pod_ending``."""
    row = await _sql.fetch_last_ending(connection, evaluation_id=evaluation_id)
    return None if row is None else row["pod_ending"]


# Events and logs of steps -------------------------------------------------------------------------


async def raise_next_event(connection: Connection, task_id: TaskId, next_event: int) -> None:
    """Events below ``next_event`` were recorded."""
    await _sql.raise_next_event(connection, task_id=task_id, next_event=next_event)


async def add_phases(
    connection: Connection, task_id: TaskId, changes: Sequence[PhaseChanged], *, most: int
) -> None:
    """Note phases of running attempts of a task, each once; no more once there are ``most``."""
    # By itself first: what another teller of the same has written is seen only afterwards.
    async for _ in _sql.lock_attempts(
        connection,
        step_ids=[change.step_id for change in changes],
        attempts=[change.attempt for change in changes],
        task_ids=[task_id for _ in changes],
    ):
        pass
    await _sql.add_phases(
        connection,
        step_ids=[change.step_id for change in changes],
        attempts=[change.attempt for change in changes],
        task_ids=[task_id for _ in changes],
        names=[change.phase.replace("\0", "") for change in changes],
        ats_ms=[change.at_ms for change in changes],
        most=most,
    )


async def list_phases(
    connection: Connection, tries: Collection[tuple[StepId, int]]
) -> dict[StepId, tuple[tuple[str, int], ...]]:
    """Phases of attempts (name, milliseconds since the start), by their steps."""
    rows = _sql.list_phases(
        connection,
        step_ids=[step_id for step_id, _ in tries],
        attempts=[attempt for _, attempt in tries],
    )
    return {
        StepId(row["step_id"]): tuple((each["name"], each["at_ms"]) for each in row["phases"])
        async for row in rows
    }


async def list_outputs(
    connection: Connection, step_ids: Collection[StepId]
) -> dict[StepId, dict[str, StorePath | None]]:
    """What steps should make: path by name, None where only the build tells the path."""
    found: dict[StepId, dict[str, StorePath | None]] = {}
    async for row in _sql.list_outputs(connection, step_ids=list(step_ids)):
        found.setdefault(StepId(row["step_id"]), {})[row["name"]] = row["path"]
    return found


async def list_cached(connection: Connection, paths: Collection[str]) -> dict[str, CachedPath]:
    """Those of ``paths`` that the binary cache has."""
    return {
        row["store_path"]: CachedPath(nar_hash=row["nar_hash"], nar_size=row["nar_size"])
        async for row in _sql.list_cached(connection, paths=list(paths))
    }


async def lock_log(connection: Connection, lease: Lease) -> bool:
    """Let nobody else write the log of an attempt until commit; false when it is not held."""
    row = await _sql.lock_log(
        connection, step_id=lease.step_id, attempt=lease.attempt, task_id=lease.task_id
    )
    return row is not None


async def fetch_log_size(connection: Connection, step_id: StepId, attempt: int) -> int:
    """Bytes of the log that are there."""
    return int(await _sql.fetch_log_size(connection, step_id=step_id, attempt=attempt) or 0)
