"""The agent protocol over real HTTP and a real PostgreSQL: who is heard, what is written, what is
refused. Messages are raw, so that wrong ones can be sent.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from fc_operator.access import tasks as tokens
from fc_operator.kit import compression
from fc_operator.kit.ciphers import Cipher
from fc_operator.model import work
from fc_operator.model.ids import Owner
from fc_operator.model.outcomes import Harvest, Metric, Outcome, OutputInfo, Product, Retry
from fc_operator.model.statuses import BuildStatus, EvaluationStatus
from fc_operator.model.tasks import PhaseChanged, StepEnded, StepStarted
from fc_operator.operations import builds, steps, tasks
from fc_operator.queue import claims
from fc_operator.queue.offers import Offer
from fc_operator.settings import BuildSettings, NixSettings, QueueSettings

_PATH = Path(__file__).parents[1] / "operations" / "conftest.py"
if "engine_conftest" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("engine_conftest", _PATH)
    sys.modules["engine_conftest"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["engine_conftest"])
_engine = sys.modules["engine_conftest"]
engine = _engine.engine

CIPHER = Cipher(b"k" * 32)
NIX = tasks.nix_work(NixSettings(), cache_url="http://fc/cache", cache_public_keys=["fc:k"])
ZSTD = {"Content-Encoding": "zstd"}
HASH = "sha256:" + "0" * 52


def out_of(name: str) -> str:
    return str(_engine.fake_drv(name)).removesuffix(".drv")


def lines(*values) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


@dataclass
class AgentOf:
    """One phase of a task as it speaks; also to another server of the same database."""

    protocol: Protocol
    task_id: object
    token: tokens.TaskToken

    async def ask(self, name, body=None, *, status=200, served=None, headers=None, **query):
        """The JSON of an answer, whose status must be ``status``."""
        served = served or self.protocol.served
        method = "GET" if name == "credentials" else "POST"
        data = body if isinstance(body, bytes | type(None)) else json.dumps(body).encode()
        if data is not None and len(data) > 2**20:
            data = io.BytesIO(data)
        async with served.session.request(
            method,
            f"{served.url}/api/v1/tasks/{self.task_id}/{name}",
            data=data,
            params=query,
            headers={"Authorization": f"Bearer {self.token.text}", **(headers or {})},
        ) as answer:
            text = await answer.text()
            assert answer.status == status, (name, answer.status, text)
            self.protocol.retry_after = answer.headers.get("Retry-After")
            return json.loads(text)

    async def tell(self, first, *events, **more):
        numbered = [
            work.NumberedEvent(seq=first + n, event=event).to_json()
            for n, event in enumerate(events)
        ]
        body = compression.compress_frame(lines(*numbered))
        return await self.ask("events", body, headers=ZSTD, **more)

    async def rows(self, seq, *values, **more):
        body = compression.compress_frame(lines(*values))
        return await self.ask("rows", body, seq=seq, headers=ZSTD, **more)

    async def log(self, step, offset, data, **more):
        return await self.ask(
            "log", data, step=step.id, attempt=step.attempt, offset=offset, **more
        )


class Protocol:
    """Tasks with work, and who has opened them."""

    def __init__(self, engine, served):
        self.engine, self.served = engine, served
        self.retry_after = None

    def opening(self, task_id) -> AgentOf:
        """Who has the token of the pod's definition."""
        return AgentOf(self, task_id, tasks.opening_token(CIPHER, task_id))

    async def open(self, task_id, phase="work", **more) -> AgentOf:
        token = tokens.make(task_id)
        await self.opening(task_id).ask("open", {"phase": phase, "token_hash": token.hash}, **more)
        return AgentOf(self, task_id, token)

    async def claim(self, *names) -> dict:
        """A claimed batch of steps with its work, by name; of one task."""
        jobset_id = await self.engine.jobset(f"j-{uuid4().hex[:8]}")
        rows = [self.engine.told(name) for name in names]
        await self.engine.evaluate(jobset_id, rows)
        return await self.claim_again()

    async def claim_again(self, lease_s=30.0) -> dict:
        steps = await claims.claim(
            self.engine.database,
            Offer(systems=("x86_64-linux",)),
            8,
            owner=Owner("pod/test"),
            executor="pod",
            settings=QueueSettings(lease_s=lease_s),
        )
        task_id = steps[0].task_id
        work_ = tasks.steps_work(task_id, steps, builds=BuildSettings(), nix=NIX)
        await self.engine.sql("UPDATE tasks SET work = $2 WHERE id = $1", task_id, work_.to_json())
        return {step.name: step for step in steps}

    async def batch(self, *names) -> tuple[AgentOf, dict]:
        """A claimed batch whose agent has begun."""
        steps = await self.claim(*names)
        return await self.open(next(iter(steps.values())).task_id), steps

    async def evaluation(self, credentials=None):
        """A claimed evaluation with its work; its fence."""
        fence = await self.engine.evaluation(await self.engine.jobset(f"j-{uuid4().hex[:8]}"))
        work_ = work.EvaluationWork(
            task_id=fence.task_id,
            evaluation_id=fence.evaluation_id,
            repository_url="https://git.example.org/a.git",
            commit="a" * 40,
            expression="release.nix",
            is_flake=False,
        )
        sealed = credentials and tasks.seal_credentials(CIPHER, fence.task_id, credentials)
        await self.engine.sql(
            "UPDATE tasks SET work = $2, credentials_ciphertext = $3 WHERE id = $1",
            fence.task_id,
            work_.to_json(),
            sealed,
        )
        return fence

    async def evaluating(self) -> AgentOf:
        """The agent of an evaluation whose source is there."""
        fence = await self.evaluation()
        fetch = await self.open(fence.task_id, "fetch")
        await fetch.ask("fetched", {"checkout": {}})
        return await self.open(fence.task_id)

    async def cached(self, *names):
        """Outputs that were uploaded and verified."""
        for name in names:
            await self.engine.sql(
                "INSERT INTO cache_paths (hash_part, store_path, nar_hash, nar_size, file_hash,"
                " file_size, object_key, uploaded_by) VALUES ($1, $2, $3, 7, $3, 5, 'k', 'test')",
                out_of(name)[11:43],
                out_of(name),
                HASH,
            )

    async def task(self, task_id):
        (row,) = await self.engine.sql("SELECT * FROM tasks WHERE id = $1", task_id)
        return row

    async def step(self, name):
        return (await self.engine.steps())[name]

    async def attempts(self):
        return await self.engine.sql("SELECT * FROM attempts ORDER BY step_id, attempt")

    async def log_of(self, step):
        chunks = await self.engine.sql(
            "SELECT start_offset, data FROM log_chunks WHERE step_id = $1 AND attempt = $2"
            " ORDER BY start_offset",
            step.id,
            step.attempt,
        )
        text = b""
        for chunk in chunks:
            assert chunk["start_offset"] == len(text)
            text += chunk["data"]
        return text


