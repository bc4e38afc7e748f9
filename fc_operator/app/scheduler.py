"""`fc scheduler`: the loops that look at sources, evaluate, build and maintain."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fc_operator.app import wiring
from fc_operator.app.state import StateDirectory
from fc_operator.app.wiring import Parts
from fc_operator.clients.nix import Nix
from fc_operator.evaluator import roots
from fc_operator.evaluator.find import Evaluators
from fc_operator.executors.local import LocalExecutor
from fc_operator.executors.protocol import Executor
from fc_operator.intake import repos
from fc_operator.kit import logs
from fc_operator.kit.health import HealthService
from fc_operator.kit.services import Service, Supervisor
from fc_operator.operations.cache import Publisher
from fc_operator.operations.ingest import Ingest
from fc_operator.operations.manifests import Keyring
from fc_operator.results import support
from fc_operator.scheduler.builders import BuilderService
from fc_operator.scheduler.dispatch import DispatchService
from fc_operator.scheduler.evaluate import CheckService, EvaluationService
from fc_operator.scheduler.maintain import MaintenanceService
from fc_operator.scheduler.publish import PublishingExecutor, PublishService
from fc_operator.settings import Settings

if TYPE_CHECKING:
    from fc_operator.scheduler.evaluation_pods import Launcher
    from fc_operator.scheduler.pods import PodService

_log = logs.get_logger()


def _owners(parts: Parts) -> Path:
    """Where services remember under which name they hold things; the state's lock guards it."""
    return parts.state.folder("owners", mode=0o700)


def evaluating_services(parts: Parts, launcher: Launcher | None = None) -> list[Service]:
    """What turns due jobsets into evaluations, and evaluations into builds and steps.

    With ``launcher`` evaluations run in pods that it makes, else on this machine.
    """
    settings, env = parts.settings, wiring.environment()
    home = parts.state.folder("evaluators", mode=0o700)
    nix = Nix(parts.nix, parts.nix_environment())
    evaluators = Evaluators(nix=settings.nix, evaluation=settings.evaluation, env=env, home=home)
    ingest = Ingest(parts.database, nix, settings.builds, roots_dir=roots.default_dir(nix.env))
    stream = None
    if launcher is not None:
        from fc_operator.app import pods  # as below

        stream, ingest = pods.evaluation_stream(parts, launcher)
    checks = CheckService(
        database=parts.database,
        listener=parts.listener,
        git=parts.git,
        secrets=parts.secrets,
        evaluators=evaluators,
        nix=settings.nix,
        evaluation=settings.evaluation,
        queue=settings.queue,
        stream=stream,
        owner_file=_owners(parts) / "checks",
    )
    evaluations = EvaluationService(
        database=parts.database,
        listener=parts.listener,
        git=parts.git,
        secrets=parts.secrets,
        ingest=ingest,
        evaluators=evaluators,
        nix=settings.nix,
        evaluation=settings.evaluation,
        queue=settings.queue,
        work_dir=parts.state.folder("worktrees", mode=0o700),
        env=env,
        home=home,
        stream=stream,
    )
    return [checks, evaluations]


def building_services(parts: Parts) -> list[Service]:
    """What builds steps here and on declared builders, and keeps them in order anywhere."""
    settings = parts.settings
    services: list[Service] = [
        MaintenanceService(
            parts.database, parts.objects, queue=settings.queue, builds=settings.builds
        )
    ]
    publisher = _publisher(parts)
    if publisher is not None or settings.kubernetes.enabled:
        services.append(
            PublishService(
                parts.database, parts.listener, queue=settings.queue, publisher=publisher
            )
        )
    executors: list[Executor] = []
    if settings.builds.local:
        executors.append(
            LocalExecutor(
                nix=parts.nix,
                builds=settings.builds,
                dir=parts.state.folder("local"),
                harvest=partial(support.harvest, store_dir=settings.nix.store_dir),
                env=parts.nix_environment(),
            )
        )
    builders = _builders(parts, publisher)
    if not executors and builders is None:
        return services
    if publisher is not None:
        executors = [PublishingExecutor(each, publisher.publish_step) for each in executors]
    dispatch = DispatchService(
        parts.database,
        parts.listener,
        executors,
        queue=settings.queue,
        builds=settings.builds,
        owner_file=_owners(parts) / "dispatch",
        builders=builders,
    )
    # Builders first, so that they are the last to stop.
    return [*([builders] if builders is not None else []), dispatch, *services]


