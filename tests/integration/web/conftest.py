"""A real service over HTTP: Sanic on a free loopback port, PostgreSQL, an aiohttp client."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest

from fc_operator.clients.objects import ObjectStore
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.statuses import Role
from fc_operator.operations import keys
from fc_operator.settings import Settings, StateSettings, WebSettings
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
        service = WebService(
            database=database,
            listener=listener,
            objects=objects,
            cipher=cipher,
            settings=settings,
        )
        await listener.start()
        await service.start()
        try:
            async with aiohttp.ClientSession() as session:
                yield Served(service, session, database, cipher, objects)
        finally:
            await service.stop()
            await listener.stop()

    return start


@pytest.fixture
async def web(serve):
    """The service as `fc up` has it: on loopback, reads open."""
    async with serve() as served:
        yield served
