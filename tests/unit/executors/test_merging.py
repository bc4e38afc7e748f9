"""Strategic merge as Kubernetes documents it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.executors.merging import merge


@pytest.mark.parametrize(
    ("base", "over", "expected"),
    [
        ({"a": 1}, {}, {"a": 1}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": None}}, {"a": {"c": 2}}),
        ({"a": {"b": 1}}, {"a": {"$patch": "replace", "c": 2}}, {"a": {"c": 2}}),
        ({"a": 1}, {"a": {"b": {"c": None, "d": 1}}}, {"a": {"b": {"d": 1}}}),
        # Lists without a merge key are replaced.
        ({"tolerations": [{"key": "a"}]}, {"tolerations": []}, {"tolerations": []}),
        ({"args": ["a", "b"]}, {"args": ["c"]}, {"args": ["c"]}),
        # Lists with one are merged by it, and new items come last.
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]},
            {
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "value": "3"},
                    {"name": "C", "value": "4"},
                ]
            },
        ),
        (
            {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
            {"env": [{"name": "A", "$patch": "delete"}]},
            {"env": [{"name": "B", "value": "2"}]},
        ),
        (
            {"env": [{"name": "A", "value": "1"}]},
            {"env": [{"$patch": "replace"}, {"name": "Z", "value": "9"}]},
            {"env": [{"name": "Z", "value": "9"}]},
        ),
        # A volume has one source: the newer one's.
        (
            {"volumes": [{"name": "nix", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "tmp"}]},
            {"volumes": [{"name": "nix", "ephemeral": {"x": 1}}]},
            {"volumes": [{"name": "nix", "ephemeral": {"x": 1}}, {"name": "tmp"}]},
        ),
        (
            {"volumes": [{"name": "nix", "emptyDir": {"medium": "Memory"}}]},
            {"volumes": [{"name": "nix", "emptyDir": {"sizeLimit": "1Gi"}}]},
            {"volumes": [{"name": "nix", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}}]},
        ),
        (
            {"containers": [{"name": "agent", "resources": {"limits": {"cpu": "1"}}}]},
            {
                "containers": [
                    {"name": "agent", "resources": {"limits": {"memory": "1Gi"}}},
                    {"name": "side", "image": "x"},
                ]
            },
            {
                "containers": [
                    {"name": "agent", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}},
                    {"name": "side", "image": "x"},
                ]
            },
        ),
    ],
)
def test_merges_as_kubernetes_does(base, over, expected):
    before = repr(base), repr(over)
    assert merge(base, over) == expected
    assert (repr(base), repr(over)) == before, "neither side is changed"


def plain(children):
    """Mappings without what only a merge understands."""
    return st.dictionaries(st.sampled_from("abcd"), children, max_size=4)


VALUES = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=3), plain, max_leaves=8
)
TEMPLATES = plain(VALUES)


@given(TEMPLATES, TEMPLATES)
def test_what_is_laid_over_is_there_and_once_is_enough(base, over):
    merged = merge(base, over)
    assert merge(merged, over) == merged
    assert merge(base, {}) == base
    assert merge({}, over) == over
    assert merged.keys() == base.keys() | over.keys()
