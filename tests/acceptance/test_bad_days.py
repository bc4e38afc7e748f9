"""Bad days, met as a user meets them: the `fc` command is killed, starved, and mended.

Moments are chosen by watching rows of the database, never by sleeping. What builders did is read
from a file that they themselves append to, so that a step that ran twice at once would be seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from fc_operator.app import demo
from fc_operator.clients.git_server import GitServer
from fc_operator.store.embedded import EmbeddedPostgres

pytestmark = [pytest.mark.nix]

START_S = 60
END_S = 90
QUICK = {
    "queue.lease_s": "4",
    "queue.heartbeat_s": "1",
    "queue.margin_s": "1",
    "queue.poll_s": "0.5",
    "builds.local_slots": "2",
    "builds.retry_base_s": "0.3",
    "nix.sandbox": "None",
}
"""Short leases and waits, so that recovery is a matter of seconds; builders may write to marks."""

MANIFESTS = """\
apiVersion: fc-operator.dev/v1alpha1
kind: Project
metadata: {{name: bad}}
spec: {{repositoryUrl: "{url}/bad.git"}}
---
apiVersion: fc-operator.dev/v1alpha1
kind: Jobset
metadata: {{name: bad-main}}
spec:
  projectRef: {{name: bad}}
  name: main
  nixExpression: release.nix
  checkInterval: 1s
"""

RELEASE = """\
let
  salt = "{salt}";
  run = name: needs: script: derivation {{
    inherit salt needs;
    name = "${{name}}-${{salt}}";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    args = [ "-c" ''
      set -eu
      echo "${{name}} begin" >> {marks}
      ${{script}}
      echo "${{name}} end" >> {marks}
    '' ];
  }};
  slowly = n: if n < 2 then n else slowly (n - 1) + slowly (n - 2);
in rec {{
{jobs}
}}
"""

JOBS = {
    # Name: what it needs, its script, how it must end.
    "a": ([], "for i in 1 2 3; do echo line $i; sleep 0.1; done; echo a > $out", "succeeded"),
    "b": (["a"], "echo b; sleep 0.2; echo b > $out", "succeeded"),
    "c": (["b"], "echo c; echo c > $out", "succeeded"),
    "measured": (
        ["a"],
        """mkdir -p $out/nix-support; echo text > $out/text; sleep 0.1
      echo "file text $out/text" > $out/nix-support/hydra-build-products
      echo "size 7 KiB" > $out/nix-support/hydra-metrics""",
        "succeeded",
    ),
    "broken": ([], "echo no good; exit 3", "failed"),
    "behind": (["broken"], "echo never > $out", "dependency_failed"),
}
LATE = "  z = if slowly {n} > 0 then run \"z\" [ ] ''echo z > $out'' else null;"
"""An attribute that takes the evaluator a while, last in the order of the walk."""


class Background:
    """An event loop in a thread: the git host, a PostgreSQL of ours, a session to look with."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def call(self, work, timeout_s=120):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


