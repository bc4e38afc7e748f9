"""Who may what over HTTP: policies of the live route table, keys, private projects."""

import asyncio
import re
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from fc_operator.access.authorization import Action
from fc_operator.model.statuses import Role
from fc_operator.web import route_table
from fc_operator.web.application import _Bound

PUBLIC = {
    "GET /live", "GET /health", "GET /ready", "GET /api/v1/version", "GET /api/v1/openapi.json",
    "GET /api/v1/schema/<kind>", "GET /api", "GET /robots.txt", "GET /static/<name>",
    "GET /favicon.ico", "GET /serving",
}  # fmt: skip
SIGNED = {
    "POST /api/v1/webhooks/<project>/<forge>",
    "POST /api/v1/webhooks/config-repositories/<repository>/<forge>",
}


TASKS = {
    "GET /api/v1/tasks/<task>/credentials",
    *(
        f"POST /api/v1/tasks/<task>/{name}"
        for name in ("open", "fetched", "heartbeat", "events", "rows", "log", "end")
    ),
}


def live_routes(web):
    return web.service.app.router.routes


def test_cve_class_unauthenticated_trigger_every_route_states_its_policy():
    """S01: the open ones are named here, so that a new one is a decision."""
    open_ = {
        f"{route.method} {route.path}"
        for route in route_table.ROUTES
        if route.action is Action.PUBLIC
    }
    signed = {
        f"{route.method} {route.path}"
        for route in route_table.ROUTES
        if route.action is Action.SIGNED
    }
    agents = {
        f"{route.method} {route.path}"
        for route in route_table.ROUTES
        if route.action is Action.TASK
    }
    assert open_ <= PUBLIC
    assert signed == SIGNED
    assert agents == TASKS


async def test_the_live_table_is_the_policy_table(web):
    bound = [route.handler for route in live_routes(web)]
    assert all(isinstance(handler, _Bound) for handler in bound)
    assert {id(handler.route) for handler in bound} == {id(route) for route in route_table.ROUTES}


def test_every_change_in_a_project_finds_its_subject_first():
    projects = {Action.EVALUATE, Action.RESTART, Action.CANCEL, Action.BUMP, Action.KEEP}
    for route in route_table.ROUTES:
        if route.action in projects:
            assert route.subject is not None, route.path
        assert route.changes or route.action not in projects | {Action.APPLY, Action.SYNC}


async def test_cve_class_unauthenticated_trigger_no_change_without_a_key(serve, world):
    """S01: every method of every route without a key, reads closed and open."""
    words = {"project": "demo", "jobset": "main", "evaluation": "2", "build": "2"}
    async with serve(anonymous_read="Never") as closed, serve(anonymous_read="Always") as opened:
        for route in route_table.ROUTES:
            path = re.sub(r"<(\w+)(?::\w+)?>", lambda part: words.get(part[1], "x"), route.path)
            for served, readable in ((closed, set()), (opened, {Action.READ, Action.CACHE})):
                async with served.session.request(
                    route.method, served.url + path, json={} if route.changes else None,
                    allow_redirects=False,
                ) as answer:  # fmt: skip
                    brings = route.action is Action.CACHE and route.changes
                    is_readable = route.action in readable and not brings
                    if route.action is Action.PUBLIC or is_readable:
                        assert answer.status != 401, path
                    elif "/<forge>" in route.path:
                        assert answer.status == 404
                    else:
                        assert answer.status == 401, (route.method, path)
                        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_reads_without_a_key_follow_the_setting(serve, world):
    async with serve(anonymous_read="Never") as web:
        await web.get("/api/v1/projects", status=401)
        key = await web.key(Role.READ_ONLY)
        await web.get("/api/v1/projects", headers={"Authorization": f"Bearer {key}"})
        await web.get("/health")
    async with serve(anonymous_read="Always") as web:
        await web.get("/api/v1/projects")
        # A builder's address is not everybody's.
        await web.get("/api/v1/builders", status=401)
    async with serve() as web:
        await web.get("/api/v1/builders")
        # Another name for our address: a page elsewhere, or a proxy in front.
        for host in ("evil.example.org", "ci.example.org:80", "127.0.0.1.evil.org", "[::2]"):
            await web.get("/api/v1/projects", status=401, headers={"Host": host})
        for host in ("localhost", "127.0.0.1:8080", "[::1]:8080"):
            await web.get("/api/v1/projects", headers={"Host": host})


