"""A cluster from outside: bring it up, ask it, talk to its parts, take it down."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import parts, programs, snapshots
from tests.cluster.places import REPOSITORY, Places
from tests.cluster.programs import MissingError, Programs, Say, quiet

_START_S = 120
_CGROUPS = Path("/sys/fs/cgroup")
_TUNED = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
          "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes")  # fmt: skip
"""What a kubelet sets for the whole machine; it gets its old values back."""
_CAP_SYS_RESOURCE = 24
_CLONE_NEWNET = 0x40000000
_STARTED: dict[int, subprocess.Popen[bytes]] = {}
"""Holders of clusters that this process has started, to be waited for."""
_BORN_IN = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@dataclass(frozen=True, slots=True)
class Machine:
    """One cluster of this machine, running or not."""

    places: Places
    programs: Programs

    def up(self, *, dies_with_us: bool = False, say: Say = quiet) -> dict[str, float]:
        """Start it anew; returns how long each part took to become ready, in seconds.

        ``dies_with_us``: the kernel ends it with this process, however that ends.

        Raises:
            MissingError: this machine lacks something that it needs.
            RuntimeError: a part did not start; the message holds the end of its log.
        """
        self.down()
        places = self.places
        shutil.rmtree(places.logs, ignore_errors=True)
        for folder in (places.dir, places.sockets, places.logs):
            folder.mkdir(parents=True)
        (places.dir / "tuned.json").write_text(json.dumps(_tuned()))
        parts.write_configuration(
            places,
            restrict_oom=not _has(_CAP_SYS_RESOURCE),
            snapshotter=snapshots.snapshotter(places.dir),
        )
        _make_cgroup(places.name)
        _run("ip", "netns", "add", places.name)
        self._write_enter()
        words = [
            _program("nsenter"), f"--net={places.network}",
            _program("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            sys.executable, "-m", "tests.cluster", "--instance", places.instance, "supervise",
        ]  # fmt: skip
        if dies_with_us:
            words = [_program("setpriv"), "--pdeathsig", "KILL", *words]
        with (places.logs / "supervisor.log").open("ab") as log:
            process = subprocess.Popen(
                words, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
                env={**os.environ, "FC_CLUSTER_DIR": str(places.base)},
            )  # fmt: skip
        _STARTED[process.pid] = process
        (places.dir / "pid").write_text(f"{process.pid} {_birth(process.pid)}")
        deadline_s = time.monotonic() + _START_S
        while True:
            state = self.state()
            if state.get("state") == "ready":
                say(f"the cluster {places.name} is up")
                return dict(state["seconds"])
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = state.get("message") or (places.logs / "supervisor.log").read_text()[-1500:]
                self.down()
                raise RuntimeError(f"the cluster did not start: {said}")
            time.sleep(0.05)

    def down(self) -> None:
        """End whatever runs of it, and remove all traces but its logs.

        Fine for a cluster that was killed, and for none at all.
        """
        places = self.places
        self.kill()
        _remove_cgroup(places.name)
        if places.network.exists():
            _run("ip", "netns", "delete", places.name)
        with contextlib.suppress(OSError, ValueError):
            _tune(json.loads((places.dir / "tuned.json").read_text()))
        # Nothing may be mounted any more: the mount namespace went with its processes.
        if mounted := [
            line for line in _mounts() if line.startswith((f"{places.dir}/", f"{places.sockets}/"))
        ]:
            raise RuntimeError(f"still mounted, nothing is removed: {', '.join(mounted)}")
        shutil.rmtree(places.sockets, ignore_errors=True)
        if places.dir.exists():
            shutil.rmtree(places.dir)

    def state(self) -> dict[str, Any]:
        """What the supervisor last wrote of itself; ``{"state": "down"}`` when none runs."""
        if self._pid() is None:
            return {"state": "down"}
        try:
            return dict(json.loads(self.places.status.read_bytes()))
        except (OSError, ValueError):
            return {"state": "starting"}

    def tell(self, action: str, part: str | None = None) -> dict[str, Any]:
        """Ask the supervisor to start, stop, kill, pause or resume a part, or for its status."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.places.control))
            connection.sendall(json.dumps({"do": action, "part": part}).encode() + b"\n")
            answer = json.loads(connection.makefile("rb").readline())
        if "error" in answer:
            raise RuntimeError(f"{action} {part}: {answer['error']}")
        return dict(answer)

    def environment(self) -> dict[str, str]:
        """What finds the programs and the cluster, for processes within the namespace."""
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        return {
            **kept,
            "PATH": self.programs.search_path,
            "KUBECONFIG": str(self.places.kubeconfig),
        }

    def inside(self, *words: str) -> list[str]:
        """The command line that runs ``words`` within the network namespace."""
        return [_program("nsenter"), f"--net={self.places.network}", *words]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread, and all that it starts, in the cluster's network."""
        with self.places.network.open() as network, _in_network(network.fileno()):
            yield

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Have this thread back for a while in the network that this process began in."""
        with _in_network(_BORN_IN):
            yield

    def kill(self) -> None:
        """End it as a crash would: nothing is told, nothing is removed."""
        pid = self._pid()
        if pid is not None:
            # The kernel ends process 1 of the namespace with it, and all others with that.
            _kill(pid, signal.SIGKILL)
            if pid in _STARTED:
                _STARTED.pop(pid).wait(20)
            _wait_until(lambda: _birth(pid) is None, "the supervisor to end")
        _wait_until(lambda: not holders(self.places), "its processes to end")

    def import_image(self, archive: Path) -> None:
        """Give containerd the images of an OCI archive."""
        snapshotter = snapshots.snapshotter(self.places.dir)
        self._images("import", "--snapshotter", snapshotter, str(archive))

    def has_image(self, name: str) -> bool:
        """Whether containerd has it."""
        return name in self._images("list", "--quiet", f"name=={name}").split()

    def name_image(self, name: str, other: str) -> None:
        """Let ``other`` be the image that ``name`` is."""
        self._images("tag", "--force", name, other)

    def _images(self, *words: str) -> str:
        address = f"--address={self.places.containerd}"
        return _run(self.programs["ctr"], address, "--namespace=k8s.io", "images", *words)

    def _pid(self) -> int | None:
        """The process that holds the cluster, if it is alive and no other has its number."""
        with contextlib.suppress(OSError, ValueError):
            pid, birth = (self.places.dir / "pid").read_text().split()
            if _birth(int(pid)) == birth:
                return int(pid)
        return None

    def _write_enter(self) -> None:
        environment = self.environment()
        script = (
            "#!/bin/sh\n"
            "# Runs a command, or a shell, within the network namespace of the cluster.\n"
            f"export PATH={shlex.quote(self.programs.search_path)}\n"
            f"export KUBECONFIG={shlex.quote(environment['KUBECONFIG'])}\n"
            f'exec {shlex.join(self.inside())} "${{@:-${{SHELL:-/bin/sh}}}}"\n'
        ).replace('"${@:-${SHELL:-/bin/sh}}"', '"$@"')
        script = script.replace("exec ", '[ $# -gt 0 ] || set -- "${SHELL:-/bin/sh}"\nexec ')
        self.places.enter.write_text(script)
        self.places.enter.chmod(0o755)


def find(instance: str = "dev") -> Machine:
    """The cluster of that name, with the programs that are there.

    Raises:
        MissingError: a program is not.
    """
    places = Places(instance)
    return Machine(places, programs.found(places))


@contextlib.contextmanager
def running(machine: Machine, say: Say = quiet) -> Iterator[Machine]:
    """A cluster of this process alone: up while the block runs, gone however it ends."""
    try:
        machine.up(dies_with_us=True, say=say)
        yield machine
    finally:
        machine.down()


def holders(places: Places) -> list[int]:
    """The processes of the cluster's process namespace, by their number here."""
    try:
        wanted = int((places.dir / "processes").read_text())
    except OSError:
        return []
    found = []
    for each in Path("/proc").iterdir():
        if each.name.isdigit():
            with contextlib.suppress(OSError):
                if (each / "ns" / "pid").stat().st_ino == wanted:
                    found.append(int(each.name))
    return found


