"""Server-sent events are read as the WHATWG rules say."""

import pytest

from fc_operator.kit.event_streams import EventParser


def events(text, last_id=""):
    parser = EventParser(last_id)
    found = [event for line in text.split("\n") if (event := parser.feed(line)) is not None]
    return [(each.event, each.data, each.id) for each in found], parser


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: a\n\n", [("message", "a", "")]),
        ("data:a\ndata: b\n\n", [("message", "a\nb", "")]),
        ("event: log\nid: 7\ndata: x\n\n", [("log", "x", "7")]),
        ("id: 7\ndata: x\n\ndata: y\n\n", [("message", "x", "7"), ("message", "y", "7")]),
        (": a comment\n\ndata: x\n\n", [("message", "x", "")]),
        ("event: e\n\ndata: x\n\n", [("message", "x", "")]),
        ("data:  two spaces\n\n", [("message", " two spaces", "")]),
        ("data\n\n", [("message", "", "")]),
        ("data: cut off", []),
        ("unknown: x\ndata: y\n\n", [("message", "y", "")]),
    ],
)
def test_events(text, expected):
    assert events(text)[0] == expected


def test_an_id_with_a_nul_is_ignored_and_a_wait_is_remembered():
    found, parser = events("id: a\0b\nretry: 250\nretry: soon\ndata: x\n\n", last_id="3")
    assert found == [("message", "x", "3")]
    assert parser.retry_s == 0.25
