"""Builds: what people see of a job; and what becomes of an evaluation when its builds end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from fc_operator.model.ids import BuildId, EvaluationId, JobsetId
from fc_operator.model.outcomes import Metric, Product
from fc_operator.store.database import Connection
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
