"""Builds: one job of one evaluation, and all that hangs on it but its log and its files."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.errors import ConflictError, InvalidError
from fc_operator.model.ids import BuildId, ProjectId, StepId
from fc_operator.model.readers import Reader
from fc_operator.model.statuses import LIVE, BuildStatus
from fc_operator.operations import builds as operations
from fc_operator.queue import waits
from fc_operator.queue.reasons import Reason
from fc_operator.store.database import Connection
from fc_operator.store.pages import builds, evaluations
from fc_operator.web import answers, cursors, scopes
from fc_operator.web.routes import Answer, Call, Handler, Page, Route, Subject, get, post

_PATH = "/api/v1/builds/<build>"


class ScopedBuildsQuery(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filters of the builds of a project or jobset."""

    status: list[BuildStatus] | None = None
    system: str | None = None


class EvaluationBuildsQuery(
    ScopedBuildsQuery, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Filters of the builds of one evaluation."""

    job: str | None = None


class BuildsQuery(EvaluationBuildsQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filters of all builds."""

    evaluation: str | None = None
    project: str | None = None
    jobset: str | None = None
    """Only together with ``project``."""


class Metrics(msgspec.Struct, frozen=True):
    """The job's own metrics and ours."""

    items: list[builds.MetricRow]
    next: str | None
    summary: builds.Summary


class Changed(msgspec.Struct, frozen=True):
    """Ids of the builds that a change was about, and of others that changed with them."""

    builds: list[UUID]
    also: list[UUID]


class Why(msgspec.Struct, frozen=True):
    """Why a build is not further: a word that does not change, and words for people."""

    code: str
    message: str
    until: datetime | None


async def find(connection: Connection, reader: Reader, path: Mapping[str, str]) -> Subject:
    """The build of a path, for a change of it."""
    found = await builds.find(connection, reader, path["build"])
    return Subject(
        id=found["id"],
        project_id=ProjectId(found["project_id"]),
        name=f"builds/{found['number']}",
    )


async def handle_list(call: Call[BuildsQuery, Any]) -> HTTPResponse:
    """Builds: newest first; of an evaluation by job; of a jobset by evaluation and job."""
    query, page_size = call.query, call.query.limit + 1
    async with call.web.database.session() as connection:
        if query.evaluation is not None:
            return await _list_of_evaluation(connection, call)
        project, jobset = await scopes.find(connection, call.reader, query.project, query.jobset)
        if project is not None and query.job is None:
            rows = await builds.list_of_jobsets(
                connection,
                project=project,
                jobset=jobset,
                statuses=query.status,
                system=query.system,
                after=cursors.decode(query.cursor, tuple[int, str]),
                page_size=page_size,
            )
            return answers.page_of_texts(
                call, rows, query.limit, lambda row: (row["evaluation"], row["job_name"])
            )
        before = cursors.decode(query.cursor, tuple[int])
        rows = await builds.list_builds(
            connection,
            call.reader,
            job=query.job,
            statuses=query.status,
            system=query.system,
            project=project,
            jobset=jobset,
            before=before[0] if before else None,
            page_size=page_size,
        )
    return answers.page_of_texts(call, rows, query.limit, lambda row: (row["number"],))


async def _list_of_evaluation(connection: Connection, call: Call[BuildsQuery, Any]) -> HTTPResponse:
    query = call.query
    assert query.evaluation is not None
    if query.project is not None or query.jobset is not None:
        raise InvalidError("`evaluation` says the project and jobset already")
    evaluation = await evaluations.fetch(connection, call.reader, query.evaluation)
    after = cursors.decode(query.cursor, tuple[str])
    rows = await builds.list_of_evaluation(
        connection,
        evaluation["id"],
        statuses=query.status,
        system=query.system,
        job=query.job,
        after=after[0] if after else None,
        page_size=query.limit + 1,
    )
    return answers.page_of_texts(call, rows, query.limit, lambda row: (row["job_name"],))


async def handle_one(call: Call[Any, Any]) -> HTTPResponse:
    """One build."""
    async with call.web.database.session() as connection:
        found = await builds.fetch(connection, call.reader, call.path["build"])
    return answers.json(call, found)


async def handle_stats(call: Call[Any, Any]) -> HTTPResponse:
    """All builds, counted."""
    async with call.web.database.session() as connection:
        found = await builds.fetch_stats(connection)
    return answers.json(call, found)


async def handle_steps(call: Call[Page, Any]) -> HTTPResponse:
    """Attempts at the build's own step."""
    after = cursors.decode(call.query.cursor, tuple[int])
    async with call.web.database.session() as connection:
        build = await _find(connection, call)
        rows = await builds.list_steps(
            connection,
            build["id"],
            after=after[0] if after else -1,
            page_size=call.query.limit + 1,
        )
    return answers.page(call, rows, call.query.limit, lambda row: (row["step_number"],))


async def handle_metrics(call: Call[Any, Any]) -> HTTPResponse:
    """The job's own metrics, and our figures."""
    async with call.web.database.session() as connection:
        build = await _find(connection, call)
        rows = await builds.list_metrics(connection, build["id"])
        summary = await builds.fetch_summary(connection, build["id"])
    return answers.json(call, {"items": rows, "next": None, "summary": summary})


async def handle_outputs(call: Call[Any, Any]) -> HTTPResponse:
    """Outputs with their NAR hash and size."""
    async with call.web.database.session() as connection:
        build = await _find(connection, call)
        rows = await builds.list_outputs(connection, build["id"])
    return answers.json(call, {"items": rows, "next": None})


async def handle_why(call: Call[Any, Any]) -> HTTPResponse:
    """The one reason why a build is not further."""
    async with call.web.database.session() as connection:
        build = await _find(connection, call)
        reason = None
        if build["step_id"] is not None and build["status"] in LIVE:
            reason = await waits.why(connection, StepId(build["step_id"]))
    if reason is None:
        reason = Reason(code="Ended", message=f"ended as {build['status']}")
    return answers.json(
        call, {"code": reason.code, "message": reason.message, "until": reason.until}
    )


async def handle_cancel(call: Call[Any, Any]) -> HTTPResponse:
    """End a build; its step stops too unless another live build wants it."""
    changed = await operations.cancel(call.web.database, [_subject(call)], call.principal.name)
    return _changed(call, changed, "it has ended")


async def handle_restart(call: Call[Any, Any]) -> HTTPResponse:
    """Run a build again, and what failed because of it."""
    changed = await operations.restart(call.web.database, [_subject(call)], call.principal.name)
    return _changed(call, changed, "it has not ended")


async def handle_bump(call: Call[Any, Any]) -> HTTPResponse:
    """Let a build, and all that it waits for, go before everything else."""
    changed = await operations.bump(call.web.database, [_subject(call)], call.principal.name)
    return _changed(call, changed, "it has ended")


async def handle_keep(call: Call[Any, Any]) -> HTTPResponse:
    """Pin a build, so that nothing of it is ever collected."""
    changed = await operations.keep(call.web.database, _subject(call), True, call.principal.name)
    return _changed(call, changed)


async def handle_unkeep(call: Call[Any, Any]) -> HTTPResponse:
    """Let a pinned build go."""
    changed = await operations.keep(call.web.database, _subject(call), False, call.principal.name)
    return _changed(call, changed)


def _subject(call: Call[Any, Any]) -> BuildId:
    assert call.subject is not None
    return BuildId(call.subject.id)


def _changed(
    call: Call[Any, Any], changed: operations.Changed, otherwise: str = ""
) -> HTTPResponse:
    if otherwise and not changed.builds:
        assert call.subject is not None
        raise ConflictError(f"{call.subject.name} was not changed: {otherwise}")
    return answers.json(call, {"builds": changed.builds, "also": changed.also})


def _change(verb: str, handler: Handler, summary: str, action: Action) -> Route:
    return post(
        f"{_PATH}/{verb}",
        handler,
        summary,
        action=action,
        subject=find,
        records_itself=True,
        answer=Answer(body=Changed),
    )


def _keep(value: str, handler: Handler, summary: str) -> Route:
    return Route(
        method="PUT",
        path=f"{_PATH}/keep/{value}",
        handler=handler,
        summary=summary,
        action=Action.KEEP,
        subject=find,
        records_itself=True,
        answer=Answer(body=Changed),
    )


def _related(read: Any) -> Any:
    """A handler for one of the three lists of other builds of the same evaluation."""

    async def handle(call: Call[Page, Any]) -> HTTPResponse:
        after = cursors.decode(call.query.cursor, tuple[str])
        async with call.web.database.session() as connection:
            build = await _find(connection, call)
            rows = await read(
                connection,
                build["id"],
                after=after[0] if after else None,
                page_size=call.query.limit + 1,
            )
        return answers.page(call, rows, call.query.limit, lambda row: (row["job_name"],))

    return handle


async def _find(connection: Connection, call: Call[Any, Any]) -> builds.FoundBuild:
    return await builds.find(connection, call.reader, call.path["build"])


_RELATED = Answer(body=answers.Items[builds.RelatedRow])
ROUTES = (
    get(
        "/api/v1/builds",
        handle_list,
        "Builds: newest first; of an evaluation by job; of a jobset by evaluation and job.",
        query=BuildsQuery,
        answer=Answer(body=answers.Items[builds.BuildRow]),
    ),
    get(
        "/api/v1/builds/stats",
        handle_stats,
        "All builds, counted.",
        answer=Answer(body=builds.BuildStats),
    ),
    get(_PATH, handle_one, "One build, by number or id.", answer=Answer(body=builds.Build)),
    get(
        f"{_PATH}/steps",
        handle_steps,
        "Attempts at the build's own step that the build caused.",
        query=Page,
        answer=Answer(body=answers.Items[builds.BuildStepRow]),
    ),
    get(
        f"{_PATH}/metrics",
        handle_metrics,
        "The job's own metrics, and our figures.",
        answer=Answer(body=Metrics),
    ),
    get(
        f"{_PATH}/outputs",
        handle_outputs,
        "Outputs with their NAR hash and size.",
        answer=Answer(body=answers.Items[builds.OutputRow]),
    ),
    get(
        f"{_PATH}/dependencies",
        _related(builds.list_dependencies),
        "Jobs of the same evaluation that this build needs.",
        query=Page,
        answer=_RELATED,
    ),
    get(
        f"{_PATH}/dependents",
        _related(builds.list_dependents),
        "Jobs of the same evaluation that need this build.",
        query=Page,
        answer=_RELATED,
    ),
    get(
        f"{_PATH}/constituents",
        _related(builds.list_constituents),
        "What an aggregate is made of.",
        query=Page,
        answer=_RELATED,
    ),
    get(
        f"{_PATH}/why",
        handle_why,
        "The one reason why a build is not further.",
        answer=Answer(body=Why),
    ),
    _change("cancel", handle_cancel, "End a build.", Action.CANCEL),
    _change(
        "restart",
        handle_restart,
        "Run a build again, and what failed because of it.",
        Action.RESTART,
    ),
    _change("bump", handle_bump, "Let a build go before everything else.", Action.BUMP),
    _keep("true", handle_keep, "Pin a build, so that nothing of it is ever collected."),
    _keep("false", handle_unkeep, "Let a pinned build go."),
)
