"""Builds: what people see of a job; and what becomes of an evaluation when its builds end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import orjson

from fc_operator.model.ids import BuildId, DrvPath, EvaluationId, JobsetId, StepId
from fc_operator.model.outcomes import Harvest, Metric, Product
from fc_operator.model.statuses import BuildStatus
from fc_operator.store.database import Connection, Record
from fc_operator.store.queries import load

_sql = load("builds")


async def copy_products(
    connection: Connection, products: Iterable[tuple[BuildId, Product]]
) -> None:
    """Products of builds that have none yet."""
    await connection.copy_records_to_table(
        "build_products",
        columns=[
            *("build_id", "nr", "type", "subtype", "name", "path", "default_path", "output"),
            *("is_directory", "sha256_hash", "file_size", "content_type"),
        ],
        records=[
            (
                *(build_id, p.nr, p.type, p.subtype, p.name, p.path, p.default_path, p.output),
                *(p.is_directory, p.sha256, p.size_bytes, p.content_type),
            )
            for build_id, p in products
        ],
    )


async def copy_metrics(connection: Connection, metrics: Iterable[tuple[BuildId, Metric]]) -> None:
    """Metrics of builds that have none yet."""
    await connection.copy_records_to_table(
        "build_metrics",
        columns=["build_id", "metric_name", "metric_value", "unit"],
        records=[(build_id, m.name, m.value, m.unit) for build_id, m in metrics],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SettledEvaluation:
    """An evaluation of which nothing runs any more."""

    id: EvaluationId
    jobset_id: JobsetId


async def settle(
    connection: Connection, evaluation_ids: Collection[EvaluationId]
) -> Sequence[SettledEvaluation]:
    """Note the end of those of which nothing is left to run, and move their channels."""
    ids = sorted(evaluation_ids)
    if not ids:
        return []
    await _sql.lock_evaluations(connection, evaluation_ids=ids)
    settled = [
        SettledEvaluation(id=EvaluationId(row["id"]), jobset_id=JobsetId(row["jobset_id"]))
        async for row in _sql.settle_evaluations(connection, evaluation_ids=ids)
    ]
    if settled:
        async for _ in _sql.promote_channels(
            connection, evaluation_ids=[evaluation.id for evaluation in settled]
        ):
            pass
    return settled


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEnd:
    """What the builds of a step get from its end."""

    step_id: StepId
    status: BuildStatus
    reason: str
    message: str
    harvest: Harvest | None = None
    """None where it left nothing; earlier outputs stay."""
    cached: bool = False


async def end(
    connection: Connection, ends: Sequence[BuildEnd]
) -> list[tuple[BuildId, EvaluationId, StepId]]:
    """Live builds of ended steps end too, with all that the step left behind."""
    outputs = [_outputs(e.harvest) for e in ends]
    ended = [
        (BuildId(row["id"]), EvaluationId(row["evaluation_id"]), StepId(row["step_id"]))
        async for row in _sql.end_builds(
            connection,
            step_ids=[e.step_id for e in ends],
            statuses=[e.status.value for e in ends],
            reasons=[e.reason for e in ends],
            messages=[e.message.replace("\0", "") for e in ends],
            cached=[e.cached for e in ends],
            outputs=[orjson.dumps(paths).decode() if paths else None for paths in outputs],
            output_paths=[of.get("out") or next(iter(of.values()), None) for of in outputs],
            release_names=[e.harvest.release_name if e.harvest else None for e in ends],
            warnings=[orjson.dumps(e.harvest.warnings if e.harvest else ()).decode() for e in ends],
        )
    ]
    harvests = {e.step_id: e.harvest for e in ends if e.harvest is not None}
    kept = [(build_id, harvests[step_id]) for build_id, _, step_id in ended if step_id in harvests]
    if kept:
        await _sql.delete_results(connection, build_ids=[build_id for build_id, _ in kept])
        await copy_products(connection, [(b, product) for b, h in kept for product in h.products])
        await copy_metrics(connection, [(b, metric) for b, h in kept for metric in h.metrics])
    return ended


def _outputs(harvest: Harvest | None) -> dict[str, str]:
    return {output.name: str(output.path) for output in harvest.outputs} if harvest else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildState:
    """A build, as a change needs it."""

    id: BuildId
    evaluation_id: EvaluationId
    jobset_id: JobsetId
    status: BuildStatus
    step_id: StepId | None
    drv_path: DrvPath


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedBuild:
    """A build that a change has touched."""

    id: BuildId
    evaluation_id: EvaluationId
    step_id: StepId | None = None


async def list_by_id(connection: Connection, build_ids: Collection[BuildId]) -> list[BuildState]:
    """Those that exist."""
    return [
        BuildState(
            id=BuildId(row["id"]),
            evaluation_id=EvaluationId(row["evaluation_id"]),
            jobset_id=JobsetId(row["jobset_id"]),
            status=BuildStatus(row["status"]),
            step_id=row["step_id"],
            drv_path=DrvPath(row["drv_path"]),
        )
        async for row in _sql.list_by_id(connection, build_ids=list(build_ids))
    ]


async def list_of_evaluation(
    connection: Connection, evaluation_id: EvaluationId, statuses: Iterable[BuildStatus]
) -> list[BuildId]:
    """Builds of an evaluation in some statuses."""
    return [
        BuildId(row["id"])
        async for row in _sql.list_of_evaluation(
            connection,
            evaluation_id=evaluation_id,
            statuses=[status.value for status in statuses],
        )
    ]


async def list_superseded(connection: Connection, evaluation_id: EvaluationId) -> list[BuildId]:
    """Live builds of older evaluations that this one takes the place of, by its jobset's wish."""
    return [
        BuildId(row["id"])
        async for row in _sql.list_superseded(connection, evaluation_id=evaluation_id)
    ]


