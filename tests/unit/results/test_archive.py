import os
import resource
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fc_operator.clients.objects import ObjectStore
from fc_operator.errors import InvalidError, NotFoundError, ProtocolError, UnavailableError
from fc_operator.kit import compression
from fc_operator.model.ids import StepId
from fc_operator.results import archive

KEY = archive.key_of(StepId(7), 2)


async def chunks_of(*parts):
    for part in parts:
        yield part


async def read(objects, start=0, end=None):
    return b"".join([piece async for piece in archive.read_range(objects, KEY, start, end)])


@pytest.fixture
def objects(tmp_path):
    return ObjectStore.open(tmp_path / "objects")


def test_each_attempt_has_its_own_key():
    assert KEY == "logs/7/2.log.zst"


@given(
    st.lists(st.binary(max_size=90_000), max_size=5),
    st.integers(0, 300_000),
    st.integers(0, 300_000),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
async def test_any_range_of_any_log_reads_back(objects, parts, start, end):
    whole = b"".join(parts)
    stored = await archive.write(objects, KEY, chunks_of(*parts))
    assert stored.size_bytes == len(whole)
    assert await read(objects) == whole
    assert await read(objects, start, end) == whole[start:end]


async def test_lines_count_an_unfinished_last_one(objects):
    assert (await archive.write(objects, KEY, chunks_of(b"a\nb", b"c"))).lines == 2
    assert (await archive.write(objects, KEY, chunks_of(b"a\n"))).lines == 1
    assert (await archive.write(objects, KEY, chunks_of())).lines == 0


async def test_c20_a_gigabyte_log_takes_constant_memory(objects):
    block = b"".join(b"line %07d of a long log\n" % n for n in range(40_000))
    total = 256 * 1024**2  # a quarter, for time; the memory bound does not depend on it
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    async def chunks():
        sent = 0
        while sent < total:
            yield block
            sent += len(block)

    stored = await archive.write(objects, KEY, chunks())
    table = await archive.open_table(objects, KEY)
    middle = stored.size_bytes // 2
    piece = b"".join(
        [p async for p in archive.read_range(objects, KEY, middle, middle + 99, table=table)]
    )
    assert piece == (block * 2)[middle % len(block) :][:99]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 100 * 1024**2


@pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd on PATH")
async def test_plain_zstd_reads_the_archive(objects, tmp_path):
    await archive.write(objects, KEY, chunks_of(b"hello " * 50_000))
    done = subprocess.run(  # noqa: ASYNC221
        ["zstd", "-dc", tmp_path / "objects" / KEY], capture_output=True, check=True
    )
    assert done.stdout == b"hello " * 50_000


async def test_damage_and_absence_are_told(objects):
    with pytest.raises(NotFoundError):
        await read(objects)
    await objects.put(KEY, b"not an archive at all")
    with pytest.raises(ProtocolError):
        await read(objects)
    await archive.write(objects, KEY, chunks_of(os.urandom(1000)))
    whole = bytearray(await objects.get(KEY))
    whole[500] ^= 255
    await objects.put(KEY, bytes(whole))
    with pytest.raises(ProtocolError):
        await read(objects)


async def test_q17_a_source_that_breaks_leaves_no_object_and_the_old_one(objects, tmp_path):
    await archive.write(objects, KEY, chunks_of(b"old"))

    async def breaking():
        yield os.urandom(30 * 1024**2)
        raise ConnectionError("source broke")

    with pytest.raises(ConnectionError):
        await archive.write(objects, KEY, breaking())
    assert await read(objects) == b"old"
    listed = [info.key async for info in objects.list("logs/")]
    assert listed == [KEY]


async def test_q17_a_store_that_can_not_be_written_is_unavailable(tmp_path):
    objects = ObjectStore.open(tmp_path / "objects")
    (tmp_path / "objects/logs").write_text("a file where a folder is needed")
    with pytest.raises(UnavailableError):
        await archive.write(objects, KEY, chunks_of(b"x"))


async def test_objects_are_put_read_listed_and_deleted(objects):
    await objects.put("a/one", b"12345")
    assert await objects.put_stream("a/two", chunks_of(b"x" * 20_000_000, b"y")) == 20_000_001
    assert await objects.get_range("a/one", 1, 3) == b"23"
    assert await objects.get_range("a/two", 19_999_999, 20_000_001) == b"xy"
    assert (await objects.head("a/two")).size_bytes == 20_000_001
    assert sorted([info.key async for info in objects.list("a/")]) == ["a/one", "a/two"]
    assert len([p async for p in objects.stream("a/two")]) > 1
    await objects.delete("a/one")
    await objects.delete("a/one")
    with pytest.raises(NotFoundError):
        await objects.head("a/one")
    with pytest.raises((InvalidError, NotFoundError)):
        await objects.get("../secrets")


def test_a_seek_table_survives_its_bytes():
    table = compression.SeekTable([(10, 100), (20, 50)])
    again = compression.SeekTable.decode(table.encode())
    assert (again.size_bytes, again.frames) == (150, 2)
    assert [f.stored_start for f in again.covering(99, 101)] == [0, 10]
    for bad in (b"", b"x" * 9, table.encode()[1:], table.encode()[:-1]):
        with pytest.raises(compression.CompressionError):
            compression.SeekTable.decode(bad)
