"""Jobsets: what is declared, what it gave last, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.errors import NotFoundError
from fc_operator.model.ids import JobsetId, ProjectId
from fc_operator.model.readers import Reader
from fc_operator.operations import evaluations as operations
from fc_operator.store.database import Connection
from fc_operator.store.pages import builds, evaluations, jobsets, projects
from fc_operator.web import answers, cursors
from fc_operator.web.api.builds import ScopedBuildsQuery
from fc_operator.web.api.evaluations import ScopedEvaluationsQuery
from fc_operator.web.routes import Answer, Call, Page, Subject, get, post

_PATH = "/api/v1/projects/<project>/jobsets/<jobset>"


class Evaluate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to evaluate."""

    commit: str | None = None
    """A whole commit id; by default the tip of the branch."""
    force: bool = False
    """Although nothing changed."""


class Requested(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    jobset_id: UUID
    commit: str | None
    force: bool


async def find(connection: Connection, reader: Reader, path: Mapping[str, str]) -> Subject:
    """The jobset of a path, for a change in it."""
    found = await jobsets.fetch(connection, reader, path["project"], path["jobset"])
    return Subject(
        id=found["id"],
        project_id=ProjectId(found["project_id"]),
        name=f"jobsets/{found['project']}/{found['name']}",
    )


async def handle_list(call: Call[Page, Any]) -> HTTPResponse:
    """Jobsets of a project by name."""
    after = cursors.decode(call.query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        project = await projects.fetch(connection, call.reader, call.path["project"])
        rows = await jobsets.list_jobsets(
            connection,
            project["id"],
            after=after[0] if after else None,
            page_size=call.query.limit + 1,
        )
    return answers.page(call, rows, call.query.limit, lambda row: (row["name"],))


async def handle_one(call: Call[Any, Any]) -> HTTPResponse:
    """One jobset."""
    async with call.web.database.session() as connection:
        found = await _fetch(connection, call)
    return answers.json(call, found)


async def handle_inputs(call: Call[Any, Any]) -> HTTPResponse:
    """A jobset's inputs, and what they were resolved to last."""
    async with call.web.database.session() as connection:
        jobset = await _fetch(connection, call)
        rows = await jobsets.list_inputs(connection, jobset["id"])
    return answers.json(call, {"items": rows, "next": None})


async def handle_jobs(call: Call[Page, Any]) -> HTTPResponse:
    """Jobs of a jobset's newest completed evaluation."""
    after = cursors.decode(call.query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        jobset = await _fetch(connection, call)
        rows = await jobsets.list_jobs(
            connection,
            jobset["id"],
            after=after[0] if after else None,
            page_size=call.query.limit + 1,
        )
    return answers.page(call, rows, call.query.limit, lambda row: (row["job"],))


async def handle_errors(call: Call[Any, Any]) -> HTTPResponse:
    """What is wrong with a jobset, from its source to single jobs."""
    async with call.web.database.session() as connection:
        jobset = await _fetch(connection, call)
        found = await jobsets.fetch_errors(connection, jobset["id"])
    return answers.json(call, found)


async def handle_evaluations(call: Call[ScopedEvaluationsQuery, Any]) -> HTTPResponse:
    """A jobset's evaluations, newest first."""
    query = call.query
    before = cursors.decode(query.cursor, tuple[int])
    async with call.web.database.session() as connection:
        jobset = await _fetch(connection, call)
        rows = await evaluations.list_evaluations(
            connection,
            call.reader,
            project=jobset["project_id"],
            jobset=jobset["id"],
            statuses=query.status,
            commit=query.commit,
            before=before[0] if before else None,
            page_size=query.limit + 1,
        )
    return answers.page(call, rows, query.limit, lambda row: (row["number"],))


async def handle_latest_evaluation(call: Call[Any, Any]) -> HTTPResponse:
    """To a jobset's newest completed evaluation."""
    async with call.web.database.session() as connection:
        jobset = await _fetch(connection, call)
        number = await evaluations.find_other(
            connection, project=jobset["project"], jobset=jobset["name"]
        )
    if number is None:
        raise NotFoundError(f"{jobset['project']}/{jobset['name']} has no completed evaluation")
    return HTTPResponse(status=302, headers={"Location": f"/api/v1/evaluations/{number}"})


async def handle_builds(call: Call[ScopedBuildsQuery, Any]) -> HTTPResponse:
    """A jobset's builds: newest evaluation first, in it by job."""
    query = call.query
    async with call.web.database.session() as connection:
        jobset = await _fetch(connection, call)
        rows = await builds.list_of_jobsets(
            connection,
            project=jobset["project_id"],
            jobset=jobset["id"],
            statuses=query.status,
            system=query.system,
            after=cursors.decode(query.cursor, tuple[int, str]),
            page_size=query.limit + 1,
        )
    return answers.page_of_texts(
        call, rows, query.limit, lambda row: (row["evaluation"], row["job_name"])
    )


async def handle_evaluate(call: Call[Any, Evaluate]) -> HTTPResponse:
    """Evaluate a jobset now; the evaluation appears once its source was looked at."""
    assert call.subject is not None
    requested = await operations.request(
        call.web.database,
        JobsetId(call.subject.id),
        commit=call.body.commit,
        force=call.body.force,
        actor=call.principal.name,
    )
    return answers.json(
        call,
        {
            "jobset_id": requested.jobset_id,
            "commit": requested.commit,
            "force": requested.force,
        },
        status=202,
    )


async def _fetch(connection: Connection, call: Call[Any, Any]) -> jobsets.Jobset:
    return await jobsets.fetch(connection, call.reader, call.path["project"], call.path["jobset"])


ROUTES = (
    get(
        "/api/v1/projects/<project>/jobsets",
        handle_list,
        "Jobsets of a project by name, each with its newest evaluation.",
        query=Page,
        answer=Answer(body=answers.Items[jobsets.JobsetRow]),
    ),
    get(
        _PATH,
        handle_one,
        "One jobset, by name, number or id.",
        answer=Answer(body=jobsets.Jobset),
    ),
    get(
        f"{_PATH}/inputs",
        handle_inputs,
        "A jobset's inputs, and what they were resolved to last.",
        answer=Answer(body=answers.Items[jobsets.InputRow]),
    ),
    get(
        f"{_PATH}/jobs",
        handle_jobs,
        "Jobs of a jobset's newest completed evaluation.",
        query=Page,
        answer=Answer(body=answers.Items[jobsets.JobRow]),
    ),
    get(
        f"{_PATH}/errors",
        handle_errors,
        "What is wrong with a jobset: its source, its newest evaluation, single jobs.",
        answer=Answer(body=jobsets.JobsetErrors),
    ),
    get(
        f"{_PATH}/evaluations",
        handle_evaluations,
        "A jobset's evaluations, newest first.",
        query=ScopedEvaluationsQuery,
        answer=Answer(body=answers.Items[evaluations.EvaluationRow]),
    ),
    get(
        f"{_PATH}/builds",
        handle_builds,
        "A jobset's builds: newest evaluation first, in it by job.",
        query=ScopedBuildsQuery,
        answer=Answer(body=answers.Items[builds.BuildRow]),
    ),
    get(
        f"{_PATH}/latest-eval",
        handle_latest_evaluation,
        "To a jobset's newest completed evaluation.",
        answer=Answer(status=302, media=""),
    ),
    post(
        f"{_PATH}/evaluate",
        handle_evaluate,
        "Evaluate a jobset now.",
        action=Action.EVALUATE,
        subject=find,
        body=Evaluate,
        records_itself=True,
        answer=Answer(body=Requested, status=202),
    ),
)
