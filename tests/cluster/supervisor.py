"""Process 1 of a cluster: starts its parts in order, keeps them running, and takes all with it.

It runs in a network, a mount and a process namespace of its own. Whatever the parts start (shims,
containers) lives in the same process namespace, so when this process ends, however it ends, the
kernel ends every one of them, and their mounts go with the mount namespace.

It answers on a socket, one JSON object a line: ``{"do": "stop", "part": "kubelet"}`` and the like.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster import parts
from tests.cluster.places import Places
from tests.cluster.programs import Programs, system_program

_START_S = 90.0
_STOP_S = 10.0
_RESTART_S = 1.0
_PRIVATE = ("/run/containerd", "/run/netns", "/var/lib/cni", "/var/lib/kubelet", "/var/log/pods",
            "/var/log/containers")  # fmt: skip
"""Places that the parts can't be talked out of: each cluster gets its own, which goes with it."""


class NotStartedError(Exception):
    """A part did not become ready; the message holds the end of its log."""


@dataclass(slots=True)
class _Running:
    """A part: its process while it runs, and whether it should."""

    part: parts.Part
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    due_s: float = 0.0
    restarts: int = 0


class Supervisor:
    """Runs until it is told to stop."""

    def __init__(self, places: Places, programs: Programs) -> None:
        self._places = places
        self._running = {each.name: _Running(each) for each in parts.parts(places, programs)}
        self._search_path = programs.search_path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(places.control))
        self._listener.listen(16)
        self._listener.setblocking(False)
        self._stopping = False
        self._seconds: dict[str, float] = {}

    def run(self) -> None:
        """Bring everything up, then serve; returns when it was told to stop."""
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._on_signal)
        # Processes that lost their parent come to us; nobody must have to wait for them.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        (self._places.dir / "processes").write_text(f"{Path('/proc/self/ns/pid').stat().st_ino}")
        self._say("starting")
        try:
            _make_network()
            self._bring_up()
        except Exception as error:
            self._say("failed", message=f"{error}")
            raise
        self._say("ready")
        while not self._stopping:
            self._turn(0.1)

    def _on_signal(self, *_: object) -> None:
        self._stopping = True

    def _bring_up(self) -> None:
        api = f"https://127.0.0.1:{parts.API_PORT}"
        self._start("etcd")
        self._start("containerd")
        self._wait("etcd", lambda: _get("http://127.0.0.1:2379/health") is not None)
        self._start("kube-apiserver")
        self._wait("containerd", self._places.containerd.exists)
        self._wait("kube-apiserver", lambda: self._api(f"{api}/readyz") == b"ok")
        for name in (
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "coredns",
        ):
            self._start(name)
        self._wait("kubelet", lambda: _is_ready(self._api(f"{api}/api/v1/nodes/{parts.NODE}")))
        self._wait("kube-proxy", lambda: _answers(parts.API, 443))
        self._wait("coredns", lambda: _answers(parts.HOST, 53))
        self._wait(
            "kube-controller-manager",
            lambda: (
                self._api(f"{api}/api/v1/namespaces/default/serviceaccounts/default") is not None
            ),
        )

    def _api(self, url: str) -> bytes | None:
        configuration = self._places.configuration
        context = ssl.create_default_context(cafile=str(configuration / "ca.crt"))
        user = json.loads((configuration / "admin.kubeconfig").read_bytes())["users"][0]["user"]
        return _get(url, token=user["token"], context=context)

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Turn until ``name`` is ready.

        Raises:
            NotStartedError: it was not within the time, or ends again and again.
        """
        began_s = time.monotonic()
        while not ready():
            late = time.monotonic() - began_s > _START_S
            if late or self._running[name].restarts > 3 or self._stopping:
                raise NotStartedError(f"{name} did not start: {self._log_tail(name)}")
            self._turn(0.05)
        self._seconds[name] = round(time.monotonic() - began_s, 2)

    def _log_tail(self, name: str) -> str:
        with contextlib.suppress(OSError):
            return (self._places.logs / f"{name}.log").read_text(errors="replace")[-1500:]
        return "it has written nothing"

    def _turn(self, wait_s: float) -> None:
        """Answer who asks, reap who ended, start what is due; takes about ``wait_s``."""
        self._listener.settimeout(wait_s)
        with contextlib.suppress(TimeoutError, OSError):
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(2)
                asked = connection.makefile("rb").readline()
                connection.sendall(json.dumps(self._answer(asked)).encode() + b"\n")
        self._reap()
        for each in self._running.values():
            if each.wanted and each.process is None and time.monotonic() >= each.due_s:
                self._launch(each)

    def _answer(self, asked: bytes) -> dict[str, Any]:
        try:
            request = json.loads(asked)
            action, name = request["do"], request.get("part")
            if action == "status":
                return self._status()
            if action == "down":
                self._stopping = True
                return {"ok": True}
            each = self._running[name]
            if action == "start":
                self._start(name)
            elif action in {"stop", "kill"}:
                self._stop(each, signal.SIGTERM if action == "stop" else signal.SIGKILL)
            elif action in {"pause", "resume"}:
                assert each.process is not None
                each.process.send_signal(signal.SIGSTOP if action == "pause" else signal.SIGCONT)
            else:
                return {"error": f"can't {action}"}
        except (ValueError, KeyError, TypeError, AssertionError, OSError) as error:
            return {"error": repr(error)}
        return self._status()

    def _status(self) -> dict[str, Any]:
        return {
            "ok": True,
            "parts": {
                name: {"running": each.process is not None, "restarts": each.restarts}
                for name, each in self._running.items()
            },
            "seconds": self._seconds,
        }

    def _start(self, name: str) -> None:
        each = self._running[name]
        each.wanted = True
        if each.process is None:
            self._launch(each)

    def _launch(self, each: _Running) -> None:
        self._places.logs.mkdir(parents=True, exist_ok=True)
        with (self._places.logs / f"{each.part.name}.log").open("ab") as log:
            each.process = subprocess.Popen(
                each.part.arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._places.dir,
                env={"PATH": self._search_path, "HOME": str(self._places.dir)},
                start_new_session=True,
            )

    def _stop(self, each: _Running, sig: signal.Signals) -> None:
        each.wanted = False
        if each.process is None:
            return
        each.process.send_signal(sig)
        deadline_s = time.monotonic() + _STOP_S
        while each.process is not None:
            if time.monotonic() > deadline_s:
                each.process.kill()
            time.sleep(0.02)
            self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for each in self._running.values():
                if each.process is not None and each.process.pid == pid:
                    each.process.returncode = os.waitstatus_to_exitcode(status)
                    each.process = None
                    if each.wanted:
                        each.restarts += 1
                        each.due_s = time.monotonic() + _RESTART_S

    def _say(self, state: str, *, message: str = "") -> None:
        new = self._places.status.with_suffix(".new")
        new.write_text(json.dumps({"state": state, "message": message, **self._status()}))
        new.rename(self._places.status)


def _make_network() -> None:
    ip = system_program("ip")
    mount = system_program("mount")
    for words in (
        [ip, "link", "set", "lo", "up"],
        [ip, "address", "replace", f"{parts.HOST}/32", "dev", "lo"],
        # The rules of the services come after the kernel has found some way to their addresses.
        [ip, "route", "replace", parts.SERVICES, "dev", "lo", "src", parts.HOST],
    ):
        subprocess.run([str(word) for word in words], check=True)
    for name in ("ip_forward", "conf/all/rp_filter", "conf/default/rp_filter"):
        value = "1" if name == "ip_forward" else "0"
        Path(f"/proc/sys/net/ipv4/{name}").write_text(value)
    for folder in _PRIVATE:
        Path(folder).mkdir(parents=True, exist_ok=True)
        subprocess.run([str(mount), "-t", "tmpfs", "tmpfs", folder], check=True)


def _get(
    url: str, *, token: str | None = None, context: ssl.SSLContext | None = None
) -> bytes | None:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(request, timeout=5) as answer:
            return bytes(answer.read())
    except (OSError, urllib.error.URLError):
        return None


def _is_ready(node: bytes | None) -> bool:
    if node is None:
        return False
    conditions = json.loads(node).get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
