"""How people name builds and evaluations."""

import pytest

from fc_operator.cli import references
from fc_operator.cli.references import Numbered, OfJobset
from fc_operator.errors import InvalidError

ID = "0199f3a0-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", Numbered("build", "12")),
        (ID, Numbered("build", ID)),
        ("build/12", Numbered("build", "12")),
        ("evaluation/7", Numbered("evaluation", "7")),
        (f"eval/{ID}", Numbered("evaluation", ID)),
        ("demo/main", OfJobset("demo", "main")),
        ("demo/main/hello", OfJobset("demo", "main", "hello")),
        ("demo/main/a.b/c", OfJobset("demo", "main", "a.b/c")),
        ("evaluation/main", OfJobset("evaluation", "main")),
    ],
)
def test_parse(text, expected):
    assert references.parse(text) == expected


def test_a_bare_number_is_what_the_verb_says():
    assert references.parse("7", bare="evaluation") == Numbered("evaluation", "7")


@pytest.mark.parametrize(
    "text", ["", "demo", "/", "demo/", "/main", "demo//hello", "-1", "\uff11\uff12"]
)
def test_what_names_nothing_is_refused(text):
    with pytest.raises(InvalidError):
        references.parse(text)


@pytest.mark.parametrize("text", ["demo", "demo/main/hello", "/main", "demo/"])
def test_a_jobset_has_two_parts(text):
    with pytest.raises(InvalidError):
        references.parse_jobset(text)


def test_names_are_quoted_in_paths():
    of = references.parse_jobset("de mo/ma?in")
    assert references.jobset_path(of) == "/projects/de%20mo/jobsets/ma%3Fin"
