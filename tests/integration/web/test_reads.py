"""Read routes against rows of a real database."""

import re
import typing
from datetime import datetime

import msgspec
import pytest

from fc_operator.web import route_table

PARTS = {
    "project": "demo",
    "jobset": "main",
    "evaluation": "2",
    "build": "2",
    "step": "1",
    "job": "hello",
    "builder": "big-1",
    "channel": "stable",
    "repository": "team",
    "kind": "Jobset",
    "system": "x86_64-linux",
}
GETS = [
    route
    for route in route_table.ROUTES
    if route.method == "GET" and route.answer.body is not None and not route.is_page
]


def filled(path):
    return re.sub(r"<(\w+)(?::\w+)?>", lambda part: PARTS[part[1]], path)


async def test_an_empty_installation_answers(web):
    assert await web.get("/api/v1/projects") == {"items": [], "next": None}
    assert await web.get("/api/v1/builds") == {"items": [], "next": None}
    assert await web.get("/api/v1/evaluations") == {"items": [], "next": None}
    assert await web.get("/api/v1/queue") == {"items": [], "next": None}
    assert (await web.get("/health"))["status"] == "ok"
    assert (await web.get("/ready", status=503))["status"] == "unavailable"
    await web.get("/api/v1/nothing", status=404)


def shape(kind):
    """The documented fields of a TypedDict; None for other types."""
    fields = getattr(msgspec.inspect.type_info(kind), "fields", None) if is_row(kind) else None
    return None if fields is None else {field.encode_name for field in fields}


def is_row(kind):
    return hasattr(kind, "__total__")


async def test_every_read_gives_exactly_what_its_document_says(web, world):
    key = {"Authorization": f"Bearer {await web.key()}"}
    special = {
        "/api/v1/builds/<build>/dependencies": f"/builds/{world.ids['all']['number']}/dependencies",
        "/api/v1/builds/<build>/constituents": f"/builds/{world.ids['all']['number']}/constituents",
        "/api/v1/channels/<channel>": f"/channels/{world.ids['stable']['id']}",
    }
    for route in GETS:
        path = "/api/v1" + special[route.path] if route.path in special else filled(route.path)
        status = 503 if route.path == "/ready" else 200
        answer = await web.get(path, status=status, headers=key)
        msgspec.convert(answer, route.answer.body, strict=False)
        if is_row(route.answer.body):
            assert set(answer) == shape(route.answer.body), route.path
        if "items" in answer:
            # The seeded world has something to show in every list.
            assert answer["items"], route.path
            row = typing.get_args(
                next(
                    typing.get_type_hints(kind)["items"]
                    for kind in (route.answer.body, typing.get_origin(route.answer.body))
                    if kind is not None and hasattr(kind, "__annotations__")
                )
            )[0]
            row = (
                typing.get_args(route.answer.body)[0] if typing.get_args(route.answer.body) else row
            )
            assert set(answer["items"][0]) == shape(row), route.path


async def test_ids_numbers_and_names_all_name_a_thing(web, world):
    for path, name, row in (
        ("/api/v1/projects/{}", "demo", world.ids["demo"]),
        ("/api/v1/projects/demo/jobsets/{}", "main", world.ids["main"]),
        ("/api/v1/evaluations/{}", None, world.ids["new"]),
        ("/api/v1/builds/{}", None, world.ids["hello"]),
    ):
        for word in filter(None, (name, row["number"], row["id"])):
            found = await web.get(path.format(word))
            assert found["id"] == str(row["id"])
    number = world.ids["demo"]["number"]
    jobset = world.ids["main"]["id"]
    assert (await web.get(f"/api/v1/projects/{number}/jobsets/{jobset}"))["name"] == "main"


async def test_filters_of_builds(web, world):
    async def jobs(query):
        rows = (await web.get(f"/api/v1/builds?{query}"))["items"]
        return sorted(row["job_name"] for row in rows)

    everything = ["all", "bad", "hello", "hello", "needs-bad", "running", "waiting"]
    assert await jobs("") == everything
    assert await jobs("project=demo") == everything
    assert await jobs("project=demo&jobset=main") == everything
    assert await jobs("status=failed,dependency_failed") == ["bad", "needs-bad"]
    assert await jobs("status=pending") == ["waiting"]
    assert await jobs("system=x86_64-linux") == everything
    assert await jobs("system=riscv64-linux") == []
    assert await jobs("job=hello") == ["hello", "hello"]
    assert await jobs("job=hello&project=demo&jobset=flake") == []
    assert await jobs("evaluation=1") == ["hello"]
    assert await jobs("evaluation=2&status=failed") == ["bad"]
    assert await jobs("evaluation=2&job=bad&system=x86_64-linux") == ["bad"]
    assert await jobs("project=demo&jobset=main&status=running") == ["running"]


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/builds", "/api/v1/builds?evaluation=2", "/api/v1/builds?project=demo",
        "/api/v1/builds?status=succeeded,failed,pending", "/api/v1/builds?job=hello",
        "/api/v1/builds?system=x86_64-linux", "/api/v1/evaluations", "/api/v1/projects",
        "/api/v1/projects/demo/jobsets", "/api/v1/queue", "/api/v1/evaluations/2/compare",
        "/api/v1/projects/demo/builds", "/api/v1/projects/demo/jobsets/main/jobs",
        "/api/v1/channels", "/api/v1/managed-resources", "/api/v1/api-keys",
    ],
)  # fmt: skip
async def test_pages_of_one_add_up_to_the_whole_list(web, world, path):
    key = {"Authorization": f"Bearer {await web.key()}"}
    await web.key()
    whole = await web.get(path, headers=key)
    assert whole["items"]
    assert whole["next"] is None
    cursor, found = "", []
    while cursor is not None:
        mark = "&" if "?" in path else "?"
        more = f"&cursor={cursor}" if cursor else ""
        page = await web.get(f"{path}{mark}limit=1{more}", headers=key)
        found += page["items"]
        cursor = page["next"]
        assert len(page["items"]) == 1
    assert found == whole["items"]