class Site:
    """One installation: state, manifests, a git host, and the processes that run on them."""

    def __init__(self, folder: Path, home: Path, environment, fc, start) -> None:
        self.folder, self.home, self.environment = folder, home, environment
        self._fc, self._start = fc, start
        self.state = folder / "state"
        self.config = folder / "manifests"
        self.config.mkdir(parents=True)
        self.marks = folder / "marks"
        self.marks.touch()
        self.marks.chmod(0o666)
        self.gate = folder / "gate"
        self.background = Background()
        self.repositories = folder / "repositories"
        self.repositories.mkdir()
        self.git = GitServer(self.repositories)
        self.commit("first", {})
        self.background.call(self.git.start())
        (self.config / "bad.yaml").write_text(MANIFESTS.format(url=self.git.url))
        self.settings = {
            **QUICK,
            "nix.store_dir": str(home / "store"),
            "git.allowed_schemes": "http",
            "git.allowed_hosts": self.git.url.removeprefix("http://"),
        }
        self.database_url = ""
        self.postgres: EmbeddedPostgres | None = None
        self.variables: dict[str, str] = {}
        self.url = ""
        self.running = []
        self._session: asyncpg.Connection | None = None
        self.salt = ""

    # What is built ------------------------------------------------------------------------------

    def commit(self, salt, jobs, extra="") -> str:
        """A commit with these jobs; ``salt`` makes them derivations that were never built."""
        self.salt = f"{salt}-{uuid.uuid4().hex[:8]}"
        lines = [
            f"  {name} = run \"{name}\" [ {' '.join(needs)} ] ''{script}'';"
            for name, (needs, script, _) in jobs.items()
        ]
        text = RELEASE.format(salt=self.salt, marks=self.marks, jobs="\n".join([*lines, extra]))
        return self.background.call(
            demo.commit(self.repositories / "bad.git", {"release.nix": text.encode()})
        )

    def marked(self) -> list[str]:
        return self.marks.read_text().splitlines()

    # Processes ----------------------------------------------------------------------------------

    def use_own_postgres(self) -> None:
        """A PostgreSQL that is not the product's, such as one that several processes share."""
        folder = self.folder / "external"
        folder.mkdir()
        self.postgres = EmbeddedPostgres(folder)
        self.background.call(self.postgres.start())
        self.database_url = self.postgres.url

    def words(self, verb, *more, state=None, **settings):
        pairs = (self.settings | settings).items()
        return (
            verb, "--state", state or self.state,
            *(word for name, value in pairs for word in ("--set", f"{name}={value}")),
            *(("--database-url", self.database_url) if self.database_url else ()),
            *more,
        )  # fmt: skip

    def begin(self, verb, *more, **options):
        process = self._start(*self.words(verb, *more, **options), **self.variables)
        self.running.append(process)
        return process

    def up(self, *more, wait=True, **options):
        process = self.begin("up", "--config", self.config, "--port", "0", *more, **options)
        if wait:
            self.url = process.wait_for(r"FC Operator is up: (\S+)", START_S)[1]
        return process

    def fc(self, *words, **more):
        return self._fc(*words, FC_URL=self.url, **more)

    def get(self, *words):
        done = self.fc("get", *words, "-o", "json")
        assert done.code == 0, done.err
        return done.data

    def status(self, path) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def api(self, path):
        with urllib.request.urlopen(f"{self.url}/api/v1{path}", timeout=10) as answer:
            return json.loads(answer.read())

    # Rows ---------------------------------------------------------------------------------------

    async def _ask(self, sql, *values):
        try:
            if self._session is None:
                url = self.database_url or EmbeddedPostgres(self.state).url
                self._session = await asyncpg.connect(url, timeout=5)
            return await self._session.fetch(sql, *values)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            session, self._session = self._session, None
            if session is not None:
                session.terminate()
            return None

    def rows(self, sql, *values):
        """Rows, or None while the database does not answer or has no such table yet."""
        return self.background.call(self._ask(sql, *values))

    def value(self, sql, *values):
        rows = self.rows(sql, *values)
        assert rows is not None
        return rows[0][0]

    def until(self, what, question, within_s=END_S):
        """The first true answer; looks again and again."""
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            if answer := question():
                return answer
            time.sleep(0.01)
        said = "\n".join(self.running[-1].lines[-60:]) if self.running else ""
        pytest.fail(f"not within {within_s} s: {what}\n{said}")

    def until_row(self, sql, *values, within_s=END_S):
        return self.until(sql, lambda: self.rows(sql, *values), within_s)

    def until_ended(self, commit, within_s=END_S):
        """Wait until the newest evaluation of a commit and all its builds have ended; its number."""
        sql = """
            SELECT v.number FROM
                (SELECT * FROM evaluations WHERE commit_hash = $1 ORDER BY number DESC LIMIT 1) v
            WHERE v.status NOT IN ('pending', 'running')
                AND NOT EXISTS (SELECT FROM builds b WHERE b.evaluation_id = v.id
                    AND b.status IN ('pending', 'running'))
        """
        return self.until_row(sql, commit, within_s=within_s)[0]["number"]

    def outcomes(self, evaluation) -> dict[str, str]:
        return {
            row["job_name"]: row["status"] for row in self.get("builds", "--evaluation", evaluation)
        }

    def assert_ended_well(self, commit, expected, within_s=END_S) -> None:
        """Every outcome as it must be; every row once; nothing held or waiting."""
        evaluation = self.until_ended(commit, within_s)
        assert self.outcomes(evaluation) == expected, self.running[-1].text[-6000:]
        assert self.value("SELECT count(*) FROM evaluations WHERE commit_hash = $1", commit) == 1
        assert self.rows(ENDS_TWICE) == []
        assert self.rows(DOUBLED) == []
        self.until("nothing is left", lambda: self.rows(LEFT) == [], 30)

    def assert_never_at_once(self) -> None:
        """No builder of a step began before an earlier one of the same step was gone."""
        lines = Counter(self.marked())
        again = {line: count for line, count in lines.items() if count > 1}
        assert again == {}

    def close(self) -> None:
        for each in self.running:
            if each.process.poll() is None:
                each.process.send_signal(signal.SIGCONT)
                each.stop()
        if self._session is not None:
            with contextlib.suppress(OSError, asyncpg.InterfaceError):
                self.background.call(self._session.close())
        if self.postgres is not None:
            self.background.call(self.postgres.stop())
        self.background.call(self.git.stop())
        self.background.close()
        # A killed `fc up` could not remove it.
        shutil.rmtree(EmbeddedPostgres(self.state).socket_dir, ignore_errors=True)


