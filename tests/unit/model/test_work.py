"""The agent protocol: what one side writes the other reads, and nothing else passes for it."""

from __future__ import annotations

import json
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.errors import ProtocolError
from fc_operator.evaluator import rows
from fc_operator.model import work
from fc_operator.model.evaluations import ResolvedInput
from fc_operator.model.jobs import JobError, JobMeta, JobRow
from fc_operator.model.outcomes import Harvest, Metric, Outcome, OutputInfo, Product, Retry
from fc_operator.model.statuses import BuildStatus, EvaluationStatus
from fc_operator.model.tasks import PhaseChanged, StepEnded, StepOrder, StepStarted

S = "/nix/store"
TASK = UUID("0192d5a0-0000-7000-8000-000000000001")


def path(letter: str, name: str) -> str:
    return f"{S}/{letter * 32}-{name}"


def sent(value):
    """What arrives of ``value`` at the other side."""
    return json.loads(json.dumps(value.to_json()))


ORDER = StepOrder(
    step_id=7, attempt=2, task_id=TASK, drv_path=path("a", "hello.drv"), name="hello",
    system="x86_64-linux", required_features=("kvm",),
    outputs={"out": path("b", "hello"), "dev": None}, check=True, nar_bytes_max=5,
)  # fmt: skip
STEPS = work.StepsWork(
    task_id=TASK,
    orders=(ORDER,),
    slots=2,
    nix=work.NixWork(cache_url="http://fc/cache", cache_public_keys=("fc:abc",)),
)
EVALUATION = work.EvaluationWork(
    task_id=TASK,
    evaluation_id=TASK,
    repository_url="https://git.example.org/a.git",
    commit="c" * 40,
    expression="release.nix",
    is_flake=False,
    inputs=(ResolvedInput(name="nixpkgs", type="git", value="u main", revision="d" * 40),),
    input_urls={"nixpkgs": "u"},
    builds={"b": work.BuildInput(drv_path=path("a", "b.drv"), name="b-1")},
    systems=("x86_64-linux",),
    git=work.GitWork(allowed_hosts=("git.example.org",)),
)


@pytest.mark.parametrize("given_work", [STEPS, EVALUATION], ids=["steps", "evaluation"])
def test_work_and_the_answer_that_carries_it_arrive_as_they_were(given_work):
    opened = work.Opened(work=given_work, lease_s=30, heartbeat_s=10)
    assert work.Opened.from_json(sent(opened)) == opened
    assert work.work_from_json(sent(given_work)) == given_work


ENDED = StepEnded(
    step_id=7,
    attempt=2,
    outcome=Outcome(
        status=BuildStatus.FAILED_WITH_OUTPUT,
        retry=Retry.INFRASTRUCTURE,
        reason="X",
        message="ü\n",
        exit_code=1,
        cpu_ms=5,
        harvest=Harvest(
            outputs=(OutputInfo(name="out", path=path("b", "hello"), nar_size_bytes=9),),
            products=(Product(nr=1, type="file", subtype="", name="x", path=path("b", "hello")),),
            metrics=(Metric(name="m", value=1.5, unit="s"),),
            warnings=("w",),
        ),
    ),
    log_bytes=3,
)


@pytest.mark.parametrize(
    "event",
    [
        StepStarted(step_id=7, attempt=2),
        PhaseChanged(step_id=7, attempt=2, phase="build", at_ms=5),
        ENDED,
    ],
    ids=["started", "phase", "ended"],
)
def test_events_arrive_as_they_were(event):
    numbered = work.NumberedEvent(seq=4, event=event)
    assert work.NumberedEvent.from_json(sent(numbered)) == numbered


def test_what_both_sides_say_of_themselves_arrives_as_it_was():
    for value in (
        work.OpenRequest(phase=work.Phase.FETCH, token_hash="ab" * 32, host="h"),
        work.Heartbeat(running=((7, 2),)),
        work.HeartbeatAnswer(lease_s=30.0, cancel=((7, 2),), cancel_task=True, reason="Superseded"),
        work.Fetched(checkout=work.CheckoutReport(tree="t", subject="s", ms=4)),
        work.Credentials(credentials=(work.GitCredential(url="u", username="n", password="p"),)),
        work.StepsEnd(remaining=work.Remaining.REQUEUE),
        work.EvaluationReport(status=EvaluationStatus.TIMED_OUT, error_kind="limit", message="m"),
    ):
        assert work.read(type(value), sent(value)) == value


def test_credentials_are_in_no_text_for_people():
    credential = work.GitCredential(url="u", username="n", password="p4ss", identity="k3y")
    assert "p4ss" not in repr(work.Credentials(credentials=(credential,)))
    assert "k3y" not in repr(credential)


