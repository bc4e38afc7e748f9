"""A Kubernetes API server in the test's own loop, as far as the operator needs one, that can be made
to misbehave: versions, watches with replay, pages, JSON patches, the status subresource, finalizers.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import random
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

from fc_operator.clients import kube

PLURALS = {resource.plural: kind for kind, resource in kube.OWN.items()}
BASE = "/apis/fc-operator.dev/v1alpha1"


@dataclass
class Faults:
    """What goes wrong, each with its chance; the same seed makes the same mistakes."""

    seed: int = 0
    answers: dict[int, float] = field(default_factory=dict)
    """Chance of an HTTP status instead of an answer."""
    retry_after: str = ""
    lost_answers: float = 0
    """The request is done, but the connection closes before anything is said."""
    dropped_watches: float = 0
    """A watch ends after an event, without a word."""
    swallowed: float = 0
    """An event that a watch never tells of."""
    doubled: float = 0
    stale: float = 0
    """An event is followed by an older view of the same object."""
    expire: float = 0
    """A watch ends with 410 Gone in its stream, and its history is forgotten."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.on = True

    def strikes(self, chance: float) -> bool:
        return self.on and self.random.random() < chance


class KubeApi:
    """``url`` once started; ``objects`` by (plural, namespace, name)."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        """Kubernetes Events that were posted."""
        self.log: list[tuple[int, str, str, dict[str, Any]]] = []
        """What watches are told: version, plural, type, object."""
        self.oldest = 0
        self.counts: Counter[str] = Counter()
        self._versions = itertools.count(1)
        self.version = 0
        self._moved = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._streams: set[Any] = set()
        self.url = ""

    async def start(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def drop_watches(self) -> None:
        """End all streams without a word, as a server that is killed does."""
        for transport in list(self._streams):
            transport.close()

    # What users do --------------------------------------------------------------------------

    async def apply(self, kind: str, name: str, spec: dict, namespace="team", **metadata) -> None:
        """As kubectl apply."""
        plural = kube.OWN[kind].plural
        key = (plural, namespace, name)
        old = self.objects.get(key)
        new = copy.deepcopy(old) if old else self._made(kind, namespace, name)
        if old is None or old["spec"] != spec:
            new["metadata"]["generation"] += 1
        new["spec"] = copy.deepcopy(spec)
        new["metadata"].update(metadata)
        await self._write(key, new, "MODIFIED" if old else "ADDED")

    async def delete(self, kind: str, name: str, namespace="team") -> None:
        """As kubectl delete --wait=false."""
        key = (kube.OWN[kind].plural, namespace, name)
        new = copy.deepcopy(self.objects[key])
        new["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await self._write(key, new, "MODIFIED")

    def _made(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        return {
            "apiVersion": "fc-operator.dev/v1alpha1",
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": str(uuid.uuid4()),
                "generation": 0,
                "creationTimestamp": f"2026-01-01T00:{self.version // 60:02}:{self.version % 60:02}Z",
            },
            "status": {"observedGeneration": -1},
        }

    async def _write(self, key: tuple[str, str, str], new: dict[str, Any], type_: str) -> None:
        self.version = next(self._versions)
        new["metadata"]["resourceVersion"] = str(self.version)
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            self.objects.pop(key, None)
            type_ = "DELETED"
        else:
            self.objects[key] = new
        self.log.append((self.version, key[0], type_, copy.deepcopy(new)))
        async with self._moved:
            self._moved.notify_all()

    # Requests -------------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if not path.startswith(f"{BASE}/") and not path.startswith("/apis/events.k8s.io/"):
            return self._discover(path)
        watch = request.query.get("watch") == "true"
        self.counts["watch" if watch else request.method] += 1
        for status, chance in self.faults.answers.items():
            # Only a write can be in conflict or break a rule.
            concerned = status not in {409, 422} or request.method in {"PATCH", "POST"}
            if concerned and self.faults.strikes(chance):
                return self._refuse(status, "it was asked to fail", self.faults.retry_after)
        if watch:
            return await self._watch(request, path.removeprefix(f"{BASE}/").split("/")[-1])
        answer = await self._do(request, path)
        if self.faults.strikes(self.faults.lost_answers):
            request.transport.close()
        return answer

    async def _do(self, request: web.Request, path: str) -> web.Response:
        if path.startswith("/apis/events.k8s.io/"):
            self.events.append(orjson.loads(await request.read()))
            return web.json_response(self.events[-1], status=201)
        parts = path.removeprefix(f"{BASE}/").split("/")
        namespace = ""
        if parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        if len(parts) == 1:
            return self._list(request, parts[0], namespace)
        key = (parts[0], namespace, parts[1])
        if key not in self.objects:
            return self._refuse(404, "not found")
        if request.method == "PATCH":
            return await self._patch(request, key, "/".join(parts[2:]))
        return web.json_response(self.objects[key])

    def _list(self, request: web.Request, plural: str, namespace: str) -> web.Response:
        found = [
            each
            for key, each in sorted(self.objects.items())
            if key[0] == plural and namespace in {"", key[1]}
        ]
        first = int(request.query.get("continue") or 0)
        limit = int(request.query.get("limit") or 0) or len(found) + 1
        metadata: dict[str, Any] = {"resourceVersion": str(self.version)}
        if first + limit < len(found):
            metadata["continue"] = str(first + limit)
        # As the real one: items of a list do not say of which kind they are.
        items = [
            {name: value for name, value in each.items() if name not in {"kind", "apiVersion"}}
            for each in found[first : first + limit]
        ]
        return web.json_response(
            {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}
        )

    async def _patch(self, request: web.Request, key, sub: str) -> web.Response:
        assert request.headers["Content-Type"] == "application/json-patch+json"
        new = copy.deepcopy(self.objects[key])
        try:
            for step in orjson.loads(await request.read()):
                _step(new, step)
        except (LookupError, AssertionError, ValueError) as error:
            return self._refuse(422, f"the server rejected our request: {error!r}")
        old = self.objects[key]
        if sub == "status":
            new = {**copy.deepcopy(old), "status": new["status"]}
        else:
            new["status"] = copy.deepcopy(old["status"])
            assert new["spec"] == old["spec"], "the operator writes no spec"
        if new != old:
            await self._write(key, new, "MODIFIED")
        return web.json_response(new)

    def _refuse(self, status: int, message: str, retry_after: str = "") -> web.Response:
        headers = {"Retry-After": retry_after} if retry_after else {}
        body = {"kind": "Status", "apiVersion": "v1", "code": status, "message": message}
        return web.json_response(body, status=status, headers=headers)

    def _discover(self, path: str) -> web.Response:
        """What there is, as far as kopf wants to know it before it begins."""
        if path == "/api":
            return web.json_response({"versions": ["v1"]})
        if path == "/apis":
            versions = ["fc-operator.dev/v1alpha1", "apiextensions.k8s.io/v1"]
            found = [each.split("/") for each in versions]
            groups = [{"name": name, "versions": [{"version": version}],
                       "preferredVersion": {"version": version}} for name, version in found]  # fmt: skip
            return web.json_response({"kind": "APIGroupList", "groups": groups})
        kinds = {
            "/api/v1": {"namespaces": "Namespace", "events": "Event"},
            "/apis/apiextensions.k8s.io/v1": {
                "customresourcedefinitions": "CustomResourceDefinition"
            },
            BASE: PLURALS,
        }
        resources = [
            {
                "name": plural,
                "singularName": kind.lower(),
                "kind": kind,
                "namespaced": path == BASE,
                "verbs": ["get", "list", "watch", "patch"],
            }
            for plural, kind in kinds.get(path, {}).items()
        ]
        return web.json_response({"kind": "APIResourceList", "resources": resources})

    # Watches --------------------------------------------------------------------------------

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        self._streams.add(request.transport)
        since = int(request.query.get("resourceVersion") or 0)

        async def tell(type_: str, object_: dict[str, Any]) -> None:
            await answer.write(orjson.dumps({"type": type_, "object": object_}) + b"\n")

        gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
        with contextlib.suppress(ConnectionError):
            if since < self.oldest:
                await tell("ERROR", gone)
                return answer
            while True:
                for version, of, type_, object_ in list(self.log):
                    if of != plural or version <= since:
                        continue
                    since = version
                    if self.faults.strikes(self.faults.swallowed):
                        self.counts["swallowed"] += 1
                        continue
                    await tell(type_, object_)
                    if self.faults.strikes(self.faults.doubled):
                        await tell(type_, object_)
                    if self.faults.strikes(self.faults.stale):
                        await self._tell_older(tell, object_)
                    if self.faults.strikes(self.faults.expire):
                        self.oldest = self.version + 1
                        await tell("ERROR", gone)
                        return answer
                    if self.faults.strikes(self.faults.dropped_watches):
                        request.transport.close()
                        return answer
                since = max(since, self.version)
                async with self._moved:
                    if self.version <= since:
                        await self._moved.wait()
        return answer

    async def _tell_older(self, tell, object_: dict[str, Any]) -> None:
        uid = object_["metadata"]["uid"]
        older = [each for _, _, type_, each in self.log
                 if each["metadata"]["uid"] == uid and type_ != "DELETED"]  # fmt: skip
        if older and older[0] is not object_:
            self.counts["stale"] += 1
            await tell("MODIFIED", older[0])


def _step(document: dict[str, Any], step: dict[str, Any]) -> None:
    """One operation of a JSON patch."""
    *way, last = [
        part.replace("~1", "/").replace("~0", "~") for part in step["path"][1:].split("/")
    ]
    at: Any = document
    for part in way:
        at = at[int(part)] if isinstance(at, list) else at[part]
    op = step["op"]
    if isinstance(at, list):
        index = len(at) if last == "-" else int(last)
        if op == "add":
            at.insert(index, step["value"])
        elif op == "test":
            assert at[index] == step["value"], step
        else:
            assert op == "remove"
            del at[index]
            if not at and way[-1] == "finalizers":
                del document["metadata"]["finalizers"]
    elif op == "add":
        at[last] = step["value"]
    elif op == "test":
        assert at.get(last) == step["value"], step
    else:
        assert op == "remove"
        del at[last]