async def test_a_bad_key_is_refused_even_where_none_is_needed(web):
    for header in (
        "Bearer nonsense",
        "Bearer fc_" + "0" * 49,
        "Basic Zm9vOmJhcg==",
        "Bearer ",
        "x",
    ):
        problem = await web.get("/api/v1/projects", status=401, headers={"Authorization": header})
        assert "nonsense" not in str(problem)


async def test_a_key_ends_by_time_by_revocation_and_with_its_user(web, world, database):
    user = await world.add("users", username="ann")
    past = await web.key(Role.ADMIN, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    owned = await web.key(Role.ADMIN, user="Ann")
    revoked = await web.key(Role.ADMIN)
    good = await web.key(Role.ADMIN)

    async def status(key):
        async with web.session.get(
            web.url + "/api/v1/projects", headers={"Authorization": f"Bearer {key}"}
        ) as answer:
            return answer.status

    assert await status(past) == 401
    assert await status(owned) == 200
    assert await status(revoked) == 200
    await world.sql("UPDATE users SET enabled = false WHERE id = $1", user["id"])
    await web.post(f"/api/v1/api-keys/{revoked[:11]}", method="DELETE", key=good, status=204)
    async with asyncio.timeout(1.0):
        while (await status(owned), await status(revoked)) != (401, 401):
            await asyncio.sleep(0.05)


async def test_keys_over_http(web, world, database):
    admin = await web.key()
    made = await web.post(
        "/api/v1/api-keys", {"name": "ci", "role": "eval-jobset"}, key=admin, status=201
    )
    assert made["key"].startswith(made["prefix"])
    rows = (await web.get("/api/v1/api-keys", headers={"Authorization": f"Bearer {admin}"}))[
        "items"
    ]
    assert {row["name"] for row in rows} == {"ci", "test-admin"}
    assert made["key"] not in str(rows)
    assert "hash" not in str(rows)
    stored = await world.sql("SELECT * FROM api_keys")
    assert made["key"] not in str([dict(row) for row in stored])
    await web.post("/api/v1/api-keys", {"name": "ci", "role": "admin"}, key=made["key"], status=403)
    await web.post(f"/api/v1/api-keys/{made['id']}", method="DELETE", key=admin, status=204)
    await web.post(f"/api/v1/api-keys/{uuid.uuid4()}", method="DELETE", key=admin, status=404)
    for body in (
        {"name": "x", "role": "root"}, {"name": "", "role": "admin"}, {"role": "admin"},
        {"name": ["x"], "role": "admin"}, {"name": "x", "role": "admin", "admin": True},
        {"name": "x", "role": "admin", "expires_at": "2001-01-01T00:00:00Z"},
        {"name": "x", "role": "admin", "expires_at": "2999-01-01T00:00:00"},
        {"name": "x", "role": "admin", "user": "nobody"}, [], "x", None,
    ):  # fmt: skip
        await web.post("/api/v1/api-keys", body, key=admin, status=400)
    log = await world.sql("SELECT action, actor FROM audit_log ORDER BY at")
    assert [tuple(row) for row in log][-2:] == [
        ("keys.create", "test-admin"), ("keys.revoke", "test-admin"),
    ]  # fmt: skip


async def test_last_use_is_noted_at_most_once_a_minute(web, world):
    key = {"Authorization": f"Bearer {await web.key(Role.READ_ONLY)}"}
    await web.get("/api/v1/projects", headers=key)
    first = (await world.sql("SELECT last_used_at FROM api_keys"))[0][0]
    assert first is not None
    web.service.context.identities._known.clear()
    await web.get("/api/v1/projects", headers=key)
    assert (await world.sql("SELECT last_used_at FROM api_keys"))[0][0] == first


HIDDEN = (
    "/api/v1/projects/hidden", "/api/v1/projects/hidden/jobsets",
    "/api/v1/projects/hidden/builds", "/api/v1/projects/hidden/channels",
    "/api/v1/projects/hidden/channels/hush", "/api/v1/projects/hidden/jobsets/secret",
    "/api/v1/projects/hidden/jobsets/secret/inputs", "/api/v1/projects/hidden/jobsets/secret/jobs",
    "/api/v1/projects/hidden/jobsets/secret/errors",
    "/api/v1/projects/hidden/jobsets/secret/evaluations",
    "/api/v1/projects/hidden/jobsets/secret/builds",
    "/api/v1/projects/hidden/jobsets/secret/latest-eval",
    "/api/v1/evaluations?project=hidden", "/api/v1/builds?project=hidden",
    "/api/v1/builds?project=hidden&jobset=secret", "/channel/hidden/hush/git-revision",
    "/job/hidden/secret/secret/latest",
)  # fmt: skip


async def test_c12_private_projects_do_not_exist_for_others(web, world):
    evaluation, build = (
        world.ids["secret_evaluation"]["number"],
        world.ids["secret_build"]["number"],
    )
    step = world.ids["secret_step"]["id"]
    paths = [
        *HIDDEN,
        *(f"/api/v1/evaluations/{evaluation}{rest}" for rest in ("", "/builds", "/errors", "/inputs")),
        *(
            f"/api/v1/builds/{build}{rest}"
            for rest in (
                "", "/steps", "/products", "/metrics", "/outputs", "/dependencies", "/dependents",
                "/constituents", "/log", "/log/stream", "/products/1/download", "/why",
            )
        ),
        f"/api/v1/steps/{step}", f"/api/v1/steps/{step}/log", f"/api/v1/steps/{step}/attempts",
        f"/api/v1/evaluations/2/compare?to={evaluation}",
    ]  # fmt: skip
    outsider = {"Authorization": f"Bearer {await web.key(Role.READ_ONLY)}"}
    for headers in ({}, outsider):
        for path in paths:
            missing = await web.get(path, status=404, headers=headers)
            assert "private" not in str(missing)
        for path in (
            "/api/v1/projects", "/api/v1/builds", "/api/v1/evaluations", "/api/v1/channels",
            "/api/v1/queue", "/api/v1/builds?status=succeeded", "/api/v1/builds?job=secret",
            "/api/v1/builds?system=x86_64-linux", "/api/v1/managed-resources",
        ):  # fmt: skip
            assert "secret" not in str(await web.get(path, headers=headers)), path
            assert "hidden" not in str(await web.get(path, headers=headers)), path
    # A badge never says whether there is such a job.
    assert (await web.get("/job/hidden/secret/secret/shield"))["message"] == "unknown"
    admin = {"Authorization": f"Bearer {await web.key()}"}
    assert (await web.get("/api/v1/projects/hidden", headers=admin))["name"] == "hidden"
    # Strangers may not write either, and can't tell by it.
    for build_path in (f"/api/v1/builds/{build}/cancel", "/api/v1/builds/999/cancel"):
        await web.post(build_path, status=401)
        await web.post(build_path, status=404, key=await web.key(Role.CANCEL_BUILD))


async def test_members_see_and_change_their_private_project(web, world):
    user = await world.add("users", username="ann")
    await world.add(
        "project_members", project_id=world.ids["hidden"]["id"], user_id=user["id"], role="member"
    )
    key = await web.key(Role.READ_ONLY, user="ann")
    headers = {"Authorization": f"Bearer {key}"}
    assert (await web.get("/api/v1/projects/hidden", headers=headers))["visibility"] == "private"
    pending = await world.build(world.ids["secret_evaluation"], "later", "pending")
    path = f"/api/v1/builds/{pending['number']}"
    await web.post(f"{path}/bump", key=key, status=403)
    assert (await web.post(f"{path}/cancel", key=key))["builds"] == [str(pending["id"])]
    # Elsewhere the key is what its role says.
    await web.post("/api/v1/builds/2/restart", key=key, status=403)


@pytest.mark.parametrize(
    "spelling",
    [
        "/api/v1//api-keys", "/API/v1/api-keys", "/api/v1/api%2Dkeys", "/api/v1/./api-keys",
        "/api/v1/projects/../api-keys", "/api/v1/projects/..%2fapi-keys", "/api/v1/api-keys/",
        "/api/v1/api-keys;x=.jsp", "/api/v1/api-keys%00", "//api/v1/api-keys", "/api/v1/api-keys/..;/",
        "/api/v1/projects/..;/api-keys", "/api/v1/api-keys?x=/health", "/health/..;/api/v1/api-keys",
    ],
)  # fmt: skip
async def test_cve_class_auth_path_spelling(web, spelling):
    """S14: no spelling of a path reaches keys without a key."""
    import yarl

    url = yarl.URL(web.url + spelling, encoded=True)
    async with web.session.get(url) as answer:
        assert answer.status in {400, 401, 404, 405}
        assert "items" not in await answer.text()


async def test_a_change_is_in_the_audit_log(web, world):
    key = await web.key(Role.BUMP_TO_FRONT)
    waiting = (await world.sql("SELECT number FROM builds WHERE job_name = 'waiting'"))[0][0]
    await web.post(f"/api/v1/builds/{waiting}/bump", key=key)
    (row,) = await world.sql("SELECT * FROM audit_log WHERE action LIKE 'build%'")
    assert row["actor"] == "test-bump-to-front"