def test_what_a_newer_side_adds_is_ignored():
    data = sent(STEPS) | {"tomorrow": {"x": 1}}
    data["orders"][0]["later"] = True
    assert work.work_from_json(data) == STEPS


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"kind": "tea"},
        {"kind": "steps"},
        {"kind": "steps", "task_id": "x", "orders": []},
        {"kind": "steps", "task_id": str(TASK), "orders": [{"step_id": "7"}]},
    ],
)
def test_work_that_is_none_is_refused(data):
    with pytest.raises(ProtocolError):
        work.work_from_json(data)


@pytest.mark.parametrize(
    "data",
    [
        None,
        {"type": "started", "step_id": 1, "attempt": 1},
        {"seq": "1", "type": "started", "step_id": 1, "attempt": 1},
        {"seq": 1, "type": "log", "step_id": 1, "attempt": 1},
        {"seq": 1, "type": "started", "step_id": "one", "attempt": 1},
        {"seq": 1, "type": "ended", "step_id": 1, "attempt": 1, "outcome": {"status": "great"}},
    ],
)
def test_events_that_are_none_are_refused(data):
    with pytest.raises(ProtocolError):
        work.NumberedEvent.from_json(data)


TEXT = st.text(st.characters(categories=["L", "N", "P"]), max_size=20)
DRVS = st.sampled_from([path(letter, f"{letter}.drv") for letter in "abcd"])
NAMES = st.lists(TEXT, min_size=1, max_size=3).map(tuple)
JOBS = st.builds(
    JobRow,
    attr_path=NAMES,
    name=TEXT,
    system=st.sampled_from(["x86_64-linux", "builtin", "aarch64-darwin"]),
    drv_path=DRVS,
    outputs=st.dictionaries(
        st.sampled_from(["out", "dev"]), st.sampled_from([None, path("b", "x")])
    ),
    meta=st.builds(
        JobMeta,
        description=TEXT,
        homepage=TEXT,
        license=TEXT,
        maintainers=TEXT,
        timeout_s=st.none() | st.integers(0, 2**31 - 1),
        scheduling_priority=st.none() | st.integers(-(2**31), 2**31 - 1),
        is_channel=st.booleans(),
    ),
    input_drvs=st.none() | st.dictionaries(DRVS, st.just(("out",))),
    required_features=st.none() | st.sets(st.sampled_from(["kvm", "big"])).map(sorted).map(tuple),
    cache_status=st.sampled_from([None, "local", "cached", "notBuilt"]),
    needed_builds=st.none() | st.lists(DRVS, max_size=3).map(tuple),
)
AGGREGATES = st.builds(
    JobRow,
    attr_path=NAMES,
    name=TEXT,
    system=st.just("x86_64-linux"),
    drv_path=DRVS,
    is_aggregate=st.just(True),
    constituents=st.lists(DRVS, max_size=3).map(tuple),
    named_constituents=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    glob_constituents=st.booleans(),
)
ERRORS = st.builds(
    JobError,
    attr_path=st.lists(TEXT, max_size=3).map(tuple),
    message=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=50),
)


@given(st.lists(st.one_of(JOBS, AGGREGATES, ERRORS), max_size=5))
def test_rows_are_read_as_the_lines_of_an_evaluator_are(items):
    body = b"".join(work.bodies(map(work.row_to_json, items)))
    read = [
        rows.parse_row(line, store_dir=S, name_of_root="default") for line in work.lines_of(body)
    ]
    assert read == items


def test_rows_go_in_as_many_bodies_as_their_size_asks_for():
    lines = [{"n": n, "text": "x" * 40} for n in range(5)] + [{"text": "y" * 120}]
    made = list(work.bodies(lines, bytes_aim=120, bytes_max=150))
    assert [line for body in made for line in work.lines_of(body)] == lines
    assert all(len(body) <= 150 for body in made)
    assert len(made) == 4
    made = list(work.bodies(lines, lines_max=2))
    assert [len(list(work.lines_of(body))) for body in made] == [2, 2, 2]
    with pytest.raises(ProtocolError, match="150 are allowed"):
        list(work.bodies([{"text": "z" * 150}], bytes_max=150))


def test_more_lines_than_anybody_sends_are_not_read():
    most = b"{}\n" * work.LINES_MAX
    assert len(list(work.lines_of(most))) == work.LINES_MAX
    with pytest.raises(ProtocolError):
        next(work.lines_of(most + b"{}\n"))


def test_a_line_that_is_no_json_is_refused():
    with pytest.raises(ProtocolError):
        list(work.lines_of(b'{"a": 1}\n{"a":'))