def _builders(parts: Parts, publisher: Publisher | None) -> BuilderService | None:
    """Declared builders, where this machine has the store that what they build goes through."""
    settings, env = parts.settings, parts.nix_environment()
    # Derivations that pods evaluated are in the cache alone, and never in a store of ours.
    evaluates = not (settings.kubernetes.enabled and settings.kubernetes.evaluations)
    has_nix = shutil.which("nix-store", path=env.get("PATH")) is not None
    if not (settings.builds.ssh and evaluates and has_nix):
        _log.info("scheduler.builders_not_used", evaluates_here=evaluates, has_nix=has_nix)
        return None

    def around(executor: Executor) -> Executor:
        if publisher is None:
            return executor
        return PublishingExecutor(executor, publisher.publish_step)

    return BuilderService(
        parts.database,
        parts.listener,
        parts.secrets,
        nix=Nix(parts.nix, env),
        # Our cache answers to us alone: a builder is sent what it needs.
        settings=settings.nix,
        builds=settings.builds,
        queue=settings.queue,
        dir=parts.state.folder("builders"),
        harvest=partial(support.harvest, store_dir=settings.nix.store_dir),
        around=around,
    )


def _publisher(parts: Parts) -> Publisher | None:
    """What brings paths of this machine into the cache, where this process has one."""
    if parts.cache is None:
        return None
    nix = Nix(parts.nix, parts.nix_environment())
    return Publisher(cache=parts.cache, nix=nix, database=parts.database)


async def pod_service(parts: Parts) -> PodService | None:
    """What makes pods, if anything does."""
    if not parts.settings.kubernetes.enabled:
        return None
    from fc_operator.app import pods  # a client of 40 MB that other machines save

    return await pods.pod_service(parts)


async def syncing_services(parts: Parts) -> list[Service]:
    """What brings config repositories into force, the one of the settings among them."""
    config = parts.settings.config
    await repos.ensure_bootstrap(parts.database, config)
    keyring = Keyring(parts.secrets, parts.cipher)
    sync = repos.RepositorySyncService(
        parts.database,
        parts.listener,
        parts.git,
        keyring,
        config,
        owner_file=_owners(parts) / "intake",
    )
    return [sync]


async def services(parts: Parts) -> list[Service]:
    """All duties of a scheduler, in the order in which they start."""
    pods = await pod_service(parts)
    launcher = pods if parts.settings.kubernetes.evaluations else None
    return [
        # First of all, so that it is the last to stop: evaluations that end dismiss their pods.
        *([pods] if pods is not None else []),
        *evaluating_services(parts, launcher),
        *building_services(parts),
        *await syncing_services(parts),
    ]


def _health(settings: Settings) -> list[Service]:
    """What says that our loop turns: all duties share it, and each recovers by itself."""
    given = settings.scheduler
    if not given.health_port:
        return []
    return [HealthService(given.health_host, given.health_port, {"/healthz": lambda: ""})]


class Scheduler:
    """Listener and all duties. Its state directory is its own; the database may be shared."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state = StateDirectory(settings.state.dir)
        self._supervisor = Supervisor([])
        self._parts: Parts | None = None

    async def start(self) -> None:
        """See ``Program.start``.

        Raises:
            FcError: no database is set, it does not answer, its schema is not ours, or the state
                directory is in use.
        """
        url = wiring.database_url(self._settings)
        self._state.acquire()
        self._parts = await wiring.open_parts(
            self._settings, self._state, url, "fc scheduler", makes_pods=True
        )
        self._supervisor = Supervisor(
            [*_health(self._settings), self._parts.listener, *await services(self._parts)]
        )
        await self._supervisor.start()

    async def stop(self) -> None:
        """See ``Program.stop``."""
        await self._supervisor.stop()
        if self._parts is not None:
            await self._parts.close()
        self._state.release()
