"""From the lines of nix-eval-jobs to builds, steps and edges that can be queried.

Three ways on the same tables, in one run, on PostgreSQL's default safety: ours, with the evaluator's
own parser and batching in front; a bare pipeline (COPY into a stage, INSERT..SELECT, COPY of the
rest) that plans nothing, counts no blockers, checks no fence and announces nothing; and row at a
time, a transaction per job, on a slice of the rows.

The rows: each job needs five others, of which most are to be built; nothing is valid yet. Every row
tells its cache status, as nix-eval-jobs does with --check-cache-status, so Nix is not asked.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Self

import asyncpg
import orjson

from fc_operator.clients.nix import Nix
from fc_operator.evaluator import batches, roots, rows
from fc_operator.kit import logs
from fc_operator.model.evaluations import EvaluationEnd, EvaluationFence
from fc_operator.model.ids import new_uuid
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.operations.ingest import Ingest
from fc_operator.settings import BuildSettings, NixSettings
from fc_operator.store import migrations
from fc_operator.store.database import Database
from fc_operator.store.embedded import EmbeddedPostgres

ROW_AT_A_TIME_GOAL = 8.0
BARE_GOAL = 0.6
FIRST_S_GOAL = 1.0
RSS_MB_GOAL = 150
INPUTS = 5
STORE = "/nix/store"
SYSTEMS = ("x86_64-linux", "aarch64-linux", "x86_64-darwin", "aarch64-darwin")


def path(name: str) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:32].translate(str.maketrans("eu", "gv"))
    return f"{STORE}/{digest}-{name}"


def write_rows(file: Path, count: int, seed: int) -> None:
    """The first sixteenth needs only what is valid, the rest needs five of these."""
    rng = random.Random(seed)
    leaves = count // 16
    with file.open("wb") as out:
        for n in range(count):
            name = f"package-{n}-1.{n % 10}"
            if n < leaves:
                needs = [path(f"source-{rng.randrange(10_000)}.drv") for _ in range(INPUTS)]
                needed = []
            else:
                needs = [
                    path(f"package-{m}-1.{m % 10}.drv") for m in rng.sample(range(leaves), INPUTS)
                ]
                needed = needs
            outputs = ["out", "dev", "man"][: 1 + n % 3]
            row = {
                "attr": f"packages.p{n}",
                "attrPath": ["packages", f"p{n}"],
                "name": name,
                "system": SYSTEMS[n % len(SYSTEMS)],
                "drvPath": path(f"{name}.drv"),
                "outputs": {o: path(f"{name}-{o}") for o in outputs},
                "inputDrvs": {need: ["out"] for need in needs},
                "requiredSystemFeatures": ["big-parallel"] if n % 50 == 0 else [],
                "cacheStatus": "notBuilt",
                "neededBuilds": [*needed, path(f"{name}.drv")],
            }
            out.write(orjson.dumps(row) + b"\n")


class Place:
    """A migrated database of its own with one running evaluation."""

    def __init__(self, server: EmbeddedPostgres, name: str) -> None:
        self.url = server.url.replace("/fc?", f"/{name}?")
        self.admin_url = server.url.replace("/fc?", "/postgres?")
        self.name = name

    async def __aenter__(self) -> Self:
        admin = await asyncpg.connect(self.admin_url)
        await admin.execute(f"CREATE DATABASE {self.name} TEMPLATE bench_template")
        await admin.close()
        self.database = await Database.open(self.url, size=4)
        async with self.database.session() as connection:
            self.jobset_id = await connection.fetchval(
                "WITH p AS (INSERT INTO projects (name, repository_url)"
                " VALUES ('bench', 'https://example.org/x.git') RETURNING id)"
                " INSERT INTO jobsets (project_id, name, nix_expression)"
                " SELECT id, 'main', 'release.nix' FROM p RETURNING id"
            )
            self.evaluation_id = await connection.fetchval(
                "INSERT INTO evaluations (jobset_id, commit_hash, status)"
                " VALUES ($1, repeat('0', 40), 'running') RETURNING id",
                self.jobset_id,
            )
            self.task_id = await connection.fetchval(
                "INSERT INTO tasks (kind, evaluation_id, owner, expires_at)"
                " VALUES ('evaluation', $1, 'bench', now() + interval '1 h') RETURNING id",
                self.evaluation_id,
            )
            await connection.execute("UPDATE evaluations SET task_id = $1", self.task_id)
            await connection.execute("CHECKPOINT")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.database.close()
        admin = await asyncpg.connect(self.admin_url)
        await admin.execute(f"DROP DATABASE {self.name} WITH (FORCE)")
        await admin.close()

    async def counts(self) -> tuple[int, ...]:
        async with self.database.session() as connection:
            return tuple(
                [
                    await connection.fetchval(f"SELECT count(*) FROM {table}")
                    for table in (
                        "builds",
                        "steps",
                        "step_edges",
                        "step_outputs",
                        "build_dependencies",
                    )
                ]
            )


async def lines(file: Path):
    """As from an evaluator's pipe: line by line, with the loop given its turns."""
    with file.open("rb") as data:
        for number, line in enumerate(data):
            if number % 100 == 0:
                await asyncio.sleep(0)
            yield line


