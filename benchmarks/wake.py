"""From a commit to a running evaluator: by webhook, and beside it with polls of a second alone.

`fc up` runs as users start it, on its own PostgreSQL; the repository is a real one behind HTTP; the
evaluator is a program of the bench that says through a pipe that it was started. Each event moves
the branch to a new commit and posts the forge's signed push event; the clock starts with the POST.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from footprint import free_port

from fc_operator.clients.git_server import GitServer

P50_RATIO_GOAL = 10
P99_MS_GOAL = 150
SECRET = b"the bench's own"
MANIFESTS = """\
apiVersion: fc-operator.dev/v1alpha1
kind: Project
metadata: {{name: bench}}
spec:
  repositoryUrl: {url}/bench.git
  webhooks: [{{forge: Forgejo, secretRef: {{name: hook, key: secret}}}}]
---
apiVersion: fc-operator.dev/v1alpha1
kind: Jobset
metadata: {{name: bench-main}}
spec:
  projectRef: {{name: bench}}
  name: main
  branch: main
  nixExpression: release.nix
  checkInterval: {interval}
"""
EVALUATOR = """\
#!/bin/sh
case "$*" in *--version*) echo 'nix-eval-jobs 2.31.0'; exit 0;; esac
echo started > {pipe}
"""


def git(repository: Path, *words: str, **env: str) -> str:
    done = subprocess.run(
        ["git", "-C", repository, *words],
        env={"PATH": os.environ["PATH"], "HOME": str(repository), **env},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def make_commits(repository: Path, count: int) -> list[str]:
    """A bare repository with a chain of commits, none of which a branch names yet."""
    repository.mkdir(parents=True)
    git(repository, "init", "--quiet", "--bare", "--initial-branch=main")
    commits: list[str] = []
    stream = []
    for number in range(1, count + 1):
        text = f"{{ number = {number}; }}\n"
        parent = f"from :{number - 1}\n" if number > 1 else ""
        stream.append(
            f"commit refs/heads/all\nmark :{number}\n"
            f"committer Bench <bench@example.org> {1_700_000_000 + number} +0000\ndata 4\nnext\n"
            f"{parent}M 644 inline release.nix\ndata {len(text)}\n{text}\n"
        )
    subprocess.run(
        ["git", "-C", repository, "fast-import", "--quiet"],
        input="".join(stream).encode(),
        check=True,
    )
    commits = git(repository, "rev-list", "--reverse", "refs/heads/all").splitlines()
    git(repository, "update-ref", "refs/heads/main", commits[0])
    git(repository, "update-ref", "-d", "refs/heads/all")
    # What no ref names is still there: the bench moves the branch along it.
    return commits


class Pipe:
    """Where the evaluator says that it was started."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        path.chmod(0o666)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._event = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        self.at_s = 0.0

    def _read(self) -> None:
        self.at_s = time.monotonic()
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, 65536)
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    async def wait(self) -> float:
        async with asyncio.timeout(30):
            await self._event.wait()
        return self.at_s

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)


def fetch(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(url, data=data, headers=headers or {})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def post_push(base: str, commit: str, number: int) -> None:
    body = json.dumps(
        {
            "ref": "refs/heads/main", "after": commit,
            "repository": {"full_name": "bench/bench", "default_branch": "main"},
        }
    ).encode()  # fmt: skip
    signature = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json", "X-Forgejo-Event": "push",
        "X-Forgejo-Delivery": f"bench-{number}", "X-Forgejo-Signature": signature,
    }  # fmt: skip
    fetch(f"{base}/api/v1/webhooks/bench/forgejo", body, headers)