@pytest.fixture
def protocol(engine, web):
    return Protocol(engine, web)


def started(step):
    return StepStarted(step_id=step.id, attempt=step.attempt)


def ended(step, status=BuildStatus.SUCCEEDED, *, outputs=None, **more):
    if outputs is None:
        outputs = {"out": out_of(step.name)} if status is BuildStatus.SUCCEEDED else {}
    told = tuple(
        OutputInfo(name=name, path=path, nar_hash="sha256:told", nar_size_bytes=1)
        for name, path in outputs.items()
    )
    harvest = Harvest(outputs=told, **more.pop("harvest", {}))
    outcome = Outcome(status=status, reason=more.pop("reason", "Test"), harvest=harvest, **more)
    return StepEnded(
        step_id=step.id, attempt=step.attempt, outcome=outcome, log_bytes=99, log_lines=1
    )


ALL = ("credentials", "fetched", "heartbeat", "events", "rows", "log", "end")


# Tokens -------------------------------------------------------------------------------------------


async def test_only_the_token_of_a_phase_of_this_task_is_heard(protocol):
    agent, steps_ = await protocol.batch("a")
    other, _ = await protocol.batch("b")
    key = await protocol.served.key()
    wrong = {
        "another task's": other.token.text,
        "the opening one": protocol.opening(agent.task_id).token.text,
        "made up": tokens.make(agent.task_id).text,
        "changed": agent.token.text[:-1] + ("A" if agent.token.text[-1] != "A" else "Q"),
        "an administrator's key": key,
        "nothing": "",
    }
    before = await protocol.attempts()
    for name in ALL:
        for text in wrong.values():
            path = f"{protocol.served.url}/api/v1/tasks/{agent.task_id}/{name}"
            method = "GET" if name == "credentials" else "POST"
            async with protocol.served.session.request(
                method, path, data=None if method == "GET" else b"{}",
                headers={"Authorization": f"Bearer {text}"},
            ) as answer:  # fmt: skip
                assert answer.status == 401, (name, text)
                assert text == "" or text not in await answer.text()
    assert await protocol.attempts() == before
    await agent.ask("heartbeat", {})
    assert (await protocol.step("a"))["attempt"] == steps_["a"].attempt


