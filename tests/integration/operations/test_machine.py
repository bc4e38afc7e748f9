"""The engine under arbitrary histories: claims, ends, lost leases, restarts, cancels, new evaluations.

After every step the invariants of the tables hold; at the end everything that is live can be brought
to an end, each build exactly once.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fc_operator.clients.nix import Nix
from fc_operator.model.outcomes import Retry
from fc_operator.model.statuses import BuildStatus
from fc_operator.operations import builds, steps
from fc_operator.operations.ingest import Ingest
from fc_operator.settings import BuildSettings, NixSettings
from fc_operator.store.database import Database

ENDS = st.sampled_from(
    [
        (BuildStatus.SUCCEEDED, Retry.NEVER),
        (BuildStatus.SUCCEEDED, Retry.NEVER),
        (BuildStatus.FAILED_WITH_OUTPUT, Retry.NEVER),
        (BuildStatus.FAILED, Retry.NEVER),
        (BuildStatus.TIMEOUT, Retry.NEVER),
        (BuildStatus.CANCELLED, Retry.NEVER),
        (BuildStatus.ABORTED, Retry.INFRASTRUCTURE),
        (BuildStatus.ABORTED, Retry.FREE),
    ]
)
JOBS = [f"j{n}" for n in range(6)]


def machine(url, make_engine, make_worker):
    class Engine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            self.loop = asyncio.new_event_loop()
            self.database = self.do(Database.open(url, size=2))
            nix = Nix(NixSettings(), {"PATH": "/nonexistent"})
            ingest = Ingest(self.database, nix, BuildSettings(), roots_dir=Path("/nonexistent"))
            self.engine = make_engine(self.database, ingest)
            self.worker = make_worker(self.engine, retry_base_s=0)
            self.late = []

        def do(self, work):
            return self.loop.run_until_complete(work)

        @initialize()
        def empty(self):
            self.do(
                self.engine.sql(
                    "TRUNCATE projects, steps, tasks, step_classes, failed_paths_cache, audit_log CASCADE"
                )
            )
            self.jobsets = [self.do(self.engine.jobset(f"s{n}")) for n in range(2)]

        @rule(
            jobset=st.integers(0, 1),
            edges=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=7),
            count=st.integers(1, 6),
        )
        def evaluate(self, jobset, edges, count):
            rows = [
                self.engine.told(
                    f"j{n}", *(f"j{m}" for m in range(count) if m < n and (m, n) in edges)
                )
                for n in range(count)
            ]
            self.do(self.engine.evaluate(self.jobsets[jobset], rows, commit=uuid4().hex + "0" * 8))

        @rule(free=st.integers(1, 3))
        def claim(self, free):
            self.do(self.worker.claim(free))

        @rule(job=st.sampled_from(JOBS), end=ENDS)
        def end(self, job, end):
            step = self.worker.held.pop(job, None)
            if step is not None:
                status, retry = end
                result = self.worker.result(step, status, retry)
                finished = self.do(steps.finish(self.database, [result], self.worker.builds))
                assert finished.accepted == {step.id}
                self.late.append(result)

        @rule(job=st.sampled_from(JOBS))
        def lose(self, job):
            step = self.worker.held.pop(job, None)
            if step is not None:
                result = self.worker.result(step, BuildStatus.SUCCEEDED)
                back = steps.requeue(self.database, [result.lease], certain=True)
                assert self.do(back) == 1
                self.late.append(result)

        @rule()
        def late_results_are_refused(self):
            if self.late:
                finished = self.do(steps.finish(self.database, self.late, self.worker.builds))
                assert not finished.accepted

        @rule()
        def backoff_is_over(self):
            async def change(connection):
                await connection.execute(
                    "UPDATE steps SET not_before = now() WHERE not_before IS NOT NULL"
                )
                await steps.steps.queue_due(connection)

            self.do(self.database.run(change))

        @rule(pick=st.integers(0, 40), count=st.integers(1, 3))
        def restart(self, pick, count):
            self.do(builds.restart(self.database, self.pick(pick, count), "x"))

        @rule(pick=st.integers(0, 40), count=st.integers(1, 3))
        def cancel(self, pick, count):
            self.do(builds.cancel(self.database, self.pick(pick, count), "x"))

        @rule(pick=st.integers(0, 40))
        def bump(self, pick):
            self.do(builds.bump(self.database, self.pick(pick, 1), "x"))

        def pick(self, pick, count):
            rows = self.do(self.engine.sql("SELECT id FROM builds ORDER BY number"))
            return [rows[(pick + n) % len(rows)]["id"] for n in range(min(count, len(rows)))]

        @invariant()
        def the_tables_are_in_order(self):
            assert self.do(self.engine.invariants()) == []

        def teardown(self):
            try:
                self.backoff_is_over()
                for step in self.worker.held.values():
                    result = self.worker.result(step, BuildStatus.SUCCEEDED)
                    self.do(steps.finish(self.database, [result], self.worker.builds))
                self.do(self.worker.run_all())
                live = self.do(
                    self.engine.one(
                        "SELECT count(*) FROM steps WHERE status IN ('pending', 'running')"
                    )
                )
                assert live == 0
                self.the_tables_are_in_order()
            finally:
                self.do(self.database.close())
                self.loop.close()

    return Engine


@pytest.mark.slow
def test_q16_arbitrary_histories(database_url, engine_types):
    run_state_machine_as_test(
        machine(database_url, *engine_types),
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_q16_some_histories(database_url, engine_types):
    """The same, as much as fits into every run."""
    run_state_machine_as_test(
        machine(database_url, *engine_types),
        settings=settings(
            max_examples=6,
            stateful_step_count=25,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