ENDS_TWICE = """
    SELECT s.id, s.status, count(*) FILTER (WHERE a.status = s.status)
    FROM steps s LEFT JOIN attempts a ON a.step_id = s.id
    WHERE s.status = 'succeeded'
    GROUP BY s.id HAVING count(*) FILTER (WHERE a.status = 'succeeded') <> 1
    UNION ALL
    SELECT a.step_id, a.status, a.attempt FROM attempts a
    WHERE a.ended_at IS NULL AND NOT EXISTS (SELECT FROM leases l WHERE l.step_id = a.step_id)
"""
"""Steps that succeeded other than once, and attempts that nobody ended."""
DOUBLED = """
    SELECT 'build' AS what FROM builds GROUP BY evaluation_id, job_name HAVING count(*) > 1
    UNION ALL
    SELECT 'step' FROM build_steps GROUP BY build_id, step_id, attempt HAVING count(*) > 1
    UNION ALL
    SELECT 'number' FROM build_steps GROUP BY build_id, step_number HAVING count(*) > 1
    UNION ALL
    SELECT 'success' FROM build_steps WHERE status = 'succeeded'
    GROUP BY build_id, step_id HAVING count(*) > 1
    UNION ALL
    SELECT 'product' FROM build_products GROUP BY build_id, name, path HAVING count(*) > 1
    UNION ALL
    SELECT 'metric' FROM build_metrics GROUP BY build_id, metric_name HAVING count(*) > 1
"""
LEFT = """
    SELECT 'lease' AS what, step_id::text FROM leases
    UNION ALL SELECT 'task', id::text FROM tasks WHERE state = 'live'
    UNION ALL SELECT 'ready', step_id::text FROM ready_steps
    UNION ALL SELECT 'step', id::text FROM steps WHERE status IN ('pending', 'running')
    UNION ALL SELECT 'log', step_id::text FROM log_chunks
"""

EXPECTED = {name: status for name, (_, _, status) in JOBS.items()}


@pytest.fixture
def site(home, environment, fc, start, request):
    """A site of this test alone, on the session's Nix store."""
    folder = home / f"bad-{uuid.uuid4().hex[:8]}"
    made = Site(folder, home, environment, fc, start)
    yield made
    made.close()


def kill(started) -> None:
    """As a power cut, or the kernel when memory is short, would."""
    started.process.kill()
    started.process.wait()


# Kill -9 of everything of ours -----------------------------------------------------------------

MOMENTS = {
    "evaluation running": "SELECT 1 FROM evaluations WHERE commit_hash = $1 AND status = 'running'",
    "ingest under way": """SELECT 1 FROM evaluations v JOIN builds b ON b.evaluation_id = v.id
        WHERE v.commit_hash = $1 AND v.status = 'running'""",
    "step claimed": "SELECT 1 FROM leases l JOIN attempts a USING (step_id, attempt) WHERE {new}",
    "log written": "SELECT 1 FROM log_chunks a WHERE {new}",
    "step ended": "SELECT 1 FROM attempts a WHERE a.status = 'succeeded' AND {new}",
    "failure known": "SELECT 1 FROM attempts a WHERE a.status = 'failed' AND {new}",
    "half done": """SELECT 1 FROM attempts a WHERE a.status = 'succeeded' AND {new}
        HAVING count(*) >= 3""",
    "products written": """SELECT 1 FROM build_products p JOIN builds b ON b.id = p.build_id
        JOIN evaluations v ON v.id = b.evaluation_id WHERE v.commit_hash = $1""",
    "log archived": "SELECT 1 FROM attempts a WHERE a.log_key IS NOT NULL AND {new}",
}
NEW = """a.step_id IN (SELECT b.step_id FROM builds b JOIN evaluations v ON v.id = b.evaluation_id
    WHERE v.commit_hash = $1)"""


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost_and_nothing_counts_twice(site):
    """Q04: kill -9 of `fc up`, PostgreSQL and Nix with it, then a start; in random order."""
    moments = list(MOMENTS.items())
    random.Random(20_260).shuffle(moments)
    up = site.up()
    for name, sql in moments:
        commit = site.commit("killed", JOBS, LATE.format(n=27))
        site.until_row(sql.replace("{new}", NEW), commit)
        kill(up)
        up = site.up()
        site.assert_ended_well(commit, EXPECTED | {"z": "succeeded"})
        build = {row["job_name"]: row["number"] for row in site.get("builds", "--limit", "7")}
        assert [p["name"] for p in site.api(f"/builds/{build['measured']}/products")["items"]], name
        assert site.api(f"/builds/{build['measured']}/metrics")["items"][0]["value"] == 7
        log = site.fc("logs", "bad/main/a").out.splitlines()
        assert log == ["line 1", "line 2", "line 3"][: len(log)], name
        whole = """SELECT 1 FROM builds b JOIN attempts a USING (step_id)
            WHERE b.number = $1 AND a.reason = 'Built'"""
        # What a builder said in the last moment before the kill may not have reached us.
        assert len(log) == 3 or not site.rows(whole, build["a"]), name


