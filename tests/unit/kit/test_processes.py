import asyncio
import os
import signal
from pathlib import Path

import pytest

from fc_operator.kit import processes
from fc_operator.kit.processes import Limits, ProcessLimitError

ENV = {"PATH": "/usr/bin:/bin"}


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def gone(pid: int) -> None:
    async with asyncio.timeout(5):
        while alive(pid):
            await asyncio.sleep(0.01)


async def test_output_and_exit_code_come_back():
    done = await processes.run(["sh", "-c", "echo out; echo err >&2; exit 3"], env=ENV)
    assert (done.code, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


async def test_nothing_of_our_environment_is_inherited(monkeypatch):
    monkeypatch.setenv("FC_CANARY", "secret")
    done = await processes.run(["env"], env={"PATH": "/usr/bin:/bin", "A": "b"})
    assert b"A=b" in done.stdout
    assert b"secret" not in done.stdout


async def test_input_is_fed():
    assert (
        await processes.run(["cat"], env=ENV, stdin=b"x" * 1_000_000)
    ).stdout == b"x" * 1_000_000


async def test_h03_a_grandchild_that_holds_the_pipe_open_is_killed_on_time(tmp_path):
    """The child ends at once; a grandchild ignores SIGTERM and keeps stdout open."""
    pid_file = tmp_path / "pid"
    script = f"(trap '' TERM; echo $BASHPID > {pid_file}; exec sleep 1000) & exit 0"
    async with asyncio.timeout(5):
        done = await processes.run(["bash", "-c", f"{script}"], env=ENV, limits=Limits(timeout_s=4))
    assert done.code == 0


async def test_the_whole_group_dies_at_the_time_limit(tmp_path):
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; (trap '' TERM; echo $BASHPID > {pid_file}; while :; do sleep 1; done) & wait"
    with pytest.raises(ProcessLimitError, match=r"longer than 0.5 s"):
        await processes.run(["bash", "-c", script], env=ENV, limits=Limits(timeout_s=0.5))
    await gone(int(pid_file.read_text()))


async def test_too_much_output_ends_the_process():
    with pytest.raises(ProcessLimitError, match="printed more than 1000 bytes"):
        await processes.run(["yes"], env=ENV, limits=Limits(timeout_s=10, output_bytes=1000))


async def test_memory_is_limited():
    code = "x = bytearray(800_000_000)"
    done = await processes.run(
        ["python3", "-c", code],
        env=dict(os.environ),
        limits=Limits(timeout_s=20, memory_bytes=200_000_000),
    )
    assert done.code != 0
    assert b"MemoryError" in done.stderr


async def test_cancelling_the_caller_kills_the_group(tmp_path):
    pid_file = tmp_path / "pid"
    task = asyncio.create_task(
        processes.run(["bash", "-c", f"echo $$ > {pid_file}; sleep 1000"], env=ENV)
    )
    async with asyncio.timeout(5):
        while not (pid_file.exists() and pid_file.read_text().strip()):
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await gone(int(pid_file.read_text()))


async def test_a_missing_program_is_an_oserror():
    with pytest.raises(FileNotFoundError):
        await processes.run(["/no/such/program"], env=ENV)


async def test_lines_stream_while_the_process_runs():
    process = await processes.start(
        ["bash", "-c", "echo one; read x; echo two; printf last"], env=ENV, stdin=True
    )
    lines = process.lines()
    assert await anext(lines) == b"one"
    process.inner.stdin.write(b"\n")
    assert [line async for line in lines] == [b"two", b"last"]
    assert await process.wait() == 0


async def test_stop_asks_first_then_kills():
    process = await processes.start(
        ["bash", "-c", "trap 'echo bye; exit 7' TERM; echo up; sleep 100 & wait"], env=ENV
    )
    lines = process.lines()
    assert await anext(lines) == b"up"
    assert await process.stop("the test says so") == 7
    stubborn = await processes.start(
        ["bash", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"], env=ENV
    )
    assert await anext(stubborn.lines()) == b"up"
    assert await stubborn.stop("the test says so", grace_s=0.2) == -signal.SIGKILL
    assert stubborn.killed_because == "the test says so"