async def test_a_phase_is_opened_once_and_by_the_same_again(protocol):
    (step,) = (await protocol.claim("a")).values()
    opening, token = protocol.opening(step.task_id), tokens.make(step.task_id)
    body = {
        "phase": "work",
        "token_hash": token.hash,
        "host": "pod-1\0",
        "versions": {"nix": "2.26", "fc": "1"},
    }
    opened = work.Opened.from_json(await opening.ask("open", body))
    assert [order.step_id for order in opened.work.orders] == [step.id]
    assert (opened.lease_s, opened.heartbeat_s) == (60, 10)
    assert work.Opened.from_json(await opening.ask("open", body)) == opened
    # Who reads the pod's definition later opens nothing.
    body["token_hash"] = tokens.make(step.task_id).hash
    await opening.ask("open", body, status=409)
    row = await protocol.task(step.task_id)
    assert row["agent"] == {"host": "pod-1", "nix": "2.26", "evaluator": "", "fc": "1"}
    assert row["begun_at"]
    assert bytes(row["work_token_hash"]).hex() == token.hash
    whole = await protocol.engine.one("SELECT t::text FROM tasks t WHERE id = $1", step.task_id)
    for secret in (token, protocol.opening(step.task_id).token):
        assert secret.text not in whole
        assert secret.secret.hex() not in whole


async def test_of_two_who_open_at_once_one_wins(protocol):
    (step,) = (await protocol.claim("a")).values()

    async def begin():
        token = tokens.make(step.task_id)
        path = f"{protocol.served.url}/api/v1/tasks/{step.task_id}/open"
        async with protocol.served.session.post(
            path,
            json={"phase": "work", "token_hash": token.hash},
            headers={"Authorization": f"Bearer {protocol.opening(step.task_id).token.text}"},
        ) as answer:
            return answer.status

    assert sorted(await asyncio.gather(*(begin() for _ in range(8)))) == [200] + [409] * 7


async def test_what_can_not_be_opened(protocol):
    (step,) = (await protocol.claim("a")).values()
    opening, good = protocol.opening(step.task_id), tokens.make(step.task_id).hash
    await opening.ask("open", {"phase": "fetch", "token_hash": good}, status=400)
    for body in (
        {"phase": "tea", "token_hash": good},
        {"phase": "work", "token_hash": "short"},
        {"phase": "work", "token_hash": good.upper()},
        {"token_hash": good},
        [],
        b"no json",
        b"",
    ):
        await opening.ask("open", body, status=400)
    stranger = AgentOf(protocol, step.task_id, tokens.make(step.task_id))
    await stranger.ask("open", {"phase": "work", "token_hash": good}, status=401)
    other = AgentOf(protocol, step.task_id, protocol.opening(uuid4()).token)
    await other.ask("open", {"phase": "work", "token_hash": good}, status=401)
    assert (await protocol.task(step.task_id))["work_token_hash"] is None
    # It was a task once: its pod shall go, and not try again.
    gone = protocol.opening(uuid4())
    await gone.ask("open", {"phase": "work", "token_hash": good}, status=410)


@pytest.mark.parametrize("how", ["state = 'lost'", "expires_at = now() - interval '1 s'"])
async def test_a_task_that_is_over_is_gone_for_all(protocol, how):
    agent, _ = await protocol.batch("a")
    await protocol.engine.sql(f"UPDATE tasks SET {how} WHERE id = $1", agent.task_id)
    for name in ALL:
        await agent.ask(name, None if name == "credentials" else b"{}", status=410)
    body = {"phase": "work", "token_hash": agent.token.hash}
    await protocol.opening(agent.task_id).ask("open", body, status=410)


# Fetching -----------------------------------------------------------------------------------------

CREDENTIALS = work.Credentials(
    credentials=(
        work.GitCredential(url="https://git.example.org/a.git", username="ci", password="hunter2"),
    )
)


async def test_credentials_are_for_the_phase_that_fetches_and_only_until_it_has(protocol):
    fence = await protocol.evaluation(CREDENTIALS)
    row = await protocol.task(fence.task_id)
    assert b"hunter2" not in bytes(row["credentials_ciphertext"])
    body = {"phase": "work", "token_hash": tokens.make(fence.task_id).hash}
    await protocol.opening(fence.task_id).ask("open", body, status=409)
    fetch = await protocol.open(fence.task_id, "fetch")
    for _ in range(2):
        told = await fetch.ask("credentials")
        assert work.Credentials.from_json(told) == CREDENTIALS
    report = {"checkout": {"tree": "t", "subject": "first\0", "author": "Ada <a@b>", "ms": 12}}
    await fetch.ask("fetched", report)
    report["checkout"]["subject"] = "second"
    await fetch.ask("fetched", report)
    row = await protocol.task(fence.task_id)
    assert row["credentials_ciphertext"] is None
    assert row["checkout"]["subject"] == "first"
    await fetch.ask("credentials", status=404)
    agent = await protocol.open(fence.task_id)
    await agent.ask("credentials", status=404)
    await agent.ask("fetched", report, status=409)
    # The phase before is over.
    for name in ("credentials", "heartbeat", "fetched"):
        await fetch.ask(name, None if name == "credentials" else report, status=410)