@pytest.mark.slow
def test_killed_again_while_it_recovers(site):
    """A start that is killed itself, at three points of its way, loses nothing either."""
    up = site.up()
    commit = site.commit("again", JOBS)
    site.until_row(MOMENTS["step claimed"].replace("{new}", NEW), commit)
    kill(up)
    for pattern in (r"store\.|app\.|postgres|$", r"FC Operator is up"):
        up = site.up(wait=False, **{"log.level": "debug"})
        up.wait_for(pattern, START_S)
        kill(up)
    site.up()
    site.assert_ended_well(commit, EXPECTED)


# Nix and builders killed -----------------------------------------------------------------------


def processes_with(word: str, name: str) -> list[int]:
    """Processes called ``name`` with ``word`` among their arguments or environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if (entry / "comm").read_text().strip() == name and word.encode() in words:
                found.append(int(entry.name))
    return found


def gated(site, name="held"):
    """A job that says when it runs, and ends when the test opens the gate."""
    script = f"until [ -e {site.gate} ]; do sleep 0.05; done; echo through; echo {name} > $out"
    return {name: ([], script, "succeeded")}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["nix-store", "sh"])
def test_nix_or_the_builder_of_a_build_is_killed(site, victim):
    """Nix: tried again. The builder: Nix says that it was killed, and so do we."""
    up = site.up()
    commit = site.commit("victim", gated(site))
    site.until("the builder runs", lambda: "held begin" in site.marked())
    word = site.salt if victim == "nix-store" else str(site.gate)
    for pid in site.until(victim, lambda: processes_with(word, victim)):
        os.kill(pid, signal.SIGKILL)
    if victim == "nix-store":
        site.until("it runs again", lambda: site.marked().count("held begin") == 2)
        site.gate.touch()
        site.assert_ended_well(commit, {"held": "succeeded"})
        tries = site.rows("SELECT status, reason FROM attempts ORDER BY attempt")
        assert [row["status"] for row in tries] == ["aborted", "succeeded"]
    else:
        site.assert_ended_well(commit, {"held": "failed"})
        build = site.get("builds", site.get("builds")[0]["number"])
        assert "signal 9" in build["error_message"]
    assert not processes_with(str(site.gate), "sh")
    assert up.stop() == 0


# PostgreSQL -------------------------------------------------------------------------------------


def postmaster(state: Path) -> int:
    return int((EmbeddedPostgres(state).data_dir / "postmaster.pid").read_text().splitlines()[0])


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL])
def test_the_embedded_postgres_is_killed_under_load(site, how):
    """Q06: while an evaluation streams and builds run; it comes back by itself, and so do we."""
    up = site.up()
    commit = site.commit("load", JOBS, LATE.format(n=29))
    site.until_row(MOMENTS["ingest under way"], commit)
    site.until_row("SELECT 1 FROM leases")
    os.kill(postmaster(site.state), how)
    site.until("it is not ready", lambda: site.status("/ready") == 503, 10)
    site.until("it is ready", lambda: site.status("/ready") == 200, 30)
    site.assert_ended_well(commit, EXPECTED | {"z": "succeeded"})
    assert "store.postgres_ended" in up.text
    assert up.stop() == 0


@pytest.mark.slow
def test_an_external_postgres_stops_for_a_while_under_load(site):
    """Longer than leases live: what ran is given up in time, and taken up again."""
    site.use_own_postgres()
    up = site.up()
    commit = site.commit("away", JOBS | gated(site), LATE.format(n=29))
    site.until_row(MOMENTS["ingest under way"], commit)
    site.until("the builder runs", lambda: "held begin" in site.marked())
    site.background.call(site.postgres.stop())
    site.until("it is not ready", lambda: site.status("/ready") == 503, 10)
    up.wait_for(r"scheduler\.lease_lost", 20)
    site.gate.touch()
    site.background.call(site.postgres.start())
    site.until("it is ready", lambda: site.status("/ready") == 200, 30)
    site.assert_ended_well(commit, EXPECTED | {"held": "succeeded", "z": "succeeded"})
    assert up.stop() == 0


# Two schedulers ---------------------------------------------------------------------------------


@pytest.fixture
def shared(site):
    """A site whose database several processes share; the web service runs already."""
    site.use_own_postgres()
    assert site.fc(*site.words("migrate")).code == 0
    web = site.begin("server", state=site.folder / "web", **{"web.port": "0"})
    site.url = web.wait_for(r"serving (\S+)", START_S)[1]
    return site


def scheduler(site, name):
    return site.begin("scheduler", state=site.folder / name, **{"config.source": str(site.config)})


@pytest.mark.slow
def test_two_schedulers_share_the_work_and_build_nothing_twice(shared):
    """Q01: real processes; each builder says that it ran."""
    schedulers = [scheduler(shared, name) for name in ("one", "two")]
    jobs = JOBS | {f"w{n}": ([], "sleep 0.1; echo w > $out", "succeeded") for n in range(24)}
    commit = shared.commit("two", jobs)
    expected = {name: status for name, (_, _, status) in jobs.items()}
    shared.assert_ended_well(commit, expected)
    shared.assert_never_at_once()
    assert shared.value("SELECT count(DISTINCT owner) FROM attempts") == 2
    assert shared.value("SELECT max(attempt) FROM attempts") == 1
    for each in schedulers:
        assert each.stop() == 0


@pytest.mark.slow
def test_a_scheduler_stopped_past_its_lease_is_replaced_and_its_late_result_refused(shared):
    """Q02: SIGSTOP, another takes over, SIGCONT; one outcome."""
    first = scheduler(shared, "one")
    commit = shared.commit("zombie", JOBS | gated(shared))
    shared.until("the builder runs", lambda: "held begin" in shared.marked())
    first.process.send_signal(signal.SIGSTOP)
    second = scheduler(shared, "two")
    held = """SELECT 1 FROM attempts a JOIN steps s ON s.id = a.step_id
        JOIN builds b ON b.step_id = s.id
        WHERE b.job_name = 'held' AND a.attempt = 2 AND a.ended_at IS NULL"""
    shared.until_row(held, within_s=30)
    shared.gate.touch()
    shared.assert_ended_well(commit, EXPECTED | {"held": "succeeded"})
    tries = "SELECT step_id, attempt, status, owner, ended_at FROM attempts ORDER BY 1, 2"
    before = shared.rows(tries)
    first.process.send_signal(signal.SIGCONT)
    first.wait_for(r"late_result_refused|lease_lost", 20)
    # It is of use again, and what it believed has changed nothing.
    again = shared.commit("again", JOBS)
    shared.assert_ended_well(again, EXPECTED)
    assert shared.rows(tries)[: len(before)] == before
    assert first.stop() == 0
    assert second.stop() == 0


@pytest.mark.slow
def test_an_evaluator_stopped_past_its_lease_writes_nothing_late(shared):
    """Q02 for evaluations: what the stopped one had streamed is taken up, not doubled."""
    first = scheduler(shared, "one")
    commit = shared.commit("slowly", JOBS, LATE.format(n=31))
    shared.until_row(MOMENTS["ingest under way"], commit)
    first.process.send_signal(signal.SIGSTOP)
    second = scheduler(shared, "two")
    again = """SELECT 1 FROM evaluations v JOIN tasks t ON t.id = v.task_id
        WHERE v.commit_hash = $1 AND v.attempt = 2 AND v.status = 'running' AND t.state = 'live'"""
    shared.until_row(again, commit, within_s=30)
    first.process.send_signal(signal.SIGCONT)
    shared.assert_ended_well(commit, EXPECTED | {"z": "succeeded"})
    first.wait_for(r"evaluation_lost|evaluation_lease_lost|evaluation_left", 20)
    assert shared.value("SELECT attempt FROM evaluations WHERE commit_hash = $1", commit) == 2
    assert first.stop() == 0
    assert second.stop() == 0


# Git --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_git_host_is_gone_for_a_while(site):
    """Of a jobset: its last state stays, with the reason; work goes on by itself."""
    site.up()
    job = {"a": JOBS["a"]}
    commit = site.commit("before", job)
    site.assert_ended_well(commit, {"a": "succeeded"})
    site.background.call(site.git.stop())
    jobset = site.until(
        "the jobset says why",
        lambda: next((row for row in site.get("jobsets") if row["last_error"]), None), 30,
    )  # fmt: skip
    assert "127.0.0.1" in jobset["last_error"]
    assert jobset["latest_evaluation"]["commit_hash"] == commit
    assert site.fc("get", "jobsets").out.count("127.0.0.1") >= 1
    commit = site.commit("after", job)
    site.background.call(site.git.start())
    site.assert_ended_well(commit, {"a": "succeeded"})
    site.until("it is forgotten", lambda: not site.get("jobsets")[0]["last_error"], 10)


@pytest.mark.slow
def test_the_git_host_of_the_manifests_is_gone_for_a_while(site):
    """Of a config repository: what it declared last stays in force, with a condition."""

    def manifests(interval):
        text = MANIFESTS.format(url=site.git.url).replace("1s", interval)
        work = demo.commit(site.repositories / "config.git", {"bad.yaml": text.encode()})
        return site.background.call(work)

    manifests("1s")
    site.config = f"{site.git.url}/config.git"
    site.up(**{"config.interval_s": "1"})
    site.until("it is live", lambda: site.get("jobsets"))
    site.background.call(site.git.stop())

    def broken():
        conditions = site.get("sources")[0]["conditions"]
        return [each for each in conditions if "127.0.0.1" in each["message"]]

    site.until("the source says why", broken, 30)
    assert site.get("jobsets")[0]["state"]
    commit = manifests("2s")
    site.background.call(site.git.start())
    site.until("it is mended", lambda: not broken(), 60)
    site.until_row("SELECT 1 FROM jobsets WHERE check_interval = 2")
    assert commit[:7] in json.dumps(site.get("sources"))


# Nix --------------------------------------------------------------------------------------------


@pytest.fixture
def farm(site):
    """A PATH of our own, from which Nix can be taken and to which it can be given back."""
    folder = site.folder / "bin"
    folder.mkdir()
    seen = set()
    for path in os.environ["PATH"].split(":"):
        for program in sorted(Path(path).iterdir()) if Path(path).is_dir() else ():
            if program.name not in seen and not program.name.startswith("fc"):
                seen.add(program.name)
                (folder / program.name).symlink_to(program)
    aside = site.folder / "aside"
    aside.mkdir()
    site.variables = {"PATH": str(folder)}

    def move(one, other):
        for program in sorted(one.glob("nix*")):
            program.rename(other / program.name)

    class Farm:
        def take(self):
            move(folder, aside)

        def give(self):
            move(aside, folder)

    return Farm()


@pytest.mark.slow
def test_nix_is_missing_at_the_start_and_installed_later(site, farm):
    farm.take()
    commit = site.commit("no-nix", JOBS)
    site.up()
    jobset = site.until(
        "the jobset says why",
        lambda: next((row for row in site.get("jobsets") if row["last_error"]), None),
        30,
    )
    assert "nix-instantiate is not on PATH" in jobset["last_error"]
    assert "Nix can't be run" in site.get("builders")[0]["last_error"]
    doctor = site.fc("doctor", "-o", "json", "--state", site.state, **site.variables)
    assert doctor.code == 1
    found = {each["name"]: each for each in doctor.data}
    assert found["Nix"]["state"] == "missing"
    farm.give()
    site.assert_ended_well(commit, EXPECTED)


@pytest.mark.slow
def test_nix_vanishes_while_it_builds_and_comes_back(site, farm):
    """What waits says that nothing can be built now, and why; it is not charged to builds."""
    site.up()
    commit = site.commit("vanishes", gated(site) | {
        "next": (["held"], "echo next > $out", "succeeded"),
        **{f"w{n}": (["next"], "echo w > $out", "succeeded") for n in range(4)},
    })  # fmt: skip
    site.until("the builder runs", lambda: "held begin" in site.marked())
    farm.take()
    site.gate.touch()
    build = blocked_build(site, "held")
    assert "nix" in build.lower(), build
    farm.give()
    site.assert_ended_well(
        commit, dict.fromkeys(("held", "next", "w0", "w1", "w2", "w3"), "succeeded")
    )


@pytest.mark.slow
def test_nix_conf_breaks_while_it_runs_and_is_mended(site, tmp_path):
    conf = site.folder / "conf"
    conf.mkdir()
    shutil.copy(site.home / "conf" / "nix.conf", conf / "nix.conf")
    site.variables = {"NIX_CONF_DIR": str(conf)}
    good = (conf / "nix.conf").read_text()
    site.up()
    commit = site.commit("conf", gated(site) | {"next": (["held"], "echo 1 > $out", "succeeded")})
    site.until("the builder runs", lambda: "held begin" in site.marked())
    (conf / "nix.conf").write_text("this is no configuration\n")
    site.gate.touch()
    assert "configuration" in blocked_build(site, "held")
    later = site.commit("later", {"a": JOBS["a"]})
    why = "SELECT status, error_message FROM evaluations WHERE error_message <> ''"
    evaluation = site.until_row(why, within_s=30)[0]
    assert evaluation["status"] == "pending"
    assert "configuration" in evaluation["error_message"]
    shown = site.get("evaluations", site.get("evaluations")[0]["number"])
    assert shown["error_message"] == evaluation["error_message"]
    doctor = site.fc("doctor", "-o", "json", "--state", site.state, **site.variables)
    assert doctor.code == 1
    assert {each["name"]: each["cure"] for each in doctor.data}["Nix"] == "mend nix.conf"
    (conf / "nix.conf").write_text(good)
    site.assert_ended_well(commit, {"held": "succeeded", "next": "succeeded"})
    site.assert_ended_well(later, {"a": "succeeded"})


def blocked_build(site, name) -> str:
    """What a waiting build answers to "why", once it is blocked by the builder."""

    def ask():
        for row in site.get("queue"):
            if row["job_name"] == name:
                why = site.api(f"/builds/{row['number']}/why")
                if why["code"] == "BuilderUnusable":
                    return why["message"]
        return None

    return site.until(f"{name} says why it waits", ask, 30)


# Disk full --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(site):
    """A disk of 192 MiB; ``fill`` takes all that is free, ``free`` gives it back."""
    if os.geteuid() != 0:
        pytest.skip("a small disk is a tmpfs, and only root may mount one")
    where = site.folder / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=192m,mode=755", "tmpfs", where],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"a tmpfs can't be mounted here: {mounted.stderr.strip()}")
    yield Disk(where)
    for each in site.running:
        if each.process.poll() is None:
            each.stop()
    subprocess.run(["umount", "--lazy", where], check=True)


class Disk:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        with self._ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink()


@pytest.mark.slow
def test_the_disk_of_finished_logs_is_full(site, small_disk):
    """Q17: builds go on; their logs stay in the database, can be read, and move later."""
    objects = small_disk.path / "objects"
    site.up(**{"state.objects_url": str(objects)})
    small_disk.fill()
    # Random words don't compress: the log must not fit into a page that is left.
    script = "head -c 300000 /dev/urandom | base64; echo done > $out"
    commit = site.commit("logs", {"loud": ([], script, "succeeded")})
    number = site.until_ended(commit)
    assert site.outcomes(number) == {"loud": "succeeded"}
    site.running[-1].wait_for(r"chore_failed.*logs|logs.*chore_failed", 20)
    before = site.fc("logs", "bad/main/loud").out
    assert len(before) > 400_000
    assert site.value("SELECT count(*) FROM attempts WHERE log_key IS NOT NULL") == 0
    small_disk.free()
    site.assert_ended_well(commit, {"loud": "succeeded"})
    assert site.fc("logs", "bad/main/loud").out == before
    assert [path.suffix for path in objects.rglob("*") if path.is_file()] == [".zst"]


@pytest.mark.slow
def test_the_disk_of_the_state_directory_is_full(site, small_disk):
    """Q17: the database's disk too; nothing succeeds falsely, and all goes on when there is room."""
    site.state = small_disk.path / "state"
    site.use_own_postgres()
    site.up()
    first = site.commit("first", {"a": JOBS["a"]})
    site.assert_ended_well(first, {"a": "succeeded"})
    small_disk.fill()
    commit = site.commit("full", JOBS)
    site.until_row(
        "SELECT 1 FROM evaluations WHERE status = 'failed' AND error_kind = 'fetch'"
        " UNION ALL SELECT 1 FROM jobsets WHERE last_error <> ''"
        " UNION ALL SELECT 1 FROM steps WHERE infra_failures > 0",
        within_s=30,
    )
    assert {row["status"] for row in site.get("builds") if row["evaluation"] != 1} <= {"pending"}
    said = json.dumps([site.get("jobsets"), site.get("evaluations", 2)])
    assert "No space left" in said, said
    small_disk.free()
    site.until_row(
        "SELECT 1 FROM evaluations WHERE commit_hash = $1 AND status = 'completed'", commit
    )
    assert site.outcomes(site.until_ended(commit)) == EXPECTED


