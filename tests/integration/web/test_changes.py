"""What changes something over HTTP, through the operations that really do it."""

import re

import pytest

from fc_operator.model.statuses import Role
from fc_operator.web import route_table

MANIFESTS = """\
apiVersion: fc-operator.dev/v1alpha1
kind: Project
metadata: {name: fresh}
spec: {repositoryUrl: https://git.example.org/team/fresh.git}
---
apiVersion: fc-operator.dev/v1alpha1
kind: Jobset
metadata: {name: fresh-main}
spec: {projectRef: {name: fresh}, name: main, branch: main, nixExpression: release.nix}
"""
BUILDER = """\
apiVersion: fc-operator.dev/v1alpha1
kind: RemoteBuilder
metadata: {name: mine}
spec:
  sshUri: ssh://nix@host
  systems: [x86_64-linux]
  publicHostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ
  sshKeySecretRef: {name: key, key: identity}
"""


async def test_evaluate_now(web, world):
    key = await web.key(Role.EVAL_JOBSET)
    await world.sql("UPDATE jobsets SET next_check_at = 'infinity'")
    path = "/api/v1/projects/demo/jobsets/main/evaluate"
    answer = await web.post(path, {"commit": "c" * 40, "force": True}, key=key, status=202)
    assert answer["jobset_id"] == str(world.ids["main"]["id"])
    (row,) = await world.sql(
        "SELECT requested_commit, requested_force, check_reason FROM jobsets"
        " WHERE next_check_at <= now()"
    )
    assert tuple(row) == ("c" * 40, True, "request")
    await web.post(path, key=key, status=202)
    for body in ({"commit": "main"}, {"force": "yes"}, {"x": 1}, {"commit": ["c" * 40]}, [1]):
        await web.post(path, body, key=key, status=400)
    await web.post(path.replace("main", "nobody"), key=key, status=404)
    await world.sql("UPDATE jobsets SET suspended = true")
    await web.post(path, key=key, status=409)


async def test_cancel_restart_bump_keep(web, world):
    key = await web.key()
    build = "/api/v1/builds/" + str(
        (await world.sql("SELECT number FROM builds WHERE job_name = 'waiting'"))[0][0]
    )
    assert (await web.get(f"{build}/why"))["code"]
    assert (await web.post(f"{build}/bump", key=key))["builds"]
    assert (await web.get(build))["bumped_at"]
    assert (await web.post(f"{build}/cancel", key=key))["builds"]
    assert (await web.get(build))["status"] == "cancelled"
    await web.post(f"{build}/cancel", key=key, status=409)
    await web.post(f"{build}/bump", key=key, status=409)
    assert (await web.get(f"{build}/why"))["code"] == "Ended"
    assert (await web.post(f"{build}/restart", key=key))["builds"]
    assert (await web.get(build))["status"] == "pending"
    await web.post(f"{build}/restart", key=key, status=409)
    await web.post(f"{build}/keep/true", method="PUT", key=key)
    kept = await web.get(build)
    assert (kept["keep"], kept["kept_by"]) == (True, "test-admin")
    await web.post(f"{build}/keep/false", method="PUT", key=key)
    assert (await web.get(build))["keep"] is False
    await web.post(f"{build}/keep/maybe", method="PUT", key=key, status=404)


async def test_a_whole_evaluation(web, world):
    key = await web.key()
    path = "/api/v1/evaluations/2"
    assert len((await web.post(f"{path}/bump", key=key))["builds"]) == 2
    cancelled = await web.post(f"{path}/cancel", key=key)
    assert len(cancelled["builds"]) == 2
    assert (await web.get(path))["builds"]["cancelled"] == 2
    await web.post(f"{path}/cancel", key=key, status=409)
    waiting = world.ids["main"]
    pending = await world.evaluation(waiting, "pending", commit_hash="e" * 40)
    await web.post(f"/api/v1/evaluations/{pending['number']}/cancel", key=key)
    found = await web.get(f"/api/v1/evaluations/{pending['number']}")
    assert found["status"] == "cancelled"


async def test_sync_now(web, world):
    key = await web.key()
    await world.sql("UPDATE config_repositories SET next_sync_at = 'infinity'")
    answer = await web.post("/api/v1/config-repositories/team/sync", key=key, status=202)
    assert answer == {"name": "team"}
    assert await world.sql("SELECT 1 FROM config_repositories WHERE next_sync_at <= now()")
    await web.post("/api/v1/config-repositories/nobody/sync", key=key, status=404)
    reader = await web.key(Role.READ_ONLY)
    await web.post("/api/v1/config-repositories/team/sync", key=reader, status=403)


