"""YAML and JSON from strangers: what is read, what is refused, and what a refusal costs."""

import json
import math
import resource
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.kit import documents
from fc_operator.kit.documents import Limits


def value(text: str):
    """The only value of a text without problems."""
    read, problems = documents.load(text.encode())
    assert problems == []
    (document,) = read
    return document.value


def problem(data: str | bytes, **limits):
    """The only problem of bytes that are refused."""
    raw = data.encode() if isinstance(data, str) else data
    _, problems = documents.load(raw, limits=Limits(**limits) if limits else None)
    (one,) = problems
    return one


# Scalars, as kubectl reads them -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("yes", True),
        ("off", False),
        ("n", False),
        ("'yes'", "yes"),
        ('"null"', "null"),
        ("!!str true", "true"),
        ("!!str", ""),
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("0x1F", 31),
        ("010", 8),
        ("0o10", 8),
        ("0b11", 3),
        ("1_000", 1000),
        ("08", 8.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("9223372036854775807", 2**63 - 1),
        ("!!int 7", 7),
        ("!!float 7", 7),
        ("1:30", "1:30"),
        ("2026-11-25", "2026-11-25"),
        ("2026-11-25T00:00:00Z", "2026-11-25T00:00:00Z"),
        ("!!timestamp 2026-11-25", "2026-11-25"),
        ("-x", "-x"),
        ("1.2.3", "1.2.3"),
        ("0x", "0x"),
        ("nano", "nano"),
        ("Infinite", "Infinite"),
        ("|\n  a\n  b\n", "a\nb\n"),
        (">\n  a\n  b\n", "a b\n"),
        ("ä€😀", "ä€😀"),
    ],
)
def test_a_scalar_is_read_as_kubectl_reads_it(text, expected):
    read = value(f"key: {text}")["key"]
    assert read == expected
    assert type(read) is type(expected)


@pytest.mark.parametrize("text", ["a:", "a:\n", "a: \n", "{a: }", "{a}", "? a", '{"a": null}'])
def test_a_key_without_a_value_is_null(text):
    assert value(text) == {"a": None}


@pytest.mark.parametrize(
    "text", [".nan", ".NaN", "NaN", "nan", ".inf", "-.Inf", "Infinity", "-inf"]
)
def test_c16_what_is_no_finite_number_is_refused(text):
    one = problem(f"a: 1\nb: {text}")
    assert one.line == 2
    assert "can be kept" in one.message


@pytest.mark.parametrize("text", ["9" * 20, "-" + "9" * 19, "0x" + "f" * 17, "1e999", "-1e400"])
def test_c16_a_huge_number_is_refused(text):
    assert "too large" in problem(f"a: {text}").message


def test_digits_beyond_any_number_are_text():
    assert value("a: " + "9" * 5_000)["a"] == "9" * 5_000


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system [id]",
        "!!python/name:os.system ''",
        "!!python/tuple [1]",
        "!!binary aGk=",
        "!!set {a}",
        "!!omap [a: 1]",
        "!mine x",
        "!<tag:example.org,2026:x> {a: 1}",
        "!!bool 7",
        "!!int seven",
        "!!null x",
    ],
)
def test_c16_tags_are_refused(text):
    assert "tag" in problem(f"x: 1\na: {text}\n").message
    assert problem(f"x: 1\na: {text}\n").line == 2


def test_c16_a_tag_behind_a_handle_is_refused():
    text = "%TAG !py! tag:yaml.org,2002:python/\n---\na: !py!object/apply:os.system [id]\n"
    assert "python/object/apply:os.system is not allowed" in problem(text).message


# Structure ----------------------------------------------------------------------------------


def test_keys_are_text_and_given_once():
    assert value("1: a\ntrue: b\n~: c\n") == {"1": "a", "true": "b", "~": "c"}
    one = problem("a: 1\nb: 2\na: 3\n")
    assert (one.line, one.message) == (3, "the key 'a' is given twice (first on line 1)")
    assert "given twice" in problem('{"a": 1, "a": 2}').message
    assert "given twice" in problem("a: 1\n'a': 2\n").message
    assert "a key must be text" in problem("? [a]\n: 1\n").message
    assert "a key must be text" in problem("? {a: b}\n: 1\n").message
    assert "anchor on a key" in problem("&a k: 1\n").message
    assert "tag" in problem("!!int 7: 1\n").message


