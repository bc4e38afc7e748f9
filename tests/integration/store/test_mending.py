"""The traps of the seed (features.md, section 2 and C27), one test per row that SQL can answer for."""

import uuid

import asyncpg
import pytest

from fc_operator.model.statuses import Forge, Role
from fc_operator.store import migrations

COMMIT = "a" * 40


@pytest.fixture
async def connection(database_url):
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


async def make_project(connection, name="demo", **columns):
    columns = {"name": name, "repository_url": "https://git.example.org/a.git", **columns}
    return await insert(connection, "projects", **columns)


async def make_jobset(connection, project_id, name="main", **columns):
    columns = {"project_id": project_id, "name": name, "nix_expression": "release.nix", **columns}
    return await insert(connection, "jobsets", **columns)


async def insert(connection, table, **columns):
    names, marks = ", ".join(columns), ", ".join(f"${nr + 1}" for nr in range(len(columns)))
    return await connection.fetchval(
        f"INSERT INTO {table} ({names}) VALUES ({marks}) RETURNING id", *columns.values()
    )


async def make_evaluation(connection, jobset_id, commit=COMMIT, **columns):
    columns = {"jobset_id": jobset_id, "commit_hash": commit, "status": "pending", **columns}
    return await insert(connection, "evaluations", **columns)


async def make_build(connection, evaluation_id, job="a", **columns):
    columns = {
        "evaluation_id": evaluation_id,
        "job_name": job,
        "drv_path": f"/nix/store/{'0' * 32}-{job}.drv",
        "status": "pending",
        "system": "x86_64-linux",
        **columns,
    }
    return await insert(connection, "builds", **columns)


@pytest.fixture
async def jobset(connection):
    return await make_jobset(connection, await make_project(connection))


@pytest.fixture
async def evaluation(connection, jobset):
    return await make_evaluation(connection, jobset)


