"""`fc demo`, run twice as a user runs it: every outcome is the one that it declares."""

import contextlib
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import urllib.request

import pytest

from fc_operator.app import demo as surroundings

pytestmark = [pytest.mark.nix]
FC = [sys.executable, "-c", "from fc_operator.cli.main import main; main()"]


def test_every_outcome_is_as_declared(demo):
    running, url = demo
    assert "all 22 outcomes are as declared" in running.text, running.text
    assert f"{url}/builds/" in running.text


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(demo):
    running, _ = demo
    for line in (
        r"manifests at [0-9a-f]{12} are live",
        r"demo/main: evaluation \d+ of [0-9a-f]{12} has completed",
        r"demo/main/hello: succeeded",
        r"demo/failures/broken: failed",
        r"demo/failures/dependent: dependency_failed",
    ):
        running.wait_for(line, 1)
    assert "\x1b" not in running.text


def test_every_url_of_the_table_answers(demo, fc):
    running, _ = demo
    urls = sorted(set(re.findall(r"http://\S+/(?:evaluations|builds|channels)/\S+", running.text)))
    assert len(urls) >= 20
    for url in urls:
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.status == 200


def words(home, name):
    return (
        "demo", "--state", home / name, "--port", "0",
        "--set", f"nix.store_dir={home / 'store'}",
    )  # fmt: skip


def test_a_new_state_on_a_store_that_has_everything_and_a_second_run_on_it(demo, fc, home):
    """Nothing is built again, and the outcomes are told as truthfully as the first time."""
    first = fc(*words(home, "again"), timeout_s=180)
    assert first.code == 0, first.out + first.err
    evaluations = numbers(first.out, "evaluations")
    second = fc(*words(home, "again"), timeout_s=180)
    assert second.code == 0, second.out + second.err
    assert numbers(second.out, "evaluations") == evaluations


def numbers(text, noun):
    """Of every evaluation or build in a table its number."""

    return re.findall(rf"/api/v1/{noun}/(\d+)", text)


def test_ctrl_c_stops_it_cleanly(demo, start, fc, home):
    """In the middle of the work; a next start goes on where it was."""
    running = start(*words(home, "interrupted"))
    running.wait_for(r"manifests at [0-9a-f]{12} are live", 60)
    assert running.stop() == 130
    assert "Traceback" not in running.text, running.text
    again = fc(*words(home, "interrupted"), timeout_s=180)
    assert again.code == 0, again.out + again.err


def test_a_second_one_on_the_same_state_is_refused(demo, fc, home):
    refused = fc(*words(home, "demo"))
    assert refused.code == 1
    assert "another FC Operator (process" in refused.err


def test_on_a_terminal_a_table_lives(demo, environment, home):
    """The same run in a pseudo-terminal: nothing breaks, and what stays is the outcome."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    process = subprocess.Popen(
        [*FC, *(str(word) for word in words(home, "terminal"))],
        env={**environment, "TERM": "xterm-256color"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: the other side has closed
        while part := os.read(leader, 65536):
            seen += part
    os.close(leader)
    text = seen.decode()
    assert process.wait(timeout=20) == 0, text
    assert "\x1b[" in text
    assert "JOBSET" in text
    assert "all 22 outcomes are as declared" in text


def test_a_difference_is_told_and_exits_with_1(demo, fc, home, tmp_path):

    folder = tmp_path / "demo"
    shutil.copytree(surroundings.default_folder(), folder)
    file = folder / "expected.yaml"
    file.write_text(
        file.read_text().replace("broken: [failed, cached_failure]", "broken: succeeded")
    )
    done = fc(*words(home, "again"), "--source", folder, timeout_s=180)
    assert done.code == 1
    assert "demo/failures/broken: it is failed, not succeeded" in done.out
    assert "1 of 22 outcomes differ" in done.out
    assert "differs  demo/failures/broken" in done.out