async def test_credentials_of_another_task_open_nowhere_else(protocol):
    one, other = await protocol.evaluation(CREDENTIALS), await protocol.evaluation(CREDENTIALS)
    await protocol.engine.sql(
        "UPDATE tasks SET credentials_ciphertext ="
        " (SELECT credentials_ciphertext FROM tasks WHERE id = $2) WHERE id = $1",
        one.task_id,
        other.task_id,
    )
    fetch = await protocol.open(one.task_id, "fetch")
    await fetch.ask("credentials", status=404)


async def test_an_evaluation_without_credentials_gets_none(protocol):
    fetch = await protocol.open((await protocol.evaluation()).task_id, "fetch")
    assert await fetch.ask("credentials") == {"credentials": []}


async def test_a_fetch_that_fails_is_told_and_nothing_follows(protocol):
    fetch = await protocol.open((await protocol.evaluation()).task_id, "fetch")
    report = work.EvaluationReport(
        status=EvaluationStatus.FAILED, reason="CheckoutFailed", error_kind="fetch", message="no"
    )
    await fetch.ask("rows", compression.compress_frame(b"{}"), seq=0, headers=ZSTD, status=409)
    await fetch.ask("end", report.to_json())
    await fetch.ask("end", report.to_json(), status=410)
    body = {"phase": "work", "token_hash": tokens.make(fetch.task_id).hash}
    await protocol.opening(fetch.task_id).ask("open", body, status=410)
    (row,) = await protocol.engine.sql("SELECT * FROM task_reports")
    assert tasks.read_report(row["payload"]) == report


# Steps --------------------------------------------------------------------------------------------


async def test_a_batch_is_told_from_start_to_end(protocol):
    agent, batch = await protocol.batch("a", "b")
    a, b = batch["a"], batch["b"]
    await protocol.cached("a")
    phase = PhaseChanged(step_id=a.id, attempt=a.attempt, phase="build\0Phase", at_ms=5)
    assert await agent.tell(0, started(a), phase, started(b)) == {"next": 3}
    assert await agent.log(a, 0, b"hello\n") == {"next_offset": 6}
    assert await agent.log(b, 0, b"oh no") == {"next_offset": 5}
    failed = ended(b, BuildStatus.FAILED, message="builder failed", exit_code=1)
    inside = Product(nr=1, type="file", subtype="", name="x", path=f"{out_of('a')}/x")
    outside = [
        Product(nr=2, type="file", subtype="", name="y", path="/etc/shadow"),
        Product(nr=3, type="file", subtype="", name="y", path=f"{out_of('a')}/../other/y"),
        Product(nr=4, type="file", subtype="", name="y", path=f"{out_of('a')}-2/y"),
        Product(nr=5, type="file", subtype="", name="y", path=out_of("a"), default_path="../../x"),
    ]
    harvest = {"products": (inside, *outside), "metrics": (Metric(name="m", value=2.0),)}
    good = ended(a, harvest=harvest)
    assert await agent.tell(3, good, failed) == {"next": 5}
    steps_ = await protocol.engine.steps()
    assert (steps_["a"]["status"], steps_["b"]["status"]) == ("succeeded", "failed")
    rows = {row["step_id"]: row for row in await protocol.attempts()}
    assert rows[a.id]["phases"] == [{"name": "buildPhase", "at_ms": 5}]
    # What is in the log is counted here, not by the agent.
    assert (rows[a.id]["log_bytes"], rows[b.id]["log_bytes"]) == (6, 5)
    assert (rows[b.id]["exit_code"], rows[b.id]["message"]) == (1, "builder failed")
    assert await protocol.log_of(a) == b"hello\n"
    products = await protocol.engine.sql("SELECT path FROM build_products")
    assert [product["path"] for product in products] == [f"{out_of('a')}/x"]
    (output,) = await protocol.engine.sql("SELECT * FROM step_outputs WHERE step_id = $1", a.id)
    assert (output["nar_hash"], output["nar_size"]) == (HASH, 7)
    assert await protocol.engine.invariants() == []
    # All has ended: the agent may go.
    for name in ("heartbeat", "end", "events"):
        await agent.ask(name, {}, status=410)
    await agent.log(a, 6, b"more", status=410)


