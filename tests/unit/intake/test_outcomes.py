from datetime import UTC, datetime

import pytest

from fc_operator.errors import (
    InvalidError,
    LimitReachedError,
    NotFoundError,
    PrerequisiteError,
    ProtocolError,
    SecretError,
    UnavailableError,
)
from fc_operator.intake import outcomes
from fc_operator.model.problems import Problem
from fc_operator.model.sources import Source
from fc_operator.reconciler.plans import ObjectReport, Report

ONE, TWO = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
SOURCE = Source("ConfigRepository", "team")


def by_type(conditions):
    return {each.type: (each.status, each.reason) for each in conditions}


@pytest.mark.parametrize(
    ("error", "reason", "other"),
    [
        (UnavailableError("x"), "SourceUnreachable", "Reconciling"),
        (LimitReachedError("x"), "SourceUnreachable", "Reconciling"),
        (NotFoundError("x"), "SourceInvalid", "Stalled"),
        (InvalidError("x"), "SourceInvalid", "Stalled"),
        (SecretError("x"), "SecretNotFound", "Stalled"),
        (PrerequisiteError("x"), "PrerequisiteMissing", "Stalled"),
        (ProtocolError("x"), "Internal", "Reconciling"),
    ],
)
def test_each_error_says_who_has_to_act(error, reason, other):
    found = outcomes.conditions_of(outcomes.of_error(error), (), ONE)
    assert by_type(found)["Ready"] == ("False", reason)
    assert set(by_type(found)) == {"Ready", other}
    healed = outcomes.conditions_of(
        outcomes.of_report(Report(source=SOURCE, revision="abc")), found, TWO
    )
    assert by_type(healed) == {"Ready": ("True", "Reconciled")}
    assert healed[0].last_transition_time == TWO


def test_a_state_that_lasts_keeps_its_time():
    outcome = outcomes.of_error(UnavailableError("x"))
    first = outcomes.conditions_of(outcome, (), ONE)
    again = outcomes.conditions_of(outcome, first, TWO)
    assert again == first


def test_problems_and_guards_come_before_success():
    problem = Problem(path="a.yaml", line=3, message="bad")
    broken = outcomes.of_report(Report(source=SOURCE, revision="abc", problems=(problem,)))
    assert (broken.reason, broken.ready, broken.stalled) == ("SourceInvalid", False, True)
    assert "a.yaml:3: bad" in broken.message
    guarded = outcomes.of_report(
        Report(source=SOURCE, revision="a", prune_blocked="no", prune_reason="SourceEmpty")
    )
    assert (guarded.reason, guarded.message) == ("SourceEmpty", "no")


def test_objects_that_wait_are_counted():
    line = ObjectReport(
        kind="Jobset", namespace="d", name="n", identity="p/n", action="wait", reason="X"
    )
    outcome = outcomes.of_report(Report(source=SOURCE, revision="abc", objects=(line,)))
    assert outcome.ready
    assert outcome.message == "1 object at abc; 1 of them not ready, see their conditions"


def test_a_force_push_is_told_until_the_next_ordinary_commit():
    good = outcomes.of_report(Report(source=SOURCE, revision="abc"))
    told = outcomes.conditions_of(good, (), ONE, rewritten="it was")
    assert "HistoryRewritten" in by_type(told)
    assert "HistoryRewritten" in by_type(outcomes.conditions_of(good, told, TWO))
    assert "HistoryRewritten" not in by_type(outcomes.conditions_of(good, told, TWO, rewritten=""))
