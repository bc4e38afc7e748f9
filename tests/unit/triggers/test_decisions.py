from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fc_operator.model.statuses import EvaluationStatus as S
from fc_operator.store.checks import DueJobset, LastEvaluation
from fc_operator.triggers import decisions

COMMIT, OTHER = "a" * 40, "b" * 40
JOBSET = DueJobset(
    id="j", project_id="p", project="demo", name="main", namespace="default",
    repository_url="https://git.example.org/a.git", credentials_secret=None, branch=None,
    expression="release.nix", is_flake=False, systems=(), allow_import_from_derivation=False,
    state="enabled", check_interval_s=300, reason="interval", requested_commit=None,
    requested_force=False, failures=0, only_build_latest=False,
)  # fmt: skip
LAST = LastEvaluation(
    id="e", status=S.COMPLETED, reason="", error_kind=None, key="k", commit=COMMIT
)


@pytest.mark.parametrize(
    ("jobset", "last", "key", "evaluate"),
    [
        ({}, None, "k", True),
        ({}, {}, "k", False),
        ({}, {}, "other", True),
        ({}, {"status": S.PENDING}, "k", False),
        ({}, {"status": S.CANCELLED}, "k", False),
        ({}, {"status": S.TIMED_OUT, "error_kind": "limit"}, "k", False),
        ({}, {"status": S.FAILED, "error_kind": "evaluation"}, "k", False),
        ({}, {"status": S.FAILED, "error_kind": "fetch"}, "k", True),
        ({}, {"status": S.FAILED, "error_kind": "internal"}, "k", True),
        ({}, {"status": S.FAILED, "error_kind": "internal", "reason": "Quarantined"}, "k", False),
        ({"reason": "request"}, {}, "k", False),
        ({"reason": "request", "requested_force": True}, {}, "k", True),
        ({"reason": "request"}, {"status": S.FAILED, "error_kind": "evaluation"}, "k", True),
        ({"reason": "request"}, {"status": S.CANCELLED}, "k", True),
        ({"reason": "request"}, {"status": S.RUNNING}, "k", False),
        ({"state": "one_shot", "reason": "declared"}, {}, "k", True),
        ({"state": "one_shot", "reason": "declared"}, {"status": S.RUNNING}, "k", False),
        ({"reason": "declared"}, {}, "k", False),
    ],
)
def test_the_key_decides_and_few_things_besides(jobset, last, key, evaluate):
    verdict = decisions.decide(
        replace(JOBSET, **jobset),
        None if last is None else replace(LAST, **last),
        commit=COMMIT,
        key=key,
    )
    assert verdict.evaluate is evaluate


def test_the_trigger_says_what_changed():
    def trigger(commit, **more):
        return decisions.decide(replace(JOBSET, **more), LAST, commit=commit, key="x").trigger

    assert trigger(OTHER) == "interval"
    assert trigger(COMMIT) == "input"
    assert trigger(COMMIT, reason="declared") == "declared"
    assert trigger(OTHER, reason="webhook") == "webhook"


def test_the_next_look_is_spread_or_never():
    rng = random.Random(1)
    looks = [decisions.next_look_s(JOBSET, jitter=0.1, rng=rng) for _ in range(200)]
    assert 270 <= min(looks) < 280
    assert 320 < max(looks) <= 330
    assert decisions.next_look_s(replace(JOBSET, check_interval_s=0), jitter=0.1) is None
    assert decisions.next_look_s(replace(JOBSET, state="one_shot"), jitter=0.1) is None


def test_errors_make_looks_rarer_up_to_half_an_hour():
    delays = [decisions.after_error_s(n, random.Random(1)) for n in (1, 2, 3, 20)]
    assert delays == sorted(delays)
    assert 15 <= delays[0] <= 18
    assert 1800 <= delays[-1] <= 2160
