"""Lets go of all objects, for uninstalling: none of them waits for us then."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from fc_operator.clients import kube as clients
from fc_operator.clients.kube import Kube
from fc_operator.errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from fc_operator.intake.operator.objects import FINALIZER, seen
from fc_operator.kit import logs
from fc_operator.model import desired as nouns
from fc_operator.model.desired import Kind
from fc_operator.model.resources import Place

LEASE_S: Final = 60.0
"""No operator starts meanwhile; the one that runs is removed within this time."""
_ENDS_S = 1.5
"""An operator that lost its lease ends within a second."""
_TRIES = 10
_log = logs.get_logger()


async def release_all(kube: Kube, namespaces: Sequence[str]) -> int:
    """Take our finalizer off every object; how many had it. Call it with the lease seized."""
    await asyncio.sleep(_ENDS_S)
    places: list[Place] = []
    for kind in nouns.KINDS:
        for namespace in namespaces or (None,):
            try:
                async for body in kube.list(clients.OWN[kind], namespace):
                    object_ = seen(kind, body)
                    if object_.held:
                        places.append(object_.place)
            except NotFoundError:
                continue  # the kind itself is gone
    await asyncio.gather(*(_release(kube, *place) for place in places))
    _log.info("operator.objects_released", count=len(places))
    return len(places)


async def _release(kube: Kube, kind: Kind, namespace: str, name: str) -> None:
    for attempt in range(1, _TRIES + 1):
        try:
            object_ = seen(kind, await kube.get(clients.OWN[kind], namespace, name))
            if not object_.held:
                return
            path = f"/metadata/finalizers/{object_.finalizers.index(FINALIZER)}"
            steps = [
                {"op": "test", "path": path, "value": FINALIZER},
                {"op": "remove", "path": path},
            ]
            await kube.patch(clients.OWN[kind], namespace, name, steps)
        except NotFoundError:
            return
        except (ConflictError, InvalidError, UnavailableError) as error:
            if attempt == _TRIES:
                raise
            delay_s = getattr(error, "delay_s", None) or 0.2 * attempt
            await asyncio.sleep(delay_s)
        else:
            return