async def supersede_evaluations(
    connection: Connection, evaluation_id: EvaluationId
) -> list[EvaluationId]:
    """Ask older evaluations of the same stream to stop, if their jobset wants only the latest."""
    return [
        EvaluationId(row["id"])
        async for row in _sql.supersede_evaluations(connection, evaluation_id=evaluation_id)
    ]


async def cancel(
    connection: Connection, build_ids: Collection[BuildId], *, reason: str, message: str
) -> list[ChangedBuild]:
    """Live builds end as cancelled; those that did."""
    return [
        _changed(row)
        async for row in _sql.cancel_builds(
            connection, build_ids=list(build_ids), reason=reason, message=message
        )
    ]


async def restart(connection: Connection, build_ids: Collection[BuildId]) -> list[ChangedBuild]:
    """Ended builds are pending again; those that are."""
    return [
        _changed(row) async for row in _sql.restart_builds(connection, build_ids=list(build_ids))
    ]


async def take_back_dependents(
    connection: Connection, step_ids: Collection[StepId]
) -> list[ChangedBuild]:
    """Builds of these steps that had failed with a dependency are pending again."""
    return [
        ChangedBuild(id=BuildId(row["id"]), evaluation_id=EvaluationId(row["evaluation_id"]))
        async for row in _sql.take_back_dependents(connection, step_ids=list(step_ids))
    ]


async def reopen_evaluations(
    connection: Connection, evaluation_ids: Collection[EvaluationId]
) -> None:
    """Their builds have not all ended any more."""
    await _sql.reopen_evaluations(connection, evaluation_ids=sorted(evaluation_ids))


async def show_running(connection: Connection, build_ids: Collection[BuildId]) -> None:
    """Builds whose step runs already show it."""
    await _sql.show_running(connection, build_ids=list(build_ids))


async def set_step(connection: Connection, build_id: BuildId, step_id: StepId) -> None:
    """Give a build its step."""
    await _sql.set_step(connection, build_id=build_id, step_id=step_id)


async def bump(connection: Connection, build_ids: Collection[BuildId]) -> list[ChangedBuild]:
    """Note that live builds go to the front; those that do."""
    return [_changed(row) async for row in _sql.bump_builds(connection, build_ids=list(build_ids))]


async def keep(
    connection: Connection, build_id: BuildId, *, keep: bool, actor: str
) -> ChangedBuild | None:
    """Pin or unpin; None when it was so already."""
    async for row in _sql.keep_build(connection, build_id=build_id, keep=keep, actor=actor):
        return ChangedBuild(id=BuildId(row["id"]), evaluation_id=EvaluationId(row["evaluation_id"]))
    return None


def _changed(row: Record) -> ChangedBuild:
    return ChangedBuild(
        id=BuildId(row["id"]),
        evaluation_id=EvaluationId(row["evaluation_id"]),
        step_id=row["step_id"],
    )


async def restart_of_steps(
    connection: Connection, step_ids: Collection[StepId]
) -> list[ChangedBuild]:
    """Builds of restarted steps that had ended as nobody's fault, or with a dependency."""
    return [
        _changed(row) async for row in _sql.restart_of_steps(connection, step_ids=list(step_ids))
    ]
