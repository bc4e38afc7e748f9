"""Evaluations: one revision of a jobset, its jobs, its errors, and how it differs from another."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from sanic import HTTPResponse

from fc_operator.access.authorization import Action
from fc_operator.errors import ConflictError, InvalidError, NotFoundError
from fc_operator.model.ids import EvaluationId, ProjectId
from fc_operator.model.readers import Reader
from fc_operator.model.statuses import LIVE, EvaluationStatus
from fc_operator.operations import builds as build_operations
from fc_operator.operations import evaluations as operations
from fc_operator.store import builds as stored_builds
from fc_operator.store.database import Connection
from fc_operator.store.pages import builds, evaluations
from fc_operator.web import answers, cursors, scopes
from fc_operator.web.api.builds import Changed, EvaluationBuildsQuery
from fc_operator.web.routes import Answer, Call, Handler, Page, Route, Subject, get, post

_PATH = "/api/v1/evaluations/<evaluation>"
_AGO_S_MAX = 10 * 365 * 86_400


class ScopedEvaluationsQuery(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Filters of the evaluations of one jobset."""

    status: list[EvaluationStatus] | None = None
    commit: str | None = None


class EvaluationsQuery(
    ScopedEvaluationsQuery, frozen=True, kw_only=True, forbid_unknown_fields=True
):
    """Filters of all evaluations."""

    project: str | None = None
    jobset: str | None = None
    """Only together with ``project``."""


