"""The file of config repositories that a release brings."""

import pytest

from fc_operator.app import release
from fc_operator.errors import InvalidError


def test_a_list_of_names_and_specs():
    text = b'[{"name": "team", "spec": {"url": "https://git.example.org/ci.git"}}]'
    (found,) = release.parse(text)
    assert found == {"name": "team", "spec": {"url": "https://git.example.org/ci.git"}}


def test_nothing_is_a_list_too():
    assert release.parse(b"[]") == release.parse(b"") == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"name: team", "are a list"),
        (b"- team", "no mapping with name and spec"),
        (b"- {name: team}", "no mapping with name and spec"),
        (b"- {name: team, spec: {}, more: 1}", "no mapping with name and spec"),
        (b"- {name: 1, spec: {}}", "a name is a text"),
        (b"- {name: team, spec: {}}\n- {name: team, spec: {}}", "two config repositories team"),
        (b"- {", r"line \d"),
    ],
)
def test_what_is_wrong_is_said(text, said):
    with pytest.raises(InvalidError, match=said):
        release.parse(text)
