"""The table of good and bad manifests in ``tests/manifests``, one file at a time."""

import pytest

from tests.manifests import table


def marked(text: str) -> list[tuple[int, str, str]]:
    """(line, field, message) of every problem that a file's comments name."""
    return sorted((mark.line, mark.field, mark.message) for mark in table.marks(text))


def pytest_generate_tests(metafunc):
    """``good_file``, ``bad_file`` and ``change_file`` run over the files of their folder."""
    for name, folder in (("good_file", "good"), ("bad_file", "bad"), ("change_file", "changes")):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, table.files(folder), ids=lambda file: file.name)


@pytest.fixture
def expected(request):
    """What the marks of the present file say."""
    for name in ("bad_file", "change_file"):
        if name in request.fixturenames:
            return marked(request.getfixturevalue(name).read_text())
    return []
