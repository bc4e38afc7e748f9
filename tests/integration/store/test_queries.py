"""Every named query of every ``.sql`` file is prepared against the migrated schema.

The files are found, not listed: a new one is judged as soon as it is there.
"""

import re

import aiosql
import asyncpg
import pytest

from fc_operator.store.queries import SQL_DIR

FILES = sorted(SQL_DIR.rglob("*.sql"))
_PREPARABLE = re.compile(
    r"\s*(SELECT|INSERT|UPDATE|DELETE|MERGE|VALUES|WITH|TABLE)\b", re.IGNORECASE
)


def without_comments(sql: str) -> str:
    """The statement, for telling what it is; strings of ours hold no comment marks."""
    return re.sub(r"--[^\n]*|/\*.*?\*/", "", sql, flags=re.DOTALL).strip()


def names(file):
    return re.findall(r"^-- *name: *([A-Za-z_]\w*)", file.read_text(), re.MULTILINE)


QUERIES = [
    pytest.param(file, name, id=f"{file.relative_to(SQL_DIR).with_suffix('')}.{name}")
    for file in FILES
    for name in names(file)
]


@pytest.mark.parametrize(("file", "name"), QUERIES)
async def test_each_query_can_be_prepared(database_url, file, name):
    query = getattr(aiosql.from_path(file, "asyncpg", mandatory_parameters=True), name)
    sql = without_comments(query.sql)
    connection = await asyncpg.connect(database_url)
    try:
        if not _PREPARABLE.match(sql):
            # LOCK, SET and their like know no parameters: they are run, and leave nothing behind.
            async with connection.transaction(readonly=False):
                await connection.execute(sql)
            return
        statement = await connection.prepare(query.sql)
        for parameter in statement.get_parameters():
            assert parameter.name not in {"unknown", "anyelement", "anyarray"}, "cast it"
        if statement.get_statusmsg() is None and query.operation.name in {"SELECT_ONE", "SELECT"}:
            assert statement.get_attributes(), "it returns no columns; its suffix promises some"
    finally:
        await connection.close()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SQL_DIR).as_posix())
def test_each_query_states_its_purpose_and_has_a_name_of_its_own(file):
    text = file.read_text()
    found = re.findall(
        r"^-- name: *([a-z][a-z0-9_]*)(?:\(.*?\))?([$^!<*#]*)\s*\n(.*)$", text, re.MULTILINE
    )
    assert len(found) == len(names(file)), "a header is malformed"
    assert len({name for name, _, _ in found}) == len(found), "a name is given twice"
    for name, _, following in found:
        assert re.match(r"-- \S", following), f"{name} has no line of purpose below its header"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SQL_DIR).as_posix())
def test_no_page_is_skipped_over_by_offset(file):
    assert not re.search(r"\bOFFSET\b", without_comments(file.read_text()), re.IGNORECASE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SQL_DIR).as_posix())
def test_each_file_has_its_typed_face_beside_it(file):
    face = SQL_DIR.parent / file.relative_to(SQL_DIR).with_suffix(".py")
    assert face.exists(), f"{face} is missing"
    text = face.read_text()
    unused = [name for name in names(file) if not re.search(rf"\b{name}\b", text)]
    assert unused == [], "queries that nobody can call"
