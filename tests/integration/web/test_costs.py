"""What reads cost: the number of queries per route, the indexes that lists walk."""

import re

import pytest

from fc_operator.store.pages import builds, evaluations
from fc_operator.web import route_table

WORDS = {"project": "demo", "jobset": "main", "evaluation": "2", "build": "2", "job": "hello",
         "step": "1", "kind": "Project", "builder": "big-1", "repository": "team"}  # fmt: skip
MORE = {
    # Where it waits is asked of three tables, once it is known that the caller sees the build.
    "/api/v1/builds/<build>/why": 4,
    "/api/v1/evaluations/<evaluation>/compare": 4,
    "/builds/<build>": 12,
    "/job/<project>/<jobset>/<job>": 3,
}


async def test_h09_no_route_asks_more_than_three_queries(web, world, database):
    counted = []

    def count(record):
        if not record.query.startswith(("BEGIN", "COMMIT", "ROLLBACK")):
            counted.append(record.query)

    pool = database._pool
    for holder in pool._holders:
        if holder._con is not None:
            holder._con.add_query_logger(count)
    pool_init = pool._init

    async def init(connection):
        await pool_init(connection)
        connection.add_query_logger(count)

    pool._init = init
    key = {"Authorization": f"Bearer {await web.key()}"}
    for route in route_table.ROUTES:
        if route.changes or "stream" in route.path:
            continue
        path = re.sub(r"<(\w+)(?::\w+)?>", lambda part: WORDS.get(part[1], "x"), route.path)
        await web.get("/api/v1/version", headers=key)
        counted.clear()
        async with web.session.get(web.url + path, headers=key, allow_redirects=False) as answer:
            await answer.read()
        asked = [query for query in counted if "api_keys" not in query]
        assert len(asked) <= MORE.get(route.path, 3), (route.path, asked)


@pytest.fixture
async def many(world):
    """Enough rows that a sequential scan would be the dearer plan."""
    main = world.ids["main"]
    await world.sql(
        "INSERT INTO evaluations (jobset_id, commit_hash, status, builds_ended_at)"
        " SELECT $1, lpad(to_hex(n), 40, '0'), 'completed', now() FROM generate_series(1, 2000) n",
        main["id"],
    )
    await world.sql(
        "INSERT INTO builds (evaluation_id, job_name, drv_path, status, system)"
        " SELECT e.id, 'job' || n, '/nix/store/' || n, 'succeeded', 'x86_64-linux'"
        " FROM (SELECT id FROM evaluations WHERE status = 'completed' ORDER BY number DESC LIMIT 300) e,"
        " generate_series(1, 100) n"
    )
    await world.sql("ANALYZE")
    return world


PLANS = [
    (builds, "list_newest", "builds_number_key"),
    (builds, "list_of_system", "builds_by_system"),
    (builds, "list_of_statuses", "builds_by_status"),
    (builds, "list_of_job", "builds_job"),
    (builds, "list_of_evaluation", "builds_evaluation_id_job_name_key"),
    (builds, "list_of_jobsets", "Index Cond: (evaluation_id = e.id)"),
    (evaluations, "list_newest", "evaluations_number_key"),
    (evaluations, "list_of_jobset", "evaluations_jobset"),
    (evaluations, "list_of_commit", "evaluations_commit"),
]
VALUES = {
    "all_projects": "false", "projects": "'{}'", "before": "9223372036854775807",
    "before_evaluation": "9223372036854775807", "page_size": "51", "system": "'riscv64-linux'",
    "statuses": "ARRAY['timeout']", "job": "'job7'", "after_job": "''",
    "commit_hash": f"'{'a' * 40}'",
}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "name", "index"), PLANS, ids=lambda each: getattr(each, "__name__", each)
)
async def test_c26_lists_of_large_tables_walk_their_index(many, module, name, index):
    query = getattr(module._queries, name)
    values = dict(VALUES, project="NULL", jobset="NULL")
    other = await many.jobset(many.ids["demo"], "quiet")
    values["jobset"] = f"'{other['id']}'" if name == "list_of_jobset" else "NULL"
    values["evaluation_id"] = f"'{many.ids['new']['id']}'"
    if name == "list_of_jobsets":
        values["project"] = f"'{many.ids['demo']['id']}'"
    if name in {"list_of_job", "list_newest"} or module is evaluations:
        values["statuses"] = "NULL"
    if name in {"list_of_statuses", "list_of_job", "list_of_evaluation", "list_of_jobsets"}:
        values["system"] = "NULL"
    if name == "list_of_evaluation":
        values["job"] = values["statuses"] = "NULL"
    if name == "list_of_jobsets":
        values["statuses"] = "NULL"
    async with many.database.transaction() as connection:
        await connection.execute(f"PREPARE q AS {query.sql}")
        if "LIMIT 201" in query.sql:
            # One plan for all values, as it is kept once a list was asked for a few times.
            await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        arguments = ", ".join(values[each] for each in _names(module, name))
        rows = await connection.fetch(f"EXPLAIN EXECUTE q ({arguments})")
        await connection.execute("DEALLOCATE q")
    plan = "\n".join(row[0] for row in rows)
    assert index in plan, plan
    assert "Seq Scan on builds" not in plan, plan


def _names(module, name):
    """Parameters in the order of their numbers: that of their first use in the file."""
    from fc_operator.store.queries import SQL_DIR

    file = SQL_DIR / "pages" / f"{module.__name__.rpartition('.')[2]}.sql"
    text = re.search(rf"-- name: {name}\(.*?\n(.*?)(?=-- name:|\Z)", file.read_text(), re.DOTALL)[1]
    text = re.sub(r"--.*", "", text)
    found = []
    for each in re.findall(r"(?<!:):(\w+)", text):
        if each not in found:
            found.append(each)
    return found
