"""A source has a say in its own namespace only: its secrets are all that it may name."""

import pytest

from fc_operator.spec import manifests

PROJECT = """apiVersion: fc-operator.dev/v1alpha1
kind: Project
metadata: {{name: demo{more}}}
spec: {{repositoryUrl: "https://git.example.org/demo.git"}}
"""


def parse(more, *rest):
    return manifests.parse_file("a.yaml", PROJECT.format(more=more).encode(), *rest)


@pytest.mark.parametrize("more", ["", ", namespace: team-a"])
def test_what_names_no_other_namespace_is_in_that_of_its_source(more):
    (found,) = parse(more, "team-a").declarations
    assert found.namespace == "team-a"
    (direct,) = parse(", namespace: team-a").declarations
    assert found.spec_hash == direct.spec_hash


def test_what_names_another_namespace_is_a_problem():
    file = parse(", namespace: team-b", "team-a")
    assert not file.declarations
    (problem,) = file.problems
    assert str(problem) == (
        "a.yaml:3: Project demo: metadata.namespace: the source may declare objects of the"
        " namespace team-a only (leave it out)"
    )


def test_a_source_that_settings_name_may_declare_anywhere():
    (found,) = parse(", namespace: team-b").declarations
    assert found.namespace == "team-b"
    (found,) = parse("").declarations
    assert found.namespace == "default"
