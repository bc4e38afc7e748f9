"""How each of our long-lived processes starts, waits for its end, and stops within its time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from typing import Protocol

from fc_operator.kit import logs

_STOP_S = 15.0
_log = logs.get_logger()


class Program(Protocol):
    """What a process runs."""

    async def start(self) -> None:
        """Bring everything up; raises when that fails, with nothing left running."""
        ...

    async def stop(self) -> None:
        """Bring everything down."""
        ...


async def run_until_stopped(program: Program, *, started: Callable[[], None] | None = None) -> None:
    """Run ``program`` until SIGINT or SIGTERM; a second signal ends the process at once.

    ``started`` is called once everything is up.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def handle(name: str) -> None:
        if stopping.is_set():
            _log.warning("app.stopped_hard", signal=name)
            os._exit(130)
        _log.info("app.stopping", signal=name)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, handle, number.name)
    starting = asyncio.ensure_future(program.start())
    asked = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            return
        starting.result()
        if started is not None:
            started()
        await asked
    finally:
        asked.cancel()
        try:
            async with asyncio.timeout(_STOP_S):
                await program.stop()
        except TimeoutError:
            _log.warning("app.stop_took_too_long", limit_s=_STOP_S)
