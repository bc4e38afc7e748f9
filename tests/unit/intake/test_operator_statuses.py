"""Statuses of objects: what they say, and that nothing is written where nothing is new."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.intake.operator import statuses
from fc_operator.intake.operator.objects import Mirror, seen
from fc_operator.intake.operator.statuses import Broken, Held
from fc_operator.model.conditions import Condition
from fc_operator.model.problems import Problem
from fc_operator.model.states import BuildCounts, LatestEvaluation, ObjectState, SourceState
from fc_operator.model.statuses import EvaluationStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 2, tzinfo=UTC)
READY = Condition(
    type="Ready",
    status="True",
    reason="Reconciled",
    observed_generation=2,
    last_transition_time=NOW,
)
FRESH = {"observedGeneration": -1}


def jobset(**more):
    given = {
        "kind": "Jobset", "namespace": "a", "name": "main", "identity": "demo/main", "owns": True,
        "uid": "u", "generation": 2, "last_handled_request": None, "conditions": (READY,),
    }  # fmt: skip
    return ObjectState(**{**given, **more})


def evaluation(status="completed", *, ended=True, errors=0, **counts):
    return LatestEvaluation(
        number=7,
        commit="c" * 40,
        status=EvaluationStatus(status),
        message="it is broken" if status == "failed" else "",
        errors=errors,
        ended=ended,
        builds=BuildCounts.of(counts),
    )


def find(status, type_):
    return next(each for each in status["conditions"] if each["type"] == type_)


evaluations = st.none() | st.builds(
    evaluation,
    st.sampled_from([each.value for each in EvaluationStatus]),
    ended=st.booleans(),
    errors=st.integers(0, 2),
    succeeded=st.integers(0, 3),
    failed=st.integers(0, 2),
    pending=st.integers(0, 2),
)
findings = st.one_of(
    st.builds(lambda found: jobset(evaluation=found), evaluations),
    st.builds(lambda found: jobset(generation=3, evaluation=found), evaluations),
    st.just(Broken(generation=2, problems=(Problem(message="it is odd"),))),
    st.just(Held(generation=3, message="the database is away")),
)


@given(st.lists(findings, min_size=1, max_size=4))
def test_a_status_is_at_rest_once_it_was_written(history):
    """However it came to be, rendering it again finds nothing to write, at any later time."""
    status = FRESH
    for finding in history:
        status = statuses.render(finding, status, NOW, public_url="https://ci.example.org")
    again = statuses.render(history[-1], status, LATER, public_url="https://ci.example.org")
    assert statuses.operations(status, again) == []
    assert statuses.notices(status, again) == []


@given(findings, findings)
def test_the_patch_leads_from_one_status_to_the_next(first, second):
    before = statuses.render(first, FRESH, NOW)
    after = statuses.render(second, before, LATER)
    patched = dict(before)
    for step in statuses.operations(before, after):
        name = step["path"].removeprefix("/status/")
        if step["op"] == "add":
            patched[name] = step["value"]
        else:
            del patched[name]
    assert patched == after


@pytest.mark.parametrize(
    ("found", "status", "reason"),
    [
        (None, "Unknown", "NotEvaluated"),
        (evaluation("pending", ended=False), "Unknown", "Evaluating"),
        (evaluation("running", ended=False, succeeded=3), "Unknown", "Evaluating"),
        (evaluation("running", ended=False, failed=1), "False", "BuildsFailed"),
        (evaluation("failed"), "False", "EvaluationFailed"),
        (evaluation("timed_out"), "False", "EvaluationFailed"),
        (evaluation("cancelled"), "Unknown", "Cancelled"),
        (evaluation(ended=False, pending=1, succeeded=1), "Unknown", "Building"),
        (evaluation(succeeded=2), "True", "Succeeded"),
        (evaluation(succeeded=2, dependency_failed=1), "False", "BuildsFailed"),
        (evaluation(succeeded=2, errors=1), "False", "JobsFailed"),
    ],
)
def test_passing_says_how_the_newest_evaluation_goes(found, status, reason):
    passing = find(statuses.render(jobset(evaluation=found), FRESH, NOW), "Passing")
    assert (passing["status"], passing["reason"]) == (status, reason)


def test_times_move_only_with_the_status():
    running = statuses.render(jobset(evaluation=evaluation(ended=False, pending=1)), FRESH, NOW)
    more = statuses.render(jobset(evaluation=evaluation(ended=False, running=1)), running, LATER)
    assert find(more, "Passing")["lastTransitionTime"] == "2026-01-01T00:00:00Z"
    done = statuses.render(jobset(evaluation=evaluation(succeeded=1)), more, LATER)
    assert find(done, "Passing")["lastTransitionTime"] == "2026-01-02T00:00:00Z"


def test_conditions_of_others_stay():
    other = {"type": "Reviewed", "status": "True", "reason": "ByHand"}
    before = {**FRESH, "conditions": [other]}
    after = statuses.render(jobset(), before, NOW)
    assert other in after["conditions"]


def test_what_is_not_owned_tells_nothing_of_whose_it_is():
    refused = replace(READY, status="False", reason="OwnedByOther")
    state = jobset(owns=False, conditions=(refused,))
    status = statuses.render(state, FRESH, NOW, public_url="https://ci.example.org")
    assert set(status) == {"observedGeneration", "conditions"}
    assert [each["type"] for each in status["conditions"]] == ["Ready"]


def test_an_object_that_waits_for_us_keeps_its_generation_and_says_unknown():
    before = statuses.render(jobset(evaluation=evaluation(succeeded=1)), FRESH, NOW)
    held = statuses.render(Held(generation=3, message="the database is away"), before, LATER)
    assert held["observedGeneration"] == 2
    ready = find(held, "Ready")
    assert (ready["status"], ready["observedGeneration"]) == ("Unknown", 3)
    assert held["builds"] == before["builds"]
    assert find(held, "Passing") == find(before, "Passing")


def test_people_are_told_once_of_what_needs_them():
    broken = Broken(generation=2, problems=(Problem(message="it is odd"),))
    first = statuses.render(broken, FRESH, NOW)
    assert [each.reason for each in statuses.notices(FRESH, first)] == ["Invalid"]
    assert statuses.notices(first, statuses.render(broken, first, LATER)) == []
    failed = statuses.render(jobset(evaluation=evaluation(failed=1)), FRESH, NOW)
    (notice,) = statuses.notices(FRESH, failed)
    assert notice.message == "evaluation 7: 1 of 1 builds failed"
    assert statuses.notices(FRESH, statuses.render(jobset(), FRESH, NOW)) == []


def test_a_config_repository_is_as_ready_as_its_last_sync():
    def state(*conditions, **more):
        source = SourceState(last_revision="abc", declared=3, conditions=conditions)
        return jobset(kind="ConfigRepository", identity="team", source=source, **more)

    unread = statuses.render(state(), FRESH, NOW)
    assert find(unread, "Ready")["status"] == "Unknown"
    assert find(unread, "Reconciling")["status"] == "True"
    away = Condition(
        type="Ready", status="False", reason="SourceUnreachable", last_transition_time=NOW
    )
    failed = statuses.render(state(away), unread, LATER)
    assert find(failed, "Ready")["reason"] == "SourceUnreachable"
    assert find(failed, "Ready")["observedGeneration"] == 2
    assert (failed["lastRevision"], failed["declared"]) == ("abc", 3)
    suspended = replace(READY, reason="Suspended")
    resting = statuses.render(state(away, conditions=(suspended,)), failed, LATER)
    assert find(resting, "Ready")["reason"] == "Suspended"


# The mirror ---------------------------------------------------------------------------------


def view(version, uid="u", **more):
    metadata = {"name": "main", "namespace": "a", "uid": uid, "resourceVersion": version, **more}
    return seen("Jobset", {"metadata": metadata})


PLACE = ("Jobset", "a", "main")


def test_an_older_view_never_replaces_a_newer_one():
    mirror = Mirror()
    assert mirror.put(view("10"))
    assert not mirror.put(view("9"))
    assert mirror.get(PLACE).version == "10"
    assert mirror.put(view("11", uid="another"))


def test_the_end_of_an_object_does_not_end_its_successor():
    mirror = Mirror()
    mirror.put(view("11", uid="new"))
    assert not mirror.drop(PLACE, "old")
    assert mirror.get(PLACE).uid == "new"
    assert mirror.drop(PLACE, "new")


def test_an_old_view_brings_no_ended_object_back():
    mirror = Mirror()
    mirror.put(view("10"))
    assert mirror.drop(PLACE, "u", "12")
    assert not mirror.put(view("11"))
    assert mirror.put(view("13", uid="new"))
    mirror.drop(PLACE, "new", "14")
    mirror.forget_ends()
    assert not mirror.put(view("13"))
    mirror.forget_ends()
    assert mirror.put(view("13"))