async def test_compare_says_how_each_job_changed(web, world):
    found = await web.get("/api/v1/evaluations/2/compare")
    assert (found["evaluation"], found["to"]) == (2, 1)
    changes = {row["job"]: row["change"] for row in found["items"]}
    assert changes == {
        "all": "new", "bad": "new", "hello": "still_succeeding", "needs-bad": "new",
        "running": "new", "waiting": "new",
    }  # fmt: skip
    assert found["counts"] == {"new": 5, "still_succeeding": 1}
    back = await web.get("/api/v1/evaluations/1/compare?to=2")
    assert back["counts"] == {"removed": 5, "still_succeeding": 1}
    await web.get("/api/v1/evaluations/1/compare", status=404)
    assert (await web.get("/api/v1/evaluations/1/compare?to=main"))["to"] == 2
    await web.get("/api/v1/evaluations/2/compare?to=-x", status=400)


async def test_what_is_finished_is_answered_304(web, world):
    async with web.session.get(web.url + "/api/v1/evaluations/1") as answer:
        etag = answer.headers["ETag"]
    for header in (etag, f'"other", W/{etag}', "*"):
        async with web.session.get(
            web.url + "/api/v1/evaluations/1", headers={"If-None-Match": header}
        ) as answer:
            assert answer.status == 304
            assert await answer.read() == b""


async def test_times_are_utc(web, world):
    build = await web.get("/api/v1/builds/2")
    assert build["completed_at"].endswith("Z")
    assert datetime.fromisoformat(build["completed_at"]).utcoffset().total_seconds() == 0


async def test_c19_latest_is_a_redirect_to_the_last_success(web, world):
    main = world.ids["main"]
    newer = await world.evaluation(main, commit_hash="d" * 40)
    await world.build(newer, "hello", "failed")
    async with web.session.get(
        web.url + "/job/demo/main/hello/latest", allow_redirects=False
    ) as answer:
        assert answer.status == 302
        assert answer.headers["Location"] == f"/api/v1/builds/{world.ids['hello']['number']}"
    async with web.session.get(
        web.url + "/job/demo/main/hello/latest",
        allow_redirects=False,
        headers={"Accept": "text/html"},
    ) as answer:
        assert answer.headers["Location"] == f"/builds/{world.ids['hello']['number']}"
    async with web.session.get(
        web.url + "/job/demo/main/hello/latest-finished", allow_redirects=False
    ) as answer:
        assert answer.headers["Location"] == "/api/v1/builds/1"
    await web.get("/job/demo/main/bad/latest", status=404)
    await web.get("/job/demo/main/hello/latest-for/riscv64-linux", status=404)
    shield = await web.get("/job/demo/main/hello/shield")
    assert shield["message"] == "failing"


async def test_a_badge_is_a_picture(web, world):
    async with web.session.get(web.url + "/job/demo/main/hello/badge") as answer:
        assert answer.status == 200
        assert answer.content_type == "image/svg+xml"
        assert b"passing" in await answer.read()


async def test_head_answers_without_a_body(web, world):
    for path in ("/api/v1/projects", "/api/v1/builds/2/log", "/health"):
        async with web.session.head(web.url + path) as answer:
            assert answer.status == 200
            assert await answer.read() == b""


async def test_health_is_truthful(web, world, database):
    await world.add("service_heartbeats", owner="s", kind="scheduler", host="h")
    assert (await web.get("/ready"))["status"] == "ok"
    await world.sql("UPDATE service_heartbeats SET seen_at = now() - interval '1 minute'")
    assert (await web.get("/ready", status=503))["checks"][1]["ok"] is False
    assert (await web.get("/health", status=503))["checks"][0]["ok"] is True
    assert [check["name"] for check in (await web.get("/serving"))["checks"]] == ["database"]
    assert (await web.get("/live"))["status"] == "ok"


async def test_a_lost_database_is_said_so(web, postgres, database):
    await database.close()
    for path in ("/ready", "/health", "/serving"):
        assert (await web.get(path, status=503))["checks"][0]["name"] == "database"
    problem = await web.get("/api/v1/projects", status=503)
    assert problem["title"] == "Service Unavailable"
    assert (await web.get("/live"))["status"] == "ok"
