import random

import pytest

from fc_operator.model.outcomes import Outcome, Retry
from fc_operator.model.statuses import BuildStatus
from fc_operator.queue import retries


def decide(status, retry, *, failures=0, **more):
    return retries.decide(
        Outcome(status=status, retry=retry, reason="Why"),
        infra_failures=failures,
        free_losses=0,
        max_retries=3,
        backoff=retries.ladder(60),
        rng=random.Random(1),
        **more,
    )


def test_a_real_end_is_an_end():
    assert decide(BuildStatus.FAILED, Retry.NEVER).status is BuildStatus.FAILED


def test_infrastructure_climbs_the_ladder_and_then_ends_as_the_outcome_says():
    delays = []
    for failures in range(3):
        found = decide(BuildStatus.ABORTED, Retry.INFRASTRUCTURE, failures=failures)
        assert (found.status, found.infra_failures) == (BuildStatus.PENDING, failures + 1)
        delays.append(found.delay_s)
    assert [round(delay / 60) for delay in delays] == [1, 3, 10] or delays == sorted(delays)
    assert all(base <= d <= base * 1.2 for base, d in zip((60, 180, 540), delays, strict=True))
    assert (
        decide(BuildStatus.ABORTED, Retry.INFRASTRUCTURE, failures=3).status is BuildStatus.ABORTED
    )
    assert decide(BuildStatus.FAILED, Retry.INFRASTRUCTURE, failures=3).status is BuildStatus.FAILED


def test_a_free_retry_costs_nothing():
    found = decide(BuildStatus.ABORTED, Retry.FREE, failures=2)
    assert (found.status, found.delay_s, found.infra_failures) == (BuildStatus.PENDING, 0, 2)


@pytest.mark.parametrize("retry", [Retry.FREE, Retry.INFRASTRUCTURE])
def test_what_shall_be_cancelled_is_not_tried_again(retry):
    found = decide(BuildStatus.ABORTED, retry, cancel_requested=True, is_wanted=False)
    assert found.status is BuildStatus.CANCELLED


def test_h11_cancelled_for_one_but_wanted_by_another_starts_again():
    found = decide(BuildStatus.CANCELLED, Retry.NEVER, cancel_requested=True, is_wanted=True)
    assert (found.status, found.delay_s) == (BuildStatus.PENDING, 0)


def test_q14_lost_too_often_is_quarantined():
    found = [retries.decide_lost(infra_failures=1, free_losses=n) for n in range(3)]
    assert [d.status for d in found] == [BuildStatus.PENDING] * 2 + [BuildStatus.ABORTED]
    assert found[-1].reason == "Quarantined"
    assert found[0].infra_failures == 1


def test_q14_what_its_holder_gave_back_in_order_is_no_loss():
    found = retries.decide_lost(infra_failures=1, free_losses=2, is_counted=False)
    assert (found.status, found.free_losses) == (BuildStatus.PENDING, 2)


def test_a_loss_that_is_explained_is_free_but_three_put_the_step_aside():
    lost = Outcome(
        status=BuildStatus.ABORTED, retry=Retry.LOST, reason="NodeLost", message="its node is gone"
    )

    def after(losses):
        return retries.decide(
            lost, infra_failures=1, free_losses=losses, max_retries=0, backoff=retries.ladder(60)
        )

    again = after(1)
    assert (again.status, again.reason) == (BuildStatus.PENDING, "NodeLost")
    assert (again.infra_failures, again.free_losses, again.delay_s) == (1, 2, 0)
    aside = after(2)
    assert (aside.status, aside.reason) == (BuildStatus.ABORTED, "Quarantined")
    assert "its node is gone" in aside.message
