import asyncio
import re
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic.script import ScriptDirectory

from fc_operator.errors import SchemaVersionError
from fc_operator.store import migrations

SEED = migrations.directory() / "sql" / "0001_seed.sql"


async def test_two_migrations_at_once_wait_for_each_other(empty_database_url):
    results = await asyncio.gather(*(migrations.migrate(empty_database_url) for _ in range(3)))
    assert all(after.current for _, after in results)
    assert sum(before.present is None for before, _ in results) >= 1
    connection = await asyncpg.connect(empty_database_url)
    assert await connection.fetchval("SELECT count(*) FROM alembic_version") == 1
    await connection.close()


async def test_a_newer_schema_is_refused_with_a_clear_word(database_url):
    connection = await asyncpg.connect(database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    with pytest.raises(SchemaVersionError, match="newer than this program"):
        await migrations.migrate(database_url)


async def test_an_older_schema_is_named(empty_database_url):
    with pytest.raises(SchemaVersionError, match="fc migrate"):
        migrations.require(await migrations.state(empty_database_url))


async def test_a_failing_script_leaves_nothing_behind(empty_database_url, monkeypatch):
    """The third revision breaks on a table that is in its way; the first two stand."""
    await migrations.migrate(empty_database_url, target="0002")
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("CREATE TABLE audit_log (x int)")
    with pytest.raises(Exception, match="audit_log"):
        await migrations.migrate(empty_database_url)
    assert await connection.fetchval("SELECT to_regclass('steps')") is None
    assert (await migrations.state(empty_database_url)).present == "0002"
    await connection.execute("DROP TABLE audit_log")
    await connection.close()
    _, after = await migrations.migrate(empty_database_url)
    assert after.current


def test_the_first_revision_names_every_object_of_the_seed():
    """Object by object is compared in test_seed.py; this keeps the extension out."""
    text = Path(SEED).read_text()
    assert "uuid_generate_v4 ()" not in text
    assert not re.search(r"CREATE EXTENSION", text)


def test_the_names_of_the_files_tell_the_same_order_as_alembic():
    script = ScriptDirectory.from_config(migrations._config())
    order = [revision.revision for revision in script.walk_revisions()]
    assert migrations.revisions() == order[::-1]


def test_a_start_that_has_nothing_to_migrate_loads_no_alembic():
    code = "import sys, fc_operator.app.up; assert not {'alembic', 'sqlalchemy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_revisions_are_a_line_and_each_has_its_one_sql_file():
    versions = sorted((migrations.directory() / "versions").glob("*.py"))
    files = sorted((migrations.directory() / "sql").glob("*.sql"))
    assert [path.stem for path in versions] == [path.stem for path in files]
    before = None
    for path in versions:
        text = path.read_text()
        number = path.stem.split("_")[0]
        assert f'revision = "{number}"' in text
        assert f"down_revision = {before!r}".replace("'", '"') in text
        assert f'run_sql_file("{path.stem}.sql")' in text
        before = number


@pytest.mark.parametrize("point", ["0001", "0002"])
async def test_a_killed_migration_is_taken_up_where_it_was(empty_database_url, point):
    """The session dies in the middle of a revision; the next start does the rest."""
    await migrations.migrate(empty_database_url, target=point)
    connection = await asyncpg.connect(empty_database_url)
    # The migration will wait for this lock, and be killed while it waits.
    block = connection.transaction()
    await block.start()
    await connection.execute("LOCK TABLE evaluations IN ROW EXCLUSIVE MODE")
    killed = asyncio.create_task(migrations.migrate(empty_database_url))
    other = await asyncpg.connect(empty_database_url)
    async with asyncio.timeout(10):
        while not await other.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks"
            " JOIN pg_database d ON d.oid = database AND d.datname = current_database()"
            " WHERE NOT granted AND relation = 'evaluations'::regclass"
        ):
            await asyncio.sleep(0.01)
    with pytest.raises(Exception, match=r"terminat|closed|connection"):
        await killed
    await block.rollback()
    await connection.close()
    await other.close()
    assert (await migrations.state(empty_database_url)).present == point
    _, after = await migrations.migrate(empty_database_url)
    assert after.current


async def test_a_migration_that_meets_a_long_lock_gives_up_and_leaves_nothing(empty_database_url):
    await migrations.migrate(empty_database_url, target="0001")
    connection = await asyncpg.connect(empty_database_url)
    async with connection.transaction():
        await connection.execute("LOCK TABLE evaluations IN ROW EXCLUSIVE MODE")
        with pytest.raises(Exception, match="lock timeout"):
            await migrations.migrate(empty_database_url)
    await connection.close()
    assert (await migrations.state(empty_database_url)).present == "0001"
