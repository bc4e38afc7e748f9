"""A real service over HTTP: Sanic on a free loopback port, PostgreSQL, an aiohttp client."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from fc_operator.cache import signing
from fc_operator.clients.objects import ObjectStore
from fc_operator.clients.secrets import DirectorySecrets
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.statuses import Role
from fc_operator.operations import keys
from fc_operator.operations.cache import BinaryCache
from fc_operator.settings import Settings, StateSettings, WebSettings
from fc_operator.store.database import notify
from fc_operator.store.listener import Listener
from fc_operator.web.server import WebService


class Served:
    """The service and ways to talk to it."""

    def __init__(self, service, session, database, cipher, objects):
        self.service, self.session, self.database = service, session, database
        self.cipher, self.objects = cipher, objects
        self.url = service.url

    async def get(self, path, *, status=200, **more):
        """The JSON of an answer, whose status must be ``status``."""
        async with self.session.get(self.url + path, **more) as answer:
            text = await answer.text()
            assert answer.status == status, (path, answer.status, text)
            return await answer.json(content_type=None) if text else None

    async def post(self, path, body=None, *, status=200, key=None, method="POST", **more):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with self.session.request(
            method, self.url + path, json=body, headers=headers, **more
        ) as answer:
            text = await answer.text()
            assert answer.status == status, (path, answer.status, text)
            return await answer.json(content_type=None) if text else None

    async def key(self, role=Role.ADMIN, **more):
        made = await keys.create(self.database, f"test-{role}", role, **more)
        return made.key


@pytest.fixture
async def serve(database, tmp_path):
    """A function that serves ``database`` with other web settings."""

    @asynccontextmanager
    async def start(**web):
        cipher = Cipher(b"k" * 32)
        objects = ObjectStore.open(tmp_path / "objects")
        listener = Listener(database)
        settings = Settings(
            web=replace(WebSettings(port=0), **web), state=StateSettings(dir=tmp_path)
        )
        cache = BinaryCache(
            database=database,
            objects=objects,
            settings=settings.cache,
            store_dir=settings.nix.store_dir,
            keys=[signing.from_seed(cipher.derive("cache/signing/1"))],
            trusted=signing.TrustedKeys(()),
        )
        service = WebService(
            database=database,
            listener=listener,
            objects=objects,
            secrets=DirectorySecrets(tmp_path / "secrets"),
            cipher=cipher,
            settings=settings,
            cache=cache,
        )
        await listener.start()
        await service.start()
        try:
            async with aiohttp.ClientSession() as session:
                yield Served(service, session, database, cipher, objects)
        finally:
            await service.stop()
            await listener.stop()
            cache.close()

    return start


@pytest.fixture
async def web(serve):
    """The service as `fc up` has it: on loopback, reads open."""
    async with serve() as served:
        yield served


class World:
    """Rows as the other rooms write them: a public project, a private one, all kinds of builds."""

    COMMIT = "a" * 40

    def __init__(self, database):
        self.database = database
        self.ids = {}

    async def add(self, table, **values):
        """Insert a row; returns it."""
        columns = ", ".join(values)
        marks = ", ".join(f"${n}" for n in range(1, len(values) + 1))
        async with self.database.session() as connection:
            return await connection.fetchrow(
                f"INSERT INTO {table} ({columns}) VALUES ({marks}) RETURNING *", *values.values()
            )

    async def sql(self, text, *values):
        async with self.database.session() as connection:
            return await connection.fetch(text, *values)

    async def project(self, name, **more):
        more.setdefault("repository_url", f"https://git.example.org/team/{name}.git")
        return await self.add("projects", name=name, **more)

    async def jobset(self, project, name, **more):
        more = {"nix_expression": "release.nix", "flake_mode": False, **more}
        return await self.add("jobsets", project_id=project["id"], name=name, **more)

    async def evaluation(self, jobset, status="completed", **more):
        more.setdefault("commit_hash", self.COMMIT)
        return await self.add("evaluations", jobset_id=jobset["id"], status=status, **more)

    async def step(self, name, status="succeeded", **more):
        class_id = await self.sql(
            "INSERT INTO step_classes (system) VALUES ('x86_64-linux')"
            " ON CONFLICT (system, features) DO UPDATE SET system = excluded.system RETURNING id"
        )
        return await self.add(
            "steps",
            drv_path=f"/nix/store/{name:a<32.32}-{name}.drv",
            name=name,
            class_id=class_id[0]["id"],
            status=status,
            **more,
        )

    async def build(self, evaluation, job, status="succeeded", step=None, **more):
        now = datetime.now(UTC)
        if status != "pending":
            more.setdefault("started_at", now - timedelta(minutes=2))
        if status not in {"pending", "running"}:
            more.setdefault("completed_at", now - timedelta(minutes=1))
        return await self.add(
            "builds",
            evaluation_id=evaluation["id"],
            job_name=job,
            attr_path=job.split("."),
            drv_path=step["drv_path"] if step else f"/nix/store/{'b' * 32}-{job}.drv",
            status=status,
            system=more.pop("system", "x86_64-linux"),
            step_id=step["id"] if step else None,
            **more,
        )

    async def attempt(self, step, number=1, status="succeeded", log=b"", build=None, **more):
        ended = None if status is None else datetime.now(UTC)
        await self.sql("UPDATE steps SET attempt = $2 WHERE id = $1", step["id"], number)
        await self.add(
            "attempts",
            step_id=step["id"],
            attempt=number,
            task_id=uuid.uuid4(),
            executor="local",
            owner="test",
            build_id=build["id"] if build else None,
            started_at=datetime.now(UTC),
            ended_at=ended,
            status=status,
            log_bytes=len(log),
            log_lines=log.count(b"\n"),
            **more,
        )
        await self.log(step, number, 0, log)

    async def log(self, step, number, offset, data, size=40):
        """Write chunks of a log and announce them, as executors' recorders do."""
        rows = [
            (step["id"], number, offset + at, data[at : at + size])
            for at in range(0, len(data), size)
        ]
        async with self.database.transaction() as connection:
            await connection.copy_records_to_table(
                "log_chunks", records=rows, columns=["step_id", "attempt", "start_offset", "data"]
            )
            await notify(connection, "fc_logs", str(step["id"]))


