import asyncio
import inspect
import os
import pwd
import signal
import sys
from pathlib import Path

import pytest
import uvloop

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
    script = f"(trap '' TERM; echo $BASHPID > {pid_file}; exec sleep 1000) & "
    script += f"while ! [ -s {pid_file} ]; do sleep 0.01; done"
    async with asyncio.timeout(5):
        done = await processes.run(["bash", "-c", script], env=ENV, limits=Limits(timeout_s=4))
    assert done.code == 0
    await gone(int(pid_file.read_text()))


async def test_h03_a_daemon_that_left_the_group_and_holds_the_pipe_is_not_waited_for(tmp_path):
    """It is none of ours to kill, but what it might still print is not ours to read either."""
    pid_file = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {pid_file}; exec sleep 1000' & "
    script += f"while ! [ -s {pid_file} ]; do sleep 0.01; done; echo done"
    try:
        async with asyncio.timeout(5):
            done = await processes.run(["sh", "-c", script], env=ENV, limits=Limits(timeout_s=4))
        assert (done.code, done.stdout) == (0, b"done\n")
        assert alive(int(pid_file.read_text()))
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)


async def test_h03_the_leader_ends_while_nobody_reads_its_pipes():
    process = await processes.start(["sh", "-c", "(sleep 1000) & echo x; exit 5"], env=ENV)
    async with asyncio.timeout(3):
        assert await process.wait() == 5
        assert [line async for line in process.lines()] == [b"x"]
        assert [line async for line in process.lines("stderr")] == []
    process.close()


async def test_all_that_a_slow_reader_has_not_read_yet_is_kept():
    """More than the pipe holds, and read only after the grace for foreign holders is over."""
    process = await processes.start(["head", "-c", "3000000", "/dev/zero"], env=ENV)
    assert await process.wait() == 0
    await asyncio.sleep(processes._PIPE_GRACE_S + 0.2)
    assert len(await process.inner.stdout.read()) == 3_000_000


async def test_what_was_said_last_is_read_after_stop():
    script = "trap 'for i in 1 2 3; do echo $i; done; exit 7' TERM; echo up; sleep 100 & wait"
    process = await processes.start(["bash", "-c", script], env=ENV)
    lines = process.lines()
    assert await anext(lines) == b"up"
    assert await process.stop("the test says so") == 7
    assert [line async for line in lines] == [b"1", b"2", b"3"]


async def test_nothing_is_signalled_after_the_end():
    process = await processes.start(["true"], env=ENV)
    assert await process.wait() == 0
    process.kill("too late")
    assert process.killed_because == "too late"
    assert await process.stop("too late as well") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
async def test_another_user_has_none_of_our_rights():
    done = await processes.run(["id"], env=ENV, user=pwd.getpwnam("nobody"))
    nobody = pwd.getpwnam("nobody")
    text = done.stdout.decode()
    assert f"uid={nobody.pw_uid}(nobody) gid={nobody.pw_gid}" in text
    assert "root" not in text


