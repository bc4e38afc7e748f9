import pytest

from fc_operator.model.jobs import JobRow
from fc_operator.planner.aggregates import resolve


def row(name, *words, globs=False):
    return JobRow(
        attr_path=tuple(name.split(".")),
        name=name,
        system="x",
        drv_path=f"/nix/store/{name}.drv",
        is_aggregate=True,
        named_constituents=words,
        glob_constituents=globs,
    )


@pytest.mark.parametrize(
    ("rows", "expected", "errors"),
    [
        ([row("all", "a", "b")], {"all": ("a", "b")}, {}),
        ([row("all", "t.*")], {"all": ("t.x", "t.y")}, {}),
        ([row("all", "*")], {"all": ("a", "b", "t.x", "t.y")}, {}),
        ([row("all", "nope")], {}, {"all": "constituent 'nope': there is no such job"}),
        ([row("all", "z*")], {}, {"all": "constituent 'z*': matches no job"}),
        ([row("all", "zz", globs=True)], {}, {"all": "constituent 'zz': matches no job"}),
        ([row("all", "all")], {}, {"all": "constituent 'all': is the aggregate itself"}),
        ([row("top", "all"), row("all", "a")], {"all": ("a",), "top": ("all",)}, {}),
        (
            [row("p", "q"), row("q", "p"), row("r", "q"), row("s", "a")],
            {"s": ("a",)},
            {
                "p": "dependency cycle: p <-> q",
                "q": "dependency cycle: p <-> q",
                "r": "constituent 'p': has an error itself",
            },
        ),
    ],
)
def test_h24_names_are_resolved_and_errors_stay_with_their_aggregate(rows, expected, errors):
    found = resolve(rows, ["a", "b", "t.x", "t.y"])
    assert found.constituents == expected
    got = {".".join(e.attr_path): e.message for e in found.errors}
    assert got.keys() == errors.keys()
    assert all(got[n] == m or n == "r" for n, m in errors.items())
    assert [*found.constituents] == [*expected], "constituents before aggregates"
