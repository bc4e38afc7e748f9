"""Jobsets and their inputs as they are declared; what makes them due is read by ``checks``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from fc_operator.model.desired import DesiredJobset, InputSpec
from fc_operator.model.ids import EvaluationId, JobsetId, new_uuid
from fc_operator.model.resources import Recorded
from fc_operator.store.database import Connection
from fc_operator.store.queries import load

_sql = load("jobsets")


async def list_recorded(connection: Connection, identities: Collection[str]) -> list[Recorded]:
    """Jobsets as their rows have them, by ``project/jobset``."""
    if not identities:
        return []
    projects, names = _split(identities)
    rows = [row async for row in _sql.list_by_identity(connection, projects=projects, names=names)]
    inputs: dict[UUID, list[InputSpec]] = defaultdict(list)
    async for row in _sql.list_inputs(connection, jobset_ids=[row["id"] for row in rows]):
        inputs[row["jobset_id"]].append(
            InputSpec(name=row["name"], type=row["input_type"], value=row["value"])
        )
    return [
        Recorded(
            id=row["id"],
            deleting=row["deleting"],
            declared=DesiredJobset(
                project=row["project"],
                name=row["name"],
                nix_expression=row["nix_expression"],
                flake_mode=row["flake_mode"],
                description=row["description"],
                branch=row["branch"],
                check_interval_s=row["check_interval"],
                state=row["state"],
                scheduling_shares=row["scheduling_shares"],
                keep_evaluations=row["keep_nr"],
                systems=tuple(row["systems"]),
                only_build_latest=row["only_build_latest"],
                timeout_s=row["timeout_s"],
                max_silent_s=row["max_silent_s"],
                evaluation_timeout_s=row["evaluation_timeout_s"],
                allow_import_from_derivation=row["allow_import_from_derivation"],
                suspended=row["suspended"],
                inputs=tuple(inputs[row["id"]]),
            ),
        )
        for row in rows
    ]


async def upsert(connection: Connection, jobsets: Sequence[DesiredJobset]) -> dict[str, JobsetId]:
    """Bring jobsets and their inputs to what was declared, due now and a generation on.

    Ids come back by ``project/jobset``.
    """
    rows = [
        {
            "id": str(new_uuid()),
            "project": each.project,
            "name": each.name,
            "nix_expression": each.nix_expression,
            "flake_mode": each.flake_mode,
            "description": each.description,
            "branch": each.branch,
            "check_interval": each.check_interval_s,
            "state": each.state,
            "scheduling_shares": each.scheduling_shares,
            "keep_nr": each.keep_evaluations,
            "systems": list(each.systems),
            "only_build_latest": each.only_build_latest,
            "timeout_s": each.timeout_s,
            "max_silent_s": each.max_silent_s,
            "evaluation_timeout_s": each.evaluation_timeout_s,
            "allow_import_from_derivation": each.allow_import_from_derivation,
            "suspended": each.suspended,
        }
        for each in jobsets
    ]
    ids = {row["identity"]: JobsetId(row["id"]) async for row in _sql.upsert(connection, rows=rows)}
    await _replace_inputs(
        connection,
        {ids[f"{each.project}/{each.name}"]: each.inputs for each in jobsets},
    )
    return ids


async def _replace_inputs(
    connection: Connection, parts: Mapping[JobsetId, Sequence[InputSpec]]
) -> None:
    rows = [
        {"jobset_id": str(id_), "name": each.name, "type": each.type, "value": each.value}
        for id_, specs in parts.items()
        for each in specs
    ]
    await _sql.delete_other_inputs(connection, jobset_ids=list(parts), rows=rows)
    if rows:
        await _sql.upsert_inputs(connection, rows=rows)


async def wake_of_projects(
    connection: Connection, projects: Collection[str], *, anew: Collection[str]
) -> None:
    """Have all jobsets of some projects looked at now; those of ``anew`` as if newly declared."""
    await _sql.wake_of_projects(connection, projects=list(projects), anew=list(anew))


async def request(connection: Connection, asked: Sequence[tuple[str, str | None]]) -> None:
    """Have jobsets, given as project and name (None: all), looked at because somebody asked."""
    await _sql.request(
        connection, projects=[each for each, _ in asked], names=[each for _, each in asked]
    )


async def mark_deleting(connection: Connection, identities: Collection[str]) -> None:
    """Stop scheduling for some jobsets."""
    if identities:
        projects, names = _split(identities)
        await _sql.mark_deleting(connection, projects=projects, names=names)


async def mark_deleting_of_project(connection: Connection, project_id: UUID) -> None:
    """Stop scheduling for all jobsets of a project."""
    await _sql.mark_deleting_of_project(connection, project_id=project_id)


async def list_of_project(connection: Connection, project_id: UUID) -> list[UUID]:
    """The jobsets of a project, whoever declared them."""
    rows = _sql.list_of_project(connection, project_id=project_id)
    return [row["id"] async for row in rows]


async def fetch_policy(connection: Connection, id_: UUID) -> str | None:
    """``retain`` or ``delete``: what its project says; None if it is gone."""
    found: str | None = await _sql.fetch_policy(connection, id=id_)
    return found


async def list_live_evaluations(
    connection: Connection, id_: UUID
) -> list[tuple[EvaluationId, bool]]:
    """Evaluations of a jobset that are not over, and whether they still evaluate."""
    rows = _sql.list_live_evaluations(connection, id=id_)
    return [(EvaluationId(row["id"]), row["evaluates"]) async for row in rows]


async def delete_some_history(connection: Connection, id_: UUID, size: int) -> int:
    """Delete up to ``size`` builds, then evaluations, of a jobset on its way out; how many."""
    gone = int(await _sql.delete_builds(connection, id=id_, size=size))
    return gone or int(await _sql.delete_evaluations(connection, id=id_, size=size))


async def delete_empty(connection: Connection, id_: UUID) -> bool:
    """Delete a jobset on its way out once it has no history; whether it went."""
    return await _sql.delete_empty(connection, id=id_) is not None


def _split(identities: Collection[str]) -> tuple[list[str], list[str]]:
    pairs = [identity.split("/", 1) for identity in sorted(identities)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