SEED_ROWS = f"""
    INSERT INTO projects (id, name, repository_url) VALUES ('{uuid.UUID(int=1)}', 'demo', 'https://e/x');
    INSERT INTO users (id, username, email) VALUES ('{uuid.UUID(int=2)}', 'Ann', 'a@example.org');
    INSERT INTO remote_builders (id, name, ssh_uri, systems, max_jobs, speed_factor) VALUES
        ('{uuid.UUID(int=3)}', 'big', 'ssh://b', '{{x86_64-linux}}', 4, 2),
        ('{uuid.UUID(int=4)}', 'odd', 'ssh://c', '{{}}', 0, 0);
    INSERT INTO jobsets (id, project_id, name, nix_expression, enabled, state, scheduling_shares) VALUES
        ('{uuid.UUID(int=5)}', '{uuid.UUID(int=1)}', 'main', 'hydraJobs', true, 'enabled', 100),
        ('{uuid.UUID(int=6)}', '{uuid.UUID(int=1)}', 'off', 'hydraJobs', false, 'enabled', 100),
        ('{uuid.UUID(int=7)}', '{uuid.UUID(int=1)}', 'never', 'hydraJobs', true, 'one_shot', 0);
    INSERT INTO api_keys (name, key_hash, user_id) VALUES ('k', 'h', '{uuid.UUID(int=2)}');
    INSERT INTO evaluations (id, jobset_id, commit_hash, status) VALUES
        ('{uuid.UUID(int=8)}', '{uuid.UUID(int=5)}', '{COMMIT}', 'completed');
    INSERT INTO builds (id, evaluation_id, job_name, drv_path, status, builder_id) VALUES
        ('{uuid.UUID(int=9)}', '{uuid.UUID(int=8)}', 'a', '/nix/store/a.drv', 'succeeded', '{uuid.UUID(int=3)}'),
        ('{uuid.UUID(int=10)}', '{uuid.UUID(int=8)}', 'b', '/nix/store/b.drv', 'failed', NULL);
    INSERT INTO build_products (build_id, name, path, sha256_hash, file_size, is_directory) VALUES
        ('{uuid.UUID(int=9)}', 'out', '/nix/store/a', 'sha256-xyz', 5, true),
        ('{uuid.UUID(int=9)}', 'doc', '/nix/store/a-doc', NULL, NULL, true);
    INSERT INTO build_steps (build_id, step_number, command, output) VALUES
        ('{uuid.UUID(int=9)}', 1, 'nix build', 'text');
    INSERT INTO build_dependencies (build_id, dependency_build_id) VALUES
        ('{uuid.UUID(int=10)}', '{uuid.UUID(int=9)}');
    INSERT INTO webhook_configs (project_id, forge_type, secret_hash) VALUES
        ('{uuid.UUID(int=1)}', 'forgejo', 'not a hash');
    INSERT INTO notification_configs (project_id, notification_type) VALUES ('{uuid.UUID(int=1)}', 'email');
    INSERT INTO notification_tasks (notification_type, payload) VALUES ('email', '{{}}');
    INSERT INTO jobset_inputs (jobset_id, name, input_type, value) VALUES
        ('{uuid.UUID(int=5)}', 'nixpkgs', 'git', 'https://e/nixpkgs main');
    INSERT INTO channels (project_id, name, jobset_id, current_evaluation_id) VALUES
        ('{uuid.UUID(int=1)}', 'stable', '{uuid.UUID(int=5)}', '{uuid.UUID(int=8)}');
    INSERT INTO starred_jobs (user_id, project_id, job_name) VALUES
        ('{uuid.UUID(int=2)}', '{uuid.UUID(int=1)}', 'a'), ('{uuid.UUID(int=2)}', '{uuid.UUID(int=1)}', 'a');
    INSERT INTO user_sessions (user_id, session_token_hash, expires_at) VALUES
        ('{uuid.UUID(int=2)}', 'h', now());
    INSERT INTO project_members (project_id, user_id) VALUES ('{uuid.UUID(int=1)}', '{uuid.UUID(int=2)}');
    INSERT INTO build_metrics (build_id, metric_name, metric_value, unit) VALUES
        ('{uuid.UUID(int=9)}', 'output_size_bytes', 5, 'bytes');
    INSERT INTO failed_paths_cache (drv_path, source_build_id, failure_status) VALUES
        ('/nix/store/b.drv', '{uuid.UUID(int=10)}', 'failed'),
        ('/nix/store/c.drv', '{uuid.UUID(int=99)}', 'log_limit_exceeded'),
        ('/nix/store/d.drv', NULL, 'aborted');
"""


