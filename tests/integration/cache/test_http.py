"""The cache as any HTTP client sees it: HEAD, ranges, ETags, and who may read what."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json

import pytest

from fc_operator.cache import content_addresses, narinfos
from fc_operator.errors import UnavailableError
from fc_operator.model.statuses import Role
from fc_operator.settings import CacheSettings
from fc_operator.store import cache_paths


@pytest.fixture
async def upload(served, tools):
    """An output of the project ``demo``, whose visibility tests change."""
    project = await served.project()
    upload = tools.Upload(str(served.nix.store_dir), "out", tools.file_nar(bytes(range(256)) * 400))
    drv = f"{served.nix.store_dir}/{'0' * 31}2-out.drv"
    _, token = await served.task(project, drvs=[(drv, {"out": upload.path})])
    await upload.put(served, token)
    upload.token, upload.project = token, project
    return upload


def forget(served):
    """Ask the database again."""
    served.cache._paths._kept.clear()
    served.cache._files._kept.clear()


async def test_nix_cache_info_is_for_everybody(serve):
    """Else an old client takes the whole cache for none and never asks again."""
    async with serve(anonymous_read="Never") as served:
        body, headers = await served.request("GET", "nix-cache-info")
        assert body.decode() == (
            f"StoreDir: {served.nix.store_dir}\nWantMassQuery: 1\nPriority: 30\n"
        )
        assert headers["Content-Type"] == "text/x-nix-cache-info"
        body, _ = await served.request("HEAD", "nix-cache-info")
        assert body == b""


async def test_a_narinfo_is_text_with_an_etag(served, upload):
    name = f"{upload.hash_part}.narinfo"
    body, headers = await served.request("GET", name)
    assert headers["Content-Type"] == "text/x-nix-narinfo"
    info = narinfos.parse(body, store_dir=str(served.nix.store_dir))
    assert info.store_path == upload.path
    assert info.deriver == f"{'0' * 31}2-out.drv"
    assert len(info.signatures) == 1
    empty, head = await served.request("HEAD", name)
    assert empty == b""
    assert int(head["Content-Length"]) == len(body)
    assert head["ETag"] == headers["ETag"]
    await served.request("GET", name, status=304, **{"If-None-Match": headers["ETag"]})
    await served.request("GET", f"{'0' * 32}.narinfo", status=404)
    await served.request("GET", "something", status=404)


async def test_a_nar_is_sent_whole_by_range_and_not_twice(served, upload):
    whole, headers = await served.request("GET", upload.nar_name)
    assert whole == upload.file
    assert headers["Content-Type"] == "application/x-nix-nar"
    assert headers["ETag"] == f'"{upload.file_hash}"'
    empty, head = await served.request("HEAD", upload.nar_name)
    assert empty == b""
    assert int(head["Content-Length"]) == len(whole)
    half = len(whole) // 2
    for wanted, expected in (
        (f"bytes={half}-", whole[half:]),
        ("bytes=0-9", whole[:10]),
        ("bytes=-7", whole[-7:]),
    ):
        part, _ = await served.request("GET", upload.nar_name, status=206, Range=wanted)
        assert part == expected
    await served.request("GET", upload.nar_name, status=416, Range=f"bytes={len(whole)}-")
    other = {"Range": "bytes=0-9", "If-Range": '"another"'}
    again, _ = await served.request("GET", upload.nar_name, **other)
    assert again == whole
    await served.request("GET", upload.nar_name, status=304, **{"If-None-Match": headers["ETag"]})


async def test_a_listing_says_where_each_file_is(served, upload):
    body, _ = await served.request("GET", f"{upload.hash_part}.ls")
    listing = json.loads(body)
    root = listing["root"]
    assert root["type"] == "regular"
    assert upload.nar[root["narOffset"] :][: root["size"]] == bytes(range(256)) * 400


def basic(password, user="fc"):
    pair = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


async def test_public_and_private_projects(served, upload):
    """Strangers, members, others, tasks; with Basic, as Nix sends a netrc, and with Bearer."""
    user = await served.one("INSERT INTO users (username) VALUES ('ann') RETURNING id")
    await served.sql(
        "INSERT INTO project_members (project_id, user_id, role) VALUES ($1, $2, 'member')",
        upload.project,
        user,
    )
    member = await served.key(Role.READ_ONLY, user="ann")
    other = await served.key(Role.READ_ONLY)
    admin = await served.key()
    foreign_project = await served.project("foreign")
    _, foreign = await served.task(
        foreign_project, drvs=[(f"{served.nix.store_dir}/{'0' * 31}7-x.drv", {})]
    )
    names = (f"{upload.hash_part}.narinfo", f"{upload.hash_part}.ls", upload.nar_name)

    async def expect(status, headers):
        for name in names:
            for method in ("GET", "HEAD"):
                await served.request(method, name, status=status, **headers)

    readers = [member, admin, upload.token]
    strangers = [other, foreign]
    for visibility, public, is_open in (
        ("public", None, True),
        ("private", None, False),
        ("private", True, True),
        ("public", False, False),
    ):
        await served.sql(
            "UPDATE projects SET visibility = $2, cache_public = $3 WHERE id = $1",
            upload.project,
            visibility,
            public,
        )
        forget(served)
        await expect(200 if is_open else 404, {})
        for token in strangers:
            await expect(200 if is_open else 404, {"Authorization": f"Bearer {token}"})
            await expect(200 if is_open else 404, basic(token))
        for token in readers:
            await expect(200, {"Authorization": f"Bearer {token}"})
            await expect(200, basic(token, user="anybody"))
    for bad in (
        {"Authorization": "Bearer fc_nonsense"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Digest x"},
        basic("fct_nonsense"),
        basic("fcl_nonsense"),
        basic(""),
    ):
        await expect(401, bad)


async def test_a_closed_installation_lets_no_stranger_read(serve, tools):
    async with serve(anonymous_read="Never") as served:
        project = await served.project()
        upload = tools.Upload(str(served.nix.store_dir), "out", tools.file_nar(b"x"))
        drv = f"{served.nix.store_dir}/{'0' * 31}2-out.drv"
        _, token = await served.task(project, drvs=[(drv, {"out": upload.path})])
        await upload.put(served, token)
        for name in (f"{upload.hash_part}.narinfo", upload.nar_name, f"{'0' * 32}.narinfo"):
            await served.request("GET", name, status=401)
        key = await served.key(Role.READ_ONLY)
        await served.request("GET", f"{upload.hash_part}.narinfo", token=key)


async def test_what_an_administrator_brought_is_for_all_who_are_known(served, tools):
    upload = tools.Upload(str(served.nix.store_dir), "out", tools.file_nar(b"x"))
    await upload.put(served, await served.key())
    name = f"{upload.hash_part}.narinfo"
    await served.request("GET", name, status=404)
    await served.request("GET", name, token=await served.key(Role.READ_ONLY))
    written = await served.sql("SELECT actor, object FROM audit_log WHERE action = 'cache'")
    assert [row["object"] for row in written] == [upload.path]
    assert written[0]["actor"].startswith("key/")


async def test_a_member_who_is_none_any_more_reads_nothing_within_seconds(served, upload):
    await served.sql("UPDATE projects SET visibility = 'private'")
    forget(served)
    await served.request("GET", f"{upload.hash_part}.narinfo", token=upload.token)
    await served.sql("UPDATE tasks SET state = 'ended'")
    served.service.context.callers.clear()
    await served.request("GET", f"{upload.hash_part}.narinfo", token=upload.token, status=401)


async def test_the_interface_tells_keys_and_sizes(served, upload):
    async with served.session.get(f"{served.url}/api/v1/cache") as answer:
        row = await answer.json()
    assert row == {
        "path": "/cache",
        "public_keys": list(served.cache.public_keys),
        "store_dir": str(served.nix.store_dir),
        "priority": 30,
        "paths": 1,
        "nar_bytes": len(upload.nar),
        "file_bytes": len(upload.file),
    }


async def test_old_fixed_outputs_are_hashed_by_reading_them_once_more(served, tools):
    """sha1 and md5, flat and recursive, which are not noted when a NAR comes."""
    key = await served.key()
    store_dir = str(served.nix.store_dir)
    nar = tools.file_nar(b"content\n")
    for number, address in enumerate(
        (
            f"fixed:sha1:{hashlib.sha1(b'content' + bytes([10])).hexdigest()}",
            f"fixed:r:sha1:{hashlib.sha1(nar).hexdigest()}",
            f"fixed:r:sha512:{hashlib.sha512(nar).hexdigest()}",
        )
    ):
        path = content_addresses.path_of(
            content_addresses.parse(address), f"name-{number}", (), store_dir=store_dir
        )
        part = path.rsplit("/", 1)[-1][:32]
        await tools.Upload(store_dir, f"name-{number}", nar, hash_part=part, CA=address).put(
            served, key
        )
    assert await served.one("SELECT count(*) FROM cache_paths") == 3


async def test_many_uploads_at_once_wait_for_their_turn(serve, tools):
    """More senders than threads: all come through, the loop answers meanwhile."""
    async with serve(cache_settings=CacheSettings(uploads_max=2)) as served:
        key = await served.key()
        uploads = [
            tools.Upload(
                str(served.nix.store_dir), f"n{number}", tools.file_nar(bytes([number]) * 300_000)
            )
            for number in range(12)
        ]
        async with asyncio.timeout(60):
            await asyncio.gather(*(upload.put(served, key) for upload in uploads))
        assert await served.one("SELECT count(*) FROM cache_paths") == 12


async def test_all_paths_of_a_closure_are_asked_for_together(served, tools, monkeypatch):
    """Side by side, the same one twice, those that are not there; and while the database is away."""
    key = await served.key()
    uploads = [
        tools.Upload(str(served.nix.store_dir), f"n{number}", tools.file_nar(b"%d" % number))
        for number in range(20)
    ]
    for upload in uploads:
        await upload.put(served, key)
    forget(served)
    asked = []
    plain = cache_paths.list_paths

    async def list_paths(connection, hash_parts):
        asked.append(len(hash_parts))
        return await plain(connection, hash_parts)

    monkeypatch.setattr(cache_paths, "list_paths", list_paths)
    names = [f"{upload.hash_part}.narinfo" for upload in uploads]
    answers = await asyncio.gather(
        *(served.request("GET", name, token=key) for name in [*names, *names]),
        *(served.request("GET", f"{'0' * 31}{n}.narinfo", token=key, status=404) for n in range(9)),
    )
    for upload, (body, _) in zip([*uploads, *uploads], answers, strict=False):
        assert f"StorePath: {upload.path}\n".encode() in body
    # One that is on its way is not joined: it may have looked before the path came.
    assert sum(asked) < 49
    assert len(asked) < 15

    async def away(*_):
        raise UnavailableError("PostgreSQL is away")

    forget(served)
    monkeypatch.setattr(cache_paths, "list_paths", away)
    await asyncio.gather(
        *(served.request("GET", name, token=key, status=503) for name in names[:5])
    )
    monkeypatch.undo()
    await served.request("GET", names[0], token=key)
