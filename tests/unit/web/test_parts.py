"""The pure parts of the web: cursors, ranges, badges, texts, problems, query strings."""

import contextlib
import xml.etree.ElementTree as ET
from types import SimpleNamespace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator import errors
from fc_operator.errors import InvalidError
from fc_operator.kit import metrics
from fc_operator.model.pushes import Push
from fc_operator.model.statuses import BuildStatus
from fc_operator.web import badges, cursors, forges, problems, ranges, requests
from fc_operator.web.api import health, logs, products
from fc_operator.web.api.builds import BuildsQuery
from fc_operator.web.pages import rendering


@given(st.integers(-(2**62), 2**62), st.text(max_size=100))
def test_a_cursor_comes_back_as_it_was(number, text):
    assert cursors.decode(cursors.encode(number, text), tuple[int, str]) == (number, text)


@given(st.text(max_size=3000))
def test_no_word_breaks_a_cursor(word):
    with contextlib.suppress(InvalidError):
        cursors.decode(word, tuple[int])


def test_a_cursor_of_another_list_is_refused():
    with pytest.raises(InvalidError):
        cursors.decode(cursors.encode("name"), tuple[int])
    assert cursors.decode(None, tuple[int]) is None
    assert cursors.decode("", tuple[int]) is None


@given(
    st.one_of(st.none(), st.text(max_size=60), st.from_regex(r"bytes=\d*-\d*")),
    st.integers(0, 1000),
)
def test_a_range_never_leaves_the_body(header, size):
    try:
        part = ranges.parse(header, size)
    except ranges.UnsatisfiableError:
        return
    if part is not None:
        assert 0 <= part[0] < part[1] <= size


@given(st.text(max_size=200), st.sampled_from([None, *BuildStatus]))
def test_a_badge_is_well_formed_whatever_its_label(label, status):
    label = "".join(c for c in label if c.isprintable())
    picture = ET.fromstring(badges.svg(label, status))
    assert picture.tag.endswith("svg")
    assert not list(picture.iter("{http://www.w3.org/2000/svg}script"))


def test_every_status_has_a_badge():
    assert badges.word(BuildStatus.SUCCEEDED) == "passing"
    # FC says that a remembered failure is a success.
    assert badges.colour(BuildStatus.CACHED_FAILURE) == badges.colour(BuildStatus.FAILED)
    for status in BuildStatus:
        assert badges.word(status)


@given(st.text())
def test_a_log_in_a_page_steers_nothing(text):
    shown = rendering.plain(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in shown)
    assert "\x1b" not in shown
    assert "\x9b" not in shown


def test_every_error_of_ours_has_a_status():
    def walk(kind):
        yield kind
        for each in kind.__subclasses__():
            yield from walk(each)

    for kind in walk(errors.FcError):
        body, _ = problems.from_error(kind("why", hint="what"))
        known = kind is not errors.FcError
        assert (body["status"] != 500) == known
        assert (body["detail"] == "why") == known


def test_an_unexpected_error_says_nothing_of_itself():
    body, _ = problems.from_error(ValueError("canary-secret"))
    assert body["status"] == 500
    assert "canary" not in str(body)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("limit=3", {"limit": 3}),
        ("status=failed,timeout", {"status": ["failed", "timeout"]}),
        ("job=a%2Eb", {"job": "a.b"}),
    ],
)
def test_query_strings_become_what_is_declared(text, wanted):
    query = requests.parse_query(SimpleNamespace(query_string=text), BuildsQuery)
    assert {name: getattr(query, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "text",
    [
        "limit=0", "limit=201", "limit=x", "limit=1&limit=2", "nope=1", "status=unknown", "job=%00",
        "job=%ff", "status[]=failed", "job=" + "x" * 3000, "&".join(f"a{n}=1" for n in range(60)),
        "limit=1e3", "limit=true", "limit=", "job=%ef%bf%bd",
    ],
)  # fmt: skip
def test_cve_class_type_confusion_in_query_strings(text):
    """S12, S13, S15."""
    with pytest.raises(InvalidError):
        requests.parse_query(SimpleNamespace(query_string=text), BuildsQuery)


def test_a_heartbeats_age_decides():
    assert health.judge_heartbeat(5, needed=True)["ok"]
    assert not health.judge_heartbeat(31, needed=False)["ok"]
    assert health.judge_heartbeat(None, needed=False)["ok"]
    assert not health.judge_heartbeat(None, needed=True)["ok"]


@pytest.mark.parametrize(
    ("branch", "ref", "default", "wanted"),
    [
        ("main", "refs/heads/main", None, True),
        ("refs/heads/main", "refs/heads/main", None, True),
        ("main", "refs/tags/main", "main", True),
        (None, "refs/heads/main", "main", True),
        (None, "refs/tags/main", "main", False),
        (None, "refs/heads/main", None, False),
        ("release/1", "refs/heads/release/1", "main", True),
        ("1", "refs/heads/release/1", "main", False),
    ],
)
def test_who_follows_a_ref(branch, ref, default, wanted):
    assert Push(ref=ref, default_branch=default).moves(branch) is wanted


@given(st.binary(max_size=300), st.sampled_from(list(forges.DIALECTS)))
def test_no_body_and_no_header_crash_a_forge(body, forge):
    dialect = forges.DIALECTS[forge]
    headers = {dialect.events[0]: next(iter(dialect.pushes)), "content-type": "application/json"}
    assert not forges.is_proven(forge, (), headers, body)
    assert not forges.is_proven(forge, (b"secret",), headers, body)
    with contextlib.suppress(InvalidError):
        forges.push_of(forge, headers, body)
    assert forges.delivery_of(forge, headers, body)


@given(st.text(max_size=300))
def test_a_products_name_never_leaves_its_header(name):
    header = products.attachment(name)
    assert header.isascii()
    assert "\r" not in header
    assert "\n" not in header
    assert header.count('"') == 2


@pytest.mark.parametrize(
    ("declared", "wanted"),
    [
        ("text/plain", "text/plain"),
        ("text/html; charset=utf-8", "text/html; charset=utf-8"),
        ("x", "text/plain"),
        ("text/html\r\nX: y", "text/plain"),
        (None, "text/plain"),
    ],
)
def test_a_products_type_is_one_or_is_guessed(declared, wanted):
    assert products.media_of("a.txt", declared) == wanted
    assert products.media_of("a.unknown", None) == "application/octet-stream"


@given(st.text(max_size=40))
def test_any_last_event_id_is_judged(text):
    try:
        position = logs.parse_position(text)
    except InvalidError:
        return
    assert position is None or position.attempt >= 0


def test_c25_metrics_are_counted_not_queried():
    registry = metrics.Registry()
    counter = registry.counter("x_total", "Things.", ("kind",))
    counter.labels("a").inc()
    registry.computed("y", "Some.", "of", lambda: {"b": 2.0})
    text = registry.render().decode()
    assert 'x_total{kind="a"} 1.0' in text
    assert 'y{of="b"} 2.0' in text
    assert metrics.Registry().render() != b""


def test_bars_add_up():
    parts = rendering.bar({"succeeded": 3, "failed": 1, "pending": 0})
    assert [part[0] for part in parts] == ["succeeded", "failed"]
    assert sum(part[2] for part in parts) == 100
    assert rendering.bar(None) == []


def test_documents_of_types_can_be_made():
    assert msgspec.json.schema(BuildsQuery)
