"""The table of good and bad manifests in ``tests/manifests`` and how its marks are read."""

import re
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "manifests"
_MARK = re.compile(r"# problem(?: here| in text)?: (.*)$")


def marked(text: str) -> list[tuple[int, str, str]]:
    """(line, field, message) of every problem that a file's comments name."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if mark := _MARK.search(line):
            for each in mark[1].split("; problem: "):
                field, _, message = each.partition("|")
                found.append((number, field.strip(), message.strip()))
    return sorted(found)


def pytest_generate_tests(metafunc):
    """``good_file``, ``bad_file`` and ``change_file`` run over the files of their folder."""
    for name, folder in (("good_file", "good"), ("bad_file", "bad"), ("change_file", "changes")):
        if name in metafunc.fixturenames:
            files = sorted((TABLE / folder).iterdir())
            assert files
            metafunc.parametrize(name, files, ids=lambda file: file.name)


@pytest.fixture
def expected(request):
    """What the marks of the present file say."""
    for name in ("bad_file", "change_file"):
        if name in request.fixturenames:
            return marked(request.getfixturevalue(name).read_text())
    return []