async def test_events_that_come_again_change_nothing_and_gaps_are_refused(protocol):
    agent, batch = await protocol.batch("a", "b")
    a, b = batch["a"], batch["b"]
    await protocol.cached("a", "b")
    phase = PhaseChanged(step_id=a.id, attempt=a.attempt, phase="build", at_ms=5)
    assert await agent.tell(0, started(a), phase) == {"next": 2}
    first = await protocol.attempts()
    assert await agent.tell(0, started(a), phase) == {"next": 2}
    assert await agent.tell(1, phase, started(b)) == {"next": 3}
    problem = await agent.tell(4, ended(a), status=409)
    assert problem["expected"] == 3
    # A gap inside of one body: nothing of it counts.
    body = lines(
        work.NumberedEvent(seq=3, event=ended(a)).to_json(),
        work.NumberedEvent(seq=5, event=ended(b)).to_json(),
    )
    problem = await agent.ask("events", body, status=409)
    assert problem["expected"] == 4
    assert (await protocol.step("a"))["status"] == "running"
    rows = await protocol.attempts()
    assert rows[0]["started_at"] == first[0]["started_at"]
    assert rows[0]["phases"] == [{"name": "build", "at_ms": 5}]
    assert await agent.tell(3, ended(a)) == {"next": 4}
    assert await agent.tell(3, ended(a), started(b)) == {"next": 5}
    assert await agent.ask("events", b"") == {"next": 5}
    history = await protocol.engine.sql("SELECT step_id FROM build_steps")
    assert [row["step_id"] for row in history] == [a.id]


async def test_the_same_end_from_many_at_once_is_written_once(protocol):
    agent, batch = await protocol.batch("a", "b")
    a = batch["a"]
    await protocol.cached("a")
    answers = await asyncio.gather(*(agent.tell(0, started(a), ended(a)) for _ in range(6)))
    assert answers == [{"next": 2}] * 6
    assert await protocol.engine.one("SELECT count(*) FROM build_steps") == 1
    assert await protocol.engine.invariants() == []


async def test_who_lost_a_step_changes_nothing_of_it(protocol):
    agent, batch = await protocol.batch("a", "b")
    a = batch["a"]
    await protocol.cached("a")
    lease = steps.Lease(step_id=a.id, attempt=a.attempt, task_id=a.task_id)
    await steps.requeue(protocol.engine.database, [lease], certain=True)
    again = (await protocol.claim_again())["a"]
    assert again.attempt == a.attempt + 1
    assert await agent.tell(0, started(a), ended(a, BuildStatus.FAILED)) == {"next": 2}
    # Nor under the number of the attempt that is somebody else's.
    assert await agent.tell(2, started(again), ended(again)) == {"next": 4}
    await agent.log(a, 0, b"late", status=410)
    await agent.log(again, 0, b"foreign", status=410)
    step = await protocol.step("a")
    assert (step["status"], step["attempt"]) == ("running", again.attempt)
    assert await protocol.log_of(again) == b""
    new = await protocol.attempts()
    assert [row["started_at"] for row in new if row["attempt"] == again.attempt] == [None]
    answer = await agent.ask("heartbeat", {"running": [[a.id, a.attempt], [batch["b"].id, 1]]})
    assert answer["cancel"] == [[a.id, a.attempt]]


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (None, "OutputsMissing"),
        ({}, "OutputsMissing"),
        ({"out": "/nix/store/" + "z" * 32 + "-other"}, "OutputsWrong"),
        ({"out": "/etc/passwd"}, "OutputsWrong"),
    ],
    ids=["not uploaded", "not told", "another path", "no path of the store"],
)
async def test_a_success_without_its_outputs_in_the_cache_is_none(protocol, outputs, reason):
    agent, batch = await protocol.batch("a")
    a = batch["a"]
    event = ended(a) if outputs is None else ended(a, outputs=outputs)
    await agent.tell(0, started(a), event)
    step = await protocol.step("a")
    assert (step["status"], step["infra_failures"]) == ("pending", 1)
    (row,) = await protocol.attempts()
    assert (row["status"], row["reason"]) == ("aborted", reason)
    assert await protocol.engine.invariants() == []


async def test_outputs_that_the_agent_does_not_name_are_taken_from_the_cache(protocol):
    agent, batch = await protocol.batch("a")
    await protocol.cached("a")
    await agent.tell(0, started(batch["a"]), ended(batch["a"], outputs={}))
    assert (await protocol.step("a"))["status"] == "succeeded"


