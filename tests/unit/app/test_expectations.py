"""The demo's own judge: what is declared, what is found, and every way in which they differ."""

import pytest

from fc_operator.app import demo, expectations
from fc_operator.app.expectations import FoundChannel, FoundJob, FoundJobset
from fc_operator.errors import InvalidError

TEXT = """
projects:
  p:
    channels: {stable: j}
    jobsets:
      j:
        evaluation: completed
        errors: [typo]
        jobs:
          a: succeeded
          b:
            status: failed_with_output
            products: [x, z]
            metrics: {coverage: 87.5}
            release_name: r-1
            constituents: [a]
"""
A = FoundJob(status="succeeded")
B = FoundJob(
    status="failed_with_output",
    products=("x", "z"),
    metrics={"coverage": 87.5},
    release_name="r-1",
    constituents=("a",),
)


def found(*, evaluation="completed", errors=("typo",), a=A, b=B, **more):
    jobs = {name: each for name, each in {"a": a, "b": b, **more}.items() if each is not None}
    return {
        ("p", "j"): FoundJobset(evaluation=evaluation, id="e1", errors=tuple(errors), jobs=jobs)
    }


def differences(jobsets, channels=None):
    channels = {("p", "stable"): FoundChannel(evaluation="e1")} if channels is None else channels
    outcomes = expectations.compare(expectations.parse(TEXT), jobsets, channels)
    return [f"{each.thing}: {said}" for each in outcomes for said in each.differences]


def test_what_is_as_declared_does_not_differ():
    assert differences(found()) == []


@pytest.mark.parametrize(
    ("jobsets", "said"),
    [
        ({}, "p/j: it was not evaluated"),
        (found(evaluation="failed"), "p/j: it is failed, not completed"),
        (found(errors=()), "p/j: errors are none, not typo"),
        (found(errors=("typo", "more")), "p/j: errors are more, typo, not typo"),
        (found(a=FoundJob(status="failed")), "p/j/a: it is failed, not succeeded"),
        (found(a=None), "p/j/a: there is no such job"),
        (found(c=A), "p/j/c: nobody declared it"),
        (found(b=FoundJob(status="failed_with_output")), "p/j/b: products are none, not x, z"),
        (
            found(b=FoundJob(status="failed_with_output", products=("x", "z"))),
            "p/j/b: metrics are none, not coverage=87.5",
        ),
        ({**found(), ("p", "k"): FoundJobset(evaluation="completed")}, "p/k: nobody declared it"),
    ],
)
def test_every_difference_is_said(jobsets, said):
    assert said in differences(jobsets)


@pytest.mark.parametrize(
    ("channel", "said"),
    [
        ({}, "p/stable: there is no such channel"),
        ({("p", "stable"): FoundChannel(evaluation=None)}, "p/stable: it points nowhere"),
        (
            {("p", "stable"): FoundChannel(evaluation="e0")},
            "p/stable: it does not point to the newest evaluation of j",
        ),
    ],
)
def test_a_channel_must_point_to_the_newest_evaluation(channel, said):
    assert differences(found(), channel) == [said]


def test_any_of_several_statuses_may_be_fine():
    text = TEXT.replace("a: succeeded", "a: [failed, cached_failure]")
    expected = expectations.parse(text)
    channels = {("p", "stable"): FoundChannel(evaluation="e1")}

    def said(status):
        outcomes = expectations.compare(expected, found(a=FoundJob(status=status)), channels)
        return [each.differences for each in outcomes if each.thing == "p/j/a"]

    assert said("failed") == said("cached_failure") == [()]
    assert said("succeeded") == [("it is succeeded, not failed or cached_failure",)]


@pytest.mark.parametrize("text", ["", "a: [", "projects: {p: {jobset: {}}}", "projects: 1"])
def test_a_malformed_declaration_is_refused(text):
    with pytest.raises(InvalidError, match="expected"):
        expectations.parse(text)


def test_the_demos_own_declaration_names_what_the_issue_asks_for():
    """Two projects, about fifteen jobs, and each kind of outcome."""
    declared = expectations.parse((demo.default_folder() / "expected.yaml").read_text())
    jobs = [
        expectations.job(job)
        for project in declared.projects.values()
        for jobset in project.jobsets.values()
        for job in jobset.jobs.values()
    ]
    assert len(declared.projects) >= 2
    assert len(jobs) >= 15
    wanted = {"succeeded", "failed", "dependency_failed", "timeout", "failed_with_output"}
    assert {status for job in jobs for status in job.statuses} >= wanted
    assert any(job.products for job in jobs)
    assert any(job.metrics for job in jobs)
    assert any(job.constituents for job in jobs)
    assert any(job.release_name for job in jobs)
