"""From a commit to rows: a config repository as the scheduler syncs it, from a real git host.

The service, git, HTTP and PostgreSQL are those that users run, with PostgreSQL's default safety.
The clock starts when a sync is asked for (as a webhook does) and ends when the new revision stands
in the database, or when the changed row does; git's share is in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from fc_operator.clients.git import Git
from fc_operator.clients.git_server import GitServer
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.intake.repos import RepositorySyncService
from fc_operator.kit import logs
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.sources import Source
from fc_operator.operations import manifests
from fc_operator.operations.manifests import Keyring
from fc_operator.operations.sources import request_sync
from fc_operator.settings import ConfigSettings, GitSettings
from fc_operator.spec import manifests as parser
from fc_operator.store import migrations
from fc_operator.store.database import Database
from fc_operator.store.embedded import EmbeddedPostgres
from fc_operator.store.listener import Listener

FIRST_S_GOAL = 3.0
CHANGE_S_GOAL = 1.0
WRITES_GOAL = 0
HEAD = "apiVersion: fc-operator.dev/v1alpha1\n"


def project(name: str) -> str:
    return (
        f"{HEAD}kind: Project\nmetadata: {{name: {name}}}\n"
        f"spec:\n  repositoryUrl: https://git.example.org/{name}.git\n"
        f"  channels:\n    - {{name: stable, jobset: j0}}\n"
    )


def jobset(of: str, name: str, *, branch: str = "main") -> str:
    return (
        f"{HEAD}kind: Jobset\nmetadata: {{name: {of}-{name}}}\n"
        f"spec:\n  name: {name}\n  projectRef: {{name: {of}}}\n  branch: {branch}\n"
        f"  nixExpression: release.nix\n  checkInterval: 5m\n  description: Jobset {name}\n"
        f"  inputs:\n"
        f'    - {{name: nixpkgs, type: Git, value: "https://git.example.org/nixpkgs.git main"}}\n'
        f'    - {{name: system, type: String, value: "x86_64-linux"}}\n'
    )


def repository(name: str, url: str) -> str:
    return (
        f"{HEAD}kind: ConfigRepository\nmetadata: {{name: {name}}}\n"
        f"spec: {{url: '{url}', interval: 1h}}\n"
    )


class Repository:
    """A config repository of the bench: a work tree, its bare twin on the host, its row."""

    def __init__(self, bench: Bench, name: str, jobsets: int) -> None:
        self.bench, self.name = bench, name
        self.bare = bench.folder / "host" / f"{name}.git"
        self.tree = bench.folder / "trees" / name
        self.tree.mkdir(parents=True)
        self.git("init", "--quiet", "--initial-branch=main", str(self.tree), at=bench.folder)
        projects = max(1, jobsets // 50)
        for number in range(projects):
            self.write(f"{name}-p{number}", "project", project(f"{name}-p{number}"))
        for number in range(jobsets):
            of = f"{name}-p{number % projects}"
            self.write(of, f"j{number}", jobset(of, f"j{number // projects}"))
        self.push()

    def write(self, of: str, name: str, text: str) -> None:
        file = self.tree / of / f"{name}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    def push(self) -> str:
        """Commit all; the host has it afterwards."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "change")
        if not self.bare.exists():
            self.git("clone", "--quiet", "--bare", str(self.tree), str(self.bare))
        else:
            self.git("push", "--quiet", str(self.bare), "main")
        return self.git("rev-parse", "HEAD")

    def git(self, *words: str, at: Path | None = None) -> str:
        who = {"GIT_AUTHOR_NAME": "b", "GIT_AUTHOR_EMAIL": "b@b", "GIT_CONFIG_GLOBAL": "/dev/null"}
        who |= {"GIT_COMMITTER_NAME": "b", "GIT_COMMITTER_EMAIL": "b@b"}
        done = subprocess.run(
            ["git", "-C", str(at or self.tree), *words],
            env={"PATH": os.environ["PATH"], **who}, check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()


class Bench:
    """What runs."""

    def __init__(self, database: Database, listener: Listener, folder: Path, host: GitServer):
        self.database, self.folder, self.host = database, folder, host
        self.keyring = Keyring(DirectorySecrets(folder / "secrets"), Cipher(bytes(32)))
        self.config = ConfigSettings()
        allowed = (host.url.removeprefix("http://"),)
        git = Git(GitSettings(allowed_schemes=("http",), allowed_hosts=allowed), folder / "mirrors")
        self.service = RepositorySyncService(database, listener, git, self.keyring, self.config)

    async def declare(self, name: str) -> None:
        """Make a source as a manifest does; its first sync begins."""
        await manifests.apply(
            self.database,
            Source("Apply", "bench"),
            parser.parse({"x.yaml": repository(name, f"{self.host.url}/{name}.git").encode()}),
            keyring=self.keyring,
            config=self.config,
            revision="1",
            complete=False,
        )

    async def until(self, sql: str, *arguments: object) -> None:
        async with self.database.session() as connection:
            while not await connection.fetchval(sql, *arguments):  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def until_revision(self, name: str, revision: str) -> None:
        await self.until(
            "SELECT last_revision = $2 AND lease_owner IS NULL FROM config_repositories"
            " WHERE name = $1",
            name,
            revision,
        )

    async def written(self) -> int:
        """Rows written so far, but for the lease of the config repository itself."""
        async with contextlib.AsyncExitStack() as stack:
            sessions = [
                await stack.enter_async_context(self.database.session())
                for _ in range(self.database._pool.get_max_size())
            ]
            for session in sessions:
                await session.execute("SELECT pg_stat_force_next_flush()")
            return await sessions[0].fetchval(
                "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables"
                " WHERE relname <> 'config_repositories'"
            )

    async def count(self, sql: str, *arguments: object) -> int:
        async with self.database.session() as connection:
            return await connection.fetchval(sql, *arguments)


async def first_sync(bench: Bench, name: str, jobsets: int) -> tuple[float, Repository]:
    """Seconds from the declaration of a source to all its rows."""
    source = await asyncio.to_thread(Repository, bench, name, jobsets)
    head = await asyncio.to_thread(source.git, "rev-parse", "HEAD")
    began_s = time.perf_counter()
    await bench.declare(name)
    await bench.until_revision(name, head)
    took_s = time.perf_counter() - began_s
    made = await bench.count(
        "SELECT count(*) FROM jobsets j JOIN projects p ON p.id = project_id WHERE p.name LIKE $1",
        f"{name}-%",
    )
    assert made == jobsets, (made, jobsets)
    return took_s, source


async def one_change(bench: Bench, source: Repository, turn: int) -> float:
    of = f"{source.name}-p0"
    source.write(of, "j0", jobset(of, "j0", branch=f"turn-{turn}"))
    head = await asyncio.to_thread(source.push)
    began_s = time.perf_counter()
    await request_sync(bench.database, source.name)
    await bench.until("SELECT true FROM jobsets WHERE branch = $1", f"turn-{turn}")
    took_s = time.perf_counter() - began_s
    await bench.until_revision(source.name, head)
    return took_s


async def no_change(bench: Bench, name: str) -> tuple[float, float]:
    """Wall and CPU seconds of a sync that finds nothing new; drift is looked for all the same."""
    before = await bench.count(
        "SELECT extract(epoch FROM last_synced_at) * 1e6 FROM config_repositories WHERE name = $1",
        name,
    )
    began_s, cpu_s = time.perf_counter(), time.process_time()
    await request_sync(bench.database, name)
    await bench.until(
        "SELECT extract(epoch FROM last_synced_at) * 1e6 > $2 FROM config_repositories WHERE name = $1",
        name,
        before,
    )
    return time.perf_counter() - began_s, time.process_time() - cpu_s


def close(name: str, value: float, goal: float, digits: int = 2) -> bool:
    met = value <= goal
    print(f"{name} {value:.{digits}f} goal <={goal:g} {'met' if met else 'short'}")
    return met


async def measure(bench: Bench, args: argparse.Namespace) -> bool:
    firsts = [(await first_sync(bench, f"r{turn}", args.n))[0] for turn in range(args.runs)]
    print(f"first sync of {args.n} jobsets: {', '.join(f'{each:.2f}' for each in firsts)} s")
    large_s, source = await first_sync(bench, "large", args.large)
    print(f"first sync of {args.large} jobsets: {large_s:.2f} s")
    async with bench.database.session() as connection:
        await connection.execute("VACUUM ANALYZE")
    changes = [await one_change(bench, source, turn) for turn in range(args.turns)]
    print(f"one change in {args.large}: {', '.join(f'{each:.2f}' for each in changes)} s")
    before = await bench.written()
    idle = [await no_change(bench, "large") for _ in range(args.turns)]
    writes = await bench.written() - before
    print(
        f"no change in {args.large}: {statistics.median(wall for wall, _ in idle):.2f} s, "
        f"CPU {statistics.median(cpu for _, cpu in idle):.2f} s (drift is looked for each time)"
    )
    print(f"peak RSS {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return all(
        [
            close(f"reconcile-first-{args.n}-s", statistics.median(firsts), FIRST_S_GOAL),
            close(f"reconcile-change-in-{args.large}-s", statistics.median(changes), CHANGE_S_GOAL),
            close("reconcile-no-change-writes", writes, WRITES_GOAL, digits=0),
        ]
    )


async def run(args: argparse.Namespace) -> bool:
    logs.configure(level="error")
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fc-bench-")))
        folder.chmod(0o755)
        (folder / "host").mkdir()
        postgres = EmbeddedPostgres(folder / "state")
        stack.callback(shutil.rmtree, postgres.data_dir, ignore_errors=True)
        await postgres.start()
        stack.push_async_callback(postgres.stop)
        await migrations.migrate(postgres.url)
        database = await Database.open(postgres.url, size=10)
        stack.push_async_callback(database.close)
        listener = Listener(database)
        host = GitServer(folder / "host")
        bench = None
        async with database.session() as connection:
            version = await connection.fetchval("SHOW server_version")
        git = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True)
        print(
            f"Python {platform.python_version()}, PostgreSQL {version}, {git.stdout.strip()}, "
            f"{os.cpu_count()} cores, N {args.n} and {args.large}, runs {args.runs}, "
            f"turns {args.turns}"
        )
        await host.start()
        stack.push_async_callback(host.stop)
        bench = Bench(database, listener, folder, host)
        for service in (listener, bench.service):
            await service.start()
            stack.push_async_callback(service.stop)
        return await measure(bench, args)


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--n", type=int, default=1000, help="jobsets of the first sync")
    words.add_argument("--large", type=int, default=5000, help="jobsets beside one change")
    words.add_argument("--runs", type=int, default=3, help="first syncs")
    words.add_argument("--turns", type=int, default=5, help="changes, and syncs without one")
    return 0 if asyncio.run(run(words.parse_args())) else 1


if __name__ == "__main__":
    raise SystemExit(main())
