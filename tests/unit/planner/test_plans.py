from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.clients.nix import Missing, parse_dry_run
from fc_operator.model.jobs import Derivation, JobMeta, JobRow
from fc_operator.model.statuses import BuildStatus
from fc_operator.planner import plans
from fc_operator.planner.placement import StepState, place, status_of_build
from fc_operator.planner.plans import Limits, Presence, plan


def drv(name):
    return f"/nix/store/{name}.drv"


def row(name, **more):
    return JobRow(
        attr_path=(name,),
        name=name,
        system="x86_64-linux",
        drv_path=drv(name),
        outputs={"out": f"/nix/store/{name}"},
        **more,
    )


def facts(graph):
    return {
        drv(name): Derivation(
            drv_path=drv(name),
            name=name,
            system="x86_64-linux",
            outputs={"out": f"/nix/store/{name}"},
            input_drvs={drv(need): ("out",) for need in needs},
        )
        for name, needs in graph.items()
    }


def missing(*names, fetch=()):
    return Missing(
        will_build=tuple(map(drv, names)), will_fetch=frozenset(f"/nix/store/{n}" for n in fetch)
    )


def test_only_what_must_be_built_is_a_step_and_has_an_edge():
    graph = {"top": ["mid", "valid"], "mid": ["leaf", "fetched"], "leaf": []}
    found = plan(
        [row("top"), row("valid"), row("fetched")],
        missing("top", "mid", "leaf", fetch=["fetched"]),
        facts(graph),
    )
    assert {s.derivation.name: s.needs for s in found.steps} == {
        "top": (drv("mid"),),
        "mid": (drv("leaf"),),
        "leaf": (),
    }
    assert [j.presence for j in found.jobs] == [
        Presence.TO_BUILD,
        Presence.VALID,
        Presence.SUBSTITUTABLE,
    ]


def test_a_need_has_the_priority_of_its_most_urgent_job():
    graph = {"a": ["lib"], "b": ["lib", "own"], "lib": [], "own": []}
    rows = [row("a", meta=JobMeta(scheduling_priority=500)), row("b")]
    found = plan(rows, missing("a", "b", "lib", "own"), facts(graph))
    assert {s.derivation.name: s.priority for s in found.steps} == {
        "a": 500,
        "lib": 500,
        "b": 100,
        "own": 100,
    }


@pytest.mark.parametrize(
    ("metas", "needed", "limits", "expected"),
    [
        ([None], False, Limits(), None),
        ([60], False, Limits(), 60),
        ([60, 90], False, Limits(), 90),
        ([60, None], False, Limits(), None),
        ([60], True, Limits(), None),
        ([0, 60], False, Limits(), 0),
        ([None], False, Limits(jobset_timeout_s=50), 50),
        ([90_000], True, Limits(), 90_000),
        ([None], True, Limits(jobset_timeout_s=50), None),
    ],
)
def test_c17_limits_are_the_longest_that_a_job_allows(metas, needed, limits, expected):
    graph = {"a": [], "top": ["a"] if needed else []}
    rows = [
        JobRow(
            attr_path=(f"a{n}",), name="a", system="x", drv_path=drv("a"), meta=JobMeta(timeout_s=m)
        )
        for n, m in enumerate(metas)
    ]
    found = plan([*rows, row("top")], missing("a", "top"), facts(graph), limits=limits)
    (step,) = [s for s in found.steps if s.derivation.name == "a"]
    assert step.timeout_s == expected


def test_a_job_without_its_derivation_is_an_error_alone():
    found = plan([row("gone"), row("a")], missing("gone", "a"), facts({"a": []}))
    assert [e.attr_path for e in found.errors] == [("gone",)]
    assert [j.row.name for j in found.jobs] == ["a"]


def test_what_was_planned_before_is_a_need_but_no_step():
    found = plan([row("b")], missing("a", "b"), facts({"b": ["a"]}), known={drv("a")})
    assert [(s.derivation.name, s.needs) for s in found.steps] == [("b", (drv("a"),))]


