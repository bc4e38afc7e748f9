"""The house rules that tools can hold: arrows, charters, SQL in its files, the tested map."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fc_operator"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_imports_follow_the_arrows(monkeypatch):
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    monkeypatch.chdir(ROOT)
    assert lint_imports(no_cache=True) == EXIT_STATUS_SUCCESS


@pytest.mark.parametrize("room", ROOMS)
def test_a_rooms_init_is_its_charter_and_nothing_else(room):
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_states_its_reason(path):
    assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


_SQL = re.compile(
    r"^\s*(SELECT\s.+\sFROM\s|INSERT\s+INTO\s|UPDATE\s+\w+\s+SET\s|DELETE\s+FROM\s|WITH\s+\w+\s+AS\s*\()",
    re.IGNORECASE | re.DOTALL,
)
_MAY_HOLD_SQL = {
    "store/embedded.py",
    "store/migrations.py",
    "store/database.py",
    "store/listener.py",
}


def sql_literals(source: str) -> list[str]:
    """String literals that read like a statement."""
    tree = ast.parse(source)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
        and _SQL.search(node.value)
    ]


def test_the_sql_rule_sees_a_plain_literal():
    assert sql_literals('x = "SELECT a FROM b"')
    assert sql_literals('async def f():\n    """Doc."""\n    await c.execute("UPDATE t SET a = 1")')
    assert not sql_literals('"""SELECT a FROM b"""')


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_sql_lives_in_sql_files(path):
    if str(path.relative_to(PACKAGE)) not in _MAY_HOLD_SQL:
        assert sql_literals(path.read_text()) == []


def test_no_bucket_modules():
    banned = re.compile(r"^(utils?|common|helpers?|misc|manager|base_.*)$")
    assert [path for path in MODULES if banned.match(path.stem)] == []


@pytest.fixture(scope="module")
def architecture() -> str:
    return (ROOT / "ARCHITECTURE.md").read_text()


def test_the_map_names_every_room(architecture):
    for room in ROOMS:
        assert f"`{room}/`" in architecture, f"ARCHITECTURE.md does not name the room {room}/"


def test_every_path_and_symbol_of_the_map_exists(architecture):
    for path in re.findall(
        r"`((?:fc_operator|crds|config|migrations|tests|benchmarks)/[\w./-]*)`", architecture
    ):
        assert (ROOT / path).exists(), f"ARCHITECTURE.md names {path}"
    for room in re.findall(r"^\| `(\w+)/` \|", architecture, re.MULTILINE):
        assert (PACKAGE / room).is_dir(), f"ARCHITECTURE.md names the room {room}/"
    for dotted in set(re.findall(r"`((?:" + "|".join(ROOMS) + r")(?:\.\w+)+)`", architecture)):
        resolve(dotted)


def resolve(dotted: str) -> None:
    """Import ``room.module.symbol`` (or ``room.module``) or fail with its name."""
    parts = ["fc_operator", *dotted.split(".")]
    for cut in range(len(parts), 1, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            assert hasattr(found, name), f"ARCHITECTURE.md names {dotted}"
            found = getattr(found, name)
        return
    pytest.fail(f"ARCHITECTURE.md names {dotted}")
