"""Pages of 50 builds out of a million, beside FastAPI and uvicorn doing the same query.

One PostgreSQL, one run. Each server is one process on uvloop with a pool of 8; both answer the page
that a random cursor begins, with the same rows of the same statement of ours. A program of its own
makes the load over kept-alive connections. The ratio is the median of interleaved pairs; the other
figures are of our server alone. Ours also identifies the caller, authorizes, tags and counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg

from fc_operator.store import migrations
from fc_operator.store.embedded import EmbeddedPostgres

RATIO_GOAL = 2.0
DEEPEST_GOAL = 1.3
LISTS_P99_MS_GOAL = 50.0
PAGE = 50
POOL = 8
CONNECTIONS = 32


# data ---------------------------------------------------------------------------------------


async def load(url: str, builds: int, dice: random.Random) -> None:
    """Projects, jobsets, evaluations of a thousand jobs, and builds, by COPY; then ANALYZE."""
    await migrations.migrate(url)
    connection = await asyncpg.connect(url)
    projects = [(uuid.uuid4(), f"project{n}", "https://git.example.org/a/b.git") for n in range(20)]
    await connection.copy_records_to_table(
        "projects", records=projects, columns=["id", "name", "repository_url"]
    )
    jobsets = [
        (uuid.uuid4(), p[0], f"jobset{n}", "release.nix") for p in projects for n in range(5)
    ]
    await connection.copy_records_to_table(
        "jobsets", records=jobsets, columns=["id", "project_id", "name", "nix_expression"]
    )
    evaluations = [
        (uuid.uuid4(), dice.choice(jobsets)[0], f"{n:040x}", "completed", datetime.now(UTC))
        for n in range(max(1, builds // 1000))
    ]
    await connection.copy_records_to_table(
        "evaluations",
        records=evaluations,
        columns=["id", "jobset_id", "commit_hash", "status", "builds_ended_at"],
    )
    await connection.execute("UPDATE evaluations SET build_counts = '{\"succeeded\": 1000}'")
    statuses = ["succeeded"] * 94 + ["failed"] * 4 + ["dependency_failed", "timeout"]
    systems = ["x86_64-linux"] * 7 + ["aarch64-linux"] * 3
    now = datetime.now(UTC)

    def rows() -> Any:
        for number in range(builds):
            at = now - timedelta(seconds=builds - number)
            name = f"package-{number % 1000}"
            yield (
                uuid.uuid4(), evaluations[number // 1000 % len(evaluations)][0], name,
                f"/nix/store/{number:032x}-{name}.drv", dice.choice(statuses), at, at,
                dice.choice(systems), at, f"{name}-1.0",
            )  # fmt: skip

    await connection.copy_records_to_table(
        "builds",
        records=rows(),
        columns=[
            "id", "evaluation_id", "job_name", "drv_path", "status", "started_at", "completed_at",
            "system", "created_at", "nix_name",
        ],
        timeout=600,
    )  # fmt: skip
    await connection.execute("VACUUM (ANALYZE)", timeout=600)
    await connection.execute("CHECKPOINT", timeout=600)
    await connection.close()


# servers ------------------------------------------------------------------------------------


async def serve_ours(url: str, folder: Path) -> None:
    """Our service as `fc server` runs it; says its address when it answers."""
    from fc_operator.clients.objects import ObjectStore
    from fc_operator.clients.secrets import DirectorySecrets
    from fc_operator.kit import logs
    from fc_operator.kit.ciphers import Cipher
    from fc_operator.settings import Settings, WebSettings
    from fc_operator.store.database import Database
    from fc_operator.store.listener import Listener
    from fc_operator.web.server import WebService

    logs.configure(level="warning")
    database = await Database.open(url, size=POOL)
    service = WebService(
        database=database,
        listener=Listener(database),
        objects=ObjectStore.open(folder / "objects"),
        secrets=DirectorySecrets(folder),
        cipher=Cipher(bytes(32)),
        settings=Settings(web=WebSettings(port=0)),
    )
    await service.start()
    print(f"{service.url}/api/v1/builds", flush=True)
    await asyncio.Event().wait()


def serve_fastapi(url: str) -> None:
    """FastAPI and uvicorn, written as their documentation does: rows as dicts."""
    import socket

    import uvicorn
    from fastapi import FastAPI

    from fc_operator.store.pages import builds
    from fc_operator.web import cursors

    pool: Any = None
    # The rows of our statement, as rows.
    statement = builds._queries.list_newest.sql.replace("row_to_json(r)::text AS row", "r.*")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        nonlocal pool
        pool = await asyncpg.create_pool(
            url, min_size=1, max_size=POOL, server_settings={"jit": "off"}
        )
        yield
        await pool.close()

    app = FastAPI(lifespan=lifespan)

    @app.get("/api/v1/builds")
    async def list_builds(limit: int = PAGE, cursor: str | None = None) -> dict[str, Any]:
        before = cursors.decode(cursor, tuple[int])
        start = before[0] if before else builds.NUMBER_MAX
        rows = [dict(row) for row in await pool.fetch(statement, start, False, [], limit + 1)]
        more = cursors.encode(rows[limit - 1]["number"]) if len(rows) > limit else None
        return {"items": rows[:limit], "next": more}

    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/api/v1/builds", flush=True)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", log_level="warning", access_log=False
    )
    uvicorn.Server(config).run(sockets=[listening])


# load ---------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """One kept-alive connection that asks, reads the whole answer and asks again until ``end``.

    A protocol instead of streams, so that the load costs little beside what it measures.
    """

    def __init__(self, paths: list[str], seed: int, end: float, latencies: list[float]) -> None:
        self.dice, self.end, self.latencies = random.Random(seed), end, latencies
        self.requests = [
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode() for path in paths
        ]
        self.done = asyncio.get_running_loop().create_future()
        self.left = -1
        self.head = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.left, self.head = -1, b""
        self.started = time.perf_counter()
        self.transport.write(self.dice.choice(self.requests))

    def data_received(self, data: bytes) -> None:
        if self.left < 0:
            self.head += data
            size = self.head.find(b"\r\n\r\n")
            if size < 0:
                return
            head = self.head[:size].lower()
            assert head.startswith(b"http/1.1 200"), head
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            self.left = length - (len(self.head) - size - 4)
        else:
            self.left -= len(data)
        if self.left == 0:
            self.latencies.append(time.perf_counter() - self.started)
            if time.perf_counter() < self.end:
                self.ask()
            else:
                self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


async def measure(url: str, paths: list[str], seconds: float, connections: int) -> dict[str, Any]:
    """Requests a second and latencies of ``connections`` that ask without a pause."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    latencies: list[float] = []
    loop = asyncio.get_running_loop()

    started = time.perf_counter()
    end = started + seconds

    async def connect(seed: int) -> None:
        _, client = await loop.create_connection(
            lambda: Client(paths, seed, end, latencies), str(parts.hostname), parts.port
        )
        await client.done

    await asyncio.gather(*(connect(seed) for seed in range(connections)))
    took = time.perf_counter() - started
    latencies.sort()
    return {
        "rate": len(latencies) / took,
        "p50": latencies[len(latencies) // 2] * 1000,
        "p99": latencies[int(len(latencies) * 0.99)] * 1000,
        "n": len(latencies),
    }


def run_load(url: str, paths: list[str], seconds: float, connections: int) -> dict[str, Any]:
    """``measure`` in a process of its own."""
    task = {"url": url, "paths": paths, "seconds": seconds, "connections": connections}
    done = subprocess.run(
        [sys.executable, __file__, "--role", "load"],
        input=json.dumps(task), capture_output=True, text=True, check=True,
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout)
    return result


# the bench ----------------------------------------------------------------------------------


@contextlib.contextmanager
def server(role: str, url: str, folder: Path) -> Any:
    """A server in a process of its own; its address."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--role", role, "--url", url, "--folder", str(folder)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait(10)


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


def line(name: str, value: float, goal: float, *, at_least: bool) -> bool:
    met = value >= goal if at_least else value <= goal
    mark = ">=" if at_least else "<="
    print(f"{name} {value:.2f} goal {mark}{goal} {'met' if met else 'short'}")
    return met


def bench(url: str, folder: Path, arguments: argparse.Namespace) -> bool:
    from urllib.parse import urlsplit

    from fc_operator.web import cursors

    dice = random.Random(arguments.seed)
    spots = [dice.randrange(2 * PAGE, arguments.n) for _ in range(500)]
    root = "/api/v1/builds"
    anywhere = [f"{root}?limit={PAGE}&cursor={cursors.encode(spot)}" for spot in spots]
    first, deepest = (
        [f"{root}?limit={PAGE}"],
        [f"{root}?limit={PAGE}&cursor={cursors.encode(PAGE + 1)}"],
    )
    with server("ours", url, folder) as (ours, pid), server("fastapi", url, folder) as (theirs, _):
        same(ours, theirs, [*first, *deepest, anywhere[0]])
        for address in (ours, theirs):
            run_load(address, anywhere, 2, CONNECTIONS)
        ratios = []
        for number in range(arguments.pairs):
            pair = [(ours, "ours"), (theirs, "fastapi")]
            rates = {}
            for address, name in pair if number % 2 == 0 else pair[::-1]:
                found = run_load(address, anywhere, arguments.seconds, CONNECTIONS)
                rates[name] = found["rate"]
                print(
                    f"  {name:8} {found['rate']:7.0f}/s p50 {found['p50']:6.1f} ms p99 {found['p99']:6.1f} ms"
                )
            ratios.append(rates["ours"] / rates["fastapi"])
        p99s: dict[str, list[float]] = {"first": [], "deepest": []}
        for _ in range(arguments.pairs):
            for name, paths in (("first", first), ("deepest", deepest)):
                found = run_load(ours, paths, arguments.seconds, 4)
                p99s[name].append(found["p99"])
                print(
                    f"  {name:8} {found['rate']:7.0f}/s p50 {found['p50']:6.1f} ms p99 {found['p99']:6.1f} ms"
                )
        lists = {
            "evaluation": f"{root}?evaluation={arguments.n // 2000 or 1}",
            "status": f"{root}?status=timeout&cursor={cursors.encode(arguments.n // 2)}",
            "system": f"{root}?system=aarch64-linux&cursor={cursors.encode(arguments.n // 2)}",
            "job": f"{root}?job=package-7&cursor={cursors.encode(arguments.n // 2)}",
            "jobset": f"{root}?project=project3&jobset=jobset2",
            "project": f"{root}?project=project3",
            "evaluations": "/api/v1/evaluations",
            "queue": "/api/v1/queue",
        }
        base = urlsplit(ours)
        worst = 0.0
        for name, path in lists.items():
            found = run_load(f"{base.scheme}://{base.netloc}", [path], 1.0, 8)
            worst = max(worst, found["p99"])
            print(
                f"  list {name:12} {found['rate']:7.0f}/s p50 {found['p50']:6.1f} ms p99 {found['p99']:6.1f} ms"
            )
        print(f"  our server: {resident_mb(pid):.0f} MB resident after the load")
    ratio = statistics.median(a / b for a, b in zip(p99s["deepest"], p99s["first"], strict=True))
    return all(
        [
            line("page-fastapi", statistics.median(ratios), RATIO_GOAL, at_least=True),
            line("page-deepest-p99", ratio, DEEPEST_GOAL, at_least=False),
            line("page-lists-p99-ms", worst, LISTS_P99_MS_GOAL, at_least=False),
        ]
    )


def same(ours: str, theirs: str, paths: list[str]) -> None:
    """Both must answer with the same rows."""
    import urllib.request
    from urllib.parse import urlsplit

    for path in paths:
        found = []
        for address in (ours, theirs):
            base = urlsplit(address)
            with urllib.request.urlopen(f"{base.scheme}://{base.netloc}{path}") as answer:
                found.append([row["number"] for row in json.loads(answer.read())["items"]])
        assert found[0] == found[1], path
        assert len(found[0]) == PAGE


async def main(arguments: argparse.Namespace) -> bool:
    with tempfile.TemporaryDirectory(prefix="fc-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = EmbeddedPostgres(folder, extra_settings={"shared_buffers": "512MB"})
        await postgres.start()
        try:
            started = time.perf_counter()
            await load(postgres.url, arguments.n, random.Random(arguments.seed))
            print(
                f"N {arguments.n:,} builds loaded in {time.perf_counter() - started:.0f} s;"
                f" pages of {PAGE}, {CONNECTIONS} connections, pool {POOL}, seed {arguments.seed};"
                f" Python {platform.python_version()},"
                + "".join(
                    f" {each} {version(each)}"
                    for each in ("sanic", "fastapi", "uvicorn", "asyncpg")
                )
            )
            return await asyncio.to_thread(bench, postgres.url, folder, arguments)
        finally:
            await postgres.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--role", choices=["bench", "ours", "fastapi", "load"], default="bench")
    parser.add_argument("--url", default="")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    if given.role == "load":
        import uvloop

        print(json.dumps(uvloop.run(measure(**json.loads(sys.stdin.read())))))
    elif given.role == "ours":
        import uvloop

        uvloop.run(serve_ours(given.url, given.folder))
    elif given.role == "fastapi":
        serve_fastapi(given.url)
    else:
        sys.exit(0 if asyncio.run(main(given)) else 1)
