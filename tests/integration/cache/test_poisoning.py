"""Attempts to make the cache serve what it must not (security, C07): each one is refused.

After each attempt nothing of it can be read, and nothing of it is left in the object store.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import resource

import pytest
from aiohttp import ClientError
from yarl import URL

from fc_operator.cache import content_addresses, hashes
from fc_operator.clients.registrations import nix32
from fc_operator.kit.compression import Compressor
from fc_operator.model.statuses import Role
from fc_operator.settings import CacheSettings


class Attacker:
    """A task of kind steps that holds one step, with output ``path``, and forges uploads."""

    def __init__(self, served, tools):
        self.served, self.tools = served, tools
        self.store_dir = str(served.nix.store_dir)
        self.path = f"{self.store_dir}/{'0' * 31}1-out"
        self.task_id = self.token = self.project_id = None

    async def begin(self):
        self.project_id = await self.served.project()
        drv = f"{self.store_dir}/{'0' * 31}2-out.drv"
        self.task_id, self.token = await self.served.task(
            self.project_id, drvs=[(drv, {"out": self.path})]
        )
        return self

    def upload(self, content=b"fine\n", *, nar=None, **lines):
        """What would be accepted, but for what is falsified."""
        nar = self.tools.file_nar(content) if nar is None else nar
        part = self.path.rsplit("/", 1)[-1][:32]
        return self.tools.Upload(self.store_dir, "out", nar, hash_part=part, **lines)

    async def refused(self, upload, status):
        """The narinfo is refused with ``status`` and the path is not there."""
        await upload.put(self.served, self.token, status=status)
        await self.nothing()

    async def nothing(self):
        served = self.served
        assert await served.one("SELECT count(*) FROM cache_paths") == 0
        key = await served.key()
        for suffix in ("narinfo", "ls"):
            name = f"{self.path.rsplit('/', 1)[-1][:32]}.{suffix}"
            await served.request("GET", name, token=key, status=404)

    async def nothing_stored(self):
        assert [each.key async for each in self.served.objects.list("cache/")] == []
        folder = self.served.folder / "objects"
        async with asyncio.timeout(10):
            # What was written of it goes in a thread of the library.
            while [path for path in folder.rglob("*") if path.is_file()]:
                await asyncio.sleep(0.01)
        await self.nothing()


@pytest.fixture
async def attacker(served, tools):
    return await Attacker(served, tools).begin()


async def test_what_is_not_falsified_is_accepted(attacker):
    """Else every test below would pass for nothing."""
    upload = attacker.upload()
    await upload.put(attacker.served, attacker.token)
    body, _ = await attacker.served.request("GET", f"{upload.hash_part}.narinfo")
    assert f"StorePath: {attacker.path}\n".encode() in body
    body, _ = await attacker.served.request("GET", upload.nar_name)
    assert body == upload.file


async def test_c07_01_a_file_that_has_another_hash_than_its_name(attacker):
    upload = attacker.upload()
    other = attacker.tools.zstd(attacker.tools.file_nar(b"evil\n"))
    await attacker.served.request(
        "PUT", upload.nar_name, data=other, token=attacker.token, status=400
    )
    await attacker.nothing_stored()


async def test_c07_01_a_large_file_that_is_found_out_at_its_very_end(attacker):
    """Most of it has been written by then, in several parts; nothing of them stays."""
    nar = attacker.tools.file_nar(random.Random(1).randbytes(20 * 1024 * 1024))
    name = nix32(hashlib.sha256(b"another").digest())
    for data, suffix in ((attacker.tools.zstd(nar), "nar.zst"), (nar, "nar")):
        await attacker.served.request(
            "PUT", f"nar/{name}.{suffix}", data=io.BytesIO(data), token=attacker.token, status=400
        )
        await attacker.nothing_stored()


async def test_c07_02_a_narinfo_with_another_nar_hash(attacker):
    other = hashes.sha256_text(hashlib.sha256(b"another").digest())
    await attacker.refused(attacker.upload(NarHash=other), 400)


@pytest.mark.parametrize("lines", [{"NarSize": "7"}, {"FileSize": "7"}, {"NarSize": "0"}])
async def test_c07_03_a_narinfo_with_another_size(attacker, lines):
    await attacker.refused(attacker.upload(**lines), 400)


async def test_c07_04_a_path_outside_the_task(attacker, tools):
    """Neither what nobody builds, nor an output of a step that another task holds."""
    served = attacker.served
    foreign = tools.Upload(attacker.store_dir, "foreign", tools.file_nar(b"evil\n"))
    await attacker.refused(foreign, 403)
    other = await served.project("other")
    drv = f"{attacker.store_dir}/{'0' * 31}3-foreign.drv"
    await served.task(other, drvs=[(drv, {"out": foreign.path})])
    await attacker.refused(foreign, 403)


async def test_c07_05_references_that_the_cache_does_not_have(attacker):
    """Also not one that has the hash of a path that is there, but another name."""
    missing = f"{'0' * 31}9-missing"
    await attacker.refused(attacker.upload(References=missing), 400)
    twin = f"{attacker.path.rsplit('/', 1)[-1][:32]}-twin"
    await attacker.refused(attacker.upload(References=twin), 400)
    await attacker.refused(attacker.upload(References=f"{missing} {missing}"), 400)


async def test_c07_06_decompression_bombs(serve, tools, tmp_path):
    """Much from little: ended at the limit, in little memory, and nothing stored."""
    limit = 64 * 1024 * 1024
    async with serve(cache_settings=CacheSettings(nar_bytes_max=limit)) as served:
        attacker = await Attacker(served, tools).begin()
        compressor = Compressor()
        size = 4 * 1024**3
        head = tools.texts(b"nix-archive-1", b"(", b"type", b"regular", b"contents")
        bomb = compressor.add(head + size.to_bytes(8, "little"))
        zeros = bytes(1024 * 1024)
        for _ in range(size // len(zeros)):
            bomb += compressor.add(zeros)
        bomb += compressor.add(tools.texts(b")")) + compressor.finish()
        # A window of 2 GiB, which a careless reader sets aside at once.
        window = b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for data in (bomb, window):
            name = nix32(hashlib.sha256(data).digest())
            await served.request(
                "PUT", f"nar/{name}.nar.zst", data=data, token=attacker.token, status=400
            )
            await attacker.nothing_stored()
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < limit


async def test_c07_07_a_token_whose_task_is_over(attacker):
    """A replayed token, one whose lease ran out, a changed one, one of nothing."""
    served = attacker.served
    upload = attacker.upload()
    await served.request("PUT", upload.nar_name, data=upload.file, token=attacker.token)

    async def refused(token, status=401):
        for name, data in ((f"{upload.hash_part}.narinfo", upload.narinfo),
                           (upload.nar_name, upload.file)):  # fmt: skip
            await served.request("PUT", name, data=data, token=token, status=status)
        await attacker.nothing()

    last = "A" if attacker.token[-1] != "A" else "E"
    await refused(attacker.token[:-1] + last)
    await refused(f"fct_{'0' * 32}_{attacker.token[37:]}")
    await refused("fct_")
    served.service.context.callers.clear()
    await served.sql("UPDATE tasks SET expires_at = now() - interval '1 second'")
    await refused(attacker.token)
    await served.sql("UPDATE tasks SET expires_at = now() + interval '1 hour', state = 'ended'")
    await refused(attacker.token)


async def test_c07_07_a_task_that_ends_between_its_nar_and_its_narinfo(attacker):
    """Also while the token is still remembered: the database is asked in the transaction."""
    served = attacker.served
    upload = attacker.upload()
    await served.request("PUT", upload.nar_name, data=upload.file, token=attacker.token)
    await served.sql("UPDATE tasks SET state = 'lost'")
    await served.request(
        "PUT", f"{upload.hash_part}.narinfo", data=upload.narinfo, token=attacker.token, status=401
    )
    await attacker.nothing()


async def test_c07_08_a_step_that_went_to_another_task(attacker):
    """A stale attempt: the task lives, but holds the step no more."""
    served = attacker.served
    other, _ = await served.task(attacker.project_id)
    await served.sql("UPDATE leases SET task_id = $1, attempt = 2", other)
    await attacker.refused(attacker.upload(), 403)
    # Nor anything else, for nobody could say whose it is.
    content = b"said\n"
    address = f"fixed:sha256:{hashlib.sha256(content).hexdigest()}"
    path = content_addresses.path_of(
        content_addresses.parse(address), "said", (), store_dir=attacker.store_dir
    )
    honest = attacker.tools.Upload(
        attacker.store_dir, "said", attacker.tools.file_nar(content),
        hash_part=path.rsplit("/", 1)[-1][:32], CA=address,
    )  # fmt: skip
    await attacker.refused(honest, 403)
    await served.sql("UPDATE leases SET task_id = $1, expires_at = now()", attacker.task_id)
    await attacker.refused(attacker.upload(), 403)


async def test_c07_09_path_traversal(attacker, tools):
    """In addresses, in every field of a narinfo, and in names inside of the NAR."""
    served, store_dir = attacker.served, attacker.store_dir
    for name in ("..%2f..%2fetc%2fpasswd", "nar/..%2f..%2fx.nar", "%2e%2e", "nar/%2e%2e", "a%00b"):
        for method in ("GET", "PUT"):
            data = None if method == "GET" else b"x"
            async with served.session.request(
                method,
                URL(f"{served.cache_url}/{name}", encoded=True),
                data=data,
                headers={"Authorization": f"Bearer {attacker.token}"},
            ) as answer:
                assert answer.status in {400, 404, 405}, name
    for lines in (
        {"StorePath": f"{store_dir}/../{attacker.path.rsplit('/', 1)[-1]}"},
        {"StorePath": f"/etc/{attacker.path.rsplit('/', 1)[-1]}"},
        {"StorePath": f"{attacker.path}/../../x"},
        {"URL": "../../../etc/passwd"},
        {"URL": "nar/../../../etc/passwd"},
        {"URL": "file:///etc/passwd"},
        {"URL": "http://127.0.0.1:1/nar/" + "0" * 52 + ".nar.zst"},
        {"References": "../x"},
        {"Deriver": "../x.drv"},
    ):
        await attacker.refused(attacker.upload(**lines), 400)
    file = tools.texts(b"(", b"type", b"regular", b"contents", b"x", b")")
    for name in (b"..", b".", b"", b"a/b", b"/etc/passwd", b"a\0b"):
        entry = tools.texts(b"entry", b"(", b"name", name, b"node") + file + tools.texts(b")")
        head = tools.texts(b"nix-archive-1", b"(", b"type", b"directory")
        bad = attacker.upload(nar=head + entry + tools.texts(b")"))
        await served.request("PUT", bad.nar_name, data=bad.file, token=attacker.token, status=400)
    await attacker.nothing()


async def test_c07_10_what_is_no_nar_as_nix_writes_it(attacker, tools):
    """Cut off, with more behind, out of order, twice the same: each could be read in two ways."""
    served = attacker.served
    good = tools.file_nar(b"fine\n")
    file = tools.texts(b"(", b"type", b"regular", b"contents", b"x", b")")

    def folder(*names):
        entries = [
            tools.texts(b"entry", b"(", b"name", name, b"node") + file + tools.texts(b")")
            for name in names
        ]
        head = tools.texts(b"nix-archive-1", b"(", b"type", b"directory")
        return head + b"".join(entries) + tools.texts(b")")

    padded = good.replace(b"fine\n\0\0\0", b"fine\n\0\0\1")
    for nar in (
        good[:-16], good + b"\0" * 8, good + good, b"", b"garbage", padded,
        folder(b"b", b"a"), folder(b"a", b"a"), folder(b"a")[:-16],
        tools.texts(b"nix-archive-1", b"(", b"type", b"device", b")"),
        tools.texts(b"nix-archive-1", b"(", b"type", b"symlink", b"target", b"", b")"),
    ):  # fmt: skip
        bad = attacker.upload(nar=nar)
        await served.request("PUT", bad.nar_name, data=bad.file, token=attacker.token, status=400)
    ok = attacker.upload()
    for file in (ok.file[:-3], ok.file + b"more", ok.file[:10]):
        name = nix32(hashlib.sha256(file).digest())
        await served.request(
            "PUT", f"nar/{name}.nar.zst", data=file, token=attacker.token, status=400
        )
    await attacker.nothing_stored()


@pytest.mark.parametrize("size", [100, 20 * 1024 * 1024])
async def test_c07_10_a_body_that_ends_before_its_announced_length(attacker, size):
    served = attacker.served
    upload = attacker.upload(random.Random(1).randbytes(size))
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    head = (
        f"PUT /cache/{upload.nar_name} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {attacker.token}\r\nContent-Length: {len(upload.file)}\r\n\r\n"
    )
    writer.write(head.encode() + upload.file[:-1])
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    async with asyncio.timeout(10):
        await reader.read()
        while served.cache._arrivals._turns._value < served.cache.settings.uploads_max:
            await asyncio.sleep(0.01)
    await attacker.nothing_stored()
    assert await served.one("SELECT count(*) FROM cache_nars") == 0


@pytest.mark.parametrize("kind", ["text", "flat", "recursive", "sha1"])
async def test_c07_11_a_content_address_that_is_a_lie(attacker, tools, kind):
    """A path that claims to name itself needs no signature, so the claim is looked at."""
    served, store_dir = attacker.served, attacker.store_dir
    said, nar = b"said\n", tools.file_nar(b"evil\n")
    digest = {
        "text": f"text:sha256:{nix32(hashlib.sha256(said).digest())}",
        "flat": f"fixed:sha256:{nix32(hashlib.sha256(said).digest())}",
        "recursive": f"fixed:r:sha256:{nix32(hashlib.sha256(tools.file_nar(said)).digest())}",
        "sha1": f"fixed:sha1:{hashlib.sha1(said).hexdigest()}",
    }[kind]
    path = content_addresses.path_of(
        content_addresses.parse(digest), "said", (), store_dir=store_dir
    )
    part = path.rsplit("/", 1)[-1][:32]
    lie = tools.Upload(store_dir, "said", nar, hash_part=part, CA=digest)
    await attacker.refused(lie, 400)
    # And one whose content is right, under a path that is not made from it.
    await attacker.refused(attacker.upload(said, CA=digest), 400)
    truth = tools.Upload(store_dir, "said", tools.file_nar(said), hash_part=part, CA=digest)
    await truth.put(served, attacker.token)
    assert await served.one("SELECT content_address FROM cache_paths") == digest


async def test_c07_12_another_content_under_a_path_that_is_there(attacker):
    """The first one stays, whoever comes second; the same once more is fine."""
    served = attacker.served
    first = attacker.upload()
    await first.put(served, attacker.token)
    await first.put(served, attacker.token)
    second = attacker.upload(b"evil\n")
    for token in (attacker.token, await served.key()):
        await second.put(served, token, status=409)
    body, _ = await served.request("GET", first.nar_name)
    assert body == first.file
    assert await served.one("SELECT nar_hash FROM cache_paths") == first.lines["NarHash"]


async def test_c07_13_an_evaluation_brings_only_what_names_itself(attacker, tools):
    served = attacker.served
    _, token = await served.task(attacker.project_id, kind="evaluation")
    attacker.token = token
    await attacker.refused(attacker.upload(), 403)


async def test_c07_14_signatures_that_are_not_what_they_seem(serve, tools):
    """Of a key that nobody trusts, over another path, under the name of a trusted key."""
    trusted = tools.OUTSIDE_KEY
    async with serve(trusted=[trusted.public]) as served:
        project = await served.project()
        drv = f"{served.nix.store_dir}/{'0' * 31}2-out.drv"
        _, token = await served.task(project, drvs=[(drv, {})])
        upload = tools.Upload(str(served.nix.store_dir), "outside", tools.file_nar(b"1\n"))
        signed = f"1;{upload.path};{upload.lines['NarHash']};{upload.lines['NarSize']};".encode()
        other = tools.KEY.sign(signed)
        forged = f"{trusted.name}:{other.partition(':')[2]}"
        for signature in (other, forged, trusted.sign(signed + b"x"), f"{trusted.name}:AAAA"):
            upload.lines["Sig"] = signature
            status = 400 if signature.endswith(":AAAA") else 403
            await upload.put(served, token, status=status)
            assert await served.one("SELECT count(*) FROM cache_paths") == 0
        upload.lines["Sig"] = trusted.sign(signed)
        await upload.put(served, token)
        body, _ = await served.request("GET", f"{upload.hash_part}.narinfo")
        assert f"Sig: {trusted.sign(signed)}\n".encode() in body


async def test_c07_15_a_nar_that_somebody_else_brought(attacker, tools):
    """A file's name alone makes no path of it: else who guesses a name reads what is private."""
    served = attacker.served
    private = await served.project("private", visibility="private")
    drv = f"{attacker.store_dir}/{'0' * 31}4-secret.drv"
    path = f"{attacker.store_dir}/{'0' * 31}5-secret"
    _, owner = await served.task(private, drvs=[(drv, {"out": path})])
    secret = tools.Upload(
        attacker.store_dir, "secret", tools.file_nar(b"secret\n"), hash_part=f"{'0' * 31}5"
    )
    await served.request("PUT", secret.nar_name, data=secret.file, token=owner)
    forged = attacker.upload(b"secret\n", URL=secret.nar_name)

    async def refused():
        await served.request("HEAD", secret.nar_name, token=attacker.token, status=404)
        await served.request("GET", secret.nar_name, token=attacker.token, status=404)
        await served.request(
            "PUT", f"{forged.hash_part}.narinfo", data=forged.narinfo,
            token=attacker.token, status=400,
        )  # fmt: skip

    await refused()
    await served.request("PUT", f"{secret.hash_part}.narinfo", data=secret.narinfo, token=owner)
    await refused()
    await served.request("GET", secret.nar_name, token=owner)


