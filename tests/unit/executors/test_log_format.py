import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fc_operator.executors import log_format
from fc_operator.executors.log_format import (
    BuildStarted,
    LogLine,
    Message,
    PhaseSet,
    Stopped,
    Text,
    TransferStarted,
    parse_line,
)

SAMPLES = Path(__file__).parent / "samples"


def events_of(name):
    lines = (SAMPLES / f"{name}.jsonl").read_bytes().splitlines()
    return [event for event in map(parse_line, lines) if event is not None]


def test_recorded_success_has_build_lines_phase_and_stop():
    events = events_of("nix-2.8-ok")
    (start,) = [e for e in events if isinstance(e, BuildStarted)]
    assert start.drv_path.endswith("-ok.drv")
    assert [e.text for e in events if isinstance(e, LogLine) and e.id == start.id] == [
        "hello",
        "\x1b[31mred\x1b[0m",
        "lastline",
    ]
    assert PhaseSet(start.id, "buildPhase") in events
    assert Stopped(start.id) in events


def test_c20_a_message_that_a_builder_forged_is_not_nixs():
    (forged,) = [
        e for e in events_of("nix-2.8-ok") if isinstance(e, Message) and "timed out" in e.text
    ]
    assert (forged.level, forged.from_nix) == (0, False)


def test_recorded_error_is_nixs_own():
    (error,) = [e for e in events_of("nix-2.8-fail") if isinstance(e, Message) and e.level == 0]
    assert error.from_nix
    assert log_format.strip_ansi(error.text).endswith("failed with exit code 3")


def test_a_log_line_that_looks_like_an_event_stays_a_log_line():
    line = b'@nix {"action":"result","id":7,"type":101,"fields":["@nix {\\"action\\":\\"stop\\"}"]}'
    assert parse_line(line) == LogLine(7, '@nix {"action":"stop"}')


def test_ids_beyond_doubles_are_kept_exactly():
    number = 2**53 + 1
    assert parse_line(b'@nix {"action":"stop","id":%d}' % number) == Stopped(number)


def test_newer_formats_are_understood():
    start = b'@nix {"action":"start","id":1,"level":3,"parent":0,"text":"x","type":105,"fields":["/nix/store/x.drv","ssh://b",1,1]}'
    assert parse_line(start) == BuildStarted(1, "/nix/store/x.drv", "ssh://b")
    fetch = b'@nix {"action":"start","id":2,"level":4,"parent":0,"text":"","type":113,"fields":[]}'
    assert parse_line(fetch) is None
    substitute = b'@nix {"action":"start","id":3,"level":3,"text":"","type":108,"fields":["/nix/store/p","u"]}'
    assert parse_line(substitute) == TransferStarted(3, "/nix/store/p")


def test_progress_is_dropped_and_bare_lines_are_text():
    assert parse_line(b'@nix {"action":"result","fields":[0,1,0,0],"id":4,"type":105}') is None
    assert parse_line(b"warning: from a remote") == Text("warning: from a remote")
    assert parse_line(b"@nix {broken") == Text("@nix {broken")
    assert parse_line(b"") is None


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda b: b"@nix " + b))
def test_no_line_raises(line):
    parse_line(line)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["action", "id", "type", "fields", "level", "msg", "raw_msg"]),
                inner | st.sampled_from(["start", "stop", "result", "msg", 105, 101, 104]),
            )
        ),
    )
)
def test_no_record_raises(record):
    import json

    parse_line(b"@nix " + json.dumps(record).encode())


def test_s08_a_phase_is_printable_and_short_whatever_the_builder_calls_it():
    """A null in it made the result of the whole build unwritable, and the build run again."""
    line = {"action": "result", "id": 1, "type": 104, "fields": ["a\0b\x1b[1m" + "c" * 1000]}
    event = parse_line(b"@nix " + json.dumps(line).encode())
    assert event == PhaseSet(1, "ab[1m" + "c" * 195)
