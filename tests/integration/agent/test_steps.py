"""A build pod's agent on a real Nix, against a server that comes and goes."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fc_operator.agent.session import Ending
from fc_operator.errors import ConflictError
from fc_operator.model.outcomes import Retry
from fc_operator.model.statuses import BuildStatus
from fc_operator.model.tasks import PhaseChanged, StepEnded, StepStarted

pytestmark = pytest.mark.nix


def processes_with(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if word in line and "pytest" not in line:
                found.append(line)
    return found


async def test_steps_are_built_uploaded_and_told(nix, server, batch, agent):
    good = nix.drv('echo one; echo two; mkdir -p $out; echo "x" > $out/f')
    bad = nix.drv("echo three; exit 3")
    first, second = await batch(good, bad)
    async with agent() as pod:
        assert await pod.ending() is Ending.DONE
    end = server.end_of(first)
    assert (end.outcome.status, end.outcome.reason) == (BuildStatus.SUCCEEDED, "Built")
    (output,) = end.outcome.harvest.outputs
    assert server.caches(output.path)
    assert server.happened.index(f"cached {output.path}") < server.happened.index(
        f"ended {first.step_id}"
    ), "in the cache before it has ended well"
    assert server.log_of(first) == b"one\ntwo\n"
    assert end.log_bytes == 8
    failure = server.end_of(second).outcome
    assert (failure.status, failure.exit_code) == (BuildStatus.FAILED, 3)
    assert server.log_of(second) == b"three\n"
    assert [each.seq for each in server.events] == list(range(len(server.events)))
    assert sum(isinstance(each.event, StepStarted) for each in server.events) == 2
    assert server.ended == {"remaining": "none"}
    assert server.happened[-1] == "end"


async def test_inputs_come_from_the_cache_and_are_not_built_again(nix, server, batch, agent):
    first = nix.drv("echo built-first; echo a > $out", name="first")
    second = nix.drv(
        "echo built-second; cat $dep > $out",
        name="second",
        attrs=f"dep = (import {first}).outPath;",
    )
    (order,) = await batch(first, also=[second])
    async with agent() as pod:
        await pod.ending()
    needed = server.end_of(order).outcome.harvest.outputs[0].path
    (order,) = await batch(second)
    async with agent() as pod:
        assert await pod.ending() is Ending.DONE
    assert server.end_of(order).outcome.status is BuildStatus.SUCCEEDED
    assert server.log_of(order) == b"built-second\n"
    assert nix.holds(needed)


async def test_an_input_that_the_cache_lacks_is_infrastructure(nix, server, batch, agent):
    first = nix.drv("echo a > $out", name="first")
    second = nix.drv("cat $dep > $out", attrs=f"dep = (import {first}).outPath;")
    alone = nix.drv("echo x > $out")
    orders = await batch(second, alone)
    async with agent() as pod:
        assert await pod.ending() is Ending.DONE
    outcome = server.end_of(orders[0]).outcome
    assert (outcome.status, outcome.reason, outcome.retry) == (
        BuildStatus.DEPENDENCY_FAILED,
        "InputFailed",
        Retry.INFRASTRUCTURE,
    )
    assert first in outcome.message
    assert server.end_of(orders[1]).outcome.status is BuildStatus.SUCCEEDED, "it needs nothing"


async def test_what_the_cache_has_already_is_not_built(nix, server, batch, agent):
    drv = nix.drv("echo once; echo a > $out")
    await batch(drv)
    async with agent() as pod:
        await pod.ending()
    (again,) = await batch(drv)
    async with agent() as pod:
        await pod.ending()
    assert server.end_of(again).outcome.status is BuildStatus.SUCCEEDED
    assert server.log_of(again) == b""
    assert server.end_of(again).outcome.harvest.outputs


async def test_a_server_that_restarts_costs_nothing(nix, server, batch, agent):
    lines = 40
    script = f"""for i in $(seq {lines}); do echo line $i; sleep 0.1; done; mkdir $out
        echo '@nix {{"action":"setPhase","phase":"installPhase"}}' >&2"""
    (order,) = await batch(nix.drv(script))
    async with agent() as pod:
        await server.until(lambda: b"line 3\n" in server.log_of(order))
        await server.down()
        await server.up()
        server.broken = 3  # done, and then the answer is lost
        assert await pod.ending() is Ending.DONE
    wanted = "".join(f"line {n}\n" for n in range(1, lines + 1)).encode()
    assert server.log_of(order) == wanted
    end = server.end_of(order)
    assert end.outcome.status is BuildStatus.SUCCEEDED
    assert end.log_bytes == len(wanted)
    assert [each.event.phase for each in server.events if isinstance(each.event, PhaseChanged)] == [
        "installPhase"
    ]
    assert [each.seq for each in server.events] == list(range(len(server.events)))


async def test_a_task_that_is_over_ends_everything_at_once(nix, server, batch, agent):
    mark = f"5{os.getpid()}.1"
    (order,) = await batch(nix.drv(f"echo up; sleep {mark}"))
    async with agent() as pod:
        await server.until(lambda: server.log_of(order))
        assert processes_with(f"sleep {mark}")
        server.gone = True
        assert await pod.ending(10) is Ending.GONE
    assert processes_with(f"sleep {mark}") == []
    assert server.ended is None


async def test_one_attempt_is_cancelled_and_the_others_go_on(nix, server, batch, agent):
    stuck, good = await batch(nix.drv("echo up; sleep 300"), nix.drv("echo fine; echo x > $out"))
    async with agent() as pod:
        await server.until(lambda: server.log_of(stuck) and len(server.events) >= 3)
        server.cancel = [[stuck.step_id, 1]]
        assert await pod.ending() is Ending.DONE
    assert server.end_of(stuck).outcome.status is BuildStatus.CANCELLED
    assert server.end_of(good).outcome.status is BuildStatus.SUCCEEDED
    assert server.ended == {"remaining": "none"}


async def test_a_cancelled_task_tells_its_ends_and_leaves(nix, server, batch, agent):
    orders = await batch(nix.drv("echo up; sleep 300"), nix.drv("echo up; sleep 301"))
    async with agent() as pod:
        await server.until(lambda: all(map(server.log_of, orders)))
        server.cancel_task = "Cancelled"
        assert await pod.ending() is Ending.DONE
    assert {server.end_of(order).outcome.status for order in orders} == {BuildStatus.CANCELLED}


async def test_a_lease_that_can_not_be_renewed_ends_the_builds_in_time(nix, server, batch, agent):
    mark = f"6{os.getpid()}.1"
    (order,) = await batch(nix.drv(f"echo up; sleep {mark}"))
    server.lease_s = 3.0
    async with agent() as pod:
        await server.until(lambda: server.log_of(order))
        await server.down()
        began_s = time.monotonic()
        assert await pod.ending(10) is Ending.LOST
        assert time.monotonic() - began_s < server.lease_s
    assert processes_with(f"sleep {mark}") == []


async def test_an_upload_is_tried_again_and_told_after(nix, server, batch, agent):
    (order,) = await batch(nix.drv("echo x > $out"))
    server.refuse["PUT"] = [500, 0, 503]
    async with agent() as pod:
        assert await pod.ending() is Ending.DONE
    assert server.refuse["PUT"] == []
    outcome = server.end_of(order).outcome
    assert outcome.status is BuildStatus.SUCCEEDED
    assert server.caches(outcome.harvest.outputs[0].path)


async def test_an_output_that_the_cache_refuses_is_infrastructure(nix, server, batch, agent):
    (order,) = await batch(nix.drv("echo x > $out"))
    server.refuse["PUT"] = [403] * 10
    async with agent() as pod:
        assert await pod.ending() is Ending.DONE
    outcome = server.end_of(order).outcome
    assert (outcome.status, outcome.reason, outcome.retry) == (
        BuildStatus.ABORTED,
        "UploadRefused",
        Retry.INFRASTRUCTURE,
    )
    assert not outcome.harvest.outputs
    assert len(server.refuse["PUT"]) == 9, "not asked again"


async def test_a_second_pod_of_a_task_is_turned_away(nix, server, batch, agent):
    await batch(nix.drv("echo up; sleep 300"))
    async with agent():
        await server.until(lambda: "work" in server.phases)
        async with agent() as second:
            with pytest.raises(ConflictError):
                await second.ending()


async def test_requests_wait_as_the_server_asks(nix, server, batch, agent):
    (order,) = await batch(nix.drv("echo hello; echo x > $out"))
    server.refuse = {"/open": [503, 429], "/log": [429], "/events": [502], "/end": [500]}
    async with agent() as pod:
        assert await pod.ending() is Ending.DONE
    assert not any(server.refuse.values())
    assert server.log_of(order) == b"hello\n"


async def test_the_password_of_the_cache_lies_nowhere_while_a_build_runs(  # noqa: PLR0917
    nix, server, batch, agent, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (order,) = await batch(nix.drv("echo up; sleep 1; echo x > $out"))
    async with agent() as pod:
        await server.until(lambda: server.log_of(order))
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert files, "the agent has its folder here"
        assert not any(b"fct_" in path.read_bytes() for path in files)
        await pod.ending()
    assert server.end_of(order).outcome.status is BuildStatus.SUCCEEDED


async def test_sigterm_gives_back_what_is_not_done_within_the_grace_period(
    nix, server, batch, tmp_path
):
    mark = f"7{os.getpid()}.1"
    drvs = [nix.drv(f"echo up; sleep {mark}"), nix.drv("echo x > $out"), nix.drv("echo y > $out")]
    orders = await batch(*drvs)
    env = nix.env | {
        "FC_AGENT_SERVER": server.url,
        "FC_AGENT_TASK": str(server.task_id),
        "FC_AGENT_TOKEN": server.opening.text,
        "FC_AGENT_FOLDER": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    fc = Path(sys.executable).with_name("fc")
    process = await asyncio.create_subprocess_exec(fc, "agent", env=env)
    try:
        await server.until(
            lambda: (
                server.log_of(orders[0])
                and sum(isinstance(each.event, StepEnded) for each in server.events) == 2
            )
        )
        assert processes_with(f"sleep {mark}")
        process.terminate()
        async with asyncio.timeout(15):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert processes_with(f"sleep {mark}") == []
    outcome = server.end_of(orders[0]).outcome
    assert (outcome.reason, outcome.retry) == ("Shutdown", Retry.FREE)
    assert server.ended == {"remaining": "requeue"}
    assert list(tmp_path.iterdir()) == [], "no password is left behind"


async def test_an_attempt_that_went_to_somebody_else_ends_alone(nix, server, batch, agent):
    mark = f"8{os.getpid()}.1"
    lost, good = await batch(
        nix.drv(f"echo up; sleep {mark}; echo never"), nix.drv("sleep 1; echo x > $out")
    )
    server.lost = {(lost.step_id, 1)}
    async with agent() as pod:
        assert await pod.ending(60) is Ending.DONE
    assert (server.end_of(lost).outcome.reason, server.log_of(lost)) == ("LeaseLost", b"")
    assert server.end_of(good).outcome.status is BuildStatus.SUCCEEDED


async def test_a_cache_that_fails_for_a_while_is_not_taken_for_an_empty_one(
    nix, server, batch, agent
):
    first = nix.drv("echo a > $out", name="first")
    second = nix.drv("cat $dep > $out", attrs=f"dep = (import {first}).outPath;")
    await batch(first, also=[second])
    async with agent() as pod:
        await pod.ending()
    (order,) = await batch(second)
    server.refuse = {"nix-cache-info": [500], ".narinfo": [500, 0, 502, 0, 0, 503, 0, 500]}
    async with agent() as pod:
        assert await pod.ending() is Ending.DONE
    assert not any(server.refuse.values())
    assert server.end_of(order).outcome.status is BuildStatus.SUCCEEDED


@pytest.mark.parametrize("seed", range(4))
async def test_what_was_told_is_the_same_however_often_the_link_breaks(
    nix, server, batch, agent, seed
):
    scripts = [
        "for i in $(seq 200); do echo line $i of $name; done; sleep 0.3; echo last; echo x > $out",
        """for i in 1 2 3 4 5; do echo "@nix {\\"action\\":\\"setPhase\\",\\"phase\\":\\"p$i\\"}" >&2
           echo in $i; sleep 0.1; done; exit 4""",
        "echo x > $out",
    ]
    orders = await batch(*map(nix.drv, scripts))
    server.chance = random.Random(seed)
    async with agent() as pod:
        assert await pod.ending() in {Ending.DONE, Ending.GONE}
    wanted = "".join(f"line {n} of sample\n" for n in range(1, 201)) + "last\n"
    assert server.log_of(orders[0]).decode() == wanted
    assert server.log_of(orders[1]) == b"".join(b"in %d\n" % n for n in range(1, 6))
    assert [server.end_of(order).outcome.status.value for order in orders] == [
        "succeeded",
        "failed",
        "succeeded",
    ]
    phases = [each.event.phase for each in server.events if isinstance(each.event, PhaseChanged)]
    assert phases == ["p1", "p2", "p3", "p4", "p5"]
    assert [each.seq for each in server.events] == list(range(len(server.events)))
    assert sum(isinstance(each.event, StepStarted) for each in server.events) == 3