@pytest.mark.parametrize("user", ["", "nobody"])
async def test_a_child_dies_when_we_are_killed(tmp_path, user):
    """Also as another user: the kernel forgets the death signal when the user changes."""
    if user and os.geteuid() != 0:
        pytest.skip("only root may become another user")
    code = (
        "import asyncio, pwd, sys\n"
        "from fc_operator.kit import processes\n"
        "async def main():\n"
        f"    user = pwd.getpwnam({user!r}) if {user!r} else None\n"
        "    child = await processes.start(['sleep', '1000'], env={'PATH': '/usr/bin:/bin'}, user=user)\n"
        "    print(child.pid, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await processes.start([sys.executable, "-c", code], env=dict(os.environ))
    child = int(await anext(parent.lines()))
    assert alive(child)
    os.kill(parent.pid, signal.SIGKILL)
    await gone(child)
    assert await parent.wait() == -signal.SIGKILL


async def test_the_whole_group_dies_at_the_time_limit(tmp_path):
    pid_file = tmp_path / "pid"
    script = f"trap '' TERM; (trap '' TERM; echo $BASHPID > {pid_file}; while :; do sleep 1; done) & wait"
    with pytest.raises(ProcessLimitError, match=r"longer than 0.5 s"):
        await processes.run(["bash", "-c", script], env=ENV, limits=Limits(timeout_s=0.5))
    await gone(int(pid_file.read_text()))


async def test_too_much_output_ends_the_process():
    with pytest.raises(ProcessLimitError, match="printed more than 1000 bytes"):
        await processes.run(["yes"], env=ENV, limits=Limits(timeout_s=10, output_bytes=1000))


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


@pytest.mark.parametrize(
    "case",
    [
        test_output_and_exit_code_come_back,
        test_h03_a_grandchild_that_holds_the_pipe_open_is_killed_on_time,
        test_h03_a_daemon_that_left_the_group_and_holds_the_pipe_is_not_waited_for,
        test_h03_the_leader_ends_while_nobody_reads_its_pipes,
        test_the_whole_group_dies_at_the_time_limit,
        test_another_user_has_none_of_our_rights,
        test_stop_asks_first_then_kills,
    ],
    ids=lambda case: case.__name__.removeprefix("test_"),
)
def test_the_same_holds_under_uvloop(case, tmp_path):
    if case is test_another_user_has_none_of_our_rights and os.geteuid() != 0:
        pytest.skip("only root may become another user")
    takes = {"tmp_path": tmp_path} if "tmp_path" in inspect.signature(case).parameters else {}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(case(**takes))


async def test_what_cannot_be_run_is_an_error_of_the_start_itself(tmp_path):
    (tmp_path / "plain").write_text("")
    for program, error in (
        ("no-such-program", FileNotFoundError),
        (tmp_path / "plain", PermissionError),
    ):
        with pytest.raises(error):
            await processes.start([program], env={"PATH": "/usr/bin:/bin"})
    with pytest.raises(NotADirectoryError):
        await processes.start(["true"], env={"PATH": "/usr/bin:/bin"}, cwd=tmp_path / "nowhere")


async def test_it_is_what_was_asked_for_and_nothing_around_it(tmp_path):
    """The wrapper that sets the signal of our death becomes the program itself."""
    done = await processes.run(["cat", "/proc/self/cmdline"], env={"PATH": "/usr/bin:/bin"})
    assert done.stdout == b"cat\0/proc/self/cmdline\0"


@pytest.mark.skipif(not processes.can_confine(), reason="this kernel has no Landlock")
async def test_s08_a_confined_process_sees_only_what_it_may(tmp_path):
    for name in ("mine", "ours", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(f"{name}-text")
    (tmp_path / "ours" / "link").symlink_to(tmp_path / "theirs")
    script = f"""cd {tmp_path}
      cat mine/file ours/file; echo new > mine/new && ln mine/new mine/linked && mv mine/new mine/x
      cat theirs/file; cat ours/link/file; ls theirs; cat < theirs/file
      echo no > ours/file; echo no > theirs/no; rm theirs/file; mv mine/x theirs/x
      cat /proc/{os.getpid()}/environ; cat /etc/shadow; cat mine/../theirs/file
      ln theirs/file mine/stolen; setsid cat theirs/file & wait; echo done"""
    process = await processes.start(
        ["sh", "-c", script],
        env=ENV,
        merge_stderr=True,
        confinement=processes.Confinement(
            readable=("/usr", "/bin", "/lib", "/lib64", f"{tmp_path}/ours", f"{tmp_path}/gone"),
            writable=(f"{tmp_path}/mine", "/dev/null"),
        ),
    )
    told = [line async for line in process.lines()]
    assert await process.wait() == 0
    process.close()
    text = b"\n".join(told).decode()
    assert text.startswith("mine-textours-text")
    assert text.endswith("done")
    assert "theirs-text" not in text
    assert (tmp_path / "ours" / "file").read_text() == "ours-text"
    assert sorted(p.name for p in (tmp_path / "theirs").iterdir()) == ["file"]
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == ["file", "linked", "x"]


@pytest.mark.skipif(not processes.can_confine(), reason="this kernel has no Landlock")
async def test_a_confined_process_dies_with_its_group_and_answers_as_itself():
    everything = processes.Confinement(readable=("/",))
    process = await processes.start(["sleep", "100"], env=ENV, confinement=everything)
    assert await process.stop("test") == -signal.SIGTERM
    process = await processes.start(["sh", "-c", "exit 7"], env=ENV, confinement=everything)
    assert await process.wait() == 7
    process.close()
    with pytest.raises(FileNotFoundError):
        await processes.start(["no-such-program"], env=ENV, confinement=everything)


async def test_memory_that_is_hidden_is_shown_to_root_alone():
    code = """import ctypes; from fc_operator.kit import processes
get = lambda: ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
print(get()); processes.hide_memory(); print(get())"""
    env = ENV | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = await processes.run([sys.executable, "-c", code], env=env)
    assert done.stdout.split() == [b"1", b"0"], done.stderr