async def test_what_no_executor_says_is_refused_or_ends_as_our_own_failure(protocol):
    agent, batch = await protocol.batch("a", "b")
    a, b = batch["a"], batch["b"]
    for status in (BuildStatus.PENDING, BuildStatus.RUNNING):
        await agent.tell(0, ended(a, status), status=400)
    for body in (
        b"[]",
        b"{",
        b'{"seq": 0}',
        b'{"seq": 0, "type": "log"}',
        lines({"seq": 0, "type": "started", "step_id": 2**80}),
    ):
        await agent.ask("events", body, status=400)
    await agent.ask("events", b"{}", headers={"Content-Encoding": "br"}, status=400)
    await agent.ask("events", b"no zstd", headers=ZSTD, status=400)
    # A number that no column holds keeps nobody else's result from being written.
    odd = ended(a, BuildStatus.FAILED, exit_code=2**40)
    huge = PhaseChanged(step_id=b.id, attempt=b.attempt, phase="p" * 9999, at_ms=2**62)
    stray = StepStarted(step_id=2**62, attempt=2**62)
    await agent.tell(0, stray, huge, odd, ended(b, BuildStatus.FAILED))
    steps_ = await protocol.engine.steps()
    assert (steps_["a"]["status"], steps_["a"]["infra_failures"]) == ("pending", 1)
    assert steps_["b"]["status"] == "failed"
    assert await protocol.engine.invariants() == []


async def test_infrastructure_failures_of_a_pod_are_tried_again(protocol):
    agent, batch = await protocol.batch("a")
    lost = ended(batch["a"], BuildStatus.ABORTED, retry=Retry.INFRASTRUCTURE, reason="NoSpace")
    await agent.tell(0, started(batch["a"]), lost)
    step = await protocol.step("a")
    assert (step["status"], step["status_reason"]) == ("pending", "NoSpace")


# Logs ---------------------------------------------------------------------------------------------


async def test_logs_go_on_where_they_ended_whatever_is_sent_twice(protocol):
    agent, batch = await protocol.batch("a", "b")
    a = batch["a"]
    text = b"".join(b"line %d\n" % n for n in range(40_000))
    assert await agent.log(a, 0, text[:1000]) == {"next_offset": 1000}
    assert await agent.log(a, 0, text[:1000]) == {"next_offset": 1000}
    assert await agent.log(a, 500, text[500:700]) == {"next_offset": 1000}
    assert (await agent.log(a, 1001, b"gap", status=409))["expected"] == 1000
    packed = compression.compress_frame(text[900:300_000])
    assert await agent.log(a, 900, packed, headers=ZSTD) == {"next_offset": 300_000}
    assert await agent.log(a, 300_000, b"") == {"next_offset": 300_000}
    assert await protocol.log_of(a) == text[:300_000]
    sizes = await protocol.engine.sql("SELECT length(data) AS n FROM log_chunks")
    assert max(row["n"] for row in sizes) <= 65_536


async def test_who_sends_the_same_log_at_once_leaves_it_whole(protocol):
    """An agent that got no answer sends again while the first is still being written."""
    agent, batch = await protocol.batch("a", "b")
    a = batch["a"]
    text = bytes(range(256)) * 1024
    sizes = (1000, 70_000, 200_000, 131_072, 1, 262_144)
    await asyncio.gather(*(agent.log(a, 0, text[:size]) for size in sizes for _ in range(2)))
    assert await protocol.log_of(a) == text


async def test_logs_have_limits(engine, serve):
    async with serve() as served:
        protocol = Protocol(engine, served)
        agent, batch = await protocol.batch("a", "b")
        a = batch["a"]
        served.service.context.settings = _with_log_limit(served, 1000)
        assert await agent.log(a, 0, b"x" * 1000) == {"next_offset": 1000}
        await agent.log(a, 1000, b"y", status=413)
        assert await agent.log(a, 0, b"x" * 1000) == {"next_offset": 1000}
        bomb = compression.compress_frame(b"\0" * (work.LOG_BYTES_MAX + 1))
        assert len(bomb) < 1000
        await agent.log(a, 1000, bomb, headers=ZSTD, status=413)
        await agent.log(a, 1000, b"z" * (work.LOG_BYTES_MAX + 1), status=413)
        for query in (
            {"step": -1, "attempt": 1, "offset": 0},
            {"step": a.id, "attempt": 2**40, "offset": 0},
            {"step": 2**70, "attempt": 1, "offset": 0},
            {"step": a.id, "attempt": a.attempt, "offset": -5},
            {"step": "x", "attempt": 1, "offset": 0},
            {"step": a.id},
        ):
            await agent.ask("log", b"x", status=400, **query)
        assert await protocol.log_of(a) == b"x" * 1000