@given(st.dictionaries(st.integers(0, 20), st.sets(st.integers(0, 20)), max_size=20))
def test_every_edge_leads_to_a_step(graph):
    names = {str(n): [str(m) for m in needs if m < n] for n, needs in graph.items()}
    found = plan([row(n) for n in names], missing(*names), facts(names))
    steps = {s.derivation.drv_path for s in found.steps}
    assert steps == set(map(drv, names))
    assert all(need in steps for s in found.steps for need in s.needs)


@pytest.mark.parametrize("to_build", [[], [drv("a")]])
def test_s08_what_a_job_says_of_its_outputs_and_system_is_not_believed(to_build):
    """Else a job passes off as its own what another project has built."""
    lying = row("a", input_drvs={}, required_features=())
    told = replace(lying, outputs={"out": "/nix/store/secret"}, system="bogus")
    missing = Missing(will_build=tuple(to_build))
    assert plans.unread([told], to_build, set()) == [drv("a")]
    (job,) = plan([told], missing, facts({"a": []})).jobs
    assert (job.row.outputs, job.row.system) == ({"out": "/nix/store/a"}, "x86_64-linux")
    if not to_build:
        (job,) = plan([told], missing, {}).jobs
        assert job.row.outputs == {}


def test_what_an_evaluator_told_is_not_asked_again():
    rows = [
        row("a", cache_status="notBuilt", needed_builds=(drv("x"), drv("a")), input_drvs={}),
        row("b", cache_status="cached", input_drvs={}),
        row("c", cache_status="local", input_drvs={}),
        row("d", cache_status="notBuilt", input_drvs={}),
        row("e"),
    ]
    known, silent = plans.told(rows)
    assert known.will_build == (drv("x"), drv("a"))
    assert known.will_fetch == {"/nix/store/b"}
    assert [r.name for r in silent] == ["d", "e"]


def state(status, **more):
    return StepState(
        **{
            "id": 1,
            "status": status,
            "outputs_valid": status is BuildStatus.SUCCEEDED,
            "finished_age_s": 100.0,
        }
        | more
    )


@pytest.mark.parametrize(
    ("found", "asked", "expected"),
    [
        (state(BuildStatus.PENDING), True, "shared"),
        (state(BuildStatus.SUCCEEDED), True, "revived"),  # its outputs were collected
        (state(BuildStatus.SUCCEEDED, finished_age_s=1.0), True, "shared"),  # meanwhile
        (state(BuildStatus.SUCCEEDED), False, "shared"),
        (state(BuildStatus.FAILED, is_remembered=True), True, "shared"),
        (state(BuildStatus.FAILED), True, "revived"),
        (state(BuildStatus.TIMEOUT), True, "revived"),
        (
            state(
                BuildStatus.DEPENDENCY_FAILED, is_remembered=True, root_cause=2, root_cause_drv="x"
            ),
            True,
            "revived",
        ),
    ],
)
def test_h11_which_ended_steps_come_back(found, asked, expected):
    steps = plan([row("a")], missing("a"), facts({"a": []})).steps
    placed = place(steps, {drv("a"): found}, asked={drv("a")} if asked else set(), asked_age_s=5)
    assert placed.new == {}
    assert ("revived" if placed.revived else "shared") == expected


def test_a_remembered_failure_is_shown_as_such():
    assert (
        status_of_build(state(BuildStatus.FAILED, is_remembered=True)) is BuildStatus.CACHED_FAILURE
    )
    assert status_of_build(state(BuildStatus.TIMEOUT)) is BuildStatus.TIMEOUT
    assert status_of_build(state(BuildStatus.RUNNING)) is BuildStatus.RUNNING


def test_the_words_of_a_dry_run():
    text = """warning: something
these 2 derivations will be built:
  /nix/store/a.drv
  /nix/store/b.drv
this path will be fetched (0.01 MiB download, 0.05 MiB unpacked):
  /nix/store/c
don't know how to build these paths:
  /nix/store/d.drv
"""
    found = parse_dry_run(text)
    assert found.will_build == ("/nix/store/a.drv", "/nix/store/b.drv")
    assert (found.will_fetch, found.unknown) == ({"/nix/store/c"}, {"/nix/store/d.drv"})
