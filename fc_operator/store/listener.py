"""One listening session per process: wakes whoever waits, survives restarts, never trusted alone.

NOTIFY may be lost (a dead link, a restarted server), so every waiter also polls; after a
reconnect everybody is woken to read again. A heartbeat over the same session finds dead links.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Self

from fc_operator.errors import UnavailableError
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.store.database import reachable

if TYPE_CHECKING:
    from fc_operator.store.database import Database

JOBSETS = "fc_jobsets"
"""A jobset is due. Payload: empty."""
EVALUATIONS = "fc_evaluations"
"""An evaluation is pending or shall be cancelled. Payload: empty."""
STEPS = "fc_steps"
"""Steps are ready to be claimed. Payload: empty."""
CANCELS = "fc_cancels"
"""A lease's cancel_requested was set. Payload: empty."""
BUILDS = "fc_builds"
"""Statuses of builds or evaluations changed. Payload: evaluation ids, comma-separated, or empty."""
LOGS = "fc_logs"
"""Log chunks came. Payload: step ids, comma-separated, or empty."""
SOURCES = "fc_sources"
"""A config repository shall be synced. Payload: empty."""
RESOURCES = "fc_resources"
"""Declared objects or their conditions changed. Payload: empty."""
TASKS = "fc_tasks"
"""A pod's task was reported on, or its pod ended. Payload: task ids, comma-separated, or empty."""
PODS = "fc_pods"
"""A pod of ours is something else now, whoever saw it. Payload: empty."""
CHANNELS = (JOBSETS, EVALUATIONS, STEPS, CANCELS, BUILDS, LOGS, SOURCES, RESOURCES, TASKS, PODS)

_BEAT_S = 10.0
_BEAT_TIMEOUT_S = 5.0
_log = logs.get_logger()


class Subscription:
    """Awaits notifications of some channels; payloads that came meanwhile are kept, up to a cap."""

    def __init__(self, listener: Listener, channels: tuple[str, ...]) -> None:
        self._listener = listener
        self.channels = channels
        self._event = asyncio.Event()
        self._payloads: set[str] = set()

    def wake(self, payload: str = "") -> None:
        """Let whoever waits go on, as a notification does."""
        if len(self._payloads) < 1_000:
            self._payloads.add(payload)
        else:
            self._payloads.add("")
        self._event.set()

    async def wait(self, timeout_s: float) -> set[str] | None:
        """The payloads since the last call, or None after ``timeout_s`` without any.

        An empty payload in the set means: read everything again.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return None
        self._event.clear()
        payloads, self._payloads = self._payloads, set()
        return payloads

    def close(self) -> None:
        """Stop receiving."""
        self._listener.remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Listener:
    """A service (see ``kit.services``) that owns the session and wakes subscriptions."""

    name = "listener"

    def __init__(self, database: Database, *, listen: bool = True) -> None:
        """Without ``listen`` it never connects: whoever waits is left to its polls."""
        self._database = database
        self._listen = listen
        self._subscriptions: dict[str, set[Subscription]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()

    def subscribe(self, *channels: str) -> Subscription:
        """A subscription to ``channels``; close it (or use ``with``) when done."""
        subscription = Subscription(self, channels)
        for channel in channels:
            self._subscriptions[channel].add(subscription)
        return subscription

    def remove(self, subscription: Subscription) -> None:
        """Forget ``subscription``."""
        for channel in subscription.channels:
            self._subscriptions[channel].discard(subscription)

    async def start(self) -> None:
        """Begin listening in the background."""
        if not self._listen:
            return
        self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """End the session."""
        task, self._task = self._task, None
        # asyncpg may answer a cancellation with an error of its own; so until it is done.
        while task is not None and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=0.5)

    def _on_notify(self, _connection: Any, _pid: int, channel: str, payload: Any) -> None:
        for subscription in tuple(self._subscriptions[channel]):
            subscription.wake(str(payload))

    def _wake_all(self) -> None:
        for subscriptions in self._subscriptions.values():
            for subscription in tuple(subscriptions):
                subscription.wake()

    async def _run(self) -> None:
        backoff, tries = Backoff(base_s=0.2, cap_s=5), 0
        while True:
            try:
                connection = await self._database.connect_alone()
                try:
                    with reachable():
                        for channel in CHANNELS:
                            await connection.add_listener(channel, self._on_notify)
                        tries = 0
                        self.connected.set()
                        # What was announced while nobody listened is found by reading again.
                        self._wake_all()
                        await self._beat(connection)
                finally:
                    self.connected.clear()
                    connection.terminate()
            except (UnavailableError, TimeoutError) as error:
                tries += 1
                delay_s = backoff.delay_s(tries)
                _log.warning("store.listener_lost", error=str(error), retry_in_s=round(delay_s, 2))
                await asyncio.sleep(delay_s)

    async def _beat(self, connection: Any) -> None:
        closed = asyncio.Event()
        connection.add_termination_listener(lambda _connection: closed.set())
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_BEAT_S):
                    await closed.wait()
            if closed.is_set():
                raise UnavailableError("the listening session was closed")
            async with asyncio.timeout(_BEAT_TIMEOUT_S):
                await connection.execute("SELECT 1")