async def test_a_database_with_rows_in_every_table_of_the_seed_comes_up(empty_database_url):
    await migrations.migrate(empty_database_url, target="0001")
    connection = await asyncpg.connect(empty_database_url)
    try:
        await connection.execute(SEED_ROWS)
        tables = await connection.fetch(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        for (table,) in tables:
            assert await connection.fetchval(f"SELECT count(*) FROM {table}"), f"no row in {table}"
        _, after = await migrations.migrate(empty_database_url)
        assert after.current
        states = dict(await connection.fetch("SELECT name, state FROM jobsets"))
        assert states == {"main": "enabled", "off": "disabled", "never": "disabled"}
        odd = await connection.fetchrow("SELECT * FROM remote_builders WHERE name = 'odd'")
        assert (odd["enabled"], odd["max_jobs"], odd["speed_factor"]) == (False, 1, 1)
        products = await connection.fetch("SELECT nr, sha256_hash FROM build_products ORDER BY nr")
        assert [tuple(row) for row in products] == [(1, None), (2, None)]
        remembered = await connection.fetch(
            "SELECT drv_path, source_build_id FROM failed_paths_cache ORDER BY drv_path"
        )
        assert [tuple(row) for row in remembered] == [
            ("/nix/store/b.drv", uuid.UUID(int=10)),
            ("/nix/store/c.drv", None),
        ]
        assert await connection.fetchval("SELECT count(*) FROM starred_jobs") == 1
    finally:
        await connection.close()


# Ids ----------------------------------------------------------------------------------------


async def test_ids_made_by_sql_are_version_7_and_grow_with_time(connection):
    rows = await connection.fetch(
        "SELECT fc_uuid_v7() AS id, pg_sleep(0.002) FROM generate_series(1, 20)"
    )
    ids = [row["id"] for row in rows]
    assert all(one.version == 7 and one.variant == uuid.RFC_4122 for one in ids)
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


async def test_every_id_of_the_seed_grows_with_time(connection):
    defaults = await connection.fetch(
        """
        SELECT table_name, column_default FROM information_schema.columns
        WHERE table_schema = 'public' AND column_name = 'id' AND data_type = 'uuid'
            AND table_name IN (SELECT relname FROM pg_class WHERE relkind = 'r')
        """
    )
    assert {default for _, default in defaults} == {"fc_uuid_v7()"}
    assert len(defaults) >= 20


# Text and its bounds ------------------------------------------------------------------------


async def test_no_text_is_cut_at_a_length(connection):
    cut = await connection.fetch(
        """
        SELECT table_name, column_name FROM information_schema.columns
        WHERE table_schema = 'public' AND character_maximum_length IS NOT NULL
            AND table_name <> 'alembic_version' ORDER BY 1, 2
        """
    )
    assert [tuple(row) for row in cut] == []


@pytest.mark.parametrize("name", ["", "1a", "a b", "a/b", "a.b", "ä", "a" * 64, "a\n"])
async def test_a_project_name_that_hydra_would_refuse_is_refused(connection, name):
    with pytest.raises(asyncpg.CheckViolationError):
        await make_project(connection, name)


@pytest.mark.parametrize("url", ["ext::sh -c id", "EXT::x", "file:///etc", "File:/x", "-oProxy=x"])
async def test_c01_a_source_that_runs_or_reads_this_machine_is_refused(connection, jobset, url):
    with pytest.raises(asyncpg.CheckViolationError):
        await make_project(connection, "other", repository_url=url)
    with pytest.raises(asyncpg.CheckViolationError):
        await insert(connection, "config_repositories", name="x", url=url)
    with pytest.raises(asyncpg.CheckViolationError):
        await insert(
            connection, "jobset_inputs", jobset_id=jobset, name="x", input_type="git", value=url
        )


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("scheduling_shares", 0),
        ("keep_nr", -1),
        ("check_interval", -1),
        ("timeout_s", 0),
        ("max_silent_s", -5),
        ("evaluation_timeout_s", 0),
        ("state", "sometimes"),
        ("check_reason", "bored"),
        ("name", "a/b"),
    ],
)
async def test_a_jobset_out_of_bounds_is_refused(connection, column, value):
    project = await make_project(connection)
    with pytest.raises(asyncpg.CheckViolationError):
        await make_jobset(connection, project, **{column: value})


@pytest.mark.parametrize(
    ("column", "value"), [("systems", []), ("max_jobs", 0), ("speed_factor", 0), ("name", "-x")]
)
async def test_a_builder_that_could_never_be_chosen_is_refused(connection, column, value):
    columns = {"name": "b", "ssh_uri": "ssh://b", "systems": ["x86_64-linux"], column: value}
    with pytest.raises(asyncpg.CheckViolationError):
        await insert(connection, "remote_builders", **columns)


async def test_names_of_people_are_one_in_any_case_and_need_no_mail(connection):
    await insert(connection, "users", username="Ann")
    await insert(connection, "users", username="bob")
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(connection, "users", username="ANN")
    with pytest.raises(asyncpg.CheckViolationError):
        await insert(connection, "users", username="eve", role="root")


async def test_enums_of_the_model_and_of_the_tables_are_the_same(connection):
    for table, column, words in [
        ("api_keys", "role", Role),
        ("users", "role", Role),
        ("webhook_configs", "forge_type", Forge),
    ]:
        assert await allowed(connection, table, column) == {str(word) for word in words}
    one = await allowed(connection, "notification_configs", "notification_type")
    assert one == await allowed(connection, "notification_tasks", "notification_type")
    assert {"forgejo_status", "slack"} <= one


async def allowed(connection, table, column) -> set[str]:
    """The words that the CHECK on a column lists."""
    import re

    definition = await connection.fetchval(
        """
        SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)
        WHERE k.contype = 'c' AND k.conrelid = $1::text::regclass AND a.attname = $2
        """,
        table,
        column,
    )
    return set(re.findall(r"'([^']*)'", definition))


