import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.model.jobs import JobRow, dotted


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (("hello",), "hello"),
        (("tests", "unit", "x86_64-linux"), "tests.unit.x86_64-linux"),
        (("a", "b.c"), 'a."b.c"'),
        (("", "a"), '"".a'),
        (('a"b', "c"), '"a\\"b".c'),
        ((), ""),
    ],
)
def test_a_job_is_called_as_nix_eval_jobs_calls_it(path, name):
    assert dotted(path) == name
    row = JobRow(attr_path=path, name="n", system="s", drv_path="/nix/store/x.drv")
    assert row.job_name == name


part = st.text(st.sampled_from('ab."\\') | st.characters(), max_size=6)


@given(
    st.lists(part, min_size=1, max_size=4).map(tuple),
    st.lists(part, min_size=1, max_size=4).map(tuple),
)
def test_different_paths_have_different_names(first, second):
    """So that a name can stand for its path in one evaluation (UNIQUE evaluation, job)."""
    assert (dotted(first) == dotted(second)) == (first == second)
