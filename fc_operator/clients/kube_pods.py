"""Pods of a cluster: made, listed by their labels, deleted, and the last words of those that broke.

Nothing is watched or followed here. Errors are those of :mod:`fc_operator.clients.kube`; why a pod
was refused is told by ``refusal_of``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fc_operator.clients.kube import PODS, Kube, Resource
from fc_operator.errors import (
    CallerError,
    ConflictError,
    FcError,
    NotFoundError,
)

Pod = dict[str, Any]
_LOG_BYTES = 16 * 1024
_LOG_LINES = 50
_PAGE = 250
_EVENTS = Resource("", "v1", "events")
_EVENTS_MAX = 20


class KubePods:
    """Pods, through one API server."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def create(self, pod: Mapping[str, Any]) -> str:
        """Have a pod made, in the namespace that it names; its uid.

        Raises:
            FcError: it was refused, or nothing is known; see :meth:`Kube.create`.
        """
        made = await self._kube.create(PODS, pod["metadata"]["namespace"], pod)
        return str(made["metadata"]["uid"])

    async def get(self, namespace: str, name: str) -> Pod | None:
        """One pod; None where there is none.

        Raises:
            FcError: the API server does not answer, or does not let us.
        """
        try:
            return await self._kube.get(PODS, namespace, name)
        except NotFoundError:
            return None

    async def list(self, namespace: str, selector: str) -> AsyncIterator[Pod]:
        """Pods of a namespace by their labels, as they are now, not as a cache had them.

        Raises:
            FcError: the API server does not answer, or does not let us.
        """
        async with aclosing(
            self._kube.list(PODS, namespace, labels=selector, page=_PAGE)  # type: ignore[type-var]
        ) as pods:
            async for pod in pods:
                # A quarter of each, and nothing that we read.
                pod.get("metadata", {}).pop("managedFields", None)
                yield pod

    async def delete(
        self, namespace: str, name: str, *, uid: str | None, grace_s: int | None = None
    ) -> None:
        """Delete a pod, only that with ``uid`` where one is given; one that is gone is no error.

        Raises:
            FcError: the API server does not answer, or does not let us.
        """
        try:
            await self._kube.delete(PODS, namespace, name, uid=uid, grace_s=grace_s)
        except (NotFoundError, ConflictError):
            # Gone, or another one of the name, which is not the one that was meant.
            return

    async def last_words(self, namespace: str, name: str, container: str) -> str:
        """The end of what a container printed; empty where there is nothing to read.

        Raises:
            FcError: the API server does not answer.
        """
        try:
            return await self._kube.read_log(
                namespace, name, container=container, bytes_max=_LOG_BYTES, tail_lines=_LOG_LINES
            )
        except CallerError:
            return ""

    async def last_warning(self, namespace: str, uid: str) -> str:
        """What the cluster last complained of about a pod; empty where we may not know."""
        try:
            answer = await self._kube.request(
                "GET",
                _EVENTS.path(namespace),
                query={
                    "fieldSelector": f"involvedObject.uid={uid},type=Warning",
                    "limit": str(_EVENTS_MAX),
                },
            )
        except FcError:
            return ""
        found: list[dict[str, Any]] = answer.get("items") or []
        last = max(found, key=_seen_at, default={})
        return f"{last['reason']}: {last.get('message') or ''}" if last.get("reason") else ""


def _seen_at(event: Mapping[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