# One truth ----------------------------------------------------------------------------------


async def test_a_commit_of_sha256_fits_and_a_commit_may_be_evaluated_again(connection, jobset):
    await make_evaluation(connection, jobset, "b" * 64, status="completed")
    await make_evaluation(connection, jobset, "b" * 64, status="completed")
    with pytest.raises(asyncpg.CheckViolationError):
        await make_evaluation(connection, jobset, "main")


async def test_c16_one_commit_has_one_live_evaluation(connection, jobset):
    await make_evaluation(connection, jobset)
    with pytest.raises(asyncpg.UniqueViolationError):
        await make_evaluation(connection, jobset, status="running")
    await make_evaluation(connection, jobset, trust="unreviewed")
    await make_evaluation(connection, jobset, force=True)


async def test_an_evaluation_has_one_live_task(connection, evaluation):
    task = """
        INSERT INTO tasks (kind, evaluation_id, owner, expires_at, state)
        VALUES ('evaluation', $1, 'me', now(), $2)"""
    await connection.execute(task, evaluation, "live")
    with pytest.raises(asyncpg.UniqueViolationError):
        await connection.execute(task, evaluation, "live")
    await connection.execute(task, evaluation, "lost")


async def test_c27_the_same_star_is_not_set_twice(connection):
    user = await insert(connection, "users", username="ann")
    project = await make_project(connection)
    star = {"user_id": user, "project_id": project, "job_name": "a"}
    await insert(connection, "starred_jobs", **star)
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(connection, "starred_jobs", **star)


async def test_a_project_may_tell_several_targets_of_a_type(connection):
    project = await make_project(connection)
    hook = {"project_id": project, "notification_type": "webhook"}
    await insert(connection, "notification_configs", **hook, name="a")
    await insert(connection, "notification_configs", **hook, name="b")
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(connection, "notification_configs", **hook, name="b")


async def test_a_webhook_belongs_to_one_parent_and_holds_no_plain_secret(connection):
    project = await make_project(connection)
    repository = await insert(connection, "config_repositories", name="team", url="https://e/c")
    await insert(connection, "webhook_configs", project_id=project, forge_type="forgejo")
    await insert(connection, "webhook_configs", config_repository_id=repository, forge_type="gitea")
    for columns in ({}, {"project_id": project, "config_repository_id": repository}):
        with pytest.raises(asyncpg.CheckViolationError):
            await insert(connection, "webhook_configs", forge_type="gitlab", **columns)


async def test_one_owner_per_declared_thing_and_refused_claimants_stay_visible(connection):
    claim = {
        "source_kind": "ConfigRepository",
        "kind": "Project",
        "namespace": "default",
        "name": "demo",
        "identity": "demo",
        "revision": "r",
        "spec_hash": "h",
        "spec": "{}",
    }
    await insert(connection, "managed_resources", source_name="a", owns=True, **claim)
    await insert(connection, "managed_resources", source_name="b", owns=False, **claim)
    with pytest.raises(asyncpg.UniqueViolationError):
        await insert(connection, "managed_resources", source_name="c", owns=True, **claim)


# What hangs on what -------------------------------------------------------------------------


async def test_every_foreign_key_has_an_index_for_its_deletes(connection):
    """Without one, each deleted row of the parent scans the whole child."""
    small_parents = {"step_classes"}  # never deleted
    missing = await connection.fetch(
        """
        SELECT k.conrelid::regclass::text AS child, k.conname, k.confrelid::regclass::text AS parent
        FROM pg_constraint k
        WHERE k.contype = 'f' AND NOT EXISTS (
            SELECT FROM pg_index x
            WHERE x.indrelid = k.conrelid AND x.indisvalid
                AND (x.indkey::int2[])[0 : cardinality(k.conkey) - 1] @> k.conkey
                AND (x.indpred IS NULL OR pg_get_expr(x.indpred, x.indrelid) = format('(%I IS NOT NULL)',
                    (SELECT attname FROM pg_attribute WHERE attrelid = k.conrelid AND attnum = k.conkey[1]))))
        """
    )
    assert [tuple(row) for row in missing if row["parent"] not in small_parents] == []


