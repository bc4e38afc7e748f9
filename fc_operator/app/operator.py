"""`fc operator`: objects of our kinds in a cluster, by one process at a time."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

from fc_operator.app import wiring
from fc_operator.app.state import StateDirectory
from fc_operator.app.wiring import Parts
from fc_operator.clients import kube as clients
from fc_operator.clients.kube import Kube
from fc_operator.errors import PrerequisiteError, UnavailableError
from fc_operator.intake.operator import release
from fc_operator.intake.operator.desk import Desk
from fc_operator.intake.operator.leadership import Leadership
from fc_operator.intake.operator.objects import Mirror
from fc_operator.intake.operator.results import ResultsService
from fc_operator.intake.operator.watches import Watches
from fc_operator.intake.operator.writer import StatusWriter
from fc_operator.kit import logs
from fc_operator.kit.health import HealthService
from fc_operator.kit.services import Supervisor
from fc_operator.model.sources import Source
from fc_operator.operations import cluster as operations
from fc_operator.operations.cluster import Cluster
from fc_operator.operations.manifests import Keyring
from fc_operator.settings import Settings
from fc_operator.store.database import owner_id

EXIT_LOST = 75
"""EX_TEMPFAIL: start it anew."""
_RETRY_S = 2.0
_log = logs.get_logger()


def installation(settings: Settings) -> str:
    """The name under which the objects of the cluster own their rows."""
    kubernetes = settings.kubernetes
    return kubernetes.installation or kubernetes.namespace or clients.own_namespace() or "default"


def source(settings: Settings) -> Source:
    """The cluster as an owner of declarations."""
    return operations.source_of(installation(settings))


async def connect(settings: Settings) -> Kube:
    """The API server.

    Raises:
        PrerequisiteError: there is no configuration for one.
    """
    given = settings.kubernetes
    return await Kube.connect(
        kubeconfig=given.kubeconfig,
        context=given.context,
        threads=given.threads,
        timeout_s=given.timeout_s,
    )


def end_at_once(reason: str) -> None:
    """Another operator may act now, or nothing is seen any more: not one more write of ours."""
    _log.error("operator.ended", reason=reason)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_LOST)


class Operator:
    """Listener, lease, desk, writer, results and watches."""

    def __init__(self, settings: Settings, *, end: Callable[[str], None] = end_at_once) -> None:
        """``end`` is called with a reason when this process must not go on."""
        self._settings = settings
        self._end = end
        self._supervisor = Supervisor([])
        self._health: HealthService | None = None
        self._parts: Parts | None = None
        self._kube: Kube | None = None
        self._desk: Desk | None = None

    async def start(self) -> None:
        """See ``Program.start``. Waits while another operator has the lease.

        Raises:
            FcError: no database is set, its schema is not ours, or there is no cluster to reach.
        """
        given = self._settings.operator
        self._health = HealthService(
            given.health_host,
            given.health_port,
            {"/healthz": self._trouble, "/readyz": self._unready},
        )
        try:
            await self._health.start()
        except OSError as error:
            raise PrerequisiteError(
                f"{given.health_host}:{given.health_port} can't be listened on: {error.strerror}",
                hint="set operator.health_port",
            ) from error
        self._kube = await connect(self._settings)
        self._parts = parts = await self._open_parts()
        leadership = Leadership(
            parts.database,
            owner=owner_id("operator"),
            lease_s=given.lease_s,
            lost=self._end,
        )
        await leadership.acquire()
        self._supervisor = self._build(parts, self._kube, leadership)
        await self._supervisor.start()

    async def stop(self) -> None:
        """See ``Program.stop``."""
        await self._supervisor.stop()
        if self._parts is not None:
            await self._parts.database.close()
        if self._kube is not None:
            await self._kube.close()
        if self._health is not None:
            await self._health.stop()

    def _build(self, parts: Parts, kube: Kube, leadership: Leadership) -> Supervisor:
        settings, given = parts.settings, parts.settings.operator
        cluster = Cluster(
            parts.database,
            source(settings),
            keyring=Keyring(parts.secrets, parts.cipher),
            config=settings.config,
            still_held=leadership.still_held,
        )
        mirror = Mirror()
        writer = StatusWriter(
            kube,
            mirror,
            workers=settings.kubernetes.threads,
            public_url=settings.web.public_url,
        )
        self._desk = desk = Desk(
            kube,
            cluster,
            mirror,
            writer,
            namespaces=given.namespaces,
            compare_s=given.compare_s,
            confirm_prune=given.confirm_prune,
        )
        results = ResultsService(
            parts.listener, cluster, mirror, desk, writer, status_s=given.status_s
        )
        watches = Watches(
            kube,
            namespaces=given.namespaces,
            tell=lambda kind, body, deleted: desk.tell(kind, body, deleted=deleted),
            ended=self._end,
        )
        return Supervisor(
            [parts.listener, leadership, writer, desk, _AfterFirst(desk, watches), results]
        )

    async def _open_parts(self) -> Parts:
        """As soon as PostgreSQL answers: a cluster starts everything at once, in any order."""
        url = wiring.database_url(self._settings)
        state = StateDirectory(self._settings.state.dir)
        while True:
            try:
                return await wiring.open_parts(self._settings, state, url, "fc operator")
            except UnavailableError as error:
                _log.warning("operator.waiting_for_database", error=str(error))
                await asyncio.sleep(_RETRY_S)

    def _trouble(self) -> str:
        return "" if self._desk is None else self._desk.trouble()

    def _unready(self) -> str:
        if self._desk is None:
            return "it waits for the database or for the lease"
        return "" if self._desk.compared.is_set() else "not all objects were looked at yet"


class _AfterFirst:
    """Starts the watches once everything was compared: what they tell first is known by then."""

    name = "operator.watches"

    def __init__(self, desk: Desk, watches: Watches) -> None:
        self._desk = desk
        self._watches = watches
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        async def begin() -> None:
            await self._desk.compared.wait()
            await self._watches.start()

        self._task = asyncio.create_task(begin(), name=self.name)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._watches.stop()


async def release_objects(settings: Settings) -> int:
    """Let go of all objects, so that nothing waits for an operator that is there no more: for
    uninstalling. An operator that runs ends, and none starts for a minute. Returns how many.

    Raises:
        FcError: the database or the cluster is out of reach, or our schema is another.
    """
    state = StateDirectory(settings.state.dir)
    parts = await wiring.open_parts(settings, state, wiring.database_url(settings), "fc operator")
    kube = await connect(settings)
    try:
        leadership = Leadership(
            parts.database,
            owner=owner_id("release"),
            lease_s=settings.operator.lease_s,
            lost=lambda _: None,
        )
        await leadership.seize(release.LEASE_S)
        return await release.release_all(kube, settings.operator.namespaces)
    finally:
        await kube.close()
        await parts.database.close()