async def test_manifests_are_checked_planned_and_applied(web, world):
    key = await web.key(Role.CREATE_PROJECTS)
    body = {"manifests": {"all.yaml": MANIFESTS}}
    verdict = await web.post("/api/v1/manifests/validate", body)
    assert verdict["ok"]
    assert [each["identity"] for each in verdict["objects"]] == ["fresh", "fresh/main"]
    bad = {"manifests": {"a.yaml": "kind: Project", "b.yaml": "!!python/object:os.system x"}}
    assert len((await web.post("/api/v1/manifests/validate", bad))["problems"]) >= 2
    await web.post("/api/v1/manifests/plan", body, status=401)
    planned = await web.post("/api/v1/manifests/plan", body, key=key)
    assert (planned["changes"], planned["counts"]) == (True, {"create": 2})
    await web.get("/api/v1/projects/fresh", status=404)
    applied = await web.post("/api/v1/manifests/apply", body, key=key)
    assert (applied["ok"], applied["source"]["name"]) == (True, "test-create-projects")
    assert (await web.get("/api/v1/projects/fresh"))["declared_by"]["source_kind"] == "Apply"
    assert not (await web.post("/api/v1/manifests/plan", body, key=key))["changes"]
    # Another key's name is another source, and this object has its owner.
    other = await web.key()
    refused = await web.post("/api/v1/manifests/apply", body, key=other)
    assert not refused["ok"]
    # A builder is the installation's.
    await web.post(
        "/api/v1/manifests/apply", {"manifests": {"b.yaml": BUILDER}}, key=key, status=403
    )
    reader = await web.key(Role.READ_ONLY)
    await web.post("/api/v1/manifests/apply", body, key=reader, status=403)
    for wrong in ({}, {"manifests": "x"}, {"manifests": {"a": 1}}, {**body, "extra": 1}):
        await web.post("/api/v1/manifests/apply", wrong, key=key, status=400)


JOBSET = """
apiVersion: fc-operator.dev/v1alpha1
kind: Jobset
metadata: {name: sneaky}
spec: {projectRef: {name: PROJECT}, nixExpression: x.nix}
"""


@pytest.mark.parametrize(
    ("manifests", "problem"),
    [
        (JOBSET.replace("PROJECT", "demo"), "the project demo is not its own"),
        (
            f"{MANIFESTS.replace('fresh', 'demo')}---{JOBSET.replace('PROJECT', 'demo')}",
            "not its own",
        ),
        (JOBSET.replace("PROJECT", "tomorrow"), "there is no such project"),
        (MANIFESTS.replace("fresh", "retired"), "it has a history and no owner"),
        (
            MANIFESTS.replace("spec: {", "spec: {credentialsSecretRef: {name: git}, ", 1),
            "credentialsSecretRef refers to a secret",
        ),
    ],
)
async def test_c12_a_key_declares_nothing_that_belongs_to_others(web, world, manifests, problem):
    """Another's project has credentials and shares, and a secret could be sent to any host."""
    await world.add("projects", name="retired", repository_url="https://e.org/r.git")
    key = await web.key(Role.CREATE_PROJECTS)
    before = await world.sql("SELECT count(*) FROM managed_resources")
    body = {"manifests": {"a.yaml": manifests}}
    refused = await web.post("/api/v1/manifests/apply", body, key=key, status=403)
    assert problem in refused["detail"]
    assert await world.sql("SELECT count(*) FROM managed_resources") == before
    assert not await world.sql("SELECT FROM jobsets WHERE name = 'sneaky'")


@pytest.mark.parametrize(("role", "status"), [("maintainer", 200), ("member", 403)])
async def test_c12_a_maintainer_adds_jobsets_to_the_project(web, world, role, status):
    user = await world.add("users", username="maya")
    await world.add(
        "project_members", project_id=world.ids["demo"]["id"], user_id=user["id"], role=role
    )
    key = await web.key(Role.CREATE_PROJECTS, user="maya")
    body = {"manifests": {"a.yaml": JOBSET.replace("PROJECT", "demo")}}
    await web.post("/api/v1/manifests/apply", body, key=key, status=status)
    assert len(await world.sql("SELECT FROM jobsets WHERE name = 'sneaky'")) == (status == 200)


