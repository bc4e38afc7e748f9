"""What the demo says while it runs: one line per change, and nothing while nothing happens."""

import io
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from rich.console import Console

from fc_operator.app import expectations, observation
from fc_operator.app.observation import JobsetNow, Moment
from fc_operator.cli import demo

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COMMITS = {"config": "c" * 40, "repo": "r" * 40}
EXPECTED = expectations.parse("projects: {p: {jobsets: {j: {evaluation: completed, jobs: {}}}}}")


def jobset(**more):
    return JobsetNow(
        **{
            "name": "p/j",
            "repository": "repo",
            "checked_at": NOW,
            "evaluation": 7,
            "commit": "r" * 40,
            "evaluation_status": "completed",
            "counts": {"succeeded": 2},
            "ended": True,
            **more,
        }
    )


def moment(*jobsets, builds=None, **more):
    return Moment(
        **{"config_revision": "c" * 40, "jobsets": jobsets, "builds": builds or {}, **more}
    )


def test_nothing_happened_says_nothing():
    now = moment(jobset(), builds={"p/j/a": "succeeded"})
    assert demo.changes(now, now) == []


def test_a_run_is_told_in_order():
    moments = [
        Moment(),
        moment(),
        moment(jobset(evaluation=None, commit="", evaluation_status="", counts={}, ended=False)),
        moment(jobset(evaluation_status="pending", counts={}, ended=False)),
        moment(jobset(evaluation_status="running", counts={}, ended=False)),
        moment(jobset(counts={"running": 2}, ended=False), builds={"p/j/a": "pending"}),
        moment(jobset(counts={"running": 2}, ended=False), builds={"p/j/a": "running"}),
        moment(jobset(), builds={"p/j/a": "succeeded"}),
    ]
    lines = [line for before, now in pairwise(moments) for line in demo.changes(before, now)]
    assert lines == [
        "manifests at cccccccccccc are live",
        "p/j: evaluation 7 of rrrrrrrrrrrr is queued",
        "p/j: evaluation 7 of rrrrrrrrrrrr has begun",
        "p/j: evaluation 7 of rrrrrrrrrrrr has completed",
        "p/j/a: running",
        "p/j: all builds have ended: 2 succeeded",
        "p/j/a: succeeded",
    ]


def test_what_is_wrong_is_said_once():
    broken = moment(jobset(error="no such branch"), config_error="yaml is broken")
    assert demo.changes(Moment(), broken)[:2] == [
        "manifests: yaml is broken",
        "p/j: no such branch",
    ]
    assert demo.changes(broken, broken) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (moment(jobset()), []),
        (Moment(), ["the manifests are being read"]),
        (Moment(config_error="yaml is broken"), ["yaml is broken"]),
        (moment(), ["p/j is not there yet"]),
        (moment(jobset(evaluation=None)), ["p/j is to be evaluated"]),
        (moment(jobset(commit="old")), ["p/j is to be evaluated"]),
        (
            moment(jobset(ended=False, evaluation_status="running")),
            ["p/j is evaluated"],
        ),
        (moment(jobset(ended=False)), ["p/j is built"]),
        (moment(jobset(error="gone")), ["p/j can't be looked at: gone"]),
        (moment(jobset(checked_at=NOW - timedelta(seconds=1))), ["p/j is looked at"]),
        (moment(jobset(checked_at=None)), ["p/j is looked at"]),
        (moment(jobset(is_woken=True)), ["p/j is looked at"]),
    ],
)
def test_an_earlier_runs_results_are_not_taken_for_this_ones(now, said):
    assert observation.waits_for(now, EXPECTED, COMMITS, since=NOW) == said


def test_the_picture_shows_jobsets_and_what_is_built():
    out = Console(width=100, record=True, force_terminal=True, file=io.StringIO())
    now = moment(jobset(ended=False), builds={"p/j/a": "running", "p/j/b": "pending"})
    out.print(demo.picture(now, ["p/j is built"], 3.2))
    text = out.export_text()
    assert "p/j" in text
    assert "2 succeeded" in text
    assert "building p/j/a" in text
    assert "3 s, p/j is built" in text
    assert "p/j/b" not in text
