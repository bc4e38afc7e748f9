"""Under which names earlier lives of this process held things, so that a restart need not wait.

What holds a lease is named anew at each start. After a kill the next life may give back at once
what the last one held, since it knows that it is gone; everybody else waits for the lease's end.
"""

from __future__ import annotations

import asyncio
from pathlib import Path


class Lives:
    """A file of names. It must belong to one process at a time; None remembers nothing."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    async def earlier(self, name: str) -> list[str]:
        """Names of lives that ended without a word; never ``name``, which is the present one."""
        if self._file is None:
            return []
        try:
            text = await asyncio.to_thread(self._file.read_text)
        except OSError:
            return []
        return [line for line in text.split() if line != name]

    async def begin(self, name: str) -> None:
        """Remember ``name`` alone: what earlier ones held has been given back.

        Raises:
            OSError: the file can't be written; nothing may be held under ``name`` yet.
        """
        if self._file is not None:
            await asyncio.to_thread(self._file.parent.mkdir, parents=True, exist_ok=True)
            await asyncio.to_thread(self._file.write_text, f"{name}\n")

    async def end(self) -> None:
        """Nothing is held any more."""
        if self._file is not None:
            await asyncio.to_thread(self._file.unlink, missing_ok=True)
