"""What a pod tells of its jobs, from derivations and a dry run."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fc_operator.agent import facts
from fc_operator.clients.nix import Missing
from fc_operator.model.ids import DrvPath
from fc_operator.model.jobs import Derivation, JobRow
from fc_operator.planner import plans


def drv(name: str) -> DrvPath:
    return DrvPath(f"/nix/store/{name * 32}-{name}.drv")


def out(name: str) -> str:
    return drv(name).removesuffix(".drv")


def derivation(name: str, *needs: str, features=()) -> Derivation:
    return Derivation(
        drv_path=drv(name),
        name=name,
        system="x86_64-linux",
        outputs={"out": out(name)},
        input_drvs={drv(need): ("out",) for need in needs},
        required_features=features,
    )


def row(name: str, **more) -> JobRow:
    return JobRow(attr_path=(name,), name=name, system="?", drv_path=drv(name), **more)


def world(*derivations: Derivation) -> dict[DrvPath, Derivation]:
    return {each.drv_path: each for each in derivations}


def test_what_is_needed_comes_first_and_once():
    known = world(
        derivation("a"), derivation("b", "a"), derivation("c", "a", "b"), derivation("d", "c", "b")
    )
    needed = list(facts.needed(drv("d"), set(known), known, set()))
    assert needed == [drv("a"), drv("b"), drv("c")]


def test_what_a_row_before_has_named_is_not_named_again():
    known = world(derivation("a"), derivation("b", "a"), derivation("c", "b"), derivation("d", "b"))
    missing = Missing(will_build=tuple(known))
    told = facts.with_facts([row("c"), row("d"), row("a")], missing, known)
    assert [each.needed_builds for each in told] == [(drv("a"), drv("b")), (), ()]


def test_a_job_is_told_with_what_its_derivation_says():
    known = world(derivation("a"), derivation("b", "a", features=("kvm",)))
    (told,) = facts.with_facts([row("b")], Missing(will_build=(drv("a"), drv("b"))), known)
    assert (told.system, told.outputs) == ("x86_64-linux", {"out": out("b")})
    assert told.input_drvs == {drv("a"): ("out",)}
    assert told.required_features == ("kvm",)
    assert (told.cache_status, told.needed_builds) == ("notBuilt", (drv("a"),))


def test_a_job_that_can_be_fetched_needs_no_build_whatever_its_inputs_do():
    known = world(derivation("a"), derivation("b", "a"))
    missing = Missing(will_build=(drv("a"),), will_fetch=frozenset({out("b")}))
    (told,) = facts.with_facts([row("b")], missing, known)
    assert (told.cache_status, told.needed_builds) == ("cached", ())


def test_a_job_whose_derivation_is_not_to_be_had_stays_as_it_is():
    assert facts.with_facts([row("x")], Missing(), {}) == [row("x")]


@st.composite
def graphs(draw) -> tuple[dict[DrvPath, Derivation], set[DrvPath]]:
    names = "abcdefgh"[: draw(st.integers(1, 8))]
    found = {}
    for number, name in enumerate(names):
        needs = draw(st.sets(st.sampled_from(names[:number]))) if number else set()
        found[drv(name)] = derivation(name, *sorted(needs))
    return found, draw(st.sets(st.sampled_from(sorted(found)), min_size=1))


@given(graphs())
def test_every_need_of_a_need_is_there_before_it(graph):
    known, to_build = graph
    for top in to_build:
        order = list(facts.needed(top, to_build, known, set()))
        assert top not in order
        for place, each in enumerate([*order, top]):
            direct = known[each].input_drvs.keys() & to_build
            assert direct <= set(order[:place])


@given(graphs())
def test_the_scheduler_plans_the_same_as_from_its_own_dry_run(graph):
    known, to_build = graph
    rows = [row(path[-5]) for path in sorted(known, reverse=True)]
    missing = Missing(will_build=tuple(to_build))
    told = facts.with_facts(rows, missing, known)
    heard, silent = plans.told(told)
    assert not silent
    planned = plans.plan(told, heard, known)
    own = plans.plan(rows, missing, known)
    assert {s.derivation.drv_path: set(s.needs) for s in planned.steps} == {
        s.derivation.drv_path: set(s.needs) for s in own.steps
    }
