import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.kit.backoff import Backoff


@pytest.mark.parametrize(("tries", "seconds"), [(1, 60), (2, 180), (3, 540), (4, 1620), (5, 1620)])
def test_the_ladder_of_builders(tries, seconds):
    """60·3^(n-1) s, capped at the fourth step (features.md, remote_builders)."""
    assert Backoff(base_s=60, factor=3, cap_s=1620, jitter=0).delay_s(tries) == seconds


def test_the_jitter_comes_from_the_given_source():
    backoff = Backoff(base_s=10, jitter=0.5)
    first = [backoff.delay_s(3, random.Random(7)) for _ in range(3)]
    assert len(set(first)) == 1
    assert backoff.delay_s(3, random.Random(8)) != first[0]


backoffs = st.builds(
    Backoff,
    base_s=st.floats(0.001, 100),
    factor=st.floats(1, 10),
    cap_s=st.floats(100, 10_000),
    jitter=st.floats(0, 1),
)


@given(backoffs, st.integers(-5, 10**9), st.integers())
def test_a_delay_lies_between_the_base_and_the_cap_with_its_jitter(backoff, tries, seed):
    delay_s = backoff.delay_s(tries, random.Random(seed))
    assert backoff.base_s <= delay_s <= backoff.cap_s * (1 + backoff.jitter)


@given(backoffs, st.integers(1, 200))
def test_more_tries_never_wait_less(backoff, tries):
    still = Backoff(base_s=backoff.base_s, factor=backoff.factor, cap_s=backoff.cap_s, jitter=0)
    assert still.delay_s(tries) <= still.delay_s(tries + 1)
