"""A second machine on this one: a real sshd with a Nix store of its own at the same place."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def require() -> None:
    """Skip where no such machine can be had, fail where it must be."""
    problem = ""
    if SSHD is None:
        problem = "sshd is not installed (apt install openssh-server)"
    elif os.geteuid() != 0:
        problem = "a second store over the first one needs root (unshare -m, mount --bind)"
    if not problem:
        return
    if os.environ.get("CI"):
        pytest.fail(problem)
    pytest.skip(problem)


class SshMachine:
    """Its store lies in ``folder`` and is bound over ``home`` in a mount namespace of its own, so
    that its Nix, called with the same environment as ours, sees another store.
    """

    def __init__(self, home: Path, env: dict[str, str], share_build_users) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="fc-machine-")).resolve()
        self.folder.chmod(0o755)
        self.home = home
        self.store = self.folder / "home"
        shutil.copytree(home / "conf", self.store / "conf")
        share_build_users(self.store / "var")
        self.env = env
        self.host_key = self._key("host")
        self.client_key = self._key("client")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process: subprocess.Popen | None = None

    def _key(self, name: str) -> Path:
        file = self.folder / name
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", file], check=True
        )
        return file

    @property
    def uri(self) -> str:
        return f"ssh://root@127.0.0.1:{self.port}"

    @property
    def public_host_key(self) -> str:
        return " ".join((self.folder / "host.pub").read_text().split()[:2])

    async def read_key(self) -> bytes:
        return self.client_key.read_bytes()

    def start(self, *, env=None) -> None:
        """Start sshd and wait until it listens."""
        Path("/run/sshd").mkdir(parents=True, exist_ok=True)
        words = {"PATH": os.environ["PATH"], **self.env, **(env or {})}
        words = {name: value for name, value in words.items() if name != "HOME"}
        config = self.folder / "sshd_config"
        config.write_text(
            f"""Port {self.port}
ListenAddress 127.0.0.1
HostKey {self.host_key}
AuthorizedKeysFile {self.folder}/client.pub
PidFile none
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
UsePAM no
SetEnv {" ".join(f'"{name}={value}"' for name, value in words.items())}
"""
        )
        script = f"mount --bind {self.store} {self.home} && exec {SSHD} -D -e -f {config}"
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                # With us, even if we are killed: nobody else would end it.
                ["setpriv", "--pdeathsig", "KILL", "unshare", "-m", "sh", "-c", script],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                assert self.process.poll() is None, (self.folder / "log").read_text()
                time.sleep(0.02)  # until it listens, which it tells nobody

    def cut(self) -> None:
        """Kill sshd and the processes that serve connections, as a cable that is pulled; commands
        that they started stay to themselves.
        """
        for pid in self._serving():
            os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _serving(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    stat = (entry / "stat").read_text()
                except OSError:
                    continue
                name = stat[stat.find("(") + 1 : stat.rfind(")")]
                if name.startswith("sshd") and self._is_ours(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def _is_ours(self, pid: int) -> bool:
        while pid > 1:
            if self.process is not None and pid == self.process.pid:
                return True
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
            except OSError:
                return False
            pid = int(stat[stat.rfind(")") + 2 :].split()[1])
        return False

    def has(self, path: str) -> bool:
        """Whether its store has a path."""
        return (self.store / Path(path).relative_to(self.home)).exists()

    def close(self) -> None:
        self.cut()
        for folder, _, _ in os.walk(self.folder):
            Path(folder).chmod(0o700)
        shutil.rmtree(self.folder)
