import asyncpg

from fc_operator.store import migrations, picture


async def test_the_checked_in_schema_is_what_the_migrations_make(database_url):
    assert picture.path().read_text() == await picture.draw(database_url), (
        "run `python -m fc_operator.store.picture` (or `make schema`) and commit migrations/schema.sql"
    )


async def test_the_checked_in_schema_can_be_loaded_and_gives_the_same(empty_database_url):
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute(picture.path().read_text())
    await connection.close()
    assert await picture.draw(empty_database_url) == picture.path().read_text()


async def test_the_picture_sees_a_single_added_column(database_url):
    connection = await asyncpg.connect(database_url)
    await connection.execute("ALTER TABLE jobsets ADD COLUMN canary text")
    await connection.close()
    assert "canary text" in await picture.draw(database_url)


async def test_a_second_migration_changes_nothing(database_url):
    before, after = await migrations.migrate(database_url)
    assert before == after
    assert after.current
