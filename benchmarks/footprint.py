"""What an idle `fc up` costs: resident memory, CPU, and the time from its start to the first answer.

PostgreSQL runs apart and is up before, so that only our own processes count.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil

from fc_operator.kit import logs
from fc_operator.store.embedded import EmbeddedPostgres

RSS_MB_GOAL = 150
CPU_PERCENT_GOAL = 1.0
START_S_GOAL = 2.0


def close(name: str, value: float, goal: float) -> bool:
    met = value <= goal
    print(f"{name} {value:.2f} goal <={goal:g} {'met' if met else 'short'}")
    return met


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(url: str, state: Path, config: Path, port: int) -> tuple[subprocess.Popen[bytes], float]:
    """`fc up` on an existing database, and the seconds until it served its first request."""
    env = {**os.environ, "FC_DATABASE_URL": url, "FC_WEB_PORT": str(port)}
    argv = [Path(sys.executable).with_name("fc"), "up", "--state", state, "--config", config]
    began_s = time.monotonic()
    process = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                assert answer.status == 200
                return process, time.monotonic() - began_s
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if process.poll() is not None or time.monotonic() - began_s > 60:
                raise SystemExit(f"fc up did not come up (exit {process.returncode})") from None
            time.sleep(0.005)


def tree(pid: int) -> list[psutil.Process]:
    leader = psutil.Process(pid)
    return [leader, *leader.children(recursive=True)]


def stop(process: subprocess.Popen[bytes]) -> float:
    began_s = time.monotonic()
    process.terminate()
    process.wait(30)
    return time.monotonic() - began_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="how often it is started")
    parser.add_argument("--idle-s", type=float, default=20, help="seconds of watching it idle")
    args = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, starts {args.starts}, idle {args.idle_s:g} s"
    )
    logs.configure(level="warning")
    with tempfile.TemporaryDirectory(prefix="fc-bench-") as folder:
        base = Path(folder)
        base.chmod(0o755)
        (base / "config").mkdir()
        loop = asyncio.new_event_loop()
        server = EmbeddedPostgres(base)
        loop.run_until_complete(server.start())
        try:
            waits_s = []
            for turn in range(args.starts + 1):
                process, waited_s = start(server.url, base / "state", base / "config", free_port())
                if turn:  # the first one migrates and compiles
                    waits_s.append(waited_s)
                if turn < args.starts:
                    stop(process)
            time.sleep(5)
            ours = tree(process.pid)
            cpu_s = sum(sum(each.cpu_times()[:2]) for each in ours)
            began_s = time.monotonic()
            time.sleep(args.idle_s)
            ours = tree(process.pid)
            cpu_s = sum(sum(each.cpu_times()[:2]) for each in ours) - cpu_s
            percent = 100 * cpu_s / (time.monotonic() - began_s)
            rss_mb = sum(each.memory_info().rss for each in ours) / 1e6
            print(f"processes {len(ours)}, stop {stop(process):.2f} s")
        finally:
            loop.run_until_complete(server.stop())
            loop.close()
    results = [
        close("footprint-rss-mb", rss_mb, RSS_MB_GOAL),
        close("footprint-idle-cpu-percent", percent, CPU_PERCENT_GOAL),
        close("footprint-start-s", statistics.median(waits_s), START_S_GOAL),
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
