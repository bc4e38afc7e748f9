"""Projects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sanic import HTTPResponse

from fc_operator.model.ids import ProjectId
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.pages import builds, projects
from fc_operator.web import answers, cursors
from fc_operator.web.api.builds import ScopedBuildsQuery
from fc_operator.web.routes import Answer, Call, Page, Subject, get


async def find(connection: Connection, reader: Reader, path: Mapping[str, str]) -> Subject:
    """The project of a path, for a change in it."""
    found = await projects.fetch(connection, reader, path["project"])
    return Subject(
        id=found["id"], project_id=ProjectId(found["id"]), name=f"projects/{found['name']}"
    )


async def handle_list(call: Call[Page, Any]) -> HTTPResponse:
    """Projects by name."""
    after = cursors.decode(call.query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        rows = await projects.list_projects(
            connection,
            call.reader,
            after=after[0] if after else None,
            page_size=call.query.limit + 1,
        )
    return answers.page(call, rows, call.query.limit, lambda row: (row["name"],))


async def handle_one(call: Call[Any, Any]) -> HTTPResponse:
    """One project."""
    async with call.web.database.session() as connection:
        found = await projects.fetch(connection, call.reader, call.path["project"])
    return answers.json(call, found)


async def handle_builds(call: Call[ScopedBuildsQuery, Any]) -> HTTPResponse:
    """A project's builds: newest evaluation first."""
    query = call.query
    after = cursors.decode(query.cursor, tuple[int, str])
    async with call.web.database.session() as connection:
        project = await projects.fetch(connection, call.reader, call.path["project"])
        rows = await builds.list_of_jobsets(
            connection,
            project=project["id"],
            statuses=query.status,
            system=query.system,
            after=after,
            page_size=query.limit + 1,
        )
    return answers.page_of_texts(
        call, rows, query.limit, lambda row: (row["evaluation"], row["job_name"])
    )


ROUTES = (
    get(
        "/api/v1/projects",
        handle_list,
        "Projects by name.",
        query=Page,
        answer=Answer(body=answers.Items[projects.ProjectRow]),
    ),
    get(
        "/api/v1/projects/<project>",
        handle_one,
        "One project, by name, number or id.",
        answer=Answer(body=projects.Project),
    ),
    get(
        "/api/v1/projects/<project>/builds",
        handle_builds,
        "A project's builds: newest evaluation first, in it by job.",
        query=ScopedBuildsQuery,
        answer=Answer(body=answers.Items[builds.BuildRow]),
    ),
)
