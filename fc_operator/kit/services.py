"""Background duties as small services with one contract for starting and stopping.

A service is started once and stopped any number of times; stop before start and stop twice are
fine. A service that ends by an unexpected error is started again after a backoff and counted, so
one bad row never takes a duty down for good.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_log = logs.get_logger()


class Service(Protocol):
    """What a supervisor can start and stop."""

    name: str

    async def start(self) -> None:
        """Begin the duty and return at once."""
        ...

    async def stop(self) -> None:
        """End the duty; returns when nothing of it runs any more."""
        ...


class LoopService:
    """Runs an async function until stopped, again after each unexpected error, with backoff."""

    def __init__(
        self, name: str, run: Callable[[], Awaitable[None]], *, backoff: Backoff | None = None
    ) -> None:
        self.name = name
        self._run = run
        self._backoff = backoff or Backoff(base_s=0.5, cap_s=30)
        self._task: asyncio.Task[None] | None = None
        self.failures = 0

    async def start(self) -> None:
        """See ``Service.start``; a second start while running does nothing."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._supervise(), name=self.name)

    async def stop(self) -> None:
        """See ``Service.stop``."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _supervise(self) -> None:
        tries = 0
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            try:
                await self._run()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - the supervisor is where unexpected errors end
                self.failures += 1
                tries = 1 if loop.time() - started_s > self._backoff.cap_s else tries + 1
                delay_s = self._backoff.delay_s(tries)
                _log.warning(
                    "service.failed",
                    service=self.name,
                    error=str(error) or repr(error),
                    retry_in_s=round(delay_s, 2),
                    exc_info=not isinstance(error, ConnectionError | OSError),
                )
                await asyncio.sleep(delay_s)
            else:
                return


class Supervisor:
    """Starts services in order and stops them in reverse order."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = list(services)
        self._started: list[Service] = []

    async def start(self) -> None:
        """Start each service in order; if one fails, stop those already started and raise."""
        try:
            for service in self._services:
                await service.start()
                self._started.append(service)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop all started services, last first; errors of one never keep the others running."""
        while self._started:
            service = self._started.pop()
            try:
                await service.stop()
            except Exception as error:  # noqa: BLE001 - stopping goes on
                _log.warning("service.stop_failed", service=service.name, error=repr(error))
