"""What makes pods: targets, names and how agents call Nix, put together from the settings."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fc_operator.app import wiring
from fc_operator.app.wiring import Parts
from fc_operator.clients.kube import own_namespace
from fc_operator.clients.kube_pods import KubePods
from fc_operator.errors import SettingsError
from fc_operator.executors import targets
from fc_operator.executors.targets import Defaults, Target
from fc_operator.operations import tasks
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
        nix=tasks.nix_work(
            settings.nix,
            cache_url=f"{kubernetes.server_url.rstrip('/')}/cache",
            cache_public_keys=wiring.binary_cache(parts).public_keys,
        ),
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