@pytest.mark.slow
def test_the_disk_of_everything_is_full_the_database_too(site, small_disk):
    """What `fc up` alone has: PostgreSQL can't write either; all comes back when there is room."""
    site.state = small_disk.path / "state"
    up = site.up()
    first = site.commit("first", {"a": JOBS["a"]})
    site.assert_ended_well(first, {"a": "succeeded"})
    small_disk.fill()
    commit = site.commit("full", JOBS)
    up.wait_for(r"No space left on device", 60)
    succeeded = site.rows("SELECT count(*) FROM builds WHERE status = 'succeeded'")
    assert succeeded is None or succeeded[0][0] == 1
    small_disk.free()
    site.until("it is ready", lambda: site.status("/ready") == 200, 60)
    site.until_row(
        "SELECT 1 FROM evaluations WHERE commit_hash = $1 AND status = 'completed'", commit
    )
    assert site.outcomes(site.until_ended(commit)) == EXPECTED
    assert site.rows(ENDS_TWICE) == site.rows(DOUBLED) == []
    assert up.stop() == 0


def on_small_disk(site, small_disk) -> None:
    """A Nix store of the site's own, with the machine's build users."""
    store = small_disk.path / "nix"
    (store / "var").mkdir(parents=True)
    if Path("/nix/var/nix/userpool").is_dir():
        (store / "var" / "userpool").symlink_to("/nix/var/nix/userpool")
    site.variables = {
        "NIX_STORE_DIR": str(store / "store"),
        "NIX_STATE_DIR": str(store / "var"),
        "NIX_LOG_DIR": str(store / "log"),
    }
    site.settings["nix.store_dir"] = str(store / "store")


