"""The embedded PostgreSQL on its bad days: kills, second starts, odd folders."""

import asyncio
import os
import pwd
import shutil
import signal
import stat
import sys
import tempfile
from pathlib import Path

import asyncpg
import pytest

from fc_operator.errors import HumanNeededError, UnavailableError
from fc_operator.kit import processes
from fc_operator.store import embedded
from fc_operator.store.embedded import EmbeddedPostgres

FAST = {"fsync": "off", "shared_buffers": "16MB"}
IS_ROOT = os.geteuid() == 0
only_root = pytest.mark.skipif(not IS_ROOT, reason="only root changes users")


@pytest.fixture
def folder():
    """A state directory that the server's user can reach (pytest's own is closed to others)."""
    path = Path(tempfile.mkdtemp(prefix="fc-embedded-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def server(folder):
    server = EmbeddedPostgres(folder, extra_settings=FAST)
    await server.start()
    yield server
    await server.stop()


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def alive(pid: int) -> bool:
    try:
        return not status_of(pid)["State"].startswith("Z")
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while alive(pid):
            await asyncio.sleep(0.02)


async def ask(url: str, sql: str):
    """The answer to a query, once the server gives one."""
    async with asyncio.timeout(30):
        while True:
            try:
                connection = await asyncpg.connect(url)
                try:
                    return await connection.fetchval(sql)
                finally:
                    await connection.close()
            except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.02)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_c23_it_runs_unprivileged_in_private_folders_and_opens_no_parents(folder):
    before = {parent: mode(parent) for parent in (folder, *folder.parents)}
    server = EmbeddedPostgres(folder, extra_settings=FAST)
    await server.start()
    try:
        uid = int(status_of(server.pid)["Uid"].split()[0])
        assert uid != 0
        if not IS_ROOT:
            assert uid == os.geteuid()
        assert (
            status_of(server.pid)["Groups"].strip() in ("", str(os.getegid() or "")) or not IS_ROOT
        )
        assert mode(server.data_dir) == 0o700
        assert mode(server.socket_dir) == 0o700
        assert server.data_dir.parent == folder
        assert {parent: mode(parent) for parent in before} == before
        assert await ask(server.url, "SHOW listen_addresses") == ""
        assert await ask(server.url, "SELECT current_database()") == "fc"
    finally:
        await server.stop()
    assert not server.socket_dir.exists()


async def test_a_stopped_server_keeps_its_rows_and_stop_may_come_twice(folder):
    first = EmbeddedPostgres(folder, extra_settings=FAST)
    await first.stop()
    await first.start()
    await ask(first.url, "CREATE TABLE kept AS SELECT 7 AS n")
    await first.stop()
    await first.stop()
    second = EmbeddedPostgres(folder, extra_settings=FAST)
    await second.start()
    assert await ask(second.url, "SELECT n FROM kept") == 7
    await second.stop()


async def test_a_second_server_on_the_same_folder_is_refused_with_a_clear_word(folder, server):
    second = EmbeddedPostgres(folder, extra_settings=FAST)
    with pytest.raises(HumanNeededError, match=r"another PostgreSQL runs on .*stop the other"):
        await second.start()
    await second.stop()
    assert await ask(server.url, "SELECT 1") == 1
    assert server.socket_dir.exists()


async def parent_with_a_server(folder: Path):
    """Another process that runs a server on ``folder``; returns it and the server's number."""
    code = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from fc_operator.kit import logs\n"
        "from fc_operator.store.embedded import EmbeddedPostgres\n"
        "logs.configure(level='error')\n"
        "async def main():\n"
        f"    server = EmbeddedPostgres(Path(sys.argv[1]), extra_settings={FAST!r})\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await processes.start([sys.executable, "-c", code, folder], env=dict(os.environ))
    return parent, int(await anext(parent.lines()))


@pytest.mark.parametrize("at_once", [True, False], ids=["started again at once", "later"])
async def test_it_dies_with_its_killed_parent_and_comes_back_with_its_rows(folder, at_once):
    parent, pid = await parent_with_a_server(folder)
    server = EmbeddedPostgres(folder, extra_settings=FAST)
    await ask(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    parent.close()
    if not at_once:
        await gone(pid)
    await server.start()
    try:
        assert not alive(pid)
        assert await ask(server.url, "SELECT n FROM kept") == 7
    finally:
        await server.stop()


async def test_a_killed_server_is_started_again_with_its_rows(server):
    await ask(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
    first = server.pid
    os.kill(first, signal.SIGKILL)
    await gone(first)
    assert await ask(server.url, "SELECT n FROM kept") == 7
    async with asyncio.timeout(10):
        while server.pid in (None, first):
            await asyncio.sleep(0.02)


async def test_a_killed_backend_takes_no_row_with_it(server):
    await ask(server.url, "CREATE TABLE kept AS SELECT 7 AS n")
    connection = await asyncpg.connect(server.url)
    os.kill(await connection.fetchval("SELECT pg_backend_pid()"), signal.SIGKILL)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await connection.fetchval("SELECT pg_sleep(10)")
    connection.terminate()
    assert await ask(server.url, "SELECT n FROM kept") == 7


async def test_a_lock_of_a_number_that_is_another_program_now_is_removed(folder):
    server = EmbeddedPostgres(folder, extra_settings=FAST)
    await server.start()
    lock = (server.data_dir / "postmaster.pid").read_text().splitlines()
    await server.stop()
    # Of the server's own user, else PostgreSQL sees by itself that it is none of its kind.
    other = await processes.start(
        ["sleep", "1000"], env={"PATH": "/usr/bin:/bin"}, user=server._user
    )
    (server.data_dir / "postmaster.pid").write_text("\n".join([str(other.pid), *lock[1:]]) + "\n")
    try:
        await server.start()
        assert await ask(server.url, "SELECT 1") == 1
        await server.stop()
        assert other.inner.returncode is None
    finally:
        await other.stop("the test is over")


async def test_a_cluster_that_was_never_finished_is_made_again(folder):
    """As initdb leaves it when it is killed: beside its place, and half."""
    server = EmbeddedPostgres(folder, extra_settings=FAST)
    unfinished = folder / "postgres.new"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18\n")
    await server.start()
    assert await ask(server.url, "SELECT 1") == 1
    await server.stop()
    assert not unfinished.exists()


async def test_a_folder_that_holds_something_else_is_left_alone(folder):
    server = EmbeddedPostgres(folder, extra_settings=FAST)
    embedded._make_private(server.data_dir, server._user)
    (server.data_dir / "photo.jpg").write_text("x")
    with pytest.raises(HumanNeededError, match="holds something that is no database"):
        await server.start()
    await server.stop()
    assert (server.data_dir / "photo.jpg").read_text() == "x"


@only_root
async def test_a_folder_of_somebody_else_is_refused(folder):
    server = EmbeddedPostgres(folder, extra_settings=FAST)
    server.socket_dir.mkdir(mode=0o777)
    os.chown(server.socket_dir, 12345, 12345)
    try:
        with pytest.raises(HumanNeededError, match="belongs to another user"):
            await server.start()
    finally:
        server.socket_dir.rmdir()


@only_root
async def test_a_state_directory_that_is_closed_to_others_stays_closed(folder, monkeypatch):
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    monkeypatch.setattr(embedded, "_SHARED_DIR", shared)
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    server = EmbeddedPostgres(closed, extra_settings=FAST)
    await server.start()
    try:
        assert server.data_dir.parent == shared
        assert mode(closed) == 0o700
        assert await ask(server.url, "SELECT 1") == 1
    finally:
        await server.stop()


async def test_a_server_that_does_not_start_says_why(folder):
    server = EmbeddedPostgres(folder, extra_settings={**FAST, "max_connections": "many"})
    with pytest.raises(UnavailableError, match="max_connections"):
        await server.start()
    await server.stop()


async def test_a_database_of_another_version_is_a_matter_for_people(folder):
    server = EmbeddedPostgres(folder, extra_settings=FAST)
    await server.start()
    await server.stop()
    (server.data_dir / "PG_VERSION").write_text("11\n")
    with pytest.raises(HumanNeededError, match="another version of PostgreSQL"):
        await server.start()
    await server.stop()


@only_root
def test_binaries_in_a_closed_place_are_copied_once_and_whole(folder, monkeypatch):
    wheel = folder / "closed" / "wheel"
    (wheel / "bin").mkdir(parents=True)
    (folder / "closed").chmod(0o700)
    (wheel / "bin" / "postgres").write_text("one")
    monkeypatch.setattr(embedded, "_SHARED_DIR", folder / "shared")
    monkeypatch.setattr(embedded, "binaries", lambda: wheel / "bin")
    nobody = pwd.getpwnam("nobody")
    first = embedded._usable_binaries(nobody)
    assert embedded._reachable_by(first, nobody)
    assert embedded._usable_binaries(nobody) == first
    # Another release of the wheel at the same place is another copy.
    (wheel / "bin" / "postgres").write_text("two!")
    second = embedded._usable_binaries(nobody)
    assert second != first
    assert (second / "postgres").read_text() == "two!"
    assert not list((folder / "shared").glob(".pginstall-*"))
    assert embedded._usable_binaries(None) == wheel / "bin"
