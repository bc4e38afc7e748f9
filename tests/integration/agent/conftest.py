"""A server that speaks the task protocol and a signing binary cache over real HTTP, to be broken at
will; a private Nix store that is emptied between pods; and agents in this process.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib.util
import itertools
import shutil
import subprocess
import sys
import uuid
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from aiohttp import web

from fc_operator.access import tasks
from fc_operator.app.agent import Agent
from fc_operator.cache import narinfos, signing
from fc_operator.executors.local import own_system
from fc_operator.kit import compression
from fc_operator.kit.ciphers import Ed25519Key
from fc_operator.model.ids import StepId, TaskId
from fc_operator.model.tasks import StepEnded, StepOrder
from fc_operator.model.work import NixWork, NumberedEvent, StepsWork, lines_of
from fc_operator.settings import AgentSettings

KEY = signing.SigningKey("test-1", Ed25519Key(b"1" * 32))


def load(name: str, path: Path):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_shared = load(
    "executors_conftest", Path(__file__).parents[2] / "conformance" / "executors" / "conftest.py"
)


class PodNix(_shared.NixHome):
    """A store, and a home, that can be emptied, as each pod's are at first."""

    def forget_all(self) -> None:
        shutil.rmtree(self.dir / "var" / "gcroots" / "fc", ignore_errors=True)
        self.run("nix-store", "--gc")
        # What it remembers of caches: as it was uploaded, without the cache's signature.
        shutil.rmtree(self.dir / ".cache", ignore_errors=True)

    def holds(self, path: str) -> bool:
        argv = ["nix-store", "--check-validity", path]
        return subprocess.run(argv, env=self.env, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def nix(shared_build_users):
    home = PodNix(shared_build_users)
    yield home
    home.close()


class TaskServer:
    """One task. What was told stands in its attributes; ``happened`` is the order of it all.

    ``broken`` counts requests that are done and then answered by a broken connection, ``refuse``
    maps a path's end to a status and how often it is given.
    """

    def __init__(self, store_dir: Path) -> None:
        self.task_id = TaskId(uuid.uuid4())
        self.opening = tasks.make(self.task_id)
        self.store_dir = str(store_dir)
        self.work = None
        self.lease_s, self.heartbeat_s = 30.0, 0.2
        self.credentials: list[dict] = []
        self.phases: dict[str, str] = {}
        self.events: list[NumberedEvent] = []
        self.logs: dict[tuple[int, int], bytes] = defaultdict(bytes)
        self.reports: list[list[dict]] = []
        self.checkout: dict | None = None
        self.ended: dict | None = None
        self.beats: list[list] = []
        self.cancel: list[list[int]] = []
        self.cancel_task = ""
        self.gone = False
        self.lost: set[tuple[int, int]] = set()
        self.broken = 0
        self.refuse: dict[str, list[int]] = {}
        self.objects: dict[str, bytes] = {}
        self.happened: list[str] = []
        self.changed = asyncio.Condition()
        self.port = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def cache_url(self) -> str:
        return f"{self.url}/cache"

    def nix_work(self) -> NixWork:
        return NixWork(
            store_dir=self.store_dir, cache_url=self.cache_url, cache_public_keys=(KEY.public,)
        )

    async def up(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/api/v1/tasks/{task}/{name}", self._task)
        app.router.add_route("*", "/cache/{path:.*}", self._cache)
        self._runner = web.AppRunner(app, shutdown_timeout=0, auto_decompress=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def down(self) -> None:
        """As a killed server: connections break, nobody listens."""
        runner, self._runner = self._runner, None
        if runner is not None:
            for handler in list(runner.server.connections):
                handler.transport.abort()
            await runner.cleanup()

    async def until(self, check, timeout_s: float = 60) -> None:
        """Wait until ``check()``, looked at after each request."""
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(check)

    async def _tell(self, what: str) -> None:
        self.happened.append(what)
        async with self.changed:
            self.changed.notify_all()

    def _refusal(self, path: str) -> web.Response | None:
        for end, statuses in self.refuse.items():
            if path.endswith(end) and statuses:
                status = statuses.pop(0)
                if status:
                    return web.json_response({"title": "refused"}, status=status)
        return None

    # The task protocol ------------------------------------------------------------------------

    async def _task(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = await request.read()
        assert request.match_info["task"] == str(self.task_id)
        if refusal := self._refusal(f"/{name}"):
            return refusal
        if self.gone:
            return web.json_response({"title": "Gone"}, status=410)
        token = tasks.parse(request.headers["Authorization"].removeprefix("Bearer "))
        if name == "open":
            wanted = token == self.opening
        else:
            wanted = token is not None and token.hash in self.phases.values()
        if not wanted:
            return web.json_response({"title": "Unauthorized"}, status=401)
        if request.headers.get("Content-Encoding") == "zstd":
            body = compression.decompress_frame(body, 1 << 26)
        answer, status = getattr(self, f"_{name}")(request, body)
        await self._tell(name)
        if self.broken and name != "heartbeat":
            self.broken -= 1
            request.transport.abort()
        return web.json_response(answer, status=status)

    def _open(self, _, body):
        data = orjson.loads(body)
        if self.phases.setdefault(data["phase"], data["token_hash"]) != data["token_hash"]:
            return {"title": "opened by another"}, 409
        return {
            "work": self.work.to_json(),
            "lease_s": self.lease_s,
            "heartbeat_s": self.heartbeat_s,
        }, 200

    def _credentials(self, *_):
        if self.checkout is not None:
            return {"title": "fetched already"}, 404
        return {"credentials": self.credentials}, 200

    def _fetched(self, _, body):
        self.checkout = orjson.loads(body)["checkout"]
        return {}, 200

    def _heartbeat(self, _, body):
        self.beats.append(orjson.loads(body)["running"])
        return {
            "lease_s": self.lease_s,
            "cancel": self.cancel,
            "cancel_task": bool(self.cancel_task),
            "reason": self.cancel_task,
        }, 200

    def _events(self, _, body):
        for line in lines_of(body):
            event = NumberedEvent.from_json(line)
            if event.seq > len(self.events):
                return {"expected": len(self.events)}, 409
            if event.seq == len(self.events):
                self.events.append(event)
                self.happened.append(f"{line['type']} {line['step_id']}")
        return {"next": len(self.events)}, 200

    def _rows(self, request, body):
        seq = int(request.query["seq"])
        if seq > len(self.reports):
            return {"expected": len(self.reports)}, 409
        if seq == len(self.reports):
            self.reports.append(list(lines_of(body)))
        return {"next": len(self.reports)}, 200

    def _log(self, request, body):
        key = int(request.query["step"]), int(request.query["attempt"])
        if key in self.lost:
            return {"title": "the task does not hold this attempt"}, 410
        offset, there = int(request.query["offset"]), len(self.logs[key])
        if offset > there:
            return {"expected": there}, 409
        self.logs[key] += body[there - offset :]
        return {"next_offset": len(self.logs[key])}, 200

    def _end(self, _, body):
        self.ended = orjson.loads(body)
        return {}, 200

    # The cache --------------------------------------------------------------------------------

    async def _cache(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        body = await request.read()
        if refusal := self._refusal(path) or self._refusal(request.method):
            return refusal
        scheme, _, word = request.headers.get("Authorization", "").partition(" ")
        _, _, password = base64.b64decode(word).decode().partition(":")
        token = tasks.parse(password)
        if scheme != "Basic" or token is None or token.hash not in self.phases.values():
            return web.Response(status=401)
        if path == "nix-cache-info":
            return web.Response(text=f"StoreDir: {self.store_dir}\nWantMassQuery: 1\n")
        if request.method == "PUT":
            if path.endswith(".narinfo"):
                info = narinfos.parse(body, store_dir=self.store_dir)
                text = narinfos.fingerprint(
                    info.store_path, info.nar_hash, info.nar_size_bytes, info.references
                )
                body = narinfos.render(replace(info, signatures=(*info.signatures, KEY.sign(text))))
                await self._tell(f"cached {info.store_path}")
            self.objects[path] = body
            return web.Response(status=201)
        if path not in self.objects:
            return web.Response(status=404)
        return web.Response(body=self.objects[path])

    def caches(self, path: str) -> bool:
        return f"{Path(path).name[:32]}.narinfo" in self.objects

    # What was told ----------------------------------------------------------------------------

    def end_of(self, order: StepOrder):
        """The one end that was told of a step."""
        (end,) = [
            each.event
            for each in self.events
            if isinstance(each.event, StepEnded) and each.event.step_id == order.step_id
        ]
        return end

    def log_of(self, order: StepOrder) -> bytes:
        return self.logs[order.step_id, order.attempt]


@pytest.fixture
async def server(nix):
    server = TaskServer(nix.store_dir)
    await server.up()
    yield server
    await server.down()


_steps = itertools.count(1)


@pytest.fixture
def batch(server, nix):
    """Make ``server`` give out a new task: steps whose derivations are in the cache and nowhere
    else; those of ``also`` too, for later.
    """

    async def make(*drvs: str, also=(), **more) -> tuple[StepOrder, ...]:
        server.phases.clear()
        server.events.clear()
        own = tasks.make(server.task_id)
        server.phases["uploads of the test"] = own.hash
        here = [drv for drv in (*drvs, *also) if nix.holds(drv)]
        if here:
            await upload(nix, server, own.text, ["--derivation", *here])
        nix.forget_all()
        assert not any(nix.holds(drv) for drv in drvs), "the pod's store is empty"
        orders = tuple(
            StepOrder(
                step_id=StepId(next(_steps)),
                attempt=1,
                task_id=server.task_id,
                drv_path=drv,
                name="sample",
                system=own_system(),
                **more,
            )
            for drv in drvs
        )
        server.work = StepsWork(
            task_id=server.task_id,
            orders=orders,
            slots=2,
            systems=(own_system(),),
            nix=server.nix_work(),
            stop_grace_s=20,
        )
        return orders

    return make


async def upload(nix, server, password: str, words: list[str]) -> None:
    netrc = nix.dir / "netrc"
    netrc.write_text(f"machine 127.0.0.1 login fc password {password}\n")
    argv = ["nix", "copy", "--extra-experimental-features", "nix-command", "--to", server.cache_url]
    process = await asyncio.create_subprocess_exec(
        *argv, "--option", "netrc-file", str(netrc), *words, env=nix.env
    )
    assert await process.wait() == 0


class RunningAgent:
    def __init__(self, task, stopping) -> None:
        self.task, self.stopping = task, stopping

    async def ending(self, timeout_s: float = 120):
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(self.task)


@pytest.fixture
def agent(server, nix, tmp_path):
    """Start agents of ``server``'s task in this process; none outlives its block."""

    @asynccontextmanager
    async def start(phase: str = "work", **more):
        settings = AgentSettings(
            server=server.url,
            task=str(server.task_id),
            token=server.opening.text,
            phase=phase,
            folder=tmp_path / "work",
            **more,
        )
        settings.folder.mkdir(exist_ok=True)
        stopping = asyncio.Event()
        task = asyncio.create_task(Agent(settings, nix.env).run(stopping))
        try:
            yield RunningAgent(task, stopping)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    return start


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