@pytest.mark.slow
def test_the_disk_of_nix_is_full(site, small_disk):
    """The builder's disk: an infrastructure failure with backoff, never a fault of the build."""
    on_small_disk(site, small_disk)
    site.up(**{"builds.max_retries": "20"})
    write = "head -c 3000000 /dev/zero > $out"
    commit = site.commit("store", gated(site) | {"next": (["held"], write, "succeeded")})
    site.until("the builder runs", lambda: "held begin" in site.marked())
    small_disk.fill()
    site.gate.touch()
    site.until_row(
        "SELECT 1 FROM attempts WHERE status = 'aborted' AND reason = 'DiskFull'", within_s=60
    )
    assert site.value("SELECT count(*) FROM builds WHERE status = 'failed'") == 0
    small_disk.free()
    site.assert_ended_well(commit, {"held": "succeeded", "next": "succeeded"})


@pytest.mark.slow
def test_the_disk_of_nix_is_full_when_an_evaluation_begins(site, small_disk):
    """The source is not blamed for it, attribute by attribute; it is evaluated again."""
    on_small_disk(site, small_disk)
    site.up()
    site.assert_ended_well(site.commit("first", {"a": JOBS["a"]}), {"a": "succeeded"})
    small_disk.fill()
    commit = site.commit("full", JOBS)
    failed = site.until_row(
        "SELECT number, error_kind FROM evaluations WHERE commit_hash = $1 AND status = 'failed'",
        commit,
    )[0]
    shown = site.get("evaluations", failed["number"])
    assert failed["error_kind"] in {"internal", "fetch"}, shown
    assert re.search("No space left|is full|disk I/O error", shown["error_message"]), shown
    assert shown["job_errors"] == []
    small_disk.free()
    key = site.fc("key", "create", "me", "--role", "admin", "--state", site.state).out.strip()
    # It is tried again by itself, up to a minute later; a person need not wait so long.
    assert site.fc("evaluate", "bad/main", FC_API_KEY=key).code == 0
    site.until_row(
        "SELECT 1 FROM evaluations WHERE commit_hash = $1 AND status = 'completed'", commit
    )
    assert site.outcomes(site.until_ended(commit)) == EXPECTED