async def test_no_index_repeats_another(connection):
    repeated = await connection.fetch(
        """
        SELECT a.indexrelid::regclass::text, b.indexrelid::regclass::text
        FROM pg_index a JOIN pg_index b ON a.indrelid = b.indrelid AND a.indexrelid <> b.indexrelid
            AND a.indpred IS NULL AND b.indpred IS NULL AND a.indexprs IS NULL AND b.indexprs IS NULL
            AND NOT a.indisunique AND a.indclass::oid[] <@ b.indclass::oid[]
            AND (b.indkey::int2[])[0 : a.indnkeyatts - 1] = (a.indkey::int2[])[0 : a.indnkeyatts - 1]
        WHERE a.indrelid IN (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
        """
    )
    assert [tuple(row) for row in repeated] == []


async def test_every_table_that_says_when_it_changed_moves_it_by_itself(connection):
    still = await connection.fetch(
        """
        SELECT c.table_name FROM information_schema.columns c
        JOIN pg_class t ON t.relname = c.table_name AND t.relkind = 'r'
        WHERE c.table_schema = 'public' AND c.column_name = 'updated_at' AND NOT EXISTS (
            SELECT FROM pg_trigger g WHERE g.tgrelid = t.oid
                AND g.tgfoid = 'update_updated_at_column'::regproc)
        """
    )
    assert [tuple(row) for row in still] == []


async def test_q10_no_trigger_announces_row_by_row(connection):
    names = await connection.fetch(
        "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgname LIKE '%notify%'"
    )
    functions = await connection.fetch(
        "SELECT proname FROM pg_proc WHERE prosrc LIKE '%pg_notify%' AND pronamespace = 'public'::regnamespace"
    )
    assert [*names, *functions] == []


async def test_a_builder_goes_and_its_builds_and_attempts_stay(connection, evaluation):
    builder = await insert(
        connection, "remote_builders", name="b", ssh_uri="ssh://b", systems=["x86_64-linux"]
    )
    build = await make_build(connection, evaluation, builder_id=builder)
    await connection.execute("DELETE FROM remote_builders")
    assert await connection.fetchval("SELECT builder_id FROM builds WHERE id = $1", build) is None


async def test_an_evaluation_goes_and_its_channel_stays(connection, jobset, evaluation):
    project = await connection.fetchval("SELECT project_id FROM jobsets")
    channel = await insert(
        connection,
        "channels",
        project_id=project,
        name="stable",
        jobset_id=jobset,
        current_evaluation_id=evaluation,
    )
    await connection.execute("DELETE FROM evaluations")
    left = await connection.fetchrow("SELECT * FROM channels WHERE id = $1", channel)
    assert left["current_evaluation_id"] is None


async def test_a_key_does_not_outlive_its_owner(connection):
    user = await insert(connection, "users", username="ann")
    await insert(connection, "api_keys", name="k", key_hash="h", user_id=user)
    await connection.execute("DELETE FROM users")
    assert await connection.fetchval("SELECT count(*) FROM api_keys") == 0


async def test_the_failure_cache_holds_real_failures_that_end(connection, evaluation):
    build = await make_build(connection, evaluation)
    await connection.execute(
        "INSERT INTO failed_paths_cache (drv_path, source_build_id, failure_status) VALUES ('d', $1, 'failed')",
        build,
    )
    for status in ("aborted", "timeout", "dependency_failed", "cancelled"):
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(
                "INSERT INTO failed_paths_cache (drv_path, failure_status) VALUES ('x', $1)", status
            )
    await connection.execute("DELETE FROM builds")
    row = await connection.fetchrow("SELECT * FROM failed_paths_cache")
    assert row["source_build_id"] is None
    assert row["expires_at"] > row["failed_at"]


async def test_a_whole_project_goes_in_one_cascade(connection, evaluation):
    await make_build(connection, evaluation)
    await connection.execute("DELETE FROM projects")
    for table in ("jobsets", "evaluations", "builds"):
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0


