"""Agents behind a bad network: requests come twice, at once, late, to servers that come and go, and
answers get lost. What is written in the end is what an undisturbed agent would have left.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from fc_operator.kit import compression
from fc_operator.model import work
from fc_operator.model.outcomes import Outcome
from fc_operator.model.statuses import BuildStatus
from fc_operator.model.tasks import PhaseChanged, StepEnded, StepStarted
from fc_operator.operations import tasks
from tests.integration.web import test_tasks
from tests.integration.web.test_tasks import ZSTD, Protocol, ended, lines, started

engine = test_tasks.engine

OVER = 2**40
"""What a server wants next of a task that is over: nothing that anybody has."""


class BadNetwork:
    """Carries the requests of one agent, each until an answer comes back."""

    def __init__(self, agent, servers, seed) -> None:
        self.agent, self.servers = agent, servers
        self.rng = random.Random(seed)
        self.sent = 0
        self.late: list[asyncio.Task] = []

    async def carry(self, name, body, key, **query) -> int:
        """Send until an answer was not lost; what the server wants next."""
        while True:
            copies = self.rng.choice((1, 1, 1, 2, 3))
            answers = [
                asyncio.create_task(self._once(name, body, key, query)) for _ in range(copies)
            ]
            self.sent += copies
            if self.rng.random() < 0.2:
                # Given up, and perhaps still on its way when the next one comes.
                self.late += answers
                continue
            found = await asyncio.gather(*answers)
            if self.rng.random() < 0.7:
                return max(found)

    async def _once(self, name, body, key, query) -> int:
        served = self.rng.choice(self.servers)
        if self.rng.random() < 0.1:
            await asyncio.sleep(self.rng.random() / 50)
        url = f"{served.url}/api/v1/tasks/{self.agent.task_id}/{name}"
        headers = {"Authorization": f"Bearer {self.agent.token.text}", **ZSTD}
        async with served.session.post(url, data=body, params=query, headers=headers) as answer:
            told = await answer.json(content_type=None)
        if answer.status == 429:
            await asyncio.sleep(0.01)
            return await self._once(name, body, key, query)
        # A copy that comes after all was done finds that the task is over.
        assert answer.status in {200, 409, 410}, (answer.status, told)
        return OVER if answer.status == 410 else told.get(key, told.get("expected", -1))

    async def settle(self) -> None:
        await asyncio.gather(*self.late)


async def tell_steps(network, batch, rng) -> dict[str, bytes]:
    """All of a batch, step by step interleaved, as an agent tells it; the logs that it wrote."""
    events, logs = [], dict.fromkeys(batch, b"")
    told = 0

    async def flush():
        nonlocal told
        while told < len(events):
            numbered = [
                work.NumberedEvent(seq=seq, event=events[seq]).to_json()
                for seq in range(told, min(len(events), told + rng.randint(1, 4)))
            ]
            body = compression.compress_frame(lines(*numbered))
            told = max(told, await network.carry("events", body, "next"))

    todo = {name: rng.randint(1, 6) for name in batch}
    for step in batch.values():
        events.append(started(step))
    while todo:
        name = rng.choice(sorted(todo))
        step = batch[name]
        if todo[name] == 0:
            del todo[name]
            good = name < "e"
            status = BuildStatus.SUCCEEDED if good else BuildStatus.FAILED
            events.append(ended(step, status, exit_code=None if good else 1))
            continue
        todo[name] -= 1
        events.append(
            PhaseChanged(step_id=step.id, attempt=step.attempt, phase=f"p{todo[name]}", at_ms=1)
        )
        logs[name] += rng.randbytes(rng.randint(1, 90_000))
        sent = 0
        while sent < len(logs[name]):
            # From somewhere before what it knows to be there.
            start = max(0, sent - rng.randint(0, 50))
            body = compression.compress_frame(logs[name][start:])
            query = {"step": step.id, "attempt": step.attempt, "offset": start}
            sent = max(sent, await network.carry("log", body, "next_offset", **query))
        if rng.random() < 0.5:
            await flush()
    await flush()
    return logs


@pytest.mark.parametrize("seed", range(4))
async def test_a_batch_leaves_the_same_however_bad_the_network_is(engine, serve, seed):
    async with serve() as one, serve() as two:
        protocol = Protocol(engine, one)
        agent, batch = await protocol.batch(*"abcdefg")
        await protocol.cached(*"abcd")
        rng = random.Random(seed)
        network = BadNetwork(agent, (one, two), seed)
        logs = await tell_steps(network, batch, rng)
        await network.settle()
        steps = await engine.steps()
        assert {name: steps[name]["status"] for name in batch} == {
            name: "succeeded" if name < "e" else "failed" for name in batch
        }
        assert [step["attempt"] for step in steps.values()] == [1] * 7
        for row in await protocol.attempts():
            name = next(n for n, step in batch.items() if step.id == row["step_id"])
            assert await protocol.log_of(batch[name]) == logs[name]
            assert row["log_bytes"] == len(logs[name])
            phases = [phase["name"] for phase in row["phases"]]
            assert phases == sorted(phases, reverse=True)
            assert phases[-1] == "p0"
            assert len(set(phases)) == len(phases)
        assert await engine.one("SELECT count(*) FROM build_steps") == 7
        assert await engine.invariants() == []
        assert network.sent > 30


@pytest.mark.parametrize("seed", range(3))
async def test_reports_come_whole_and_in_order_however_bad_the_network_is(engine, serve, seed):
    async with serve() as one, serve() as two:
        protocol = Protocol(engine, one)
        agent = await protocol.evaluating()
        network = BadNetwork(agent, (one, two), seed)
        read: list = []
        count = 80

        async def scheduler():
            while len(read) < count:
                for row in await engine.sql("SELECT * FROM task_reports ORDER BY seq"):
                    assert row["seq"] == len(read)
                    read.extend(tasks.read_report(row["payload"]))
                await engine.sql("DELETE FROM task_reports WHERE seq < $1", len(read))
                await asyncio.sleep(0.01)

        reading = asyncio.create_task(scheduler())
        seq = 0
        while seq < count:
            body = compression.compress_frame(lines({"attrPath": [str(seq)]}))
            seq = max(seq, await network.carry("rows", body, "next", seq=seq))
        await network.settle()
        await reading
        assert read == [{"attrPath": [str(n)]} for n in range(count)]


async def test_a_lost_agent_and_its_successor_never_mix(engine, serve):
    """Both believe to have the step; only what the holder tells is written."""
    async with serve() as one:
        protocol = Protocol(engine, one)
        old, batch = await protocol.batch("a", "b")
        a = batch["a"]
        await protocol.cached("a")
        lease = test_tasks.steps.Lease(step_id=a.id, attempt=a.attempt, task_id=a.task_id)
        await test_tasks.steps.requeue(engine.database, [lease], certain=True)
        again = (await protocol.claim_again())["a"]
        new = await protocol.open(again.task_id)
        failed = StepEnded(
            step_id=a.id,
            attempt=a.attempt,
            outcome=Outcome(status=BuildStatus.FAILED, reason="Old"),
        )
        begun = StepStarted(step_id=a.id, attempt=a.attempt)
        await asyncio.gather(
            old.tell(0, begun, failed),
            new.tell(0, started(again), ended(again)),
            *(old.log(a, 0, b"old", status=410) for _ in range(3)),
        )
        step = await protocol.step("a")
        assert (step["status"], step["attempt"]) == ("succeeded", again.attempt)
        assert await engine.invariants() == []
