"""`fc up --cache`: the machine's own Nix takes back from the cache what it has lost."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace

import aiohttp
import pytest

from fc_operator.app.up import Up
from fc_operator.cache.narinfos import hash_part_of
from fc_operator.clients.nix import Nix
from fc_operator.operations.cache import Publisher
from fc_operator.settings import (
    CacheSettings,
    DatabaseSettings,
    NixSettings,
    Settings,
    StateSettings,
    WebSettings,
)

pytestmark = pytest.mark.nix


@pytest.fixture
def settings(database_url, nix, tmp_path, monkeypatch):
    for name, value in nix.env.items():
        monkeypatch.setenv(name, value)
    return Settings(
        database=DatabaseSettings(url=database_url),
        state=StateSettings(dir=tmp_path / "state"),
        nix=NixSettings(store_dir=str(nix.store_dir), sandbox="None"),
        web=WebSettings(port=0),
        cache=CacheSettings(enabled="Always"),
    )


async def test_what_is_private_is_taken_back_with_the_machines_own_password(settings, nix):
    up = Up(settings)
    await up.start()
    try:
        parts = up._parts
        assert parts.nix.substituters == (f"{up.url}/cache",)
        assert settings.nix.substituters == (), "evaluators know nothing of it"
        netrc = settings.state.dir / "cache.netrc"
        assert stat.S_IMODE(netrc.stat().st_mode) == 0o600
        own = Nix(parts.nix, parts.nix_environment())
        drv = nix.drv("echo mine > $out")
        out = await asyncio.to_thread(nix.run, "nix-store", "--realise", drv)
        async with parts.database.session() as connection:
            project = await connection.fetchval(
                "INSERT INTO projects (name, repository_url, visibility)"
                " VALUES ('own', 'https://e.org/x', 'private') RETURNING id"
            )
        publisher = Publisher(cache=parts.cache, nix=own, database=parts.database)
        await publisher.publish([out], [project])
        async with aiohttp.ClientSession() as session:
            narinfo = f"{up.url}/cache/{hash_part_of(out)}.narinfo"
            async with session.get(narinfo) as answer:
                assert answer.status == 404, "it is not for strangers"
        await asyncio.to_thread(nix.run, "nix-store", "--delete", out)
        missing = await own.missing([drv])
        assert missing.will_build == ()
        assert missing.will_fetch == {out}
        options = [
            "--option", "substituters", " ".join(parts.nix.substituters),
            "--option", "trusted-public-keys", " ".join(parts.nix.trusted_public_keys),
            "--option", "max-jobs", "0",
        ]  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            "nix-store", "--realise", drv, *options, env=parts.nix_environment()
        )
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        await up.stop()


async def test_without_being_asked_there_is_none(settings):
    up = Up(replace(settings, cache=CacheSettings()))
    await up.start()
    try:
        async with aiohttp.ClientSession() as session:
            for name in ("cache/nix-cache-info", "api/v1/cache"):
                async with session.get(f"{up.url}/{name}") as answer:
                    assert answer.status == 404
        assert not (settings.state.dir / "cache.netrc").exists()
    finally:
        await up.stop()