# The views ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jobset_columns", "project_columns", "listed"),
    [
        ({}, {}, True),
        ({"state": "one_at_a_time"}, {}, True),
        ({"state": "disabled"}, {}, False),
        ({"state": "one_shot"}, {}, True),
        ({"state": "one_shot", "shot_generation": 1}, {}, False),
        ({"state": "one_shot", "shot_generation": 1, "generation": 2}, {}, True),
        ({"suspended": True}, {}, False),
        ({}, {"suspended": True}, False),
    ],
)
async def test_active_jobsets_lists_what_may_still_evaluate(
    connection, jobset_columns, project_columns, listed
):
    project = await make_project(connection, **project_columns)
    jobset = await make_jobset(connection, project, **jobset_columns)
    rows = await connection.fetch("SELECT id, project_name FROM active_jobsets")
    assert [tuple(row) for row in rows] == ([(jobset, "demo")] if listed else [])


@pytest.mark.parametrize("table", ["jobsets", "projects"])
async def test_active_jobsets_leaves_out_what_is_going(connection, jobset, table):
    await connection.execute(f"UPDATE {table} SET deleting_at = now()")
    assert await connection.fetch("SELECT FROM active_jobsets") == []


async def test_c27_build_stats_counts_waiting_builds_and_every_kind_of_failure(
    connection, evaluation
):
    from fc_operator.model.statuses import BuildStatus

    for status in BuildStatus:
        await make_build(connection, evaluation, status, status=status)
    await connection.execute(
        "UPDATE builds SET started_at = now() - interval '10 s', completed_at = now() WHERE job_name = 'failed'"
    )
    await connection.execute(
        "UPDATE builds SET cached = true, started_at = now(), completed_at = now() WHERE job_name = 'succeeded'"
    )
    stats = await connection.fetchrow("SELECT * FROM build_stats")
    assert dict(stats) == {
        "total_builds": 14,
        "completed_builds": 1,
        "failed_builds": 10,
        "running_builds": 1,
        "pending_builds": 1,
        "avg_duration_seconds": 10.0,
    }


async def test_build_stats_of_nothing_is_zero(connection):
    assert list(await connection.fetchrow("SELECT * FROM build_stats")) == [0, 0, 0, 0, 0, None]


async def test_build_metrics_summary_shows_the_last_attempt_and_all_outputs(connection, evaluation):
    await connection.execute(
        """
        INSERT INTO step_classes (system) VALUES ('x86_64-linux');
        INSERT INTO steps (id, drv_path, name, class_id, attempt) VALUES (1, 'd', 'd', 1, 2);
        INSERT INTO attempts (step_id, attempt, task_id, executor, owner, peak_memory_bytes)
            VALUES (1, 1, gen_random_uuid(), 'local', 'me', 100), (1, 2, gen_random_uuid(), 'local', 'me', 300);
        INSERT INTO step_outputs (step_id, name, path, nar_size)
            VALUES (1, 'out', '/nix/store/a', 1000), (1, 'dev', '/nix/store/b', 24);
        """
    )
    await make_build(connection, evaluation, "a", step_id=1)
    await make_build(connection, evaluation, "b")
    rows = await connection.fetch(
        "SELECT job_name, output_size_bytes, peak_memory_bytes, nar_size_bytes"
        " FROM build_metrics_summary ORDER BY job_name"
    )
    assert [tuple(row) for row in rows] == [("a", 1024.0, 300.0, 1024.0), ("b", None, None, None)]


async def test_the_views_keep_the_columns_of_the_seed(postgres, database_url):
    name = postgres.create("template0")
    columns = """
        SELECT table_name, column_name FROM information_schema.columns
        WHERE table_name IN ('active_jobsets', 'build_stats', 'build_metrics_summary')"""
    try:
        await migrations.migrate(postgres.url(name), target="0001")
        found = []
        for url in (postgres.url(name), database_url):
            connection = await asyncpg.connect(url)
            found.append({tuple(row) for row in await connection.fetch(columns)})
            await connection.close()
    finally:
        postgres.drop(name)
    assert found[0] - found[1] == {("active_jobsets", "enabled")}
    assert found[1] <= found[0]
