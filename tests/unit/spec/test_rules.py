"""CEL as the API server reads it: errors, splitting, transitions, what is remembered."""

import celpy
import pytest
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.spec import rules
from fc_operator.spec.rules import Rule, RuleTree, split

TEXT = "!has(self.a) || self.a == 'x' && has(self.b) || self.b == 'y'"
PARTS = Rule({"rule": TEXT})
WHOLE = celpy.Environment().program(celpy.Environment().compile(TEXT))


def holds(text, value, old=None):
    return Rule({"rule": text, "message": "m"}).holds(value, old)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a || b", ["a ", " b"]),
        ("a", ["a"]),
        ("(a || b) || c", ["(a || b) ", " c"]),
        ("'||' == x || y", ["'||' == x ", " y"]),
        ("f(a || b)", ["f(a || b)"]),
        ("[a || b][0] || c", ["[a || b][0] ", " c"]),
        ("a ? b || c : d || e", ["a ? b || c : d || e"]),
        (r"'\'||' == x || y", [r"'\'||' == x ", " y"]),
    ],
)
def test_a_rule_is_split_only_outside_of_brackets_and_quotes(text, parts):
    assert split(text, "||") == parts


@pytest.mark.parametrize(
    ("text", "value", "verdict"),
    [
        ("self.a == 1", {"a": 1}, True),
        ("self.a == 1", {"a": 2}, False),
        ("!has(self.a) || self.a == 1", {}, True),
        ("!has(self.a) || self.a == 1", {"a": 2}, False),
        ("has(self.a) && self.a.size() > 0", {"a": []}, False),
        ("has(self.a) && self.a.size() > 0", {"a": [1]}, True),
        # An error is not true, and `error || true` is true.
        ("self.a == 1", {}, False),
        ("self.a == 1 || self.b == 2", {"b": 2}, True),
        ("self.b == 2 || self.a == 1", {"b": 2}, True),
        ("self.a.matches('^x$')", {"a": "x"}, True),
        ("self.a.matches('^x$')", {"a": "x\n"}, False),
        ("self.a.matches('b')", {"a": "abc"}, True),
        ("self.a in ['x', 'y']", {"a": "y"}, True),
        ("self.a.all(i, i.t == 'G')", {"a": [{"t": "G"}, {"t": "H"}]}, False),
        ("duration(self.a) >= duration('1s')", {"a": "1h30m"}, True),
        ("duration(self.a) >= duration('1s')", {"a": "999ms"}, False),
        ("duration(self.a) >= duration('1s')", {"a": "9999999999h"}, False),
    ],
)
def test_a_rule_holds_as_at_the_api_server(text, value, verdict):
    assert holds(text, value) is verdict
    assert holds(text, value) is verdict


def test_a_transition_is_judged_only_where_there_was_something_before():
    schema = {
        "properties": {
            "spec": {
                "x-kubernetes-validations": [
                    {"rule": "self.a == oldSelf.a", "message": "fixed", "fieldPath": ".a"}
                ]
            }
        }
    }
    tree = RuleTree.of(schema)
    assert list(tree.check({"spec": {"a": 1}})) == []
    assert list(tree.check({"spec": {"a": 1}}, {})) == []
    assert list(tree.check({"spec": {"a": 1}}, {"spec": {"a": 1}})) == []
    (broken,) = tree.check({"spec": {"a": 2}}, {"spec": {"a": 1}})
    assert (broken.path, broken.message) == (("spec", "a"), "fixed")


def test_the_place_of_a_broken_rule_counts_list_items():
    tree = RuleTree.of(
        {
            "properties": {
                "l": {
                    "items": {
                        "x-kubernetes-validations": [
                            {"rule": "self.v == 'x'", "message": "m", "fieldPath": ".v"}
                        ]
                    }
                }
            }
        }
    )
    broken = list(tree.check({"l": [{"v": "x"}, {"v": "y"}, {"v": "x"}, {}]}))
    assert [each.path for each in broken] == [("l", 1, "v"), ("l", 3, "v")]
    assert RuleTree.of({"properties": {"a": {"type": "string"}}}) is None


def test_absent_and_null_and_empty_are_told_apart_by_what_is_remembered():
    rule = Rule({"rule": "!has(self.a) || self.a != ''", "message": "m"})
    for _ in range(2):
        assert rule.holds({})
        assert rule.holds({"b": 1})
        assert not rule.holds({"a": ""})
        assert rule.holds({"a": "x"})


def test_what_is_remembered_has_an_end(monkeypatch):
    monkeypatch.setattr(rules, "_REMEMBERED", 10)
    rule = Rule({"rule": "self.a >= 0", "message": "m"})
    for number in range(100):
        assert rule.holds({"a": number})
    ((clause,),) = rule._alternatives
    assert len(clause._verdicts) <= 11


def test_what_is_remembered_is_small_whatever_was_written():
    rule = Rule({"rule": "self.a != 'x'", "message": "m"})
    assert rule.holds({"a": "y" * 4_096})
    assert rule.holds({"a": "y" * 4_095})
    ((clause,),) = rule._alternatives
    assert len(clause._verdicts) == 2
    assert max(map(len, clause._verdicts)) <= 128


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: st.sampled_from([0, 1, "", "x", "y", [], [1], {"t": 1}, None, True])
            for name in ("a", "b")
        },
    )
)
def test_splitting_a_rule_changes_no_verdict(value):
    """Each alternative by itself gives what the whole expression gives, errors and all."""
    try:
        whole = bool(WHOLE.evaluate({"self": json_to_cel(value)}))
    except CELEvalError:
        whole = False
    assert PARTS.holds(value) is whole
