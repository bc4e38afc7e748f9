"""Lines of evaluators, of several versions and none."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.errors import ProtocolError
from fc_operator.evaluator import rows
from fc_operator.model.jobs import JobError, JobMeta, JobRow

S = "/nix/store"
DRV = f"{S}/{'a' * 32}-hello.drv"
OUT = f"{S}/{'b' * 32}-hello"
DEP = f"{S}/{'c' * 32}-c.drv"


def parse(**data):
    line = json.dumps({"attrPath": ["a"], "drvPath": DRV} | data).encode()
    return rows.parse_line(line, store_dir=S, name_of_root="default")


def test_a_row_of_an_old_nix_eval_jobs():
    row = parse(
        attr="a", name="hello", system="x86_64-linux", isCached=False,
        outputs={"out": OUT}, inputDrvs={DEP: ["out", "dev"]},
    )  # fmt: skip
    assert row == JobRow(
        attr_path=("a",),
        name="hello",
        system="x86_64-linux",
        drv_path=DRV,
        outputs={"out": OUT},
        input_drvs={DEP: ("out", "dev")},
        cache_status="notBuilt",
    )


def test_a_row_of_a_recent_nix_eval_jobs():
    row = parse(
        attr='"b.c"', attrPath=["b.c"], name="x", system="x86_64-linux", outputs={"out": None},
        requiredSystemFeatures=["kvm"], cacheStatus="cached", isCached=True,
        inputDrvs={DEP: {"outputs": ["out"], "dynamicOutputs": {}}},
        neededBuilds=[DEP], neededSubstitutes=[], warnings=["w"], traces=[], stats={},
        constituents=[DEP], extraValue={}, tomorrow={"unknown": True},
    )  # fmt: skip
    assert row.job_name == '"b.c"'
    assert row.outputs == {"out": None}
    assert (row.required_features, row.cache_status) == (("kvm",), "cached")
    assert row.needed_builds == (DEP,)
    assert row.input_drvs == {DEP: ("out",)}
    assert (row.is_aggregate, row.constituents) == (True, (DEP,))


def test_only_attr_path_is_sure_to_be_there_and_not_even_that_for_the_root():
    assert parse(attrPath=["x"]).name == ""
    line = json.dumps({"error": "\x1b[31merror:\x1b[0m no\n"}).encode()
    assert rows.parse_line(line, store_dir=S, name_of_root="r") == JobError(
        attr_path=(), message="error: no"
    )
    assert parse(attrPath=[]).attr_path == ("default",)


@pytest.mark.parametrize(
    "drv",
    [
        *("/etc/passwd", OUT, "/nix/storex/y.drv", None, 7, "", DRV.replace("a", "e"), f"{DRV}\n"),
        *(f"{S}/../{DRV}", f"{S}/{'a' * 32}-a b.drv", f"{S}/{'a' * 32}-x/../../../etc/y.drv"),
    ],
)
def test_a_row_without_a_derivation_of_the_store_is_an_error(drv):
    assert isinstance(parse(drvPath=drv), JobError)


def test_an_aggregate_with_an_error_still_has_its_derivation():
    row = parse(error="b: does not exist\n", constituents=[])
    assert isinstance(row, JobRow)


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"warning: something", b"\xff"])
def test_what_is_no_json_object_is_a_broken_protocol(line):
    with pytest.raises(ProtocolError):
        rows.parse_line(line, store_dir=S, name_of_root="r")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *("attrPath", "drvPath", "name", "system", "outputs", "meta", "constituents", "error"),
        *("namedConstituents", "globConstituents", "inputDrvs", "neededBuilds", "cacheStatus"),
        *("requiredSystemFeatures", "isCached"),
    ]
)


@given(st.dictionaries(KEYS, JSON, max_size=8))
def test_no_json_object_surprises_the_parser(data):
    for more in ({}, {"drvPath": DRV}):
        row = rows.parse_row(data | more, store_dir=S, name_of_root="r")
        assert isinstance(row, JobRow | JobError)


@given(st.dictionaries(st.sampled_from(["timeout", "license", "maintainers", "homepage",
       "description", "isChannel", "schedulingPriority", "maxSilent"]), JSON, max_size=8))  # fmt: skip
def test_no_meta_surprises_the_parser(meta):
    assert isinstance(rows.parse_meta(meta), JobMeta)


def test_meta_keeps_what_has_the_right_type():
    meta = rows.parse_meta(
        {"timeout": True, "maxSilent": -1, "schedulingPriority": -5, "description": "a\x1b[1mb",
         "homepage": ["https://a", "https://b"], "isChannel": True}
    )  # fmt: skip
    assert (meta.timeout_s, meta.max_silent_s, meta.scheduling_priority) == (None, None, -5)
    assert (meta.homepage, meta.is_channel) == ("https://a", True)
    assert "\x1b" not in meta.description


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a\0b", "its name is not UTF-8, or has a null byte in it"),
        ("a\udce9", "its name is not UTF-8, or has a null byte in it"),
        ("n" * 1025, "its name is longer than 1024 bytes"),
    ],
)
def test_s08_a_name_that_can_not_be_stored_is_an_error_of_that_attribute(name, problem):
    error = rows.parse_row({"attrPath": ["x", name], "drvPath": DRV}, store_dir=S, name_of_root="r")
    assert isinstance(error, JobError)
    assert error.message == problem
    assert not {"\0", "\udce9"} & set("".join(error.attr_path))
    assert len("".join(error.attr_path)) < 300


def test_s08_paths_that_nix_would_not_take_are_left_out():
    row = parse(
        outputs={"out": f"{S}/../x", "bin": OUT, "a\0": OUT, "../x": OUT},
        inputDrvs={"/etc/x.drv": ["out"], DEP: ["out"]},
        constituents=["/etc/passwd", DEP],
        neededBuilds=[f"{S}/{'a' * 32}-x y.drv", DEP],
        requiredSystemFeatures=["a b", "c\0"],
    )
    assert row.outputs == {"out": None, "bin": OUT}
    assert (list(row.input_drvs), row.constituents, row.needed_builds) == ([DEP], (DEP,), (DEP,))
    assert row.required_features == ("a", "b", "c")


OLD = """warning: you did not specify '--add-root'
error: attribute 'x' missing

       at /w/source/release.nix:1:2:

            1| { }.x
(use '--show-trace' to show detailed location information)
"""
NEW = """error:
       … while evaluating the attribute 'drvPath'
         at «internal»

       (stack trace truncated; use '--show-trace' to show the full trace)

       \x1b[31;1merror:\x1b[0m attribute 'y' missing
       at /w/source/release.nix:3:4:
"""


def test_the_summary_is_the_cause_wherever_a_version_prints_it():
    assert rows.summarize(OLD).splitlines()[0] == "attribute 'x' missing"
    assert "show-trace" not in rows.summarize(OLD)
    assert rows.summarize(NEW).splitlines()[0] == "attribute 'y' missing"
    assert rows.summarize("Killed\n") == "Killed"
    assert rows.summarize("") == ""


def test_messages_are_not_endless():
    assert len(rows.clean_message("x" * 1_000_000)) < 20_000