@pytest.fixture
async def world(database):
    """A small installation with something in every table that people read."""
    world = World(database)
    demo = await world.project("demo", description="A demonstration", homepage="https://e.org")
    main = await world.jobset(demo, "main", branch="main")
    await world.jobset(demo, "flake", nix_expression="hydraJobs", flake_mode=True)
    await world.add("jobset_inputs", jobset_id=main["id"], name="n", input_type="string", value="1")
    old = await world.evaluation(
        main, builds_ended_at=datetime.now(UTC), build_counts={"succeeded": 1}
    )
    await world.build(old, "hello")
    new = await world.evaluation(main, commit_hash="b" * 40, subject="Say hello", jobs=6, errors=1)
    await world.add(
        "evaluation_errors", evaluation_id=new["id"], nr=1, attr_path=["broken"],
        job_name="broken", message="attribute 'x' missing",
    )  # fmt: skip
    await world.add(
        "evaluation_inputs", evaluation_id=new["id"], name="n", input_type="string", value="1"
    )
    step = await world.step("hello")
    hello = await world.build(new, "hello", step=step, outputs={"out": "/nix/store/x"})
    await world.attempt(step, log=b"building\nhello\n", build=hello)
    await world.add(
        "build_steps", build_id=hello["id"], step_number=1, command="nix-store --realise",
        step_id=step["id"], attempt=1, status="succeeded", exit_code=0,
    )  # fmt: skip
    await world.add(
        "build_products", build_id=hello["id"], nr=1, name="hello.txt",
        path="/nix/store/" + "c" * 32 + "-hello/hello.txt", type="file", subtype="text",
    )  # fmt: skip
    await world.add(
        "build_metrics", build_id=hello["id"], metric_name="lines", metric_value=2.5, unit="n"
    )
    await world.add("step_outputs", step_id=step["id"], name="out", path="/nix/store/o", nar_size=9)
    bad = await world.step("bad", status="failed", error_message="builder failed")
    failed = await world.build(new, "bad", "failed", step=bad)
    await world.attempt(bad, status="failed", log=b"no\n", build=failed)
    await world.build(
        new, "needs-bad", "dependency_failed", root_cause_step_id=bad["id"], cached=False
    )
    await world.build(new, "waiting", "pending", step=await world.step("waiting", status="pending"))
    await world.build(new, "running", "running")
    all_ = await world.build(new, "all", is_aggregate=True)
    await world.add("constituents", build_id=all_["id"], constituent_build_id=hello["id"])
    await world.add("build_dependencies", build_id=all_["id"], dependency_build_id=hello["id"])
    stable = await world.add(
        "channels", project_id=demo["id"], name="stable", jobset_id=main["id"],
        current_evaluation_id=old["id"],
    )  # fmt: skip
    await world.add(
        "remote_builders", name="big-1", ssh_uri="ssh://nix@big-1", systems=["x86_64-linux"],
        ssh_key_secret="canary-secret-name", public_host_key="ssh-ed25519 AAAA",
    )  # fmt: skip
    await world.add(
        "service_heartbeats", owner="old", kind="agent", host="h",
        info={"offers": [{"name": "local", "systems": ["x86_64-linux"], "slots": 2}]},
    )  # fmt: skip
    await world.add("config_repositories", name="team", url="https://git.example.org/ci.git")
    await world.add(
        "managed_resources", source_kind="ConfigRepository", source_name="team", kind="Project",
        namespace="default", name="demo", identity="demo", owns=True, path="demo.yaml", line=1,
        revision="c" * 40, spec_hash="h", spec={},
        conditions=[{"type": "Ready", "status": "True", "reason": "Reconciled", "message": ""}],
    )  # fmt: skip
    hidden = await world.project("hidden", visibility="private")
    jobset = await world.jobset(hidden, "secret")
    evaluation = await world.evaluation(jobset)
    step = await world.step("secret")
    build = await world.build(evaluation, "secret", step=step)
    await world.attempt(step, log=b"a private log\n", build=build)
    await world.add("channels", project_id=hidden["id"], name="hush", jobset_id=jobset["id"])
    world.ids = {
        "demo": demo, "main": main, "old": old, "new": new, "hello": hello, "bad": failed,
        "hidden": hidden, "secret_jobset": jobset, "secret_evaluation": evaluation,
        "secret_build": build, "secret_step": step, "all": all_, "stable": stable,
    }  # fmt: skip
    return world
