"""Bounds of a running evaluator: memory of its whole group, time, bytes that it prints."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from fc_operator.kit.processes import Process

_LOOK_S = 0.2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def family_memory_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants; 0 when it is gone."""
    total, todo = 0, [pid]
    while todo:
        here = Path(f"/proc/{todo.pop()}")
        # A process may end while it is looked at.
        with contextlib.suppress(OSError, ValueError, IndexError):
            total += int((here / "statm").read_text().split()[1]) * _PAGE_BYTES
            for thread in (here / "task").iterdir():
                todo += map(int, (thread / "children").read_text().split())
    return total


class Watch:
    """Kills a process's group when it passes a bound; afterwards says which one it was."""

    def __init__(self, *, memory_bytes: int, deadline_s: float, output_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self._deadline_s = deadline_s
        self._output_bytes = output_bytes
        self._seen_bytes = 0
        self.out_of_memory = False
        self.peak_memory_bytes = 0

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self._deadline_s - time.monotonic()

    def count(self, process: Process, size_bytes: int) -> None:
        """Add to what was printed, over all processes of one evaluation."""
        self._seen_bytes += size_bytes
        if self._output_bytes and self._seen_bytes > self._output_bytes:
            process.kill(f"it printed more than {self._output_bytes} bytes")

    @property
    def too_much_output(self) -> bool:
        """Whether more was printed than is allowed."""
        return bool(self._output_bytes) and self._seen_bytes > self._output_bytes

    @contextlib.asynccontextmanager
    async def over(self, process: Process) -> AsyncIterator[None]:
        """Watch ``process`` while the block runs; leave nothing of its group behind."""
        self.out_of_memory = False
        watcher = asyncio.create_task(self._look(process))
        try:
            yield
        finally:
            watcher.cancel()
            process.kill("the evaluation is over")
            try:
                # Shielded: also a cancelled caller leaves only when the group is gone.
                await asyncio.shield(process.wait())
            finally:
                process.close()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _look(self, process: Process) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_S, max(0.0, self.left_s)))
            if self.left_s <= 0:
                process.kill("it ran too long")
                return
            used = family_memory_bytes(process.pid)
            self.peak_memory_bytes = max(self.peak_memory_bytes, used)
            if self.memory_bytes and used > self.memory_bytes:
                self.out_of_memory = True
                process.kill(f"it used more than {self.memory_bytes >> 20} MiB of memory")
                return
