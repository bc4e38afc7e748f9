import uuid

from hypothesis import given
from hypothesis import strategies as st

from fc_operator.queue.shares import Head, Share, allot

A, B, C = (uuid.UUID(int=n) for n in (1, 2, 3))


def head(jobset, class_id=1, **more):
    return Head(class_id=class_id, jobset_id=jobset, **more)


def share(jobset, shares=100, used_s=0.0):
    return Share(jobset_id=jobset, shares=shares, used_s=used_s)


def by_jobset(found):
    counts = {}
    for _, jobset, n in found:
        counts[jobset] = counts.get(jobset, 0) + n
    return counts


def test_equal_shares_split_equally():
    assert by_jobset(allot([head(A), head(B)], [share(A), share(B)], 10)) == {A: 5, B: 5}


def test_shares_weigh():
    assert by_jobset(allot([head(A), head(B)], [share(A, 300), share(B, 100)], 40)) == {
        A: 30,
        B: 10,
    }


def test_who_used_less_goes_first():
    assert by_jobset(allot([head(A), head(B)], [share(A, used_s=9e3), share(B)], 3)) == {B: 3}


def test_a_bump_goes_before_every_share():
    found = allot([head(A, bump=5), head(B)], [share(A, used_s=9e9), share(B)], 1)
    assert by_jobset(found) == {A: 1}


def test_a_jobset_that_may_not_run_gets_nothing():
    assert by_jobset(allot([head(A), head(C)], [share(A)], 4)) == {A: 4}
    assert allot([head(C)], [], 4) == []
    assert allot([], [share(A)], 4) == []


def test_several_classes_take_turns():
    found = allot([head(A, 1), head(A, 2)], [share(A)], 4)
    assert sorted((class_id, n) for class_id, _, n in found) == [(1, 2), (2, 2)]


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.floats(0, 1e6)), min_size=1, max_size=20),
    st.integers(0, 100),
)
def test_never_more_than_the_free_slots_and_never_fewer_than_can_be_used(jobsets, free):
    ids = [uuid.UUID(int=n + 1) for n in range(len(jobsets))]
    shares = [share(i, s, u) for i, (s, u) in zip(ids, jobsets, strict=True)]
    assert sum(n for _, _, n in allot([head(i) for i in ids], shares, free)) == free
