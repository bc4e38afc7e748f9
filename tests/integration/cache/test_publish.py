"""What a machine builds or has is in the cache before anybody is told."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from functools import partial

import pytest

from fc_operator.cache.narinfos import hash_part_of
from fc_operator.clients.nix import Nix
from fc_operator.errors import UnavailableError
from fc_operator.executors.local import LocalExecutor
from fc_operator.model.outcomes import Retry
from fc_operator.model.statuses import BuildStatus
from fc_operator.model.tasks import StepEnded
from fc_operator.operations.cache import Publisher, local_token
from fc_operator.results import support
from fc_operator.scheduler.publish import PublishingExecutor, PublishService
from fc_operator.settings import BuildSettings, NixSettings, QueueSettings
from fc_operator.store.listener import Listener

pytestmark = pytest.mark.nix


@pytest.fixture
def publisher(served, nix):
    client = Nix(NixSettings(store_dir=str(nix.store_dir)), nix.env)
    return Publisher(cache=served.cache, nix=client, database=served.database)


@pytest.fixture
def local(nix, tmp_path):
    return LocalExecutor(
        nix=NixSettings(sandbox="None", store_dir=str(nix.store_dir)),
        builds=BuildSettings(local_slots=2),
        dir=tmp_path / "executor",
        harvest=partial(support.harvest, store_dir=nix.store_dir),
        env=nix.env,
    )


async def ends_of(executor, orders):
    """Outcomes by step, each taken as soon as it is told."""
    found = {}
    async with asyncio.timeout(60), aclosing(executor.start(orders)) as events:
        async for event in events:
            if isinstance(event, StepEnded):
                found[event.step_id] = event.outcome
    return found


async def test_a_step_has_ended_when_its_outputs_are_in_the_cache(
    served, nix, machine, publisher, local
):
    base = nix.drv("echo base > $out", name="base")
    top = nix.drv(f"echo {base} > $out", name="top")
    project = await served.project(visibility="private")
    jobset = await served.jobset(project)
    orders = []
    for drv in (base, top):
        step = await served.step(jobset, drv, {})
        orders.append(replace(nix.order(drv), step_id=step))
    executor = PublishingExecutor(local, publisher.publish_step)
    outcomes = await ends_of(executor, orders)
    assert {outcome.status for outcome in outcomes.values()} == {BuildStatus.SUCCEEDED}
    for outcome in outcomes.values():
        (output,) = outcome.harvest.outputs
        readers = await served.sql(
            "SELECT project_id FROM cache_path_projects WHERE hash_part = $1",
            hash_part_of(output.path),
        )
        assert [row["project_id"] for row in readers] == [project]
        # Whoever is of this installation itself reads what strangers do not.
        await served.request("GET", f"{hash_part_of(output.path)}.narinfo", status=404)
        await served.nix_run(
            machine, "nix", "copy", "--from", served.cache_url, "--to", machine.store, output.path,
            password=local_token(b"secret of the tests"),
            **{"trusted-public-keys": served.cache.public_keys[0]},
        )  # fmt: skip


async def test_a_step_that_can_not_be_published_is_tried_again(nix, local):
    drv = nix.drv("echo > $out")
    failing = True
    published = []

    async def publish(step_id, outputs):
        if failing:
            raise UnavailableError("the object store is away")
        published.append((step_id, tuple(outputs)))

    executor = PublishingExecutor(local, publish)
    order = nix.order(drv)
    (outcome,) = (await ends_of(executor, [order])).values()
    assert outcome.retry is Retry.INFRASTRUCTURE
    assert "the object store is away" in outcome.message
    failing = False
    (outcome,) = (await ends_of(executor, [order])).values()
    assert outcome.reason == "AlreadyValid"
    assert published == [(order.step_id, (outcome.harvest.outputs[0].path,))]


async def test_closing_the_stream_ends_what_is_being_published(nix, local):
    begun = asyncio.Event()
    ended = asyncio.Event()

    async def publish(step_id, outputs):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    stream = PublishingExecutor(local, publish).start([nix.order(nix.drv("echo > $out"))])

    async def read():
        async with aclosing(stream) as events:
            async for _ in events:
                pass

    reading = asyncio.create_task(read())
    async with asyncio.timeout(30):
        await begun.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert ended.is_set()


async def test_what_was_valid_before_is_brought_too_and_builds_are_signed(served, nix, publisher):
    drv = nix.drv("echo > $out")
    out = nix.run("nix-store", "--realise", drv)
    project = await served.project()
    jobset = await served.jobset(project)
    evaluation = await served.one(
        "INSERT INTO evaluations (jobset_id, commit_hash, status) VALUES ($1, $2, 'completed')"
        " RETURNING id",
        jobset,
        "a" * 40,
    )
    elsewhere = f"{nix.store_dir}/{'0' * 32}-elsewhere"
    for name, path in (("here", out), ("elsewhere", elsewhere)):
        await served.sql(
            "INSERT INTO builds (evaluation_id, job_name, drv_path, status, completed_at, outputs)"
            " VALUES ($1, $2, $3, 'succeeded', now(), $4)",
            evaluation,
            name,
            drv,
            {"out": path},
        )

    async def signed():
        rows = await served.sql("SELECT job_name FROM builds WHERE signed")
        return {row["job_name"] for row in rows}

    parts = served.database, Listener(served.database)
    # A process without a Nix only looks.
    looking = PublishService(*parts, queue=QueueSettings())
    assert await looking.round() == 0
    service = PublishService(*parts, queue=QueueSettings(), publisher=publisher)
    assert await service.round() == 1
    assert await signed() == {"here"}
    await served.request("GET", f"{hash_part_of(out)}.narinfo")
    assert await service.round() == 0
    await served.sql("UPDATE cache_paths SET store_path = $1", elsewhere)
    assert await looking.round() == 1
    assert await signed() == {"here", "elsewhere"}
