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
