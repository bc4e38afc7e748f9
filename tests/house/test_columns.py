"""ARCHITECTURE.md's table of the first columns against the schema, the store and the API."""

import re
from pathlib import Path

import asyncpg
import pytest

from fc_operator.store import migrations
from fc_operator.web import openapi
from fc_operator.web.route_table import ROUTES

ROOT = Path(__file__).parents[2]
STORE = ROOT / "fc_operator" / "store"
PARTS = {"accounts", "SSH", "pull requests", "binary cache", "deliveries"}
"""What the columns that wait may wait for."""
_ROW = re.compile(r"^\| (\w+) \| ((?:`\w+` ?)+)\| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def table() -> list[tuple[str, tuple[str, ...], str, str]]:
    """(table, columns, filled by, seen in) of each row."""
    text = (ROOT / "ARCHITECTURE.md").read_text().split("## The columns that we started with")[1]
    return [
        (name, tuple(re.findall(r"`(\w+)`", columns)), filled.strip(), seen.strip())
        for name, columns, filled, seen in _ROW.findall(text)
    ]


ROWS = table()
IDS = [f"{name}.{columns[0]}" for name, columns, _, _ in ROWS]


async def columns_of(url: str) -> set[tuple[str, str]]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        """
        SELECT table_name, column_name FROM information_schema.columns
        JOIN pg_class ON relname = table_name AND relkind = 'r'
        WHERE table_schema = 'public' AND table_name <> 'alembic_version'
        """
    )
    await connection.close()
    return {tuple(row) for row in rows}


@pytest.fixture
async def first_columns(empty_database_url):
    """The columns after the first revision, which is the seed."""
    await migrations.migrate(empty_database_url, target="0001")
    return await columns_of(empty_database_url)


async def test_each_column_that_we_started_with_has_its_place(first_columns):
    listed = [(name, column) for name, columns, _, _ in ROWS for column in columns]
    assert len(listed) == len(set(listed)), "a column is listed twice"
    assert set(listed) == first_columns


async def test_what_is_said_to_have_gone_is_gone_and_all_else_is_there(database_url, first_columns):
    present = await columns_of(database_url)
    gone = {
        (name, c)
        for name, columns, filled, _ in ROWS
        if filled.startswith("went in")
        for c in columns
    }
    assert gone == first_columns - present


@pytest.mark.parametrize(("name", "columns", "filled", "seen"), ROWS, ids=IDS)
def test_who_fills_a_column_names_it(name, columns, filled, seen):
    if went := re.fullmatch(r"went in (\d{4})", filled):
        (sql,) = (ROOT / "migrations" / "sql").glob(f"{went[1]}_*.sql")
        for column in columns:
            assert re.search(rf"DROP COLUMN {column}\b", sql.read_text())
        assert seen, "say why it went"
        return
    if filled in {"key", "key, times"}:
        assert all(re.search(r"(^|_)(id|at|time)$", column) for column in columns), columns
        return
    if waits := re.fullmatch(r"later: ([\w ]+)", filled):
        assert waits[1] in PARTS
        return
    modules = re.findall(r"`store\.(\w+)`", filled)
    assert modules, "name the module of the store"
    text = "".join(
        path.read_text()
        for module in modules
        for path in (STORE / f"{module}.py", STORE / "sql" / f"{module}.sql")
        if path.exists()
    )
    assert [column for column in columns if not re.search(rf"\b{column}\b", text)] == []


def properties(node, components, below=frozenset()) -> set[str]:
    """The names of all fields below a part of an OpenAPI document."""
    found = set()
    if isinstance(node, list):
        return set().union(*(properties(item, components, below) for item in node))
    if not isinstance(node, dict):
        return found
    if "$ref" in node and node["$ref"] not in below:
        target = components[node["$ref"].rsplit("/", 1)[1]]
        found |= properties(target, components, below | {node["$ref"]})
    found |= set(node.get("properties", {})) if isinstance(node.get("properties"), dict) else set()
    for item in node.values():
        found |= properties(item, components, below)
    return found


DOCUMENT = openapi.document(ROUTES, version="0")
PATHS = {re.sub(r":\w+>", ">", route.path).removeprefix("/api/v1") for route in ROUTES}


def fields_of(path: str) -> set[str]:
    """The fields that a GET answers with."""
    operations = DOCUMENT["paths"]["/api/v1" + re.sub(r"<(\w+)>", r"{\1}", path)]
    return properties(operations["get"]["responses"]["200"], DOCUMENT["components"]["schemas"])


@pytest.mark.parametrize(("name", "columns", "filled", "seen"), ROWS, ids=IDS)
def test_where_a_column_is_seen_it_is(name, columns, filled, seen):
    if filled.startswith("went in"):
        return
    if waits := re.fullmatch(r"later: ([\w ]+)", seen):
        assert waits[1] in PARTS
        return
    routes = re.findall(r"`(/[^`]*)`", seen)
    for path in routes:
        assert path in PATHS, f"there is no route {path}"
    if filled.startswith("key") or not re.match(r"`/[^`]*`($| as )", seen):
        return  # a key is seen in its row; an effect is said in words
    also = set(re.findall(r"`(\w+)`", seen.partition(" as ")[2]))
    shown = fields_of(routes[0])
    assert also <= shown
    missing = [column for column in columns if column not in shown]
    assert len(missing) == len(also), f"{missing} are shown under other names: {also}"


async def test_the_three_views_are_there_and_served(database_url):
    connection = await asyncpg.connect(database_url)
    views = {
        row[0]
        for row in await connection.fetch(
            "SELECT viewname FROM pg_views WHERE schemaname = 'public'"
        )
    }
    await connection.close()
    assert views == {"active_jobsets", "build_stats", "build_metrics_summary"}
    pages = "".join(path.read_text() for path in (STORE / "sql" / "pages").glob("*.sql"))
    for view in views:
        assert re.search(rf"\b{view}\b", pages), f"nobody serves {view}"