def _with_log_limit(served, log_bytes):
    settings = served.service.context.settings
    return replace(settings, builds=BuildSettings(log_bytes=log_bytes))


# Heartbeats and ends ------------------------------------------------------------------------------


async def test_a_heartbeat_renews_all_that_the_task_holds(protocol):
    agent, batch = await protocol.batch("a", "b")
    await protocol.engine.sql("UPDATE leases SET expires_at = now() + interval '1 s'")
    await protocol.engine.sql("UPDATE tasks SET expires_at = now() + interval '1 s'")
    answer = await agent.ask("heartbeat", {"running": [[batch["a"].id, batch["a"].attempt]]})
    assert answer == {"lease_s": 60.0, "cancel": [], "cancel_task": False, "reason": ""}
    soonest = "SELECT min(expires_at) > now() + interval '20 s' FROM "
    assert await protocol.engine.one(soonest + "leases")
    task = await protocol.task(agent.task_id)
    assert await protocol.engine.one(soonest + "tasks WHERE id = $1", agent.task_id)
    assert task["heartbeat_at"]


async def test_a_heartbeat_tells_what_to_stop(protocol):
    agent, batch = await protocol.batch("a", "b")
    a = batch["a"]
    build_id = await protocol.engine.one("SELECT id FROM builds WHERE step_id = $1", a.id)
    await builds.cancel(protocol.engine.database, [build_id], "ada")
    running = [[step.id, step.attempt] for step in batch.values()]
    answer = await agent.ask("heartbeat", {"running": running})
    assert answer["cancel"] == [[a.id, a.attempt]]
    await agent.tell(0, started(a), ended(a, BuildStatus.CANCELLED, reason="Cancelled"))
    assert (await protocol.step("a"))["status"] == "cancelled"


async def test_the_heartbeat_of_an_evaluation_renews_no_lease_and_hears_of_its_cancel(protocol):
    agent = await protocol.evaluating()
    before = (await protocol.task(agent.task_id))["expires_at"]
    answer = await agent.ask("heartbeat", {})
    assert (answer["cancel_task"], answer["cancel"]) == (False, [])
    assert (await protocol.task(agent.task_id))["expires_at"] == before
    await protocol.engine.sql(
        "UPDATE evaluations SET cancel_requested = true, status_reason = 'Superseded'"
    )
    answer = await agent.ask("heartbeat", {})
    assert (answer["cancel_task"], answer["reason"]) == (True, "Superseded")


@pytest.mark.parametrize(("remaining", "losses"), [("requeue", 0), ("none", 1)])
async def test_an_agent_that_leaves_gives_back_what_it_has_not_ended(protocol, remaining, losses):
    agent, batch = await protocol.batch("a", "b")
    await protocol.cached("a")
    await agent.tell(0, started(batch["a"]), ended(batch["a"]), started(batch["b"]))
    await agent.log(batch["b"], 0, b"half")
    await agent.ask("end", {"remaining": remaining})
    steps_ = await protocol.engine.steps()
    assert (steps_["a"]["status"], steps_["b"]["status"]) == ("succeeded", "pending")
    assert (steps_["b"]["infra_failures"], steps_["b"]["free_losses"]) == (0, losses)
    await agent.ask("end", {"remaining": remaining}, status=410)
    assert await protocol.engine.invariants() == []
    assert (await protocol.claim_again())["b"].attempt == batch["b"].attempt + 1


# Evaluations --------------------------------------------------------------------------------------


async def test_reports_are_kept_in_order_and_once(protocol):
    agent = await protocol.evaluating()
    assert await agent.rows(0, {"attrPath": ["a"]}) == {"next": 1}
    assert await agent.rows(0, {"attrPath": ["changed"]}) == {"next": 1}
    assert (await agent.rows(2, {"attrPath": ["c"]}, status=409))["expected"] == 1
    assert await agent.rows(1, {"attrPath": ["b"]}) == {"next": 2}
    rows = await protocol.engine.sql("SELECT * FROM task_reports ORDER BY seq")
    told = [tasks.read_report(row["payload"]) for row in rows]
    assert told == [[{"attrPath": ["a"]}], [{"attrPath": ["b"]}]]
    report = work.EvaluationReport(status=EvaluationStatus.COMPLETED, evaluator="walker")
    await agent.ask("end", report.to_json())
    await agent.rows(2, {}, status=410)
    await agent.ask("heartbeat", {}, status=410)
    rows = await protocol.engine.sql("SELECT * FROM task_reports ORDER BY seq")
    assert tasks.read_report(rows[2]["payload"]) == report


