"""The state directory of this machine and the one process tree that may own it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Self

from fc_operator.errors import HumanNeededError


class StateDirectory:
    """A folder with a lock on it; the lock goes with the process, however it ends.

    ``mirrors``, ``worktrees``, ``objects``, ``local`` and ``secrets`` are folders below it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock_fd: int | None = None

    def acquire(self) -> Self:
        """Make the folder if it is missing and take its lock.

        Raises:
            HumanNeededError: another process has it, or the folder can't be made or written.
        """
        try:
            self.path.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise HumanNeededError(
                f"the state directory {self.path} can't be used: {error.strerror}",
                hint="choose another with --state or FC_STATE_DIR",
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise HumanNeededError(
                f"another FC Operator (process {holder}) runs on {self.path}",
                hint="stop it, or choose another directory with --state",
            ) from None
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._lock_fd = fd
        return self

    def release(self) -> None:
        """Let another process have it."""
        fd, self._lock_fd = self._lock_fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)
            os.close(fd)

    def folder(self, name: str, mode: int = 0o755) -> Path:
        """A folder below it, made if it is missing."""
        path = self.path / name
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        return path

    def below(self, path: Path) -> Path:
        """``path`` as it is if absolute, else below the state directory."""
        return path if path.is_absolute() else self.path / path