@pytest.mark.parametrize("role", [role for role in Role if role is not Role.ADMIN])
async def test_c07_16_keys_of_other_roles_and_strangers(attacker, role):
    served = attacker.served
    upload = attacker.upload()
    for token, status in ((await served.key(role), 403), (None, 401), ("fc_x", 401)):
        for name, data in ((upload.nar_name, upload.file),
                           (f"{upload.hash_part}.narinfo", upload.narinfo),
                           ("nix-cache-info", b"StoreDir: /evil\n")):  # fmt: skip
            try:
                await served.request("PUT", name, data=data, token=token, status=status)
            except ClientError:
                pytest.fail(f"{name}: broken off instead of an answer")
    await attacker.nothing_stored()


async def test_c07_17_nix_cache_info_and_listings_are_our_own(attacker):
    """They are taken, as Nix sends them, and never served."""
    served = attacker.served
    upload = attacker.upload()
    await upload.put(served, attacker.token)
    for name in ("nix-cache-info", f"{upload.hash_part}.ls"):
        await served.request("PUT", name, data=b"StoreDir: /evil\n", token=attacker.token)
        body, _ = await served.request("GET", name)
        assert b"evil" not in body


async def test_c07_18_a_phase_that_fetches_sources_brings_nothing(attacker):
    served = attacker.served
    await served.sql("UPDATE tasks SET fetch_token_hash = work_token_hash, work_token_hash = NULL")
    upload = attacker.upload()
    await served.request("PUT", upload.nar_name, data=upload.file, token=attacker.token, status=403)
    await attacker.nothing_stored()
