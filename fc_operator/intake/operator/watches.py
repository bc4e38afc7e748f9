"""kopf, which watches our kinds: a thread and an event loop of its own, so that neither its tasks
nor its handling of signals meet ours. It is told to decide nothing and to write nothing.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from fc_operator.clients import kube as clients
from fc_operator.clients.kube import Kube
from fc_operator.kit import logs
from fc_operator.model import desired as nouns
from fc_operator.model.desired import Kind

_PREFIX = "fc-operator.dev"
_LOGIN_S = 600
"""kopf asks for credentials again after this; a service account's token lives longer."""
_STOP_S = 5.0
_log = logs.get_logger()


class _Endless:
    """Pauses between tries at a request: for as long as the API server is away."""

    def __iter__(self) -> Iterator[float]:
        yield from (0.5, 1.0, 2.0)
        while True:
            yield 3.0


Tell = Callable[[Kind, Mapping[str, Any], bool], None]
"""Called on our own event loop: the kind, the object, whether it was deleted."""


class Watches:
    """A service (see ``kit.services``): streams of events, one per kind and namespace."""

    name = "operator.watches"

    def __init__(
        self,
        kube: Kube,
        *,
        namespaces: Sequence[str],
        tell: Tell,
        ended: Callable[[str], None],
        inactivity_s: float = 70.0,
    ) -> None:
        """``ended`` is called with a reason when kopf ends although nobody stopped it."""
        self._kube = kube
        self._namespaces = tuple(namespaces)
        self._tell = tell
        self._ended = ended
        self._inactivity_s = inactivity_s
        self._thread: threading.Thread | None = None
        self._kopf_loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._finished = asyncio.Event()
        self._stopping = False

    async def start(self) -> None:
        """See ``Service.start``."""
        self._stopping = False
        self._finished.clear()
        ours = asyncio.get_running_loop()
        self._thread = threading.Thread(
            target=self._in_thread, args=(ours,), name=self.name, daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """See ``Service.stop``."""
        self._stopping = True
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop, stop = self._kopf_loop, self._stop
        if loop is not None and stop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        try:
            async with asyncio.timeout(_STOP_S):
                await self._finished.wait()
        except TimeoutError:
            _log.warning("operator.watches_hang")  # a daemon thread: it ends with the process

    def _in_thread(self, ours: asyncio.AbstractEventLoop) -> None:
        reason = "kopf ended"
        try:
            asyncio.run(self._watch(ours))
        except Exception as error:  # noqa: BLE001 - said to whoever runs us
            reason = f"kopf failed: {error!r}"

        def finish() -> None:
            self._finished.set()
            if not self._stopping:
                self._ended(reason)

        if not ours.is_closed():
            ours.call_soon_threadsafe(finish)

    async def _watch(self, ours: asyncio.AbstractEventLoop) -> None:
        self._kopf_loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        if self._stopping:
            return
        await kopf.operator(
            registry=self._registry(ours),
            settings=settings(self._inactivity_s),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop,
        )

    def _registry(self, ours: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        def handler(kind: Kind) -> Callable[..., Awaitable[None]]:
            async def handle(event: Any, **_: Any) -> None:
                body, deleted = event["object"], event["type"] == "DELETED"
                ours.call_soon_threadsafe(self._tell, kind, dict(body), deleted)

            return handle

        for kind in nouns.KINDS:
            resource = clients.OWN[kind]
            kopf.on.event(
                resource.group, resource.version, resource.plural, registry=registry, id=kind
            )(handler(kind))

        async def login(**_: Any) -> kopf.ConnectionInfo:
            return await self._login()

        kopf.on.login(registry=registry)(login)
        return registry

    async def _login(self) -> kopf.ConnectionInfo:
        found = await asyncio.to_thread(self._kube.access)
        return kopf.ConnectionInfo(
            server=found.server,
            ca_path=found.ca_path,
            insecure=found.insecure,
            scheme=found.scheme,
            token=found.token,
            certificate_path=found.certificate_path,
            private_key_path=found.private_key_path,
            expiration=datetime.now(UTC) + timedelta(seconds=_LOGIN_S),
        )


def settings(inactivity_s: float) -> kopf.OperatorSettings:
    """How kopf shall be: quick to let go of an object, and its marks, if any, in our name."""
    made = kopf.OperatorSettings()
    made.posting.enabled = False
    made.watching.inactivity_timeout = inactivity_s
    made.watching.chunk_size = 500
    made.watching.connect_timeout = 10
    made.networking.request_timeout = 60
    made.networking.connect_timeout = 10
    # By default kopf ends after a minute without its API server.
    made.networking.error_backoffs = _Endless()
    made.queueing.worker_limit = 100
    made.queueing.idle_timeout = 0.02
    # The names of our kinds are known; nothing needs to look at CRDs and namespaces.
    made.scanning.disabled = True
    # kopf takes this finalizer off whatever it sees it on; ours has another name.
    made.persistence.finalizer = f"{_PREFIX}/kopf"
    made.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=_PREFIX)
    made.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=_PREFIX)
    made.persistence.consistency_timeout = 0
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It warns that signals are not its business, which is why it is in a thread.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    return made
