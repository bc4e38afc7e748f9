"""How the demo goes and what it gave, read through the HTTP API like anybody would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fc_operator.app.expectations import Expected, FoundChannel, FoundJob, FoundJobset, job
from fc_operator.clients.api import PREFIX, ApiClient
from fc_operator.model.ids import CommitId
from fc_operator.model.statuses import LIVE, EvaluationStatus

_PAGE = 200
_LIVE_EVALUATION = {EvaluationStatus.PENDING, EvaluationStatus.RUNNING}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobsetNow:
    """A jobset at one moment."""

    name: str
    """``project/jobset``."""
    repository: str
    """Name of the demo's repository that it is evaluated from; empty for any other."""
    checked_at: datetime | None
    """When its source was last looked at."""
    is_woken: bool = False
    """A change or a wish waits for the next look."""
    evaluation: int | None = None
    """The newest one's number."""
    commit: str = ""
    evaluation_status: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Builds of that evaluation by status."""
    ended: bool = False
    """The evaluation and all of its builds have ended."""
    error: str = ""
    """Why its source can't be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """All of it at one moment."""

    config_revision: str = ""
    """The revision of the config repository that is live."""
    config_error: str = ""
    jobsets: tuple[JobsetNow, ...] = ()
    builds: Mapping[str, str] = field(default_factory=dict)
    """Status of each build of the newest evaluations by ``project/jobset/job``."""


async def observe(client: ApiClient, git_url: str, before: Moment) -> Moment:
    """The present; builds of an evaluation that had ended ``before`` are not read again."""
    revision, config_error = await _config(client)
    jobsets: list[JobsetNow] = []
    for project in await client.all("/projects"):
        address = str(project["repository_url"])
        repository = address.removeprefix(f"{git_url}/").removesuffix(".git")
        rows = await client.all(f"/projects/{project['name']}/jobsets")
        jobsets.extend(_jobset(row, "" if repository == address else repository) for row in rows)
    known = {(each.name, each.evaluation) for each in before.jobsets if each.ended}
    builds: dict[str, str] = {}
    for each in jobsets:
        if (each.name, each.evaluation) in known:
            prefix = f"{each.name}/"
            builds |= {k: v for k, v in before.builds.items() if k.startswith(prefix)}
        elif each.evaluation is not None:
            path = f"/evaluations/{each.evaluation}/builds"
            builds |= {
                f"{each.name}/{row['job_name']}": row["status"]
                for row in await client.all(path, {"limit": _PAGE})
            }
    return Moment(
        config_revision=revision,
        config_error=config_error,
        jobsets=tuple(jobsets),
        builds=builds,
    )


async def _config(client: ApiClient) -> tuple[str, str]:
    """Live revision of the one config repository, and what is wrong with it."""
    for row in await client.all("/config-repositories"):
        stalled = [
            str(condition.get("message", ""))
            for condition in row["conditions"]
            if condition.get("type") == "Ready" and condition.get("status") == "False"
        ]
        return str(row["last_revision"] or ""), "; ".join(stalled)
    return "", ""


def _jobset(row: Mapping[str, Any], repository: str) -> JobsetNow:
    newest = row["latest_evaluation"] or {}
    checked = row["last_checked_at"]
    status = newest.get("status", "")
    counts = newest.get("builds") or {}
    ended = bool(newest) and status not in _LIVE_EVALUATION
    if status == EvaluationStatus.COMPLETED:
        ended = newest.get("builds_ended_at") is not None and not any(
            counts.get(live) for live in LIVE
        )
    return JobsetNow(
        name=f"{row['project']}/{row['name']}",
        repository=repository,
        checked_at=datetime.fromisoformat(checked) if checked else None,
        is_woken=row["check_reason"] != "interval",
        evaluation=newest.get("number"),
        commit=newest.get("commit_hash", ""),
        evaluation_status=status,
        counts=counts,
        ended=ended,
        error=row["last_error"] or "",
    )


def waits_for(
    moment: Moment, expected: Expected, commits: Mapping[str, CommitId], *, since: datetime
) -> list[str]:
    """What has still to happen, in words; empty when everything has ended.

    ``since`` is a moment after which each jobset's source must have been looked at, so that an
    earlier run's results are not taken for this one's.
    """
    if moment.config_revision != commits["config"]:
        return [moment.config_error or "the manifests are being read"]
    there = {each.name: each for each in moment.jobsets}
    waits = []
    for project, content in expected.projects.items():
        for name in content.jobsets:
            known = there.get(f"{project}/{name}")
            if known is None:
                waits.append(f"{project}/{name} is not there yet")
            elif (said := _wait(known, commits, since)) is not None:
                waits.append(f"{project}/{name} {said}")
    return waits


def _wait(jobset: JobsetNow, commits: Mapping[str, CommitId], since: datetime) -> str | None:
    if jobset.error:
        return f"can't be looked at: {jobset.error}"
    if jobset.evaluation is None or jobset.commit != commits.get(jobset.repository):
        return "is to be evaluated"
    if not jobset.ended:
        return "is evaluated" if jobset.evaluation_status in _LIVE_EVALUATION else "is built"
    looked_at = jobset.checked_at is not None and jobset.checked_at >= since
    return None if looked_at and not jobset.is_woken else "is looked at"


async def find_jobsets(
    client: ApiClient, moment: Moment, expected: Expected
) -> dict[tuple[str, str], FoundJobset]:
    """Of every jobset its newest evaluation, the errors and the builds, for the comparison."""
    found = {}
    for each in moment.jobsets:
        project, _, name = each.name.partition("/")
        if each.evaluation is None:
            continue
        evaluation = await client.get(f"/evaluations/{each.evaluation}")
        errors = await client.all(f"/evaluations/{each.evaluation}/errors", {"limit": _PAGE})
        rows = await client.all(f"/evaluations/{each.evaluation}/builds", {"limit": _PAGE})
        declared = expected.projects.get(project)
        jobset = declared.jobsets.get(name) if declared else None
        jobs = {}
        for row in rows:
            wanted = jobset.jobs.get(row["job_name"]) if jobset else None
            more = wanted is not None and job(wanted).has_more
            jobs[row["job_name"]] = await _job(client, row, more=more)
        found[project, name] = FoundJobset(
            evaluation=evaluation["status"],
            id=evaluation["id"],
            url=f"{client.url}/evaluations/{each.evaluation}",
            errors=tuple(error["job"] for error in errors),
            jobs=jobs,
        )
    return found


async def _job(client: ApiClient, row: Mapping[str, Any], *, more: bool) -> FoundJob:
    path = f"/builds/{row['number']}"
    url = f"{client.url}{path}"
    if not more:
        return FoundJob(status=row["status"], url=url)
    build = await client.get(path)
    products = await client.all(f"{path}/products")
    metrics = await client.get(f"{path}/metrics")
    constituents = await client.all(f"{path}/constituents", {"limit": _PAGE})
    return FoundJob(
        status=row["status"],
        url=url,
        products=tuple(product["name"] for product in products),
        metrics={metric["name"]: metric["value"] for metric in metrics["items"]},
        release_name=build["release_name"],
        constituents=tuple(each["job_name"] for each in constituents),
    )


async def find_channels(client: ApiClient) -> dict[tuple[str, str], FoundChannel]:
    """Where every channel points."""
    return {
        (row["project"], row["name"]): FoundChannel(
            evaluation=row["current_evaluation_id"],
            url=f"{client.url}{PREFIX}/channels/{row['id']}",
        )
        for row in await client.all("/channels")
    }
