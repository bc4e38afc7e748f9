"""A build pod's agent on a real Nix, against a server that comes and goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fc_operator.agent.session import Ending
from fc_operator.model.outcomes import Retry
from fc_operator.model.statuses import BuildStatus
from fc_operator.model.tasks import PhaseChanged, StepStarted

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
