"""What `fc get` takes and shows."""

import pytest

from fc_operator.cli import get, nouns
from fc_operator.errors import InvalidError


@pytest.mark.parametrize(
    ("word", "noun"),
    [("projects", "projects"), ("project", "projects"), ("JS", "jobsets"), ("b", "builds"),
     ("evals", "evaluations"), ("cr", "sources"), ("mr", "resources"), ("queue", "queue")],
)  # fmt: skip
def test_nouns_have_short_forms(word, noun):
    assert nouns.find(word).name == noun


def test_no_word_means_two_nouns():
    words = [word for noun in nouns.NOUNS.values() for word in (noun.name, *noun.aliases)]
    assert sorted(words) == sorted(set(words))


def test_an_unknown_noun_is_told_what_there_is():
    with pytest.raises(InvalidError) as caught:
        nouns.find("evalutions")
    assert caught.value.hint.startswith("did you mean evaluations?")


@pytest.mark.parametrize(
    ("noun", "words", "one"),
    [
        ("jobsets", "", False),
        ("jobsets", "demo", False),
        ("jobsets", "demo/main", True),
        ("projects", "demo", True),
        ("evaluations", "7", True),
        ("evaluations", "evaluation/7", True),
        ("evaluations", "demo/main", False),
        ("builds", "12", True),
        ("builds", "build/12", True),
        ("builds", "demo/main", False),
        ("builds", "demo/main/hello", False),
        ("builds", "evaluation/7", False),
        ("builds", "demo", False),
    ],
)
def test_a_name_lists_or_says_one_thing(noun, words, one):
    assert nouns.NOUNS[noun].is_one(words) is one


def test_a_machine_reads_like_a_builder():
    row = nouns.machine_row(
        {
            "kind": "scheduler",
            "host": "here",
            "running": 1,
            "info": {
                "offers": [
                    {
                        "name": "local",
                        "slots": 2,
                        "systems": ["x86_64-linux"],
                        "sandbox": "Nix",
                        "problem": "Nix is broken",
                    }
                ]
            },
        }
    )
    assert (row["name"], row["max_jobs"], row["sandbox"]) == ("scheduler on here", 2, "Nix")
    assert row["last_error"] == "Nix is broken"
    assert [column.value(row) for column in nouns.BUILDERS.columns][:3] == [
        "scheduler on here", ["x86_64-linux"], 1,
    ]  # fmt: skip


def test_conditions_and_errors_in_words():
    ready = {"conditions": [{"type": "Ready", "status": "False", "message": "no such branch"}]}
    assert nouns.ready(ready) == ("False", "no such branch")
    assert nouns.ready({"conditions": []}) == ("Unknown", "")
    assert nouns.evaluation_word({"status": "completed", "errors": 1}) == "completed, 1 error"
    assert nouns.evaluation_word({"status": "failed", "errors": 0}) == "failed"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((0, 0, 0, 0), "idle"),
        ((14, 2, 0, 1), "builds: 2 running, 14 pending; evaluations: 1 running"),
        ((0, 0, 3, 0), "evaluations: 3 pending"),
    ],
)
def test_the_queue_in_a_line(counts, words):
    names = ("pending_builds", "running_builds", "pending_evaluations", "running_evaluations")
    assert get.queue_words(dict(zip(names, counts, strict=True))) == words