@contextlib.asynccontextmanager
async def running(base: Path, git_url: str, port: int, *, poll: bool) -> AsyncIterator[str]:
    """`fc up` on the bench's manifests; its address."""
    (base / "config").mkdir(exist_ok=True)
    (base / "config" / "bench.yaml").write_text(
        MANIFESTS.format(url=git_url, interval="1s" if poll else "1h")
    )
    secret = base / "state" / "secrets" / "hook" / "secret"
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_bytes(SECRET)
    env = {
        **os.environ,
        "PATH": f"{base / 'bin'}:{os.environ['PATH']}",
        "FC_GIT_ALLOWED_SCHEMES": "http", "FC_GIT_ALLOWED_HOSTS": git_url.removeprefix("http://"),
        "FC_LOG_LEVEL": "warning",
    }  # fmt: skip
    if poll:
        env |= {"FC_DATABASE_LISTEN": "false", "FC_QUEUE_POLL_S": "1"}
    argv = [
        Path(sys.executable).with_name("fc"), "up", "--state", base / "state",
        "--config", base / "config", "--port", str(port),
    ]  # fmt: skip
    with (base / "fc.log").open("ab") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                await asyncio.to_thread(fetch, f"{url}/api/v1/projects/bench/jobsets/main")
                break
            if process.poll() is not None:
                break
            await asyncio.sleep(0.1)
        else:
            raise SystemExit(f"the jobset did not appear: {(base / 'fc.log').read_text()[-2000:]}")
        yield url
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, 30)


async def measure(
    base: Path, commits: list[str], git_url: str, pipe: Pipe, *, poll: bool, rng: random.Random
) -> list[float]:
    """Milliseconds from each commit's announcement to its evaluator."""
    repository = base / "repositories" / "bench.git"
    waits_ms = []
    pipe.clear()
    git(repository, "update-ref", "refs/heads/main", commits[0])
    async with running(base, git_url, free_port(), poll=poll) as url:
        await pipe.wait()
        for number, commit in enumerate(commits[1:]):
            await settled(url)
            await asyncio.sleep(rng.uniform(0, 1.0 if poll else 0.05))
            pipe.clear()
            (repository / "refs" / "heads" / "main").write_text(f"{commit}\n")
            began_s = time.monotonic()
            if not poll:
                await asyncio.to_thread(post_push, url, commit, number)
            waits_ms.append(1000 * (await pipe.wait() - began_s))
    return waits_ms


async def settled(url: str) -> None:
    """Wait until no evaluation is under way."""
    while True:
        listed = await asyncio.to_thread(
            fetch, f"{url}/api/v1/projects/bench/jobsets/main/evaluations?limit=1"
        )
        if listed["items"] and listed["items"][0]["status"] not in {"pending", "running"}:
            return
        await asyncio.sleep(0.02)


def percentile(values: list[float], share: float) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


async def run(args: argparse.Namespace) -> int:
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="fc-bench-") as folder:
        base = Path(folder)
        base.chmod(0o755)
        commits = make_commits(base / "repositories" / "bench.git", args.n + args.polls + 2)
        # In the evaluators' home: where they are confined they may write nowhere else.
        home = base / "state" / "evaluators"
        home.mkdir(parents=True, mode=0o700)
        pipe = Pipe(home / "started")
        (base / "bin").mkdir()
        program = base / "bin" / "nix-eval-jobs"
        program.write_text(EVALUATOR.format(pipe=home / "started"))
        program.chmod(0o755)
        server = GitServer(base / "repositories")
        await server.start()
        try:
            pushed = await measure(
                base, commits[: args.n + 1], server.url, pipe, poll=False, rng=rng
            )
            polled = await measure(
                base, commits[args.n + 1 :], server.url, pipe, poll=True, rng=rng
            )
        finally:
            await server.stop()
            pipe.close()
    for name, values in (("webhook", pushed), ("poll at 1 s", polled)):
        print(
            f"{name}: n {len(values)}, p50 {statistics.median(values):.1f} ms, "
            f"p99 {percentile(values, 0.99):.1f} ms"
        )
    ratio = statistics.median(polled) / statistics.median(pushed)
    p99 = percentile(pushed, 0.99)
    met = (p99 <= P99_MS_GOAL, ratio >= P50_RATIO_GOAL)
    print(f"wake-p99-ms {p99:.1f} goal <={P99_MS_GOAL} {'met' if met[0] else 'short'}")
    print(f"wake-poll/push-p50 {ratio:.1f} goal >={P50_RATIO_GOAL} {'met' if met[1] else 'short'}")
    return 0 if all(met) else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=100, help="events by webhook")
    parser.add_argument("--polls", type=int, default=20, help="events found by polling")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, n {args.n}, polls {args.polls}, seed {args.seed}"
    )
    return asyncio.run(run(args))


if __name__ == "__main__":
    sys.exit(main())