def traces(places: Places) -> list[str]:
    """What a cluster has left behind on this machine, apart from its logs."""
    paths = [places.dir, places.sockets, places.network]
    paths += [root / places.name for root in _controllers()]
    mounted = [each for each in _mounts() if places.name in each or str(places.dir) in each]
    return [str(each) for each in paths if each.exists()] + mounted


@contextlib.contextmanager
def _in_network(wanted: int) -> Iterator[None]:
    with Path("/proc/self/ns/net").open() as before:
        _move(wanted)
        try:
            yield
        finally:
            _move(before.fileno())


def _move(network: int) -> None:
    """Move this thread into a network namespace, given by an open file."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(network, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"can't enter the network namespace: {os.strerror(number)}")


def unfit() -> str | None:
    """Why no cluster can run on this machine, or None."""
    if os.geteuid() != 0:
        return "root is needed for network namespaces, control groups, containerd and kubelet"
    if not _CGROUPS.is_dir() or not _controllers():
        return f"no control groups are mounted at {_CGROUPS}"
    if Path("/proc/filesystems").read_text().find("overlay") < 0:
        return "the kernel has no overlay file system"
    return None


def _program(name: str) -> str:
    found = programs.system_program(name)
    if found is None:
        raise MissingError(f"{name} is not installed")
    return str(found)


def _run(*words: str) -> str:
    done = subprocess.run(
        [_program(words[0]), *words[1:]], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(words)}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _birth(pid: int) -> str | None:
    """When a process started, in ticks: with its number it names one process for ever."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    return None


def _kill(pid: int, sig: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)


def _wait_until(reached: Any, what: str, timeout_s: float = 20) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.02)


def _has(capability: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def _controllers() -> list[Path]:
    """The roots of every hierarchy of control groups: one in version 2, several in version 1."""
    if (_CGROUPS / "cgroup.controllers").is_file():
        return [_CGROUPS]
    return [each for each in _CGROUPS.iterdir() if (each / "cgroup.procs").is_file()]


def _make_cgroup(name: str) -> None:
    for root in _controllers():
        folder = root / name
        folder.mkdir(exist_ok=True)
        if (root / "cgroup.controllers").is_file():
            for each in (root, folder):
                for controller in (each / "cgroup.controllers").read_text().split():
                    with contextlib.suppress(OSError):
                        (each / "cgroup.subtree_control").write_text(f"+{controller}")
        for file in ("cpuset.cpus", "cpuset.mems"):  # version 1: empty means none
            if (folder / file).is_file() and not (folder / file).read_text().strip():
                (folder / file).write_text((root / file).read_text())


def _remove_cgroup(name: str) -> None:
    for root in _controllers():
        below = sorted((root / name).rglob("*"), reverse=True) if (root / name).is_dir() else []
        for folder in [*(each for each in below if each.is_dir()), root / name]:
            # A group is busy until the kernel has buried its last process.
            _wait_until(lambda folder=folder: _gone(folder), f"{folder} to become empty")


def _gone(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _mounts() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _tuned() -> dict[str, str]:
    values = {}
    for name in _TUNED:
        with contextlib.suppress(OSError):
            values[name] = Path("/proc/sys", name).read_text().strip()
    return values


def _tune(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        if name in _TUNED:
            with contextlib.suppress(OSError):
                Path("/proc/sys", name).write_text(value)