async def test_h05_a_get_never_changes_a_row(web, world):
    """Every GET of the table, with a key of the role admin; only the key's last use is noted."""
    key = {"Authorization": f"Bearer {await web.key()}"}
    await web.get("/api/v1/projects", headers=key)

    async def writes():
        await world.sql("SELECT pg_stat_force_next_flush()")
        rows = await world.sql(
            "SELECT relname, n_tup_ins + n_tup_upd + n_tup_del AS n FROM pg_stat_user_tables"
        )
        return {row["relname"]: row["n"] for row in rows}

    before = await writes()
    words = {"project": "demo", "jobset": "main", "evaluation": "2", "build": "2", "job": "hello",
             "step": "1", "kind": "Project"}  # fmt: skip
    for route in route_table.ROUTES:
        if not route.changes and "stream" not in route.path:
            path = re.sub(r"<(\w+)(?::\w+)?>", lambda part: words.get(part[1], "x"), route.path)
            async with web.session.get(
                web.url + path, headers=key, allow_redirects=False
            ) as answer:
                assert answer.status < 500 or route.path == "/ready", path
    assert await writes() == before


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
async def test_a_wrong_method_is_a_problem_that_says_which_is_right(web, method):
    async with web.session.request(method, web.url + "/api/v1/projects") as answer:
        assert answer.status in {400, 405, 501}
        assert answer.content_type == "application/problem+json"
        if answer.status == 405:
            assert "GET" in answer.headers["Allow"]


async def test_cve_class_unbounded_input(web, world):
    """S12: long words, large bodies, many parameters, deep JSON."""
    key = await web.key()
    async with web.session.get(f"{web.url}/api/v1/builds/{'9' * 5000}") as answer:
        assert answer.status in {400, 404, 414}
    await web.get("/api/v1/builds/99999999999999999999", status=404)
    await web.get(f"/api/v1/projects/{'x' * 1999}", status=404)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    for body in (
        b"[" * 100_000,
        b'{"name":' * 20_000,
        b'{"name": "\\ud800", "role": "admin"}',
        b"\xff",
    ):
        async with web.session.post(
            f"{web.url}/api/v1/api-keys", data=body, headers=headers
        ) as answer:
            assert answer.status == 400, body[:20]
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        async with web.session.post(
            f"{web.url}/api/v1/api-keys", data=b'{"name": "x", "role": "admin"}',
            headers={**headers, "Content-Type": kind},
        ) as answer:  # fmt: skip
            assert answer.status == 400


async def test_c17_a_nul_is_refused_wherever_it_stands(web, world):
    key = await web.key()
    await web.get("/api/v1/projects/a%00b", status=400)
    await web.get("/api/v1/builds?job=a%00b", status=400)
    answer = await web.post(
        "/api/v1/api-keys", {"name": "a\0b", "role": "admin"}, key=key, status=400
    )
    assert answer["status"] == 400


async def test_cve_class_secret_in_api_object(web, world):
    """S06: canaries in every column that may hold a secret or the name of one."""
    sealed = web.cipher.encrypt(b"canary-value", context="x")
    await world.add(
        "webhook_configs", project_id=world.ids["demo"]["id"], forge_type="github",
        secret_name="canary-name", secret_key="canary-key", secret_ciphertext=sealed,
    )  # fmt: skip
    await world.sql("UPDATE projects SET credentials_secret = 'canary-credentials'")
    await world.sql("UPDATE config_repositories SET credentials_secret = 'canary-credentials'")
    await world.sql("UPDATE tasks SET token_hash = 'canary-token'")
    secret = await web.key()
    key = {"Authorization": f"Bearer {secret}"}
    words = {"project": "demo", "jobset": "main", "evaluation": "2", "build": "2", "job": "hello",
             "step": "1", "kind": "Project", "builder": "big-1", "repository": "team"}  # fmt: skip
    for route in route_table.ROUTES:
        if not route.changes and "stream" not in route.path:
            path = re.sub(r"<(\w+)(?::\w+)?>", lambda part: words.get(part[1], "x"), route.path)
            async with web.session.get(
                web.url + path, headers=key, allow_redirects=False
            ) as answer:
                text = await answer.text()
                assert "canary" not in text, path
                assert secret[11:] not in text, path
