"""The pages: projects, project, jobset, evaluation, build, job, queue, builders, sources."""

from __future__ import annotations

from typing import Any

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.model.ids import StepId
from fc_operator.model.statuses import LIVE, BuildStatus
from fc_operator.queue import waits
from fc_operator.store.pages import (
    builders,
    builds,
    channels,
    config_repositories,
    evaluations,
    jobsets,
    logs,
    managed_resources,
    projects,
    queue,
)
from fc_operator.web import cursors, log_reader
from fc_operator.web.pages import rendering
from fc_operator.web.routes import PAGE_SIZE, Answer, Call, Route, get

_TAIL_LINES = 200
_SHOWN_MAX = 200
"""A build may have ten thousand products and metrics; a page of them all serves nobody."""
_REFRESH_S = 5


class Next(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a page begins."""

    cursor: str | None = None


class EvaluationQuery(Next, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which builds of an evaluation."""

    status: BuildStatus | None = None


async def handle_projects(call: Call[Next, Any]) -> HTTPResponse:
    """All projects."""
    after = cursors.decode(call.query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        rows = await projects.list_projects(
            connection, call.reader, after=after[0] if after else None, page_size=PAGE_SIZE + 1
        )
        newest = await evaluations.list_evaluations(
            connection, call.reader, before=None, page_size=15
        )
    shown, more = _cut(rows, lambda row: (row["name"],))
    return rendering.page(call, "projects.html", projects=shown, evaluations=newest, more=more)


async def handle_project(call: Call[Next, Any]) -> HTTPResponse:
    """A project and its jobsets."""
    after = cursors.decode(call.query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        project = await projects.fetch(connection, call.reader, call.path["project"])
        rows = await jobsets.list_jobsets(
            connection,
            project["id"],
            after=after[0] if after else None,
            page_size=PAGE_SIZE + 1,
        )
        points = await channels.list_channels(
            connection, call.reader, project=project["id"], after=None, page_size=PAGE_SIZE
        )
    shown, more = _cut(rows, lambda row: (row["name"],))
    return rendering.page(
        call, "project.html", project=project, jobsets=shown, channels=points, more=more
    )


async def handle_jobset(call: Call[Next, Any]) -> HTTPResponse:
    """A jobset and its evaluations."""
    before = cursors.decode(call.query.cursor, tuple[int])
    async with call.web.database.session() as connection:
        jobset = await jobsets.fetch(
            connection, call.reader, call.path["project"], call.path["jobset"]
        )
        inputs = await jobsets.list_inputs(connection, jobset["id"])
        rows = await evaluations.list_evaluations(
            connection,
            call.reader,
            project=jobset["project_id"],
            jobset=jobset["id"],
            before=before[0] if before else None,
            page_size=PAGE_SIZE + 1,
        )
    shown, more = _cut(rows, lambda row: (row["number"],))
    return rendering.page(
        call, "jobset.html", jobset=jobset, inputs=inputs, evaluations=shown, more=more
    )


async def handle_evaluation(call: Call[EvaluationQuery, Any]) -> HTTPResponse:
    """An evaluation, its errors and its builds."""
    query = call.query
    after = cursors.decode(query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        found = await evaluations.fetch(connection, call.reader, call.path["evaluation"])
        errors = await evaluations.list_errors(
            connection, found["id"], after=-1, page_size=PAGE_SIZE
        )
        texts = await builds.list_of_evaluation(
            connection,
            found["id"],
            statuses=None if query.status is None else [query.status],
            after=after[0] if after else None,
            page_size=2 * PAGE_SIZE + 1,
        )
    rows = [builds.read(text) for text in texts]
    shown, more = _cut(rows, lambda row: (row["job_name"],), 2 * PAGE_SIZE)
    return rendering.page(
        call,
        "evaluation.html",
        evaluation=found,
        errors=errors,
        builds=shown,
        more=more,
        status=query.status,
        refresh_s=None if found["builds_ended_at"] or query.cursor else _REFRESH_S,
    )


async def handle_build(call: Call[Any, Any]) -> HTTPResponse:
    """A build: what it is, what became of it, and its log."""
    async with call.web.database.session() as connection:
        build = await builds.fetch(connection, call.reader, call.path["build"])
        products = await builds.list_products(connection, build["id"])
        steps = await builds.list_steps(connection, build["id"], after=-1, page_size=PAGE_SIZE)
        metrics = await builds.list_metrics(connection, build["id"])
        parts = await builds.list_constituents(
            connection, build["id"], after=None, page_size=PAGE_SIZE
        )
        log = await logs.fetch_of_build(connection, build["id"], None)
        live = build["status"] in LIVE
        reason = None
        if live and build["step_id"] is not None:
            reason = await waits.why(connection, StepId(build["step_id"]))
    tail = ""
    if log is not None and log.attempt is not None:
        start = await log_reader.find_tail(call.web, log, _TAIL_LINES)
        pieces = [piece async for piece in log_reader.read(call.web, log, start, log.size_bytes)]
        tail = b"".join(pieces).decode("utf-8", "replace")
    return rendering.page(
        call,
        "build.html",
        build=build,
        products=products[:_SHOWN_MAX],
        products_more=len(products[_SHOWN_MAX:]),
        steps=steps,
        metrics=metrics[:_SHOWN_MAX],
        metrics_more=len(metrics[_SHOWN_MAX:]),
        constituents=parts,
        reason=reason,
        live=live,
        tail=tail,
        log=log if log is not None and log.attempt is not None else None,
    )


async def handle_job(call: Call[Next, Any]) -> HTTPResponse:
    """The history of a job."""
    before = cursors.decode(call.query.cursor, tuple[int])
    async with call.web.database.session() as connection:
        jobset = await jobsets.fetch(
            connection, call.reader, call.path["project"], call.path["jobset"]
        )
        texts = await builds.list_builds(
            connection,
            call.reader,
            job=call.path["job"],
            project=jobset["project_id"],
            jobset=jobset["id"],
            before=before[0] if before else None,
            page_size=PAGE_SIZE + 1,
        )
    rows = [builds.read(text) for text in texts]
    shown, more = _cut(rows, lambda row: (row["number"],))
    return rendering.page(
        call, "job.html", jobset=jobset, job=call.path["job"], builds=shown, more=more
    )


async def handle_queue(call: Call[Any, Any]) -> HTTPResponse:
    """What runs and what waits."""
    async with call.web.database.session() as connection:
        counts = await queue.fetch_counts(connection)
        running = await queue.list_running(
            connection, call.reader, before=builds.NUMBER_MAX, page_size=2 * PAGE_SIZE
        )
        pending = await queue.list_pending(
            connection, call.reader, after=0, page_size=2 * PAGE_SIZE
        )
    return rendering.page(
        call,
        "queue.html",
        counts=counts,
        running=running,
        pending=pending,
        refresh_s=_REFRESH_S,
    )


async def handle_builders(call: Call[Any, Any]) -> HTTPResponse:
    """Who builds."""
    async with call.web.database.session() as connection:
        machines = await builders.list_machines(connection)
        rows = await builders.list_builders(connection, after=None, page_size=4 * PAGE_SIZE)
    return rendering.page(call, "builders.html", machines=machines, builders=rows)


async def handle_sources(call: Call[Any, Any]) -> HTTPResponse:
    """Where manifests come from."""
    async with call.web.database.session() as connection:
        rows = await config_repositories.list_config_repositories(
            connection, after=None, page_size=4 * PAGE_SIZE
        )
        troubled = await managed_resources.list_managed_resources(
            connection, call.reader, condition="Ready=False", after=None, page_size=PAGE_SIZE
        )
    return rendering.page(call, "sources.html", sources=rows, troubled=troubled)


async def handle_source(call: Call[Any, Any]) -> HTTPResponse:
    """A config repository, what is wrong with its files and what it declares."""
    async with call.web.database.session() as connection:
        source = await config_repositories.fetch(connection, call.path["repository"])
        rows = await managed_resources.list_managed_resources(
            connection,
            call.reader,
            source_kind="ConfigRepository",
            source=source["name"],
            after=None,
            page_size=4 * PAGE_SIZE,
        )
    return rendering.page(call, "source.html", source=source, resources=rows)


def _cut(rows: list[Any], key: Any, limit: int = PAGE_SIZE) -> tuple[list[Any], str | None]:
    """The rows of a page, and the cursor of the next one if there are more."""
    shown = rows[:limit]
    return shown, cursors.encode(*key(shown[-1])) if len(rows) > limit else None


def _page(path: str, handler: Any, summary: str, **more: Any) -> Route:
    return get(path, handler, summary, is_page=True, answer=Answer(media="text/html"), **more)


ROUTES = (
    _page("/", handle_projects, "All projects.", query=Next),
    _page("/projects/<project>", handle_project, "A project.", query=Next),
    _page("/projects/<project>/<jobset>", handle_jobset, "A jobset.", query=Next),
    _page("/evaluations/<evaluation>", handle_evaluation, "An evaluation.", query=EvaluationQuery),
    _page("/builds/<build>", handle_build, "A build."),
    _page("/job/<project>/<jobset>/<job>", handle_job, "A job's history.", query=Next),
    _page("/queue", handle_queue, "What runs and waits."),
    _page("/builders", handle_builders, "Who builds.", action=Action.INSPECT),
    _page("/sources", handle_sources, "Where manifests come from.", action=Action.INSPECT),
    _page("/sources/<repository>", handle_source, "A config repository.", action=Action.INSPECT),
)
