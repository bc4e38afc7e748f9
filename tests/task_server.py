"""A server that speaks the task protocol and a signing binary cache over real HTTP, to be broken at
will; and an executor that gives its steps to an agent of that server.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import orjson
from aiohttp import web

from fc_operator.access import tasks
from fc_operator.app.agent import Agent
from fc_operator.cache import narinfos, signing
from fc_operator.executors.cached import ref_of
from fc_operator.executors.local import own_system
from fc_operator.executors.protocol import Capacity, StepRef, StopReason
from fc_operator.kit import compression
from fc_operator.kit.ciphers import Ed25519Key
from fc_operator.model.ids import StepId, TaskId
from fc_operator.model.tasks import LogChunk, StepEnded, StepEvent, StepOrder
from fc_operator.model.work import NixWork, NumberedEvent, StepsWork, lines_of
from fc_operator.settings import AgentSettings

KEY = signing.SigningKey("test-1", Ed25519Key(b"1" * 32))
_PIECE_BYTES = 64 * 1024


class TaskServer:
    """One task. What was told stands in its attributes; ``happened`` is the order of it all.

    ``broken`` counts requests that are done and then answered by a broken connection; ``chance``
    breaks a third of all, before or after they are done; ``refuse`` maps the end of a path, or a
    method of the cache, to statuses that are given one after the other (0: none).
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
        self.stream: list[StepEvent] = []
        """Log pieces and events as they came."""
        self.reports: list[list[dict]] = []
        self.checkout: dict | None = None
        self.ended: dict | None = None
        self.beats: list[list] = []
        self.cancel: list[list[int]] = []
        self.cancel_task = ""
        self.gone = False
        self.lost: set[tuple[int, int]] = set()
        self.broken = 0
        self.chance: random.Random | None = None
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
        fate = self.chance.random() if self.chance is not None else 1.0
        if fate < 0.1:
            request.transport.abort()
        if fate < 0.2:
            return web.json_response({"title": "Unavailable"}, status=503)
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
        if fate < 0.35:
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
                self.stream.append(event.event)
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
        more = body[there - offset :]
        for start in range(0, len(more), _PIECE_BYTES):
            piece = more[start : start + _PIECE_BYTES]
            self.stream.append(
                LogChunk(step_id=StepId(key[0]), attempt=key[1], offset=there + start, data=piece)
            )
        self.logs[key] += more
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


class AgentExecutor:
    """Steps as they come back from an agent; one batch at a time. See ``executors.protocol``."""

    name = "agent"

    def __init__(self, server: TaskServer, env: Mapping[str, str], folder: Path) -> None:
        self._server, self._env, self._folder = server, dict(env), folder
        self._running: set[StepRef] = set()
        self._stopping = asyncio.Event()

    async def capacity(self) -> Capacity:
        return Capacity(
            slots_total=2, slots_free=2 - len(self._running), systems=(own_system(),), sandbox="Pod"
        )

    async def adopt(self) -> tuple[StepRef, ...]:
        return ()

    async def cancel(self, ref: StepRef, reason: StopReason) -> bool:
        if ref not in self._running:
            return False
        if reason is StopReason.CANCELLED:
            self._server.cancel.append([ref.step_id, ref.attempt])
        else:
            self._stopping.set()
        return True

    async def start(self, orders: Sequence[StepOrder]) -> AsyncGenerator[StepEvent, None]:
        server = self._server
        server.phases.clear()
        server.events.clear()
        server.stream.clear()
        self._running = {ref_of(order) for order in orders}
        server.work = StepsWork(
            task_id=server.task_id,
            orders=tuple(orders),
            slots=2,
            systems=(own_system(),),
            nix=server.nix_work(),
        )
        settings = AgentSettings(
            server=server.url,
            task=str(server.task_id),
            token=server.opening.text,
            folder=self._folder,
        )
        agent = asyncio.create_task(Agent(settings, self._env).run(self._stopping))
        told = 0
        try:
            while self._running:
                await server.until(lambda seen=told: len(server.stream) > seen)
                for event in server.stream[told:]:
                    told += 1
                    if isinstance(event, StepEnded):
                        self._running.discard(ref_of(event))
                    yield event
            await agent
        finally:
            agent.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await agent
            self._running.clear()
