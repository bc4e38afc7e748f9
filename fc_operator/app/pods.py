"""What makes pods: targets, names and how agents call Nix, put together from the settings."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fc_operator.app import wiring
from fc_operator.app.wiring import Parts
from fc_operator.cache.knowledge import CacheKnowledge
from fc_operator.clients.kube import own_namespace
from fc_operator.clients.kube_pods import KubePods
from fc_operator.errors import SettingsError
from fc_operator.executors import targets
from fc_operator.executors.targets import Defaults, Target
from fc_operator.model.work import NixWork
from fc_operator.operations import tasks
from fc_operator.operations.ingest import Ingest
from fc_operator.scheduler.evaluation_pods import Launcher, PodStream
from fc_operator.scheduler.pods import PodService, Site
from fc_operator.settings import KubernetesSettings


async def pod_service(parts: Parts) -> PodService:
    """The service that makes pods. Needs ``parts.kube``.

    Raises:
        SettingsError: the list of targets is missing or wrong.
    """
    assert parts.kube is not None
    settings, kubernetes = parts.settings, parts.settings.kubernetes
    site = Site(
        installation=kubernetes.installation
        or f"fc-{parts.cipher.derive('installation').hex()[:16]}",
        targets=await read_targets(kubernetes),
        nix=_agents_nix(parts),
    )
    return PodService(
        parts.database,
        parts.listener,
        KubePods(parts.kube),
        parts.cipher,
        site,
        kubernetes=kubernetes,
        queue=settings.queue,
        builds=settings.builds,
        owner_file=parts.state.folder("owners", mode=0o700) / "pods",
    )


def evaluation_stream(parts: Parts, launcher: Launcher) -> tuple[PodStream, Ingest]:
    """Where evaluations run when pods do them, and what writes their rows: no Nix is asked here,
    what is known of derivations and outputs is what the binary cache has.
    """
    settings = parts.settings
    knowledge = CacheKnowledge(parts.database, parts.objects, store_dir=settings.nix.store_dir)
    ingest = Ingest(
        parts.database, knowledge, settings.builds, roots_dir=parts.state.folder("roots")
    )
    stream = PodStream(
        database=parts.database,
        listener=parts.listener,
        secrets=parts.secrets,
        cipher=parts.cipher,
        git=parts.git,
        ingest=ingest,
        launcher=launcher,
        nix=_agents_nix(parts),
        evaluation=settings.evaluation,
        kubernetes=settings.kubernetes,
        queue=settings.queue,
    )
    return stream, ingest


def _agents_nix(parts: Parts) -> NixWork:
    """How agents call Nix: with our cache, as they reach it."""
    settings = parts.settings
    return tasks.nix_work(
        settings.nix,
        cache_url=f"{settings.kubernetes.server_url.rstrip('/')}/cache",
        cache_public_keys=wiring.binary_cache(parts).public_keys,
    )


async def read_targets(kubernetes: KubernetesSettings) -> tuple[Target, ...]:
    """Where pods may run.

    Raises:
        SettingsError: the file can't be read, or says something that is no list of targets.
    """
    own = await asyncio.to_thread(own_namespace) if not kubernetes.namespace else None
    namespace = kubernetes.namespace or own or "default"
    defaults = Defaults(
        namespace=namespace, systems=kubernetes.systems, features=kubernetes.features
    )
    if not kubernetes.targets_file:
        return targets.only_default(defaults)
    file = Path(kubernetes.targets_file)
    try:
        data = await asyncio.to_thread(file.read_bytes)
    except OSError as error:
        raise SettingsError(
            f"the list of targets {file} can't be read: {error.strerror}",
            hint="kubernetes.targets_file names it",
        ) from error
    found, problems = targets.parse_targets(data, defaults)
    if problems:
        raise SettingsError(f"{file}: {'; '.join(problems)}")
    return found