async def ours(place: Place, file: Path, *, watch: bool = False) -> tuple[float, float]:
    """Seconds for all rows, and until a step could be claimed."""
    nix = Nix(NixSettings(), {})
    ingest = Ingest(place.database, nix, BuildSettings(), roots_dir=roots.default_dir(nix.env))
    fence = EvaluationFence(evaluation_id=place.evaluation_id, task_id=place.task_id)

    async def parsed():
        async for line in lines(file):
            yield rows.parse_line(line, store_dir=STORE, name_of_root="root")

    started_s = time.perf_counter()
    watcher = asyncio.create_task(first_ready(place, started_s)) if watch else None
    async for batch in batches.batched(parsed()):
        await ingest.put(fence, batch.rows, batch.errors)
    await ingest.finish(fence, EvaluationEnd(status=EvaluationStatus.COMPLETED))
    total_s = time.perf_counter() - started_s
    return total_s, await watcher if watcher else 0.0


async def first_ready(place: Place, started_s: float) -> float:
    async with place.database.session() as connection:
        while not await connection.fetchval("SELECT EXISTS (SELECT FROM ready_steps)"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return time.perf_counter() - started_s


async def bare(place: Place, file: Path, size: int = 2000) -> float:
    """COPY and INSERT..SELECT, and nothing else."""
    started_s = time.perf_counter()
    ids: dict[str, int] = {}
    build_ids: dict[str, object] = {}
    dependencies: list[tuple[str, str]] = []
    async with place.database.session() as connection:
        class_ids = {
            (system, features): await connection.fetchval(
                "INSERT INTO step_classes (system, features) VALUES ($1, $2) RETURNING id",
                system,
                list(features),
            )
            for system in SYSTEMS
            for features in ((), ("big-parallel",))
        }
        await connection.execute(
            "CREATE TEMP TABLE bare_stage (drv_path text, name text, class_id int, blockers int)"
            " ON COMMIT DELETE ROWS"
        )
        pending: list[dict] = []

        async def flush() -> None:
            async with connection.transaction():
                await connection.copy_records_to_table(
                    "bare_stage",
                    records=[
                        (
                            r["drvPath"],
                            r["name"],
                            class_ids[r["system"], tuple(r["requiredSystemFeatures"])],
                            len(r["neededBuilds"]) - 1,
                        )
                        for r in pending
                    ],
                )
                for record in await connection.fetch(
                    "INSERT INTO steps (drv_path, name, class_id, blockers, jobset_id)"
                    " SELECT drv_path, name, class_id, blockers, $1 FROM bare_stage"
                    " ON CONFLICT (drv_path) DO NOTHING RETURNING id, drv_path",
                    place.jobset_id,
                ):
                    ids[record["drv_path"]] = record["id"]
                await connection.copy_records_to_table(
                    "step_outputs",
                    columns=["step_id", "name", "path"],
                    records=[
                        (ids[r["drvPath"]], o, p) for r in pending for o, p in r["outputs"].items()
                    ],
                )
                await connection.copy_records_to_table(
                    "step_edges",
                    records=[
                        (ids[r["drvPath"]], ids[need])
                        for r in pending
                        for need in r["neededBuilds"][:-1]
                    ],
                )
                await connection.copy_records_to_table(
                    "ready_steps",
                    columns=["step_id", "class_id", "jobset_id"],
                    records=[
                        (
                            ids[r["drvPath"]],
                            class_ids[r["system"], tuple(r["requiredSystemFeatures"])],
                            place.jobset_id,
                        )
                        for r in pending
                        if len(r["neededBuilds"]) == 1
                    ],
                )
                for r in pending:
                    build_ids[r["drvPath"]] = new_uuid()
                    dependencies.extend((r["drvPath"], need) for need in r["inputDrvs"])
                await connection.copy_records_to_table(
                    "builds",
                    columns=[
                        *("id", "evaluation_id", "job_name", "attr_path", "nix_name", "drv_path"),
                        *("system", "status", "step_id"),
                    ],
                    records=[
                        (
                            *(
                                build_ids[r["drvPath"]],
                                place.evaluation_id,
                                r["attr"],
                                r["attrPath"],
                            ),
                            *(r["name"], r["drvPath"], r["system"], "pending", ids[r["drvPath"]]),
                        )
                        for r in pending
                    ],
                )
            pending.clear()

        async for line in lines(file):
            pending.append(orjson.loads(line))
            if len(pending) == size:
                await flush()
        if pending:
            await flush()
        await connection.copy_records_to_table(
            "build_dependencies",
            columns=["build_id", "dependency_build_id"],
            records=[(build_ids[a], build_ids[b]) for a, b in dependencies if b in build_ids],
        )
    return time.perf_counter() - started_s


async def row_at_a_time(place: Place, file: Path, count: int) -> float:
    """A transaction per job, a statement per row."""
    started_s = time.perf_counter()
    ids: dict[str, int] = {}
    build_ids: dict[str, object] = {}
    async with place.database.session() as connection:
        class_ids: dict[tuple, int] = {}
        seen = 0
        async for line in lines(file):
            row = orjson.loads(line)
            key = row["system"], tuple(row["requiredSystemFeatures"])
            async with connection.transaction():
                if key not in class_ids:
                    class_ids[key] = await connection.fetchval(
                        "INSERT INTO step_classes (system, features) VALUES ($1, $2) RETURNING id",
                        key[0],
                        list(key[1]),
                    )
                step_id = await connection.fetchval(
                    "INSERT INTO steps (drv_path, name, class_id, blockers, jobset_id)"
                    " VALUES ($1, $2, $3, $4, $5) RETURNING id",
                    *(row["drvPath"], row["name"], class_ids[key]),
                    *(len(row["neededBuilds"]) - 1, place.jobset_id),
                )
                ids[row["drvPath"]] = step_id
                for name, output in row["outputs"].items():
                    await connection.execute(
                        "INSERT INTO step_outputs (step_id, name, path) VALUES ($1, $2, $3)",
                        *(step_id, name, output),
                    )
                for need in row["neededBuilds"][:-1]:
                    await connection.execute(
                        "INSERT INTO step_edges (step_id, needs_step_id) VALUES ($1, $2)",
                        *(step_id, ids[need]),
                    )
                if len(row["neededBuilds"]) == 1:
                    await connection.execute(
                        "INSERT INTO ready_steps (step_id, class_id, jobset_id) VALUES ($1, $2, $3)",
                        *(step_id, class_ids[key], place.jobset_id),
                    )
                build_id = build_ids[row["drvPath"]] = await connection.fetchval(
                    "INSERT INTO builds (evaluation_id, job_name, attr_path, nix_name, drv_path,"
                    " system, status, step_id) VALUES ($1, $2, $3, $4, $5, $6, 'pending', $7)"
                    " RETURNING id",
                    *(place.evaluation_id, row["attr"], row["attrPath"], row["name"]),
                    *(row["drvPath"], row["system"], step_id),
                )
                for need in row["inputDrvs"]:
                    if need in build_ids:
                        await connection.execute(
                            "INSERT INTO build_dependencies (build_id, dependency_build_id)"
                            " VALUES ($1, $2)",
                            *(build_id, build_ids[need]),
                        )
            seen += 1
            if seen == count:
                break
    return time.perf_counter() - started_s


def status_kb(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def verdict(name: str, value: float, goal: float, *, at_most: bool, digits: int = 2) -> None:
    met = value <= goal if at_most else value >= goal
    print(f"{name} {value:.{digits}f} goal {goal:g} {'met' if met else 'short'}")


async def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=80_000)
    arguments.add_argument("--pairs", type=int, default=2, help="runs of ours and bare, in turn")
    arguments.add_argument("--slice", type=int, default=8_000, help="rows of the row-at-a-time way")
    arguments.add_argument("--seed", type=int, default=1)
    chosen = arguments.parse_args()
    logs.configure(level="error")
    with tempfile.TemporaryDirectory(prefix="fc-bench-") as folder:
        Path(folder).chmod(0o755)
        file = Path(folder) / "rows.jsonl"
        write_rows(file, chosen.rows, chosen.seed)
        server = EmbeddedPostgres(Path(folder) / "state")
        await server.start()
        try:
            await measure(server, file, chosen)
        finally:
            await server.stop()


async def measure(server: EmbeddedPostgres, file: Path, chosen: argparse.Namespace) -> None:
    admin = await asyncpg.connect(server.url.replace("/fc?", "/postgres?"))
    version = await admin.fetchval("SHOW server_version")
    await admin.execute("CREATE DATABASE bench_template")
    await admin.close()
    await migrations.migrate(server.url.replace("/fc?", "/bench_template?"))
    size = file.stat().st_size
    print(
        f"ingest: {chosen.rows} rows of {size // chosen.rows} bytes, {INPUTS} inputs each, seed"
        f" {chosen.seed}; Python {platform.python_version()}, asyncpg {asyncpg.__version__},"
        f" PostgreSQL {version}"
    )
    ours_s, bare_s, first_s, rss_mb, seen = [], [], [], [], set()
    for n in range(chosen.pairs):
        async with Place(server, f"ours_{n}") as place:
            Path("/proc/self/clear_refs").write_text("5")
            idle_kb = status_kb("VmRSS")
            total_s, ready_s = await ours(place, file, watch=True)
            rss_mb.append((status_kb("VmHWM") - idle_kb) / 1024)
            ours_s.append(total_s)
            first_s.append(ready_s)
            seen.add(await place.counts())
        async with Place(server, f"bare_{n}") as place:
            bare_s.append(await bare(place, file))
            seen.add(await place.counts())
    assert len(seen) == 1, f"the ways differ: {seen}"
    async with Place(server, "rows") as place:
        slow_s = await row_at_a_time(place, file, chosen.slice)
    (counts,) = seen
    names = ("builds", "steps", "edges", "outputs", "dependencies")
    print("  each made " + ", ".join(f"{n} {k}" for k, n in zip(names, counts, strict=True)))
    rate = chosen.rows / statistics.median(ours_s)
    bare_rate = chosen.rows / statistics.median(bare_s)
    slow_rate = chosen.slice / slow_s
    print(f"  ours           {rate:9.0f} rows/s  ({', '.join(f'{s:.2f} s' for s in ours_s)})")
    print(f"  bare COPY      {bare_rate:9.0f} rows/s  ({', '.join(f'{s:.2f} s' for s in bare_s)})")
    print(f"  row at a time  {slow_rate:9.0f} rows/s  ({chosen.slice} rows in {slow_s:.2f} s)")
    verdict("ingest_over_row_at_a_time", rate / slow_rate, ROW_AT_A_TIME_GOAL, at_most=False)
    ratios = [b / o for o, b in zip(ours_s, bare_s, strict=True)]
    verdict("ingest_over_bare_copy", statistics.median(ratios), BARE_GOAL, at_most=False)
    verdict("ingest_first_claimable_s", max(first_s), FIRST_S_GOAL, at_most=True)
    verdict("ingest_rss_over_idle_mb", max(rss_mb), RSS_MB_GOAL, at_most=True, digits=0)


if __name__ == "__main__":
    asyncio.run(main())
