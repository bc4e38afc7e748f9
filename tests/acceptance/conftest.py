"""The product as a user starts it: the `fc` command in processes of its own, a Nix store of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

FC = [sys.executable, "-c", "from fc_operator.cli.main import main; main()"]
START_S = 60
RUN_S = 170


@pytest.fixture(scope="session")
def home(shared_build_users):
    """A folder with a private Nix store and configuration; nothing of it is the machine's."""
    if shutil.which("nix-store") is None:
        if os.environ.get("CI"):
            pytest.fail("nix-store is not on PATH")
        pytest.skip("nix-store is not on PATH")
    folder = Path(tempfile.mkdtemp(prefix="fc-acceptance-")).resolve()
    folder.chmod(0o755)  # build users and PostgreSQL's user have to pass
    (folder / "conf").mkdir()
    (folder / "conf" / "nix.conf").write_text("substituters =\n")
    shared_build_users(folder / "var")
    yield folder
    for below, _, _ in os.walk(folder):
        Path(below).chmod(stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def environment(home):
    """What the processes get: no settings, no key, no config of whoever runs the tests."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
    return {
        **kept,
        "HOME": str(home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "NIX_REMOTE": "local",
        "NIX_STORE_DIR": str(home / "store"),
        "NIX_STATE_DIR": str(home / "var"),
        "NIX_LOG_DIR": str(home / "log"),
        "NIX_CONF_DIR": str(home / "conf"),
    }


@dataclass(slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self):
        """Its output as JSON."""
        return json.loads(self.out)


@dataclass(slots=True)
class Started:
    """A command that runs, and what it has printed so far."""

    process: subprocess.Popen
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for(self, pattern: str, timeout_s: float) -> re.Match:
        """The first line that matches."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            for line in list(self.lines):
                if found := re.search(pattern, line):
                    return found
            if self.process.poll() is not None:
                pytest.fail(f"it ended with {self.process.returncode}: {self.text}")
            time.sleep(0.05)
        pytest.fail(f"no line {pattern!r} within {timeout_s} s: {self.text}")

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def stop(self, sig: signal.Signals = signal.SIGINT) -> int:
        """Its exit code; a stop takes at most some seconds."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(sig)
        return self.process.wait(timeout=20)


@pytest.fixture(scope="session")
def fc(environment):
    """Runs an `fc` command to its end."""

    def run(*words, stdin: str | None = None, timeout_s: float = 60, **variables) -> Ended:
        done = subprocess.run(
            [*FC, *(str(word) for word in words)],
            input=stdin,
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def start(environment):
    """Starts an `fc` command; all that were started are stopped at the end."""
    running: list[Started] = []

    def begin(*words, **variables) -> Started:
        process = subprocess.Popen(
            [*FC, *(str(word) for word in words)],
            env={**environment, "PYTHONUNBUFFERED": "1", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(Started(process))
        return running[-1]

    yield begin
    for each in running:
        if each.process.poll() is None:
            each.process.send_signal(signal.SIGTERM)
            try:
                each.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                each.process.kill()
        each.process.wait()
        each.process.stdout.close()


@pytest.fixture(scope="session")
def demo_words(home):
    """The demo's command line on this session's state and store."""
    return (
        "demo", "--state", home / "demo", "--port", "0",
        "--set", f"nix.store_dir={home / 'store'}",
    )  # fmt: skip


@pytest.fixture(scope="session")
def demo(start, demo_words):
    """The demo, run to its outcome and still up; gives its address too."""
    running = start(*demo_words, "--stay")
    url = running.wait_for(r"FC Operator is up: (\S+)", START_S)[1]
    running.wait_for(r"staying up at ", RUN_S)
    return running, url
