from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from fc_operator.model import conditions
from fc_operator.model.conditions import Condition, find, with_condition, without_condition

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
made = st.builds(
    Condition,
    type=st.sampled_from(["Ready", "Reconciling", "Stalled"]),
    status=st.sampled_from(["True", "False", "Unknown"]),
    reason=st.sampled_from(["Reconciled", "Progressing"]),
    message=st.text(max_size=5),
    observed_generation=st.integers(-1, 5),
)


def ready(status, **fields):
    return Condition(type="Ready", status=status, reason="Reconciled", **fields)


def test_the_time_moves_only_when_the_status_flips():
    first = with_condition((), ready("True"), NOW)
    same = with_condition(first, ready("True", message="new", observed_generation=2), LATER)
    assert same[0].last_transition_time == NOW
    assert (same[0].message, same[0].observed_generation) == ("new", 2)
    assert with_condition(same, ready("False"), LATER)[0].last_transition_time == LATER


def test_a_condition_without_a_time_gets_one():
    assert with_condition((ready("True"),), ready("True"), NOW)[0].last_transition_time == NOW


def test_others_stay_in_their_order():
    both = with_condition(
        with_condition((), ready("False"), NOW),
        Condition(type="Stalled", status="True", reason="Invalid"),
        NOW,
    )
    assert [each.type for each in with_condition(both, ready("True"), LATER)] == [
        "Ready",
        "Stalled",
    ]
    assert [each.type for each in without_condition(both, "Ready")] == ["Stalled"]
    assert find(both, "Stalled").reason == "Invalid"
    assert find(both, "Nothing") is None


@given(st.lists(made, max_size=8))
def test_there_is_one_of_each_type_and_the_last_word_counts(news):
    held = ()
    for nr, new in enumerate(news):
        held = with_condition(held, new, NOW + timedelta(minutes=nr))
    types = [each.type for each in held]
    assert len(types) == len(set(types))
    for each in held:
        last = [new for new in news if new.type == each.type][-1]
        assert (each.status, each.reason, each.message) == (last.status, last.reason, last.message)
        assert each.last_transition_time is not None


@given(made)
def test_what_is_written_is_read_back(condition):
    (timed,) = with_condition((), condition, NOW)
    for each in (condition, timed):
        assert Condition.from_dict(each.as_dict()) == each


def test_reasons_are_camel_case_words():
    import re

    words = [
        value
        for name, value in vars(conditions).items()
        if name.isupper() and isinstance(value, str)
    ]
    assert len(words) > 10
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", word) for word in words)
