"""History: every try at every step, and the rows that builds show of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import orjson

from fc_operator.model.ids import StepId
from fc_operator.model.outcomes import Outcome
from fc_operator.store.claims import Lease
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("attempts")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How one try ended."""

    step_id: StepId
    attempt: int
    outcome: Outcome
    log_bytes: int = 0
    log_lines: int = 0
    phases: tuple[tuple[str, int], ...] = ()
    """Name, and milliseconds since the start of the attempt."""


async def start(connection: Connection, leases: Sequence[Lease]) -> None:
    """The executor has begun with these."""
    await _sql.start_attempts(
        connection,
        step_ids=[lease.step_id for lease in leases],
        attempts=[lease.attempt for lease in leases],
        task_ids=[lease.task_id for lease in leases],
    )


async def end(connection: Connection, ends: Sequence[AttemptEnd]) -> None:
    """Write how tries ended."""
    await _sql.end_attempts(
        connection,
        step_ids=[end.step_id for end in ends],
        attempts=[end.attempt for end in ends],
        statuses=[end.outcome.status.value for end in ends],
        reasons=[end.outcome.reason for end in ends],
        messages=[end.outcome.message.replace("\0", "") for end in ends],
        exit_codes=[end.outcome.exit_code for end in ends],
        signals=[end.outcome.signal for end in ends],
        peaks=[end.outcome.peak_memory_bytes for end in ends],
        cpus_ms=[end.outcome.cpu_ms for end in ends],
        log_bytes=[end.log_bytes for end in ends],
        log_lines=[end.log_lines for end in ends],
        phases=[
            orjson.dumps(
                [{"name": name.replace("\0", ""), "at_ms": at_ms} for name, at_ms in end.phases]
            ).decode()
            for end in ends
        ],
    )


async def lose(connection: Connection, tries: Sequence[tuple[StepId, int]]) -> None:
    """Note tries of which nobody told the end."""
    await _sql.lose_attempts(
        connection,
        step_ids=[step_id for step_id, _ in tries],
        attempts=[attempt for _, attempt in tries],
    )


async def lock_builds(connection: Connection, step_ids: Collection[StepId]) -> None:
    """Lock the builds that the ends of these steps will touch, in the one order of all."""
    await _sql.lock_builds(connection, step_ids=list(step_ids))


async def add_build_steps(connection: Connection, tries: Sequence[tuple[StepId, int]]) -> None:
    """Write ended tries into the history of the builds that caused them."""
    await _sql.add_build_steps(
        connection,
        step_ids=[step_id for step_id, _ in tries],
        attempts=[attempt for _, attempt in tries],
    )
