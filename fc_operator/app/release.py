"""Objects of our kinds that come with a release of the chart: its values are their only source.

A release can't hold them itself: Helm wants a kind to be there before it looks at the first object.
So a hook brings them in afterwards, and takes away what an earlier release brought and this one
does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fc_operator.app import operator
from fc_operator.clients import kube as clients
from fc_operator.clients.kube import Kube
from fc_operator.errors import FcError, InvalidError, NotFoundError
from fc_operator.kit import documents, logs
from fc_operator.model import desired as nouns
from fc_operator.settings import Settings

LABEL: Final = "fc-operator.dev/release"
"""Tells the objects that a release brought, by its name."""
_MANAGER = "fc-operator-release"
_KINDS_S = 60.0
"""A kind that was made a moment ago is not served at once."""
_RETRY_S = 1.0
_log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What was done."""

    applied: int
    deleted: int


def parse(text: bytes) -> tuple[Mapping[str, Any], ...]:
    """The ConfigRepositories in a file, ``{name, spec}`` each.

    Raises:
        InvalidError: the file is not of that form. A spec is the API server's to judge.
    """
    read, problems = documents.load(text)
    if problems:
        raise InvalidError(f"line {problems[0].line}: {problems[0].message}")
    entries = [entry for document in read for entry in _list(document.value)]
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping) or set(entry) != {"name", "spec"}:
            raise InvalidError(f"config repository {number} is no mapping with name and spec")
        if not isinstance(entry["name"], str) or not isinstance(entry["spec"], Mapping):
            raise InvalidError(f"config repository {number}: a name is a text, a spec a mapping")
    names = [entry["name"] for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise InvalidError(f"there are two config repositories {name}")
    return tuple(entries)


def _list(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return value
    raise InvalidError("config repositories are a list")


async def apply_objects(settings: Settings, file: Path, release: str) -> Applied:
    """Bring the ConfigRepositories of a file into our namespace, and take away earlier ones.

    Raises:
        InvalidError: the file or an object in it is wrong.
        PrerequisiteError: we may not, or there is no cluster to reach.
        UnavailableError: the API server does not answer.
    """
    entries = parse(await asyncio.to_thread(file.read_bytes))
    namespace = settings.kubernetes.namespace or clients.own_namespace() or "default"
    kube = await operator.connect(settings)
    try:
        for entry in entries:
            await _apply(kube, namespace, release, entry)
        names = {entry["name"] for entry in entries}
        return Applied(
            applied=len(entries), deleted=await _delete_others(kube, namespace, release, names)
        )
    finally:
        await kube.close()


async def _apply(kube: Kube, namespace: str, release: str, entry: Mapping[str, Any]) -> None:
    body = {
        "apiVersion": nouns.API_VERSION,
        "kind": nouns.CONFIG_REPOSITORY,
        "metadata": {"name": entry["name"], "namespace": namespace, "labels": {LABEL: release}},
        "spec": entry["spec"],
    }
    resource = clients.OWN[nouns.CONFIG_REPOSITORY]
    loop = asyncio.get_running_loop()
    end = loop.time() + _KINDS_S
    while True:
        try:
            # Forced: what the values say counts, whoever else has written into these fields.
            await kube.apply(resource, namespace, entry["name"], body, manager=_MANAGER, force=True)
        except NotFoundError:
            if loop.time() > end:
                raise
            await asyncio.sleep(_RETRY_S)
        except FcError:
            _log.error("app.object_refused", name=entry["name"])
            raise
        else:
            return


async def _delete_others(kube: Kube, namespace: str, release: str, names: set[str]) -> int:
    resource = clients.OWN[nouns.CONFIG_REPOSITORY]
    deleted = 0
    async for found in kube.list(resource, namespace, labels=f"{LABEL}={release}"):
        metadata = found["metadata"]
        if metadata["name"] not in names:
            await kube.delete(resource, namespace, metadata["name"], uid=metadata["uid"])
            deleted += 1
    return deleted