def test_aliases_and_merge_keys():
    text = "a: &x {p: 1, q: 2}\nb: *x\nc: {<<: *x, q: 3}\nd: {<<: [*x, {r: 4}]}\n"
    assert value(text) == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 2},
        "c": {"q": 3, "p": 1},
        "d": {"p": 1, "q": 2, "r": 4},
    }
    assert value("'<<': 1") == {"<<": 1}
    assert "<< takes a mapping" in problem("a: {<<: 7}").message
    assert "<< takes a mapping" in problem("a: {<<: [7]}").message
    assert "has no anchor before it" in problem("a: *x").message
    assert "contains itself" in problem("a: &x [*x]").message
    assert "contains itself" in problem("&x a: &y {b: *y}".replace("&x ", "")).message
    assert value("a: &x 1\nb: &x 2\nc: *x\n")["c"] == 2
    # An anchor lives in its own document only.
    read, problems = documents.load(b"a: &x 1\n---\nb: *x\n")
    assert [each.value for each in read] == [{"a": 1}]
    assert problems[0].line == 3


def test_lines_are_those_of_keys_and_of_aliases():
    text = "a: 1\nb:\n  - x\n  - c: 2\n    d: &s {e: 3}\nf: *s\ng:\n  <<: *s\n"
    lines = documents.load(text.encode())[0][0].lines
    assert lines.at(()) == 1
    assert lines.at(("b",)) == 2
    assert lines.at(("b", 0)) == 3
    assert lines.at(("b", 1, "d", "e")) == 5
    assert lines.at(("f",)) == 6
    assert lines.at(("g", "e")) == 5
    assert lines.at(("b", 9, "nothing", 3)) == 2
    assert lines.at((0,)) == 1


def test_documents_are_told_apart_and_empty_ones_left_out():
    read, problems = documents.load(
        b"a: 1\n---\n---\n# only a comment\n---\nb: 2\n...\n---\nc: 3\n"
    )
    assert problems == []
    assert [(each.value, each.line) for each in read] == [
        ({"a": 1}, 1),
        ({"b": 2}, 6),
        ({"c": 3}, 9),
    ]
    assert documents.load(b"") == ([], [])
    assert documents.load(b"\xef\xbb\xbfa: 1")[0][0].value == {"a": 1}


def test_json_is_taken_with_its_tabs_and_escapes():
    text = '{\n\t"a": ["\\ud83d\\ude00", "\\u00e4", "\\/", "a\\tb", "\\\\ud83d\\\\ude00"],\n\t"b": {}\n}'
    assert value(text) == json.loads(text)
    assert value('[{"a":1},{"b":[]}]') == [{"a": 1}, {"b": []}]
    assert documents.load(text.encode())[0][0].lines.at(("b",)) == 3
    assert problem('{"a": "\\ud83d"}').message.startswith("this is not YAML")
    assert "a key" in problem('{"a": NaN, "a": 1}').message or problem('{"a": NaN}').message
    # Only JSON is touched: in YAML's single quotes a backslash is a backslash.
    assert value("a: '\\ud83d\\ude00'")["a"] == "\\ud83d\\ude00"


@pytest.mark.parametrize(
    ("data", "words", "line"),
    [
        (b"a: 1\nb: \xff\n", "not UTF-8", 2),
        ("a: 1".encode("utf-16"), "not UTF-8", 1),
        (b"a: \x00", "not YAML", 1),
        (b"a: [1\n", "not YAML", 2),
        (b"a: 1\n  b: 2\n", "not YAML", 2),
        (b"\ta: 1\n", "not YAML", 1),
        (b"%FOO\n", "not YAML", 1),
        (b"a: 'x\n", "not YAML", 2),
        (b'a: "\\ud800"\n', "not YAML", 1),
        (b"a: b: c\n", "not YAML", 1),
    ],
)
def test_what_is_no_yaml_is_refused_with_its_line(data, words, line):
    one = problem(data)
    assert words in one.message
    assert "\n" not in one.message
    assert one.line == line


# Bombs --------------------------------------------------------------------------------------


def laughs(width: int, height: int) -> str:
    text = "a0: &a0 [" + ",".join(["x"] * width) + "]\n"
    for level in range(1, height):
        text += f"a{level}: &a{level} [" + ",".join([f"*a{level - 1}"] * width) + "]\n"
    return text