async def test_the_same_report_from_many_at_once_is_one(protocol):
    agent = await protocol.evaluating()
    answers = await asyncio.gather(*(agent.rows(0, {"attrPath": ["a"]}) for _ in range(8)))
    assert answers == [{"next": 1}] * 8
    assert await protocol.engine.one("SELECT count(*) FROM task_reports") == 1


async def test_an_agent_waits_while_nobody_reads_its_reports(protocol):
    agent = await protocol.evaluating()
    for seq in range(work.UNREAD_REPORTS_MAX):
        await agent.rows(seq, {"seq": seq})
    await agent.rows(work.UNREAD_REPORTS_MAX, {}, status=429)
    assert protocol.retry_after == "1"
    # What came before is no new one, and the end is always heard.
    await agent.rows(3, {"seq": 3})
    await protocol.engine.sql("DELETE FROM task_reports WHERE seq < 2")
    assert await agent.rows(work.UNREAD_REPORTS_MAX, {}) == {"next": 33}
    assert await agent.rows(33, {}) == {"next": 34}
    await agent.rows(34, {}, status=429)
    await agent.ask("end", {"status": "completed"})


async def test_reports_have_limits(engine, serve):
    # However small an administrator wants manifests and webhooks to be.
    async with serve(body_bytes_max=2048) as served:
        protocol = Protocol(engine, served)
        agent = await protocol.evaluating()
        noise = random.Random(1).randbytes(work.BODY_BYTES_MAX)
        packed = compression.compress_frame(noise[: work.BODY_BYTES_MAX - 4096])
        assert len(packed) < work.BODY_BYTES_MAX
        assert await agent.ask("rows", packed, seq=0, headers=ZSTD) == {"next": 1}
        packed = compression.compress_frame(noise)
        assert len(packed) > work.BODY_BYTES_MAX
        await agent.ask("rows", packed, seq=1, headers=ZSTD, status=413)
        bomb = compression.compress_frame(b"\0" * (work.PLAIN_BYTES_MAX + 1))
        assert len(bomb) < 10_000
        await agent.ask("rows", bomb, seq=1, headers=ZSTD, status=413)
        # In many small frames too, none of which says more than it is.
        bombs = compression.compress_frame(b"\0" * 2**20) * 17
        await agent.ask("rows", bombs, seq=1, headers=ZSTD, status=413)
        await agent.ask("events", bomb, headers=ZSTD, status=413)
        many = compression.compress_frame(b"{}\n" * (work.LINES_MAX + 1))
        await agent.ask("events", many, headers=ZSTD, status=400)
        for body in (b"{}", packed[:1000], b"\x28\xb5\x2f\xfd"):
            await agent.ask("rows", body, seq=1, headers=ZSTD, status=400)
        good = compression.compress_frame(b"{}")
        await agent.ask("rows", good, seq=1, status=400)
        await agent.ask("rows", good, headers=ZSTD, status=400)
        await agent.ask("rows", good, seq=-1, headers=ZSTD, status=400)
        await agent.ask("rows", good, seq=2**40, headers=ZSTD, status=400)
        await agent.ask("heartbeat", b" " * (256 * 1024 + 1), status=413)
        assert await agent.ask("rows", good, seq=1, headers=ZSTD) == {"next": 2}


async def test_steps_and_evaluations_speak_of_their_own_only(protocol):
    agent, batch = await protocol.batch("a")
    evaluating = await protocol.evaluating()
    await agent.rows(0, {}, status=409)
    await evaluating.tell(0, started(batch["a"]), status=409)
    await evaluating.log(batch["a"], 0, b"x", status=409)
    await evaluating.ask("end", {"remaining": "none"}, status=400)
    await agent.ask("end", {"status": "completed"})  # fields of others say nothing
    assert (await protocol.step("a"))["status"] == "pending"


# Servers come and go ------------------------------------------------------------------------------


async def test_another_server_goes_on_where_the_first_was(engine, serve):
    async with serve() as first, serve() as second:
        protocol = Protocol(engine, first)
        agent, batch = await protocol.batch("a", "b")
        a, b = batch["a"], batch["b"]
        await protocol.cached("a", "b")
        await agent.tell(0, started(a))
        await agent.log(a, 0, b"one\n")
        await first.service.stop()
        protocol.served = second
        assert await agent.tell(0, started(a), started(b)) == {"next": 2}
        assert await agent.log(a, 0, b"one\ntwo\n") == {"next_offset": 8}
        assert (await agent.ask("heartbeat", {}))["cancel"] == []
        assert await agent.tell(2, ended(a), ended(b)) == {"next": 4}
        assert await protocol.log_of(a) == b"one\ntwo\n"
        assert (await protocol.step("b"))["status"] == "succeeded"
        assert await protocol.engine.invariants() == []
