"""How answers are printed: aligned columns, words for values, and foreign text that is tamed."""

import io
import json
from datetime import UTC, datetime

import pytest

from fc_operator.cli import outputs
from fc_operator.cli.outputs import Column, field

COLUMNS = (Column("NAME", field("name")), Column("STATUS", field("deep.status")))
ITEMS = [
    {"name": "a" * 300, "deep": {"status": "succeeded"}},
    {"name": "b", "deep": None},
]


def test_a_table_without_a_terminal_is_plain_aligned_columns_of_any_width(capsys):
    outputs.print_table(COLUMNS, ITEMS)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "STATUS"], ["a" * 300, "succeeded"], ["b", "-"],
    ]  # fmt: skip
    assert "\x1b" not in "".join(lines)


def test_nothing_is_said_where_it_does_not_disturb(capsys):
    outputs.print_table(COLUMNS, [], nothing="no builds")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no builds\n")


def test_data_is_whole(capsys):
    outputs.show("json", {"items": ITEMS}, COLUMNS, ITEMS)
    assert json.loads(capsys.readouterr().out) == {"items": ITEMS}
    outputs.show("yaml", ITEMS[1:], COLUMNS, ITEMS)
    assert capsys.readouterr().out == "- name: b\n  deep: null\n"


@pytest.mark.parametrize(
    ("value", "word"),
    [(None, "-"), (True, "yes"), ([], "-"), (["a", "b"], "a,b"), (0.5, "0.5"), (3, "3")],
)
def test_values_as_words(value, word):
    assert outputs.said(value) == word


@pytest.mark.parametrize(
    ("seconds", "word"),
    [(None, None), (0.44, "0.4s"), (-1, "0.0s"), (59.9, "59s"), (432, "7m12s"), (11_100, "3h5m"),
     (900_000, "10d")],
)  # fmt: skip
def test_durations(seconds, word):
    assert outputs.lasted(seconds) == word


def test_ages():
    assert outputs.ago("2026-01-01T00:00:00Z", datetime(2026, 1, 1, 0, 5, tzinfo=UTC)) == "5m0s"
    assert outputs.ago(None) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\tä ✓\r\n", "plain\n\tä ✓\r\n"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("a\x1b[2Jb", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;Zm9v\x1b\\b", "ab"),
        ("a\x1bPq#0\x1b\\b", "ab"),
        ("a\x1bcb", "ab"),
        ("a\x9b2Jb", "a2Jb"),
        ("a\x08\x00b", "ab"),
    ],
)
def test_a_log_may_colour_a_terminal_and_nothing_else(text, shown):
    assert outputs.tame(text) == shown


def test_a_cell_can_not_fake_a_line():
    assert outputs.cell("a\nb\x1b[2J").plain == "a b?[2J"


def test_colours_only_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", Terminal())
    assert outputs.console().is_terminal