# Stops and starts -------------------------------------------------------------------------------


@pytest.mark.slow
def test_ctrl_c_stops_within_five_seconds_and_the_next_start_goes_on(site):
    up = site.up()
    commit = site.commit("stopped", JOBS | gated(site), LATE.format(n=29))
    site.until_row(MOMENTS["ingest under way"], commit)
    site.until("the builder runs", lambda: "held begin" in site.marked())
    began_s = time.monotonic()
    assert up.stop() == 0
    took_s = time.monotonic() - began_s
    assert took_s <= 5, f"{took_s:.1f} s\n{up.text[-4000:]}"
    assert not processes_with(str(site.gate), "sh")
    assert not processes_with(site.salt, "nix-store")
    assert "Traceback" not in up.text
    site.gate.touch()
    again = site.up()
    site.assert_ended_well(commit, EXPECTED | {"held": "succeeded", "z": "succeeded"})
    # What was given back, in the middle of a build or of its claim, is charged to nobody.
    charged = "SELECT count(*) FROM steps WHERE free_losses > 0 OR infra_failures > 0"
    assert site.value(charged) == 0
    assert again.stop() == 0


def test_a_second_up_on_the_same_state_is_refused(site):
    up = site.up()
    refused = site.fc(*site.words("up", "--port", "0"))
    assert refused.code == 1
    assert f"another FC Operator (process {up.process.pid}) runs on {site.state}" in refused.err
    assert site.status("/ready") == 200
    assert up.stop() == 0
