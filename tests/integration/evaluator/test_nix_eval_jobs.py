"""nix-eval-jobs by replay: a program on PATH prints what recorded runs printed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fc_operator.errors import EvaluationError, LimitReachedError, ProtocolError
from fc_operator.evaluator.batches import SIZE_MAX
from fc_operator.evaluator.find import Evaluators
from fc_operator.evaluator.nix_eval_jobs import NixEvalJobs
from fc_operator.settings import NixSettings

if "evaluator_conftest" not in sys.modules:
    _spec = importlib.util.spec_from_file_location(
        "evaluator_conftest", Path(__file__).parent / "conftest.py"
    )
    sys.modules["evaluator_conftest"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["evaluator_conftest"])
script = sys.modules["evaluator_conftest"].script

HASH = "0" * 32

pytestmark = pytest.mark.nix


class Replay:
    """A ``nix-eval-jobs`` that records how it was called and then does what it was told."""

    def __init__(self, bench) -> None:
        self.bench = bench
        self.calls = bench.work / "calls"
        bench.env["PATH"] = f"{bench.folder / 'bin'}:{bench.env['PATH']}"
        bench.make = NixEvalJobs
        self.says("")

    def says(self, stdout: str, *, stderr: str = "", code: int = 0, then: str = "") -> None:
        (self.bench.work / "stdout").write_text(stdout)
        (self.bench.work / "stderr").write_text(stderr)
        script(
            self.bench.folder / "bin" / "nix-eval-jobs",
            f"""#!/bin/sh
if [ "$1" = --version ]; then echo "nix-eval-jobs 2.35.2"; exit 0; fi
printf '%s\\n' "$@" > {self.calls}; env > {self.calls}.env
cat {self.bench.work}/stdout; cat {self.bench.work}/stderr >&2
{then}
exit {code}
""",
        )

    def row(self, *path: str, **more) -> str:
        store = self.bench.nix.store_dir
        name = path[-1]
        data = {
            "attr": ".".join(path), "attrPath": path, "drvPath": f"{store}/{HASH}-{name}.drv",
            "name": name, "system": "x86_64-linux", "outputs": {"out": f"{store}/{name}"},
        }  # fmt: skip
        return json.dumps(data | more) + "\n"


@pytest.fixture
def replay(bench):
    return Replay(bench)


async def test_rows_and_errors_of_a_run_come_through(replay, bench):
    replay.says(
        replay.row("a", neededBuilds=[], cacheStatus="local")
        + '{"attr":"b","attrPath":["b"],"error":"error: boom"}\n'
        + replay.row("c", system="aarch64-linux")
        + replay.row("agg", constituents=[f"{bench.nix.store_dir}/{HASH}-a.drv"])
    )
    rows, errors = await bench.jobs("{ }", systems=("x86_64-linux",))
    assert sorted(rows) == ["a", "agg"]
    assert errors == {"b": "error: boom"}
    assert rows["a"].cache_status == "local"
    assert rows["agg"].constituents == (f"{bench.nix.store_dir}/{HASH}-a.drv",)


async def test_it_is_called_with_our_rules_and_without_our_environment(replay, bench):
    bench.env["CANARY"] = "canary"
    await bench.jobs("{ }")
    words = replay.calls.read_text().splitlines()
    for name, value in (("restrict-eval", "true"), ("allow-import-from-derivation", "false")):
        assert words[words.index(name) + 1] == value
    assert words[-2] == "--expr"
    assert words[-1].startswith("import (/. + ")
    assert "canary" not in (replay.calls.parent / "calls.env").read_text()


async def test_the_evaluator_is_found_named_and_never_changed_silently(replay, bench):
    def evaluators():
        return Evaluators(
            nix=NixSettings(), evaluation=bench.settings, env=bench.env, home=bench.home
        )

    found = evaluators().current()
    assert (await found.versions()).evaluator == "nix-eval-jobs"
    assert (await found.versions()).version == "2.35.2"
    replay.says("", stderr="error: no\n", code=1)
    with pytest.raises(EvaluationError, match="no"):
        await bench.jobs("{ }")
    assert evaluators().current().name == "nix-eval-jobs"
    (bench.folder / "bin" / "nix-eval-jobs").unlink()
    assert evaluators().current().name == "walker"


@pytest.mark.parametrize(
    ("stderr", "error", "text"),
    [
        (
            "error: evaluation worker got killed by SIGKILL, maybe memory limit reached? (job a.b)\n",
            LimitReachedError,
            "a.b",
        ),
        ("error: possible infinite recursion at 'a.c'\n", EvaluationError, "a.c"),
        ("error: attribute 'hydraJobs' missing\n", EvaluationError, "hydraJobs"),
        ("", EvaluationError, "ended with 1"),
    ],
)
async def test_h08_a_run_that_dies_keeps_its_rows_and_says_why(replay, bench, stderr, error, text):
    replay.says(replay.row("a"), stderr=stderr, code=1)
    found = []

    async def consume():
        async for batch in bench.evaluator().evaluate(bench.request("{ }")):
            found.extend(batch.rows)

    with pytest.raises(error, match=text):
        await consume()
    assert [row.job_name for row in found] == ["a"]


async def test_a_line_that_is_no_json_ends_the_run(replay, bench):
    replay.says("warning: something\n")
    with pytest.raises(ProtocolError):
        await bench.jobs("{ }")


async def test_a_line_may_carry_a_whole_closure(replay, bench):
    drvs = {f"{bench.nix.store_dir}/{n:032}-x.drv": ["out"] for n in range(40_000)}
    replay.says(replay.row("a", inputDrvs=drvs))
    rows, _ = await bench.jobs("{ }")
    assert len(rows["a"].input_drvs) == 40_000


async def test_h03_it_is_killed_on_time_with_its_workers(replay, bench):
    mark = f"8{os.getpid()}"
    replay.says(replay.row("a"), then=f"trap '' TERM; (trap '' TERM; sleep {mark}) & sleep {mark}")
    began = time.monotonic()
    with pytest.raises(LimitReachedError) as error:
        await bench.jobs("{ }", timeout_s=0.7)
    assert error.value.limit == "time"
    assert time.monotonic() - began < 3
    assert [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])] == []


async def test_memory_of_all_workers_together_is_bounded(replay, bench):
    bench.settings = replace(bench.settings, memory_bytes=120 * 1024**2)
    hungry = "perl -e '$x = \"x\" x 70_000_000; sleep 60'"
    replay.says(replay.row("a"), then=f"{hungry} & {hungry} & wait")
    with pytest.raises(LimitReachedError) as error:
        await bench.jobs("{ }", timeout_s=30)
    assert error.value.limit == "memory"


async def test_rows_come_before_the_run_ends(replay, bench):
    replay.says(replay.row("a"), then="sleep 300")
    async with aclosing(bench.evaluator().evaluate(bench.request("{ }"))) as batches:
        assert [row.job_name for row in (await anext(batches)).rows] == ["a"]
    assert not [p for p in psutil.Process().children(recursive=True) if p.name() == "sleep"]


async def test_batches_hold_no_more_rows_than_the_largest(replay, bench):
    replay.says("".join(replay.row("set", f"j{n}") for n in range(1750)))
    batches = await bench.batches(bench.request("{ }"))
    assert sum(len(batch.rows) for batch in batches) == 1750
    assert max(len(batch.rows) for batch in batches) <= SIZE_MAX
