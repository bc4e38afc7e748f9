"""What is said of projects whose pods may not run where they want them."""

from datetime import UTC, datetime

import pytest

from fc_operator.executors.targets import Choice, Target
from fc_operator.model import conditions as terms
from fc_operator.model.conditions import Condition
from fc_operator.scheduler.placing import conditions_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD = Choice(target=Target(name="a", namespace="n"))
BAD = Choice(reason=terms.TARGET_NOT_ALLOWED, message="there is no target b")


def ready(status, reason):
    return Condition(
        type=terms.READY,
        status=status,
        reason=reason,
        observed_generation=3,
        last_transition_time=NOW,
    )


def after(old, choice):
    return conditions_of(old, choice, generation=3, now=NOW)


@pytest.mark.parametrize(
    "old",
    [
        (),
        (ready("False", terms.SECRET_NOT_FOUND),),
        (ready("False", terms.OWNED_BY_OTHER),),
        (ready("Unknown", terms.PROGRESSING),),
    ],
)
def test_what_others_complain_of_comes_first(old):
    assert after(old, BAD) == old
    assert after(old, GOOD) == old


def test_it_comes_and_goes_and_is_not_said_twice():
    fine = (ready("True", terms.RECONCILED),)
    assert after(fine, GOOD) == fine
    refused = after(fine, BAD)
    found = terms.find(refused, terms.READY)
    assert (found.status, found.reason, found.message) == ("False", BAD.reason, BAD.message)
    assert found.observed_generation == 3
    assert terms.find(refused, terms.STALLED).status == "True"
    assert after(refused, BAD) == refused
    again = after(refused, GOOD)
    assert terms.find(again, terms.READY).status == "True"
    assert terms.find(again, terms.STALLED) is None
