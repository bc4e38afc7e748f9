"""Writes ``config/fc.example.yaml`` from the settings, their explanations and their defaults.

Run it with ``python -m tests.house.example_settings`` after a change of ``settings.py``; a test
compares.
"""

from __future__ import annotations

import ast
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

from fc_operator import settings
from fc_operator.kit import documents

ROOT = Path(__file__).parents[2]
FILE = ROOT / "config" / "fc.example.yaml"
_HEAD = """\
# Every setting of FC Operator with its default. Keep only what you change.
#
# Read by `fc up`, `fc server` and `fc scheduler` with --settings FILE or FC_CONFIG_FILE. The environment
# outranks this file (FC_<GROUP>_<SETTING>, for example FC_WEB_PORT), and flags outrank both.
# An unknown or wrong setting is refused by its name.
"""


def explanations() -> dict[str, dict[str, str]]:
    """Of each class of settings.py, its own docstring (under "") and each field's."""
    found: dict[str, dict[str, str]] = {}
    tree = ast.parse(Path(settings.__file__).read_text())
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        words = found.setdefault(node.name, {"": ast.get_docstring(node) or ""})
        for statement, after in zip(node.body, node.body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                words[statement.target.id] = " ".join(str(after.value.value).split())
    return found


def comment(text: str, indent: str) -> list[str]:
    """Text as comment lines; double backquotes are for pages, not for YAML."""
    return textwrap.wrap(
        text.replace("``", "`"), 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )


def value(of: Any) -> str:
    """A default as YAML in one line."""
    plain = list(of) if isinstance(of, tuple) else str(of) if isinstance(of, Path) else of
    if isinstance(plain, list):
        return f"[{', '.join(plain)}]"
    if plain == "":
        return '""'
    return documents.dump(plain).removesuffix("\n...\n").strip()


def render() -> str:
    """The whole file."""
    words = explanations()
    lines = [_HEAD]
    defaults = settings.Settings()
    for group in fields(settings.Settings):
        content = getattr(defaults, group.name)
        explained = words[type(content).__name__]
        lines += [*comment(explained[""], ""), f"{group.name}:"]
        for each in fields(content):
            lines += comment(explained[each.name], "  ")
            lines.append(f"  {each.name}: {value(getattr(content, each.name))}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    FILE.write_text(render())
