"""The tables of legal transitions in ``model.statuses`` and the triggers say the same, both ways."""

import asyncpg
import pytest

from fc_operator.model import statuses
from fc_operator.model.statuses import BuildStatus, EvaluationStatus

ROWS = {
    "builds": (BuildStatus, statuses.TRANSITIONS),
    "steps": (BuildStatus, statuses.TRANSITIONS),
    "evaluations": (EvaluationStatus, statuses.EVALUATION_TRANSITIONS),
}
SETUP = """
    INSERT INTO projects (name, repository_url) VALUES ('demo', 'https://git.example.org/a');
    INSERT INTO jobsets (project_id, name, nix_expression) SELECT id, 'main', 'x' FROM projects;
    INSERT INTO evaluations (jobset_id, commit_hash, status)
        SELECT id, repeat('a', 40), 'pending' FROM jobsets;
    INSERT INTO step_classes (system) VALUES ('x86_64-linux');
    INSERT INTO steps (drv_path, name, class_id) SELECT 'd', 'd', id FROM step_classes;
    INSERT INTO builds (evaluation_id, job_name, drv_path, system, status)
        SELECT id, 'a', 'd', 'x86_64-linux', 'pending' FROM evaluations;
"""


async def possible(connection, table: str, trigger: str, words) -> set[tuple[str, str]]:
    """Every pair (from, to) that an UPDATE of ``table`` lets through."""
    found = set()
    for before in words:
        for after in words:
            transaction = connection.transaction()
            await transaction.start()
            # The way to `before` is not what is asked here.
            await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
            await connection.execute(f"UPDATE {table} SET status = $1", before)
            await connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER {trigger}")
            try:
                await connection.execute(f"UPDATE {table} SET status = $1", after)
                found.add((str(before), str(after)))
            except asyncpg.CheckViolationError as error:
                if f"from {before} to {after}" not in str(error):
                    raise
            finally:
                await transaction.rollback()
    return found


@pytest.mark.parametrize("table", ROWS)
async def test_the_triggers_let_through_what_the_model_allows_and_nothing_else(database_url, table):
    words, transitions = ROWS[table]
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(SETUP)
        legal = {(str(a), str(b)) for a, allowed in transitions.items() for b in allowed}
        same = {(str(word), str(word)) for word in words}
        assert await possible(connection, table, f"{table}_check_transition", words) == legal | same
    finally:
        await connection.close()


@pytest.mark.parametrize("table", ROWS)
async def test_the_column_knows_the_words_of_the_model_and_no_others(database_url, table):
    import re

    connection = await asyncpg.connect(database_url)
    definition = await connection.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = $1",
        f"{table}_status_check",
    )
    await connection.close()
    assert set(re.findall(r"'([^']*)'", definition)) == {str(word) for word in ROWS[table][0]}


async def test_an_attempt_ends_as_a_step_ends_or_is_lost(database_url):
    import re

    connection = await asyncpg.connect(database_url)
    definition = await connection.fetchval(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'attempts_status_check'"
    )
    await connection.close()
    words = {str(status) for status in statuses.TERMINAL} | {"lost"}
    assert set(re.findall(r"'([^']*)'", definition)) == words


def test_every_status_has_its_row_in_the_table():
    for words, transitions in ROWS.values():
        assert set(transitions) == set(words)


def test_the_sets_of_statuses_fit_each_other():
    assert set(BuildStatus) == statuses.LIVE | statuses.TERMINAL
    assert not statuses.LIVE & statuses.TERMINAL
    assert statuses.OUTPUTS_VALID | statuses.BLOCKING == statuses.TERMINAL
    assert not statuses.OUTPUTS_VALID & statuses.BLOCKING
    assert statuses.REMEMBERED <= statuses.BLOCKING


async def test_what_lets_dependents_go_on_is_the_same_in_sql(database_url):
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch(
        "SELECT s, fc_outputs_valid(s, false) AS plain, fc_outputs_valid(s, true) AS checked"
        " FROM unnest($1::text[]) AS s",
        [str(status) for status in BuildStatus],
    )
    await connection.close()
    assert {row["s"] for row in rows if row["plain"]} == {
        str(each) for each in statuses.OUTPUTS_VALID
    }
    assert all(row["checked"] for row in rows)