class CompareQuery(Page, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to compare with."""

    to: str | None = None
    """An evaluation's number or id, ``-SECONDS`` for the one that was newest then, or the name of
    another jobset of the project; the one before by default."""


class Comparison(msgspec.Struct, frozen=True):
    """How the jobs of ``evaluation`` differ from those of ``to``."""

    evaluation: int
    to: int
    counts: dict[str, int] | None
    """On the first page: new, removed, now_failing, now_succeeding, still_failing,
    still_succeeding, aborted, unfinished."""
    items: list[evaluations.ChangeRow]
    next: str | None


async def find(connection: Connection, reader: Reader, path: Mapping[str, str]) -> Subject:
    """The evaluation of a path, for a change of it."""
    found = await evaluations.fetch(connection, reader, path["evaluation"])
    return Subject(
        id=found["id"],
        project_id=ProjectId(found["project_id"]),
        name=f"evaluations/{found['number']}",
    )


async def handle_list(call: Call[EvaluationsQuery, Any]) -> HTTPResponse:
    """Evaluations, newest first."""
    query = call.query
    before = cursors.decode(query.cursor, tuple[int])
    async with call.web.database.session() as connection:
        project, jobset = await scopes.find(connection, call.reader, query.project, query.jobset)
        rows = await evaluations.list_evaluations(
            connection,
            call.reader,
            project=project,
            jobset=jobset,
            statuses=query.status,
            commit=query.commit,
            before=before[0] if before else None,
            page_size=query.limit + 1,
        )
    return answers.page(call, rows, query.limit, lambda row: (row["number"],))


async def handle_one(call: Call[Any, Any]) -> HTTPResponse:
    """One evaluation."""
    async with call.web.database.session() as connection:
        found = await _fetch(connection, call)
    return answers.json(call, found)


async def handle_builds(call: Call[EvaluationBuildsQuery, Any]) -> HTTPResponse:
    """An evaluation's builds by job."""
    query = call.query
    after = cursors.decode(query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        evaluation = await _fetch(connection, call)
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


async def handle_errors(call: Call[Page, Any]) -> HTTPResponse:
    """Attributes that gave no job."""
    after = cursors.decode(call.query.cursor, tuple[int])
    async with call.web.database.session() as connection:
        evaluation = await _fetch(connection, call)
        rows = await evaluations.list_errors(
            connection,
            evaluation["id"],
            after=after[0] if after else -1,
            page_size=call.query.limit + 1,
        )
    return answers.page(call, rows, call.query.limit, lambda row: (row["nr"],))


async def handle_inputs(call: Call[Any, Any]) -> HTTPResponse:
    """What each input was resolved to."""
    async with call.web.database.session() as connection:
        evaluation = await _fetch(connection, call)
        rows = await evaluations.list_inputs(connection, evaluation["id"])
    return answers.json(call, {"items": rows, "next": None})


async def handle_compare(call: Call[CompareQuery, Any]) -> HTTPResponse:
    """How an evaluation's jobs differ from those of another."""
    query = call.query
    after = cursors.decode(query.cursor, tuple[str])
    async with call.web.database.session() as connection:
        new = await _fetch(connection, call)
        old = await evaluations.fetch(
            connection, call.reader, await _other(connection, new, query.to)
        )
        counts = (
            None if after else await evaluations.count_changes(connection, old["id"], new["id"])
        )
        rows = await evaluations.compare(
            connection,
            old["id"],
            new["id"],
            after=after[0] if after else None,
            page_size=query.limit + 1,
        )
    shown = rows[: query.limit]
    return answers.json(
        call,
        {
            "evaluation": new["number"],
            "to": old["number"],
            "counts": counts,
            "items": shown,
            "next": cursors.encode(shown[-1]["job"]) if len(rows) > query.limit else None,
        },
    )


async def handle_cancel(call: Call[Any, Any]) -> HTTPResponse:
    """End an evaluation and all its live builds."""
    id_, database, actor = _subject(call), call.web.database, call.principal.name
    ended: ConflictError | None = None
    try:
        await operations.cancel(database, id_, actor)
    except ConflictError as error:
        # The evaluator is done; its builds may still run.
        ended = error
    changed = await build_operations.cancel_evaluation_builds(database, id_, actor)
    if ended is not None and not changed.builds:
        raise ended
    return _changed(call, changed)


async def handle_restart_failed(call: Call[Any, Any]) -> HTTPResponse:
    """Run again every build of an evaluation that did not succeed."""
    return _changed(
        call,
        await build_operations.restart_failed(
            call.web.database, _subject(call), call.principal.name
        ),
    )


async def handle_restart_aborted(call: Call[Any, Any]) -> HTTPResponse:
    """Run again the builds of an evaluation that ended through no fault of theirs."""
    return _changed(
        call,
        await build_operations.restart_aborted(
            call.web.database, _subject(call), call.principal.name
        ),
    )


async def handle_bump(call: Call[Any, Any]) -> HTTPResponse:
    """Let all live builds of an evaluation go before everything else."""
    async with call.web.database.session() as connection:
        live = await stored_builds.list_of_evaluation(connection, _subject(call), LIVE)
    return _changed(call, await build_operations.bump(call.web.database, live, call.principal.name))


def _subject(call: Call[Any, Any]) -> EvaluationId:
    assert call.subject is not None
    return EvaluationId(call.subject.id)


def _changed(call: Call[Any, Any], changed: build_operations.Changed) -> HTTPResponse:
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


async def _other(connection: Connection, new: evaluations.Evaluation, to: str | None) -> str:
    """Number or id of the evaluation that ``to`` means."""
    number: int | None
    if to is None:
        number = new["previous"]
    elif to.startswith("-"):
        seconds = to[1:]
        if not seconds.isascii() or not seconds.isdigit() or int(seconds[:12]) > _AGO_S_MAX:
            raise InvalidError("`to` is a number of seconds after the `-`")
        number = await evaluations.find_other(
            connection,
            project=new["project"],
            jobset=new["jobset"],
            before_time=datetime.now(UTC) - timedelta(seconds=int(seconds)),
        )
    elif to[:1].isdigit() or len(to) == 36:
        return to
    else:
        number = await evaluations.find_other(connection, project=new["project"], jobset=to)
    if number is None:
        raise NotFoundError("there is no evaluation to compare with")
    return str(number)


async def _fetch(connection: Connection, call: Call[Any, Any]) -> evaluations.Evaluation:
    return await evaluations.fetch(connection, call.reader, call.path["evaluation"])


ROUTES = (
    get(
        "/api/v1/evaluations",
        handle_list,
        "Evaluations, newest first.",
        query=EvaluationsQuery,
        answer=Answer(body=answers.Items[evaluations.EvaluationRow]),
    ),
    get(
        _PATH,
        handle_one,
        "One evaluation, by number or id.",
        answer=Answer(body=evaluations.Evaluation),
    ),
    get(
        f"{_PATH}/builds",
        handle_builds,
        "An evaluation's builds by job.",
        query=EvaluationBuildsQuery,
        answer=Answer(body=answers.Items[builds.BuildRow]),
    ),
    get(
        f"{_PATH}/errors",
        handle_errors,
        "Attributes that gave no job, in the evaluator's order.",
        query=Page,
        answer=Answer(body=answers.Items[evaluations.EvaluationErrorRow]),
    ),
    get(
        f"{_PATH}/inputs",
        handle_inputs,
        "What each input was resolved to.",
        answer=Answer(body=answers.Items[evaluations.ResolvedInputRow]),
    ),
    get(
        f"{_PATH}/compare",
        handle_compare,
        "How an evaluation's jobs differ from those of another.",
        query=CompareQuery,
        answer=Answer(body=Comparison),
    ),
    _change("cancel", handle_cancel, "End an evaluation and its builds.", Action.CANCEL),
    _change(
        "restart-failed",
        handle_restart_failed,
        "Run again every build that did not succeed.",
        Action.RESTART,
    ),
    _change(
        "restart-aborted",
        handle_restart_aborted,
        "Run again what was aborted, cancelled or had no builder.",
        Action.RESTART,
    ),
    _change(
        "bump",
        handle_bump,
        "Let an evaluation's builds go before everything else.",
        Action.BUMP,
    ),
)
