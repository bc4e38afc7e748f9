"""Declared builders as they come, fail, recover and go: real sshd, real Nix, real PostgreSQL."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from fc_operator.clients.nix import Nix
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.executors.local import own_system
from fc_operator.model.desired import DesiredBuilder, SecretRef
from fc_operator.results import support
from fc_operator.scheduler.builders import BuilderService
from fc_operator.scheduler.dispatch import DispatchService
from fc_operator.settings import BuildSettings, NixSettings, QueueSettings
from fc_operator.store import listener as channels
from fc_operator.store import remote_builders
from fc_operator.store.database import notify
from fc_operator.store.listener import Listener
from tests import ssh_machine

pytestmark = pytest.mark.nix
# ruff: noqa: PLR0917 - fixtures come by name


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


until = load("scheduler_conftest", Path(__file__).parent / "conftest.py").until


@pytest.fixture
def machines(nix, shared_build_users):
    """Makes second machines."""
    ssh_machine.require()
    made = []

    def make():
        machine = ssh_machine.SshMachine(nix.dir, nix.env, shared_build_users)
        machine.start()
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.close()


@pytest.fixture
def declare(nix_engine, tmp_path):
    """Declare a machine as a builder, as the reconciler would."""

    async def declare(name, machine, **more):
        secret = tmp_path / "secrets" / f"{name}-ssh"
        secret.mkdir(parents=True, exist_ok=True)
        (secret / "identity").write_bytes(machine.client_key.read_bytes())
        builder = DesiredBuilder(
            **{
                "name": name,
                "ssh_uri": machine.uri,
                "systems": (own_system(),),
                "public_host_key": machine.public_host_key,
                "ssh_key": SecretRef(name=f"{name}-ssh", key="identity"),
                "max_jobs": 2,
            }
            | more
        )
        async with nix_engine.database.transaction() as connection:
            ids = await remote_builders.upsert(connection, [builder], {name: "default"})
            await notify(connection, channels.RESOURCES)
        return ids[name]

    return declare


@pytest.fixture
def scheduler(nix_engine, nix, tmp_path):
    """A scheduler that builds on declared builders only."""

    @asynccontextmanager
    async def make(name="scheduler"):
        builds = BuildSettings(retry_base_s=0.5)
        queue = QueueSettings(poll_s=1.0, heartbeat_s=1.0)
        settings = NixSettings(sandbox="None", store_dir=str(nix.store_dir))
        listener = Listener(nix_engine.database)
        await listener.start()
        builders = BuilderService(
            nix_engine.database,
            listener,
            DirectorySecrets(tmp_path / "secrets"),
            nix=Nix(settings, nix.env),
            settings=settings,
            builds=builds,
            queue=queue,
            dir=tmp_path / name,
            harvest=partial(support.harvest, store_dir=nix.store_dir),
        )
        dispatch = DispatchService(
            nix_engine.database, listener, [], queue=queue, builds=builds, builders=builders
        )
        await builders.start()
        await dispatch.start()
        try:
            yield builders
        finally:
            await dispatch.stop()
            await builders.stop()
            await listener.stop()

    return make


async def test_a_step_is_built_on_the_declared_machine(
    machines, declare, scheduler, nix_engine, nix, settled
):
    machine = machines()
    id_ = await declare("second", machine)
    first = nix.drv("echo one; echo a > $out", name="first")
    second = nix.drv("cat $dep > $out", name="second", attrs=f"dep = (import {first}).outPath;")
    fence = await nix_engine.evaluate(
        await nix_engine.jobset(),
        [nix_engine.row("first", first), nix_engine.row("second", second)],
    )
    async with scheduler():
        assert await settled(fence) == {"first": "succeeded", "second": "succeeded"}
    builds = await nix_engine.builds(fence)
    assert {build["builder_id"] for build in builds.values()} == {id_}
    for build in builds.values():
        path = build["build_output_path"]
        assert machine.has(path), "it was built there"
        assert await asyncio.to_thread(Path(path).read_text) == "a\n", "and came back"
        assert nix.run("nix-store", "-q", "--roots", path), "and is kept here"
    told = await nix_engine.sql("SELECT executor, builder_name, builder_id FROM attempts")
    assert {tuple(row) for row in told} == {("ssh", "second", id_)}
    (row,) = await nix_engine.sql("SELECT * FROM remote_builders")
    assert (row["consecutive_failures"], row["last_error"]) == (0, None)
    assert row["last_seen_at"] is not None
    assert [each["check"] for each in row["findings"] if each["ok"]] == [
        *("Login", "Nix", "Disk", "Store", "Build")
    ]
    assert await nix_engine.invariants() == []


async def test_c03_a_lost_connection_fails_no_build_and_puts_the_builder_aside(
    machines, declare, scheduler, nix_engine, nix, settled
):
    one, other = machines(), machines()
    await declare("one", one, speed_factor=100)
    drv = nix.drv("echo up; sleep 3; echo x > $out")
    fence = await nix_engine.evaluate(await nix_engine.jobset(), [nix_engine.row("job", drv)])
    async with scheduler():

        async def runs():
            return await nix_engine.one("SELECT count(*) FROM log_chunks")

        await until(runs)
        await declare("other", other)
        one.cut()
        assert await settled(fence) == {"job": "succeeded"}
    tries = await nix_engine.sql(
        "SELECT builder_name, status, reason FROM attempts ORDER BY attempt"
    )
    assert [tuple(row) for row in tries] == [
        ("one", "aborted", "LinkLost"),
        ("other", "succeeded", "Built"),
    ]
    assert await nix_engine.one("SELECT retry_count FROM builds") == 0, "nothing is charged"
    (row,) = await nix_engine.sql("SELECT * FROM remote_builders WHERE name = 'one'")
    assert row["consecutive_failures"] >= 1
    assert row["disabled_until"] is not None
    assert "127.0.0.1" in row["last_error"]


async def test_a_machine_that_comes_back_is_looked_at_and_used_again(
    machines, declare, scheduler, nix_engine, nix, settled
):
    machine = machines()
    await declare("second", machine)
    machine.cut()
    fence = await nix_engine.evaluate(
        await nix_engine.jobset(), [nix_engine.row("job", nix.drv("echo x > $out"))]
    )
    async with scheduler():

        async def is_aside():
            return await nix_engine.one("SELECT consecutive_failures >= 2 FROM remote_builders")

        await until(is_aside)
        machine.start()
        assert await settled(fence) == {"job": "succeeded"}
    assert await nix_engine.one("SELECT consecutive_failures FROM remote_builders") == 0


async def test_another_host_key_is_told_and_nothing_is_sent(
    machines, declare, scheduler, nix_engine, nix
):
    machine, stranger = machines(), machines()
    await declare("second", machine, public_host_key=stranger.public_host_key)
    await nix_engine.evaluate(
        await nix_engine.jobset(), [nix_engine.row("job", nix.drv("echo x > $out"))]
    )
    async with scheduler():

        async def told():
            return await nix_engine.one("SELECT last_error FROM remote_builders")

        assert "another host key" in await until(told)
    (finding,) = await nix_engine.one("SELECT findings FROM remote_builders")
    assert (finding["check"], finding["ok"]) == ("HostKey", False)
    assert "fc builder pin" in finding["hint"]
    assert await nix_engine.one("SELECT count(*) FROM attempts") == 0


async def test_a_builder_that_is_drained_ends_what_runs_and_gets_nothing_new(
    machines, declare, scheduler, nix_engine, nix, settled
):
    machine = machines()
    await declare("second", machine)
    running = nix.drv("echo up; sleep 2; echo x > $out", name="running")
    jobset = await nix_engine.jobset()
    fence = await nix_engine.evaluate(jobset, [nix_engine.row("running", running)])
    async with scheduler() as builders:

        async def runs():
            return await nix_engine.one("SELECT count(*) FROM log_chunks")

        await until(runs)
        await declare("second", machine, drain=True)

        async def is_drained():
            return [b.problem for b in builders.list()] == ["it is being drained"]

        await until(is_drained)
        later = nix.drv("echo later; echo x > $out", name="later")
        waiting = await nix_engine.evaluate(jobset, [nix_engine.row("later", later)])
        assert await settled(fence) == {"running": "succeeded"}
        assert await nix_engine.statuses(waiting) == {"later": "pending"}
        await declare("second", machine)
        assert await settled(waiting) == {"later": "succeeded"}


async def test_a_cancel_ends_the_build_on_the_other_machine(
    machines, declare, scheduler, nix_engine, nix, settled
):
    machine = machines()
    await declare("second", machine)
    mark = "8123.25"
    drv = nix.drv(f"echo up; setsid sleep {mark} & sleep {mark}")
    fence = await nix_engine.evaluate(await nix_engine.jobset(), [nix_engine.row("job", drv)])

    def sleeping():
        return [
            entry.name
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _words(entry).startswith(f"sleep {mark}")
        ]

    async with scheduler():

        async def runs():
            return await nix_engine.one("SELECT count(*) FROM log_chunks")

        await until(runs)
        assert await asyncio.to_thread(sleeping)
        async with nix_engine.database.transaction() as connection:
            await connection.execute("UPDATE leases SET cancel_requested = true")
            await connection.execute(
                "UPDATE builds SET status = 'cancelled', completed_at = now()"
                " WHERE status = 'running'"
            )
            await notify(connection, channels.CANCELS)

        async def is_over():
            return await nix_engine.one("SELECT count(*) = 0 FROM leases")

        await until(is_over)
        assert not await asyncio.to_thread(sleeping)
    assert (await nix_engine.statuses(fence)) == {"job": "cancelled"}


def _words(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""
