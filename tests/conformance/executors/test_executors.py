"""What every executor must do, on a real Nix. Parametrised by the ``executor`` fixture."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from pathlib import Path

import pytest

from fc_operator.executors.protocol import StepRef, StopReason
from fc_operator.model.ids import DrvPath
from fc_operator.model.outcomes import Retry
from fc_operator.model.statuses import BuildStatus
from fc_operator.model.tasks import LogChunk, PhaseChanged, StepEnded, StepStarted

pytestmark = pytest.mark.nix


def processes_with(word: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if word in line:
                found.append(line)
    return found


async def test_success_gives_outputs_products_and_metrics(nix, tell, is_kept):
    order = nix.order(
        nix.drv(
            """mkdir -p $out/nix-support $doc/share; echo data > "$out/a file.txt"
            echo "file txt \\"$out/a file.txt\\"" > $out/nix-support/hydra-build-products
            echo "doc manual $doc index.html" >> $out/nix-support/hydra-build-products
            printf 'size 12.5 MiB\\nbad nan\\n' > $out/nix-support/hydra-metrics
            echo sample-1.0 > $out/nix-support/hydra-release-name""",
            attrs='outputs = ["out" "doc"];',
        )
    )
    story = await tell(order)
    outcome = story.outcome(order)
    assert (outcome.status, outcome.reason, outcome.retry) == (
        BuildStatus.SUCCEEDED,
        "Built",
        Retry.NEVER,
    )
    harvest = outcome.harvest
    assert [o.name for o in harvest.outputs] == ["out", "doc"]
    for output in harvest.outputs:
        assert output.nar_hash == nix.run("nix-store", "-q", "--hash", output.path)
        assert output.nar_size_bytes == int(nix.run("nix-store", "-q", "--size", output.path))
        assert is_kept(output.path), "before the end was told"
    assert [(p.nr, p.type, p.name, p.size_bytes, p.output) for p in harvest.products] == [
        (1, "file", "a file.txt", 5, "out"),
        (2, "doc", harvest.outputs[1].path.rsplit("/", 1)[-1], None, "out"),
    ]
    assert [(m.name, m.value, m.unit) for m in harvest.metrics] == [("size", 12.5, "MiB")]
    assert harvest.release_name == "sample-1.0"
    assert isinstance(story.events[0], StepStarted)
    assert isinstance(story.events[-1], StepEnded)


async def test_already_valid_is_a_success_without_a_build(nix, tell):
    drv = nix.drv("echo once; echo x > $out")
    first, second = nix.order(drv), nix.order(drv)
    await tell(first)
    story = await tell(second)
    assert story.outcome(second).status is BuildStatus.SUCCEEDED
    assert story.outcome(second).reason == "AlreadyValid"
    assert story.outcome(second).harvest.outputs[0].nar_size_bytes > 0
    assert not story.of(second, LogChunk)


async def test_failure_tells_exit_code_and_log(nix, tell):
    order = nix.order(nix.drv("echo one; echo two >&2; exit 3"))
    story = await tell(order)
    outcome = story.outcome(order)
    assert (outcome.status, outcome.reason, outcome.exit_code, outcome.retry) == (
        BuildStatus.FAILED,
        "BuilderFailed",
        3,
        Retry.NEVER,
    )
    assert b"".join(chunk.data for chunk in story.of(order, LogChunk)) == b"one\ntwo\n"
    assert (story.end(order).log_bytes, story.end(order).log_lines) == (8, 2)


async def test_log_keeps_colours_and_a_last_line_without_newline(nix, tell):
    order = nix.order(
        nix.drv(
            r"""printf '\033[31mred\033[0m\n'
            echo '@nix {"action":"setPhase","phase":"buildPhase"}' >&2
            printf 'no newline' > /dev/stderr; echo x > $out"""
        )
    )
    story = await tell(order)
    chunks = story.of(order, LogChunk)
    assert b"".join(c.data for c in chunks) == b"\x1b[31mred\x1b[0m\nno newline\n"
    at = 0
    for chunk in chunks:
        assert chunk.offset == at
        at += len(chunk.data)
    assert [p.phase for p in story.of(order, PhaseChanged)] == ["buildPhase"]


async def test_what_a_builder_prints_is_never_taken_for_nixs_own_words(nix, tell):
    order = nix.order(
        nix.drv(
            """echo "error: build of x timed out after 5 seconds"
            echo '@nix {"action":"msg","level":0,"msg":"error: timed out after 5 seconds",
            "raw_msg":"timed out after 5 seconds"}' | tr -d '\\n' >&2; echo >&2
            echo '@nix {"action":"stop","id":1}' >&2; echo "@nix {broken" >&2
            echo "No space left on device" >&2; exit 9"""
        )
    )
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason, outcome.exit_code) == (
        BuildStatus.FAILED,
        "BuilderFailed",
        9,
    )


async def test_timeout_ends_the_build(nix, tell):
    order = nix.order(nix.drv("while :; do echo busy; sleep 0.2; done"), timeout_s=1)
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason) == (BuildStatus.TIMEOUT, "Timeout")


async def test_silence_ends_the_build(nix, tell):
    order = nix.order(nix.drv("echo hush; sleep 300"), max_silent_s=1)
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason) == (BuildStatus.TIMEOUT, "Silence")


async def test_log_limit_ends_the_build(nix, tell):
    order = nix.order(nix.drv("while :; do echo aaaaaaaaaaaaaaaaaaaa; done"), log_bytes_max=100_000)
    story = await tell(order)
    assert story.outcome(order).status is BuildStatus.LOG_LIMIT_EXCEEDED
    size = sum(len(chunk.data) for chunk in story.of(order, LogChunk))
    assert size == story.end(order).log_bytes <= 100_000


async def test_hash_mismatch_shows_both_hashes(nix, tell):
    wanted = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    order = nix.order(
        nix.drv("echo hi > $out", attrs=f'outputHash = "{wanted}"; outputHashMode = "flat";')
    )
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason) == (BuildStatus.FAILED, "HashMismatch")
    assert wanted in outcome.message
    assert "mOpuTyFvL7S2n/+bOkSELDhobKaF8/VdxIxdP7EQe+Q=" in outcome.message


async def test_a_failed_fetch_is_tried_again(nix, tell):
    hashes = 'outputHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";'
    order = nix.order(nix.drv("exit 6", attrs=hashes))
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason, outcome.retry) == (
        BuildStatus.FAILED,
        "FetchFailed",
        Retry.INFRASTRUCTURE,
    )


async def test_missing_output_is_a_failure(nix, tell):
    order = nix.order(nix.drv("true"))
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason) == (BuildStatus.FAILED, "OutputMissing")


async def test_forbidden_reference_is_a_failure(nix, tell):
    order = nix.order(nix.drv("echo $out > $out", attrs="allowedReferences = [];"))
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason) == (BuildStatus.FAILED, "ForbiddenReference")


async def test_unsupported_system_blames_the_builder_not_the_build(nix, tell):
    order = nix.order(nix.drv("true", attrs='requiredSystemFeatures = ["zork"];'))
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.retry, outcome.blame_builder) == (
        BuildStatus.UNSUPPORTED_SYSTEM,
        Retry.INFRASTRUCTURE,
        True,
    )


async def test_missing_drv_is_infrastructure(nix, tell):
    order = nix.order(DrvPath(f"{nix.store_dir}/{'a' * 32}-gone.drv"))
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason, outcome.retry) == (
        BuildStatus.ABORTED,
        "DerivationMissing",
        Retry.INFRASTRUCTURE,
    )


async def test_check_finds_what_is_not_deterministic(nix, tell):
    order = nix.order(nix.drv("head -c 20 /dev/urandom > $out"), check=True)
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason) == (BuildStatus.NON_DETERMINISTIC, "OutputDiffers")
    assert outcome.harvest.outputs, "the first outputs stay valid"


async def test_check_of_a_deterministic_build_succeeds(nix, tell):
    order = nix.order(nix.drv("echo same > $out"), check=True)
    assert (await tell(order)).outcome(order).status is BuildStatus.SUCCEEDED


async def test_failed_file_means_failed_with_output(nix, tell):
    order = nix.order(nix.drv("mkdir -p $out/nix-support; touch $out/nix-support/failed"))
    outcome = (await tell(order)).outcome(order)
    assert outcome.status is BuildStatus.FAILED_WITH_OUTPUT
    assert outcome.harvest.outputs


async def test_nar_limit_keeps_no_root(nix, tell, is_kept):
    order = nix.order(nix.drv("head -c 50000 /dev/zero > $out"), nar_bytes_max=10_000)
    outcome = (await tell(order)).outcome(order)
    assert outcome.status is BuildStatus.NAR_SIZE_LIMIT_EXCEEDED
    assert not outcome.harvest.outputs
    path = nix.run("nix-store", "-q", "--outputs", order.drv_path)
    assert not is_kept(path)


async def test_killed_builder_is_a_failure_with_its_signal(nix, tell):
    order = nix.order(nix.drv("kill -9 $$"))
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason, outcome.signal) == (
        BuildStatus.FAILED,
        "BuilderKilled",
        9,
    )


async def test_memory_and_cpu_are_told(nix, tell):
    script = "x=$(head -c 30000000 /dev/zero | tr '\\0' a); sleep 1; echo ${#x} > $out"
    order = nix.order(nix.drv(script))
    outcome = (await tell(order)).outcome(order)
    assert outcome.peak_memory_bytes > 25_000_000
    assert outcome.cpu_ms > 0


@pytest.mark.parametrize(
    ("reason", "ending"),
    [
        (StopReason.CANCELLED, (BuildStatus.CANCELLED, Retry.NEVER)),
        (StopReason.LEASE_LOST, (BuildStatus.ABORTED, Retry.FREE)),
        (StopReason.SHUTDOWN, (BuildStatus.ABORTED, Retry.FREE)),
    ],
)
async def test_cancel_leaves_no_process_of_the_build(nix, executor, tell, reason, ending):
    mark = f"3{os.getpid()}.{nix.order(DrvPath('x')).step_id}"
    order = nix.order(nix.drv(f"echo up; setsid sleep {mark} & sleep {mark}"))
    ref = StepRef(step_id=order.step_id, attempt=1)

    async def each(event):
        if isinstance(event, LogChunk):
            assert processes_with(mark)
            assert not await executor.cancel(StepRef(step_id=ref.step_id, attempt=2), reason)
            assert await executor.cancel(ref, reason)

    story = await tell(order, each=each)
    assert (story.outcome(order).status, story.outcome(order).retry) == ending
    assert processes_with(f"sleep {mark}") == []
    assert not await executor.cancel(ref, reason), "it has ended"


async def test_closing_the_stream_stops_the_batch(nix, executor):
    mark = f"4{os.getpid()}.7"
    order = nix.order(nix.drv(f"echo up; sleep {mark}"))
    async with aclosing(executor.start([order])) as stream:
        async for event in stream:
            if isinstance(event, LogChunk):
                break
    assert processes_with(f"sleep {mark}") == []
    assert (await executor.capacity()).slots_free == (await executor.capacity()).slots_total


async def test_a_step_waits_for_the_step_of_its_batch_that_it_needs(nix, tell):
    first = nix.drv("echo building-first; sleep 0.3; echo a > $out", name="first")
    second = nix.drv(
        "echo building-second; cat $dep > $out",
        name="second",
        attrs=f"dep = (import {first}).outPath;",
    )
    orders = nix.order(second), nix.order(first)
    story = await tell(*orders)
    assert [story.outcome(o).status for o in orders] == [BuildStatus.SUCCEEDED] * 2
    ends = [e.step_id for e in story.events if isinstance(e, StepEnded)]
    assert ends == [orders[1].step_id, orders[0].step_id]
    logs = [b"".join(c.data for c in story.of(o, LogChunk)) for o in orders]
    assert logs == [b"building-second\n", b"building-first\n"], "each was built once"


async def test_a_failure_in_the_batch_reaches_its_dependent_unbuilt(nix, tell):
    first = nix.drv("exit 1", name="first")
    second = nix.drv("cat $dep > $out", attrs=f"dep = (import {first}).outPath;")
    orders = nix.order(second), nix.order(first)
    story = await tell(*orders)
    assert story.outcome(orders[0]).status is BuildStatus.DEPENDENCY_FAILED
    assert first in story.outcome(orders[0]).message
    assert not story.of(orders[0], StepStarted)


async def test_an_input_that_should_have_been_there_is_infrastructure(nix, tell):
    first = nix.drv("exit 1", name="first")
    order = nix.order(nix.drv("cat $dep > $out", attrs=f"dep = (import {first}).outPath;"))
    outcome = (await tell(order)).outcome(order)
    assert (outcome.status, outcome.reason, outcome.retry) == (
        BuildStatus.DEPENDENCY_FAILED,
        "InputFailed",
        Retry.INFRASTRUCTURE,
    )
    assert first in outcome.message


async def test_a_slow_reader_slows_the_build_and_loses_nothing(nix, executor):
    lines = 300_000
    order = nix.order(nix.drv(f"seq -f 'line %010.0f of many' 1 {lines}; echo x > $out"))
    size, most = 0, 0
    async with aclosing(executor.start([order])) as stream:
        async for event in stream:
            if isinstance(event, LogChunk):
                assert event.offset == size
                size += len(event.data)
                most = max(most, len(event.data))
                await asyncio.sleep(0)
    assert size == lines * len("line 0000000001 of many\n")
    assert most <= 64 * 1024


async def test_capacity_counts_what_runs(nix, executor):
    total = (await executor.capacity()).slots_total
    order = nix.order(nix.drv("echo up; sleep 300"))
    async with aclosing(executor.start([order])) as stream:
        async for event in stream:
            if isinstance(event, LogChunk):
                assert (await executor.capacity()).slots_free == total - 1
                break
    assert (await executor.capacity()).slots_free == total