BOMBS = {
    "billion laughs": laughs(9, 10),
    "laughs by merging": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{l: *a{n - 1}, r: *a{n - 1}}}\n" for n in range(1, 40)),
    "laughs below the root": "x: &x {y: &y [1,2,3,4,5,6,7,8,9]}\n" + "z: [" + "*y," * 5_000 + "]",
    "deep lists": "[" * 500_000,
    "deep mappings": "{a: " * 200_000,
    "deep blocks": "- " * 500_000,
    "deep by aliases": "a0: &a0 [x]\n"
    + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2_000)),
    "questions": "? " * 500_000,
    "ten megabytes": "a: " + "x" * 10_000_000,
    "one megabyte of values": "[" + "a," * 500_000 + "]",
    "one megabyte of keys": "".join(f"k{n}: 1\n" for n in range(90_000)),
    "one megabyte of documents": "---\n" * 260_000,
    "one megabyte of small documents": "---\na: 1\n" * 100_000,
    "one megabyte of anchors": "".join(f"- &a{n} x\n" for n in range(80_000)),
    "one key of a megabyte": "? " + "k" * 500_000 + "\n: 1\n? " + "k" * 500_000 + "\n: 1\n",
    "a tag of a megabyte": "a: !" + "t" * 1_000_000 + " x",
    "an alias of a megabyte": "a: *" + "t" * 1_000_000,
}


def cheapest(call):
    """(CPU seconds, result) of the best of ten: what it costs, not what else the machine does."""
    costs = []
    for _ in range(10):
        began_s = time.process_time()
        result = call()
        costs.append(time.process_time() - began_s)
    return min(costs), result


@pytest.mark.parametrize("name", BOMBS)
def test_c16_a_bomb_is_refused_in_100_ms_and_20_mib(name):
    data = BOMBS[name].encode()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took_s, (_, problems) = cheapest(lambda: documents.load(data))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    assert len(problems) == 1
    assert len(problems[0].message) < 300
    assert took_s < 0.1
    assert grown_mib < 20


def test_what_is_large_and_harmless_is_read():
    text = "a: |\n" + "  " + "x" * 900_000 + "\n"
    assert len(value(text)["a"]) == 900_001
    assert len(value("[" + "1," * 9_990 + "]")) == 9_990


def test_the_limits_are_those_that_are_given():
    assert "more than 3" in problem("a: [1, 2, 3]", nodes=3).message
    assert "more than 10" in problem("a: 12345678", size_bytes=10).message
    assert "deeper than 2" in problem("[[[1]]]", depth=2).message
    assert documents.load(b"[[1]]", limits=Limits(depth=2))[1] == []
    assert "too many values" in problem("[1, 2]\n---\n[1, 2]\n", nodes_total=5).message
    assert "more than 1 documents" in problem("a: 1\n---\nb: 1\n", documents=1).message


# Properties ---------------------------------------------------------------------------------

characters = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(characters, max_size=30),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(characters, max_size=10).filter(lambda key: key != "<<"),
            inner,
            max_size=4,
        )
    ),
    max_leaves=30,
)


@given(st.binary(max_size=300))
def test_no_bytes_make_it_raise(data):
    documents.load(data)


@given(
    st.lists(
        st.sampled_from(
            ["a", "b", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&x ", "*x", "<<", "? ", "|", ">",
             "'", '"', "#", "---\n", "...", "!", "!!str ", "!!int ", "1", ".", "e9", "~", "%", "@", "\t", "\\u"]
        ),
        max_size=40,
    )
)  # fmt: skip
def test_no_text_that_looks_like_yaml_makes_it_raise(parts):
    read, problems = documents.load("".join(parts).encode())
    for document in read:
        json.dumps(document.value, allow_nan=False)
    assert all(each.line >= 1 for each in problems)


@given(plain)
def test_what_is_dumped_is_read_back(thing):
    read, problems = documents.load(documents.dump(thing).encode())
    assert problems == []
    assert [each.value for each in read] == ([] if thing is None else [thing])


@given(st.lists(plain.filter(lambda thing: thing is not None), max_size=4))
def test_several_documents_are_read_back(things):
    read, problems = documents.load(documents.dump(*things).encode())
    assert problems == []
    assert [each.value for each in read] == things


@given(plain)
def test_json_is_read_as_json_reads_it(thing):
    for whole in ({"k": thing}, [thing]):
        for text in (json.dumps(whole), json.dumps(whole, indent="\t", ensure_ascii=False)):
            read, problems = documents.load(text.encode())
            assert problems == []
            assert [each.value for each in read] == [json.loads(text)]


@given(st.floats())
def test_no_float_that_json_can_not_hold_comes_out(number):
    read, _ = documents.load(f"a: {number!r}\n".encode())
    for document in read:
        assert not isinstance(document.value["a"], float) or math.isfinite(document.value["a"])
