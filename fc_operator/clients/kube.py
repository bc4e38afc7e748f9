"""One Kubernetes API server: objects as plain JSON, through a bounded pool of threads.

The official client is synchronous, so every call runs in a thread of ours, never on the event loop;
each has a timeout (the client has none by itself) and a limit on the answer's size. Tokens and
certificates are the client's business: a service account's token is read again as it rotates.
Watching is not done here; that is the operator's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar
from urllib.parse import quote

import orjson
import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, ApiException, Configuration

from fc_operator.errors import (
    ConflictError,
    FcError,
    InvalidError,
    LimitReachedError,
    NotFoundError,
    PrerequisiteError,
    UnavailableError,
)
from fc_operator.model import desired as nouns

T = TypeVar("T")

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds its service account."""
_CONNECT_S = 5.0
_PIECE_BYTES = 64 * 1024
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""No answer that we ask for is larger; lists come in pages."""

JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind of objects as URLs call it."""

    group: str
    """Empty for the core group."""
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
        """The path of an object, of all objects in a namespace, or of all objects."""
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None and self.namespaced:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name is not None:
            parts.append(quote(name, safe=""))
        if sub:
            parts.append(sub)
        return "/" + "/".join(parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS: Final = Resource("", "v1", "pods")
SECRETS: Final = Resource("", "v1", "secrets")
NAMESPACES: Final = Resource("", "v1", "namespaces", namespaced=False)
EVENTS: Final = Resource("events.k8s.io", "v1", "events")
CRDS: Final = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
_GROUP, _VERSION = nouns.API_VERSION.split("/")
OWN: Final[Mapping[nouns.Kind, Resource]] = {
    nouns.PROJECT: Resource(_GROUP, _VERSION, "projects"),
    nouns.JOBSET: Resource(_GROUP, _VERSION, "jobsets"),
    nouns.REMOTE_BUILDER: Resource(_GROUP, _VERSION, "remotebuilders"),
    nouns.CONFIG_REPOSITORY: Resource(_GROUP, _VERSION, "configrepositories"),
}
"""Our own kinds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why an API server said no, for those who must tell one no from another."""

    code: int
    """The HTTP status."""
    reason: str = ""
    """One word of Kubernetes' own, such as ``AlreadyExists``; may be empty."""
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach the API server, for a client of another make."""

    server: str
    ca_path: str | None = None
    insecure: bool = False
    scheme: str | None = None
    token: str | None = field(default=None, repr=False)
    certificate_path: str | None = None
    private_key_path: str | None = None


def refusal_of(error: BaseException) -> Refusal | None:
    """What the API server answered to the call that raised ``error``; None if it did not."""
    cause = error if isinstance(error, ApiException) else error.__cause__
    return _refusal(cause) if isinstance(cause, ApiException) else None


def own_namespace() -> str | None:
    """The namespace of the pod that we run in; None outside a cluster. Reads a small file."""
    try:
        return (_ACCOUNT / "namespace").read_text().strip() or None
    except OSError:
        return None


def in_cluster() -> bool:
    """Whether we run in a pod that has a service account's token."""
    return (_ACCOUNT / "token").is_file()


class Kube:
    """Calls to one API server, at most ``threads`` at once."""

    def __init__(self, configuration: Configuration, *, threads: int, timeout_s: float) -> None:
        # A connection per thread. One more try where a kept connection turned out to be closed;
        # urllib3 never repeats what is not idempotent after it was sent.
        configuration.connection_pool_maxsize = threads
        configuration.retries = urllib3.Retry(
            total=1, connect=1, read=1, redirect=0, status=0, other=0
        )
        self._api = ApiClient(configuration)
        self._api.user_agent = "fc-operator"
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="kube")
        self._free = asyncio.Semaphore(threads)
        # The client's hook that renews a token writes into what all threads read.
        self._signing = threading.Lock()

    @classmethod
    async def connect(
        cls, *, kubeconfig: str = "", context: str = "", threads: int = 8, timeout_s: float = 30.0
    ) -> Kube:
        """The API server of the pod that we run in; elsewhere that of a kubeconfig file.

        An empty ``kubeconfig`` outside a cluster means kubectl's own choice of files. Nothing is
        asked of the API server yet.

        Raises:
            PrerequisiteError: no usable configuration was found.
        """

        def load() -> Configuration:
            configuration = Configuration()
            if not kubeconfig and in_cluster():
                config.load_incluster_config(client_configuration=configuration)
            else:
                config.load_kube_config(
                    config_file=kubeconfig or None,
                    context=context or None,
                    client_configuration=configuration,
                    persist_config=False,
                )
            return configuration

        try:
            configuration = await asyncio.to_thread(load)
        except (config.ConfigException, OSError, ValueError) as error:
            raise PrerequisiteError(
                f"there is no Kubernetes to talk to: {error}",
                hint="run inside a cluster with a service account, or name a kubeconfig file",
            ) from error
        return cls(configuration, threads=threads, timeout_s=timeout_s)

    async def close(self) -> None:
        """Start no more calls; those that run end by themselves within their timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._api.rest_client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def access(self) -> Access:
        """What we reach the API server with, at this moment. Reads files; call it in a thread."""
        found = self._api.configuration
        with self._signing:
            header = (found.auth_settings().get("BearerToken") or {}).get("value") or ""
        scheme, _, token = str(header).partition(" ")
        return Access(
            server=found.host,
            ca_path=found.ssl_ca_cert,
            insecure=not found.verify_ssl,
            scheme=scheme.capitalize() if token else None,
            token=token or scheme or None,
            certificate_path=found.cert_file,
            private_key_path=found.key_file,
        )

    # Objects --------------------------------------------------------------------------------

    async def get(self, resource: Resource, namespace: str | None, name: str) -> dict[str, Any]:
        """One object.

        Raises:
            NotFoundError: there is none.
        """
        return await self.request("GET", resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        page: int = 500,
    ) -> AsyncIterator[dict[str, Any]]:
        """Objects of one namespace or of all, page by page; selectors as kubectl writes them.

        Raises:
            UnavailableError: also when the list grew too old to be continued; begin again.
        """
        query = {"limit": str(page)}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        while True:
            answer = await self.request("GET", resource.path(namespace), query=query)
            for item in answer.get("items") or ():
                yield item
            mark = (answer.get("metadata") or {}).get("continue")
            if not mark:
                return
            query["continue"] = mark

    async def create(
        self, resource: Resource, namespace: str | None, body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Make an object.

        Raises:
            ConflictError: its name is taken (reason ``AlreadyExists``), or a quota moved meanwhile.
            PrerequisiteError: we may not, or an admission or a quota says no; see ``refusal_of``.
        """
        return await self.request("POST", resource.path(namespace), body=body)

    async def apply(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Mapping[str, Any],
        *,
        manager: str,
        force: bool = False,
    ) -> dict[str, Any]:
        """Server-side apply: own the fields of ``body``, make the object if it is not there.

        Raises:
            ConflictError: somebody else owns a field, and ``force`` is off.
        """
        return await self.request(
            "PATCH",
            resource.path(namespace, name),
            query={"fieldManager": manager, "force": "true" if force else "false"},
            body=body,
            content_type=APPLY_PATCH,
        )

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        body: Sequence[Mapping[str, Any]] | Mapping[str, Any],
        *,
        sub: str = "",
    ) -> dict[str, Any]:
        """A JSON patch (a sequence of operations) or a merge patch (a mapping).

        Raises:
            NotFoundError: there is no such object.
            InvalidError: the result would break the schema, or a ``test`` of the patch failed.
        """
        merge = isinstance(body, Mapping)
        return await self.request(
            "PATCH",
            resource.path(namespace, name, sub),
            body=dict(body) if isinstance(body, Mapping) else list(body),
            content_type=MERGE_PATCH if merge else JSON_PATCH,
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        grace_s: int | None = None,
    ) -> None:
        """Delete an object, only that with ``uid`` if one is given; finalizers may hold it.

        Raises:
            NotFoundError: there is none.
            ConflictError: the one that is there has another uid.
        """
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        await self.request("DELETE", resource.path(namespace, name), body=options)

    async def read_log(
        self,
        namespace: str,
        pod: str,
        *,
        container: str = "",
        bytes_max: int = 64 * 1024,
        tail_lines: int = 200,
    ) -> str:
        """The end of what a pod's container printed; never followed.

        Raises:
            NotFoundError: there is no such pod.
            InvalidError: the container has not started.
        """
        query = {"tailLines": str(tail_lines), "limitBytes": str(bytes_max)}
        if container:
            query["container"] = container
        raw = await self.raw("GET", PODS.path(namespace, pod, "log"), query=query, accept="*/*")
        return raw.decode(errors="replace")

    # Requests -------------------------------------------------------------------------------

    async def request(
        self,
        method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"],
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """Any request whose answer is a JSON object.

        Raises:
            NotFoundError: 404.
            ConflictError: 409.
            InvalidError: 400, 405, 413, 415, 422: the request itself is wrong.
            PrerequisiteError: 401, 403: our credential does not allow it, or an admission or a
                quota says no (see ``refusal_of``).
            LimitReachedError: the answer is larger than ``ANSWER_BYTES_MAX``.
            UnavailableError: no answer in time, 410, 429 or 5xx; its ``delay_s`` is what the API
                server asked for.
        """
        raw = await self.raw(
            method,
            path,
            query=query,
            body=body,
            content_type=content_type,
            timeout_s=timeout_s,
        )
        try:
            answer = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise UnavailableError(f"{method} {path}: the answer is no JSON") from error
        if not isinstance(answer, dict):
            raise UnavailableError(f"{method} {path}: the answer is no JSON object")
        return answer

    async def raw(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float | None = None,
    ) -> bytes:
        """As :meth:`request`, but the answer's bytes."""
        limit_s = self._timeout_s if timeout_s is None else timeout_s

        def call() -> bytes:
            with _our_errors(method, path):
                return self._call(
                    method,
                    path,
                    query=query or {},
                    body=body,
                    headers={"Accept": accept, "Content-Type": content_type},
                    limit_s=limit_s,
                )

        return await self._in_thread(call)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        # What waits for a thread can be given up; what runs in one ends within its timeout.
        async with self._free:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        body: Any,
        headers: dict[str, str],
        limit_s: float,
    ) -> bytes:
        end = time.monotonic() + limit_s
        if body is None:
            headers.pop("Content-Type")
        with self._signing:
            _, url, headers, _, _ = self._api.param_serialize(
                method,
                path,
                query_params=list(query.items()),
                header_params=headers,
                auth_settings=["BearerToken"],
            )
        found = self._api.rest_client.request(
            method,
            url,
            headers=headers,
            body=body,
            _request_timeout=(min(_CONNECT_S, limit_s), limit_s),
        ).response
        try:
            data = _read(found, path, end)
        finally:
            # Read to its end, the connection went back to the pool already; else it closes.
            found.close()
        if not 200 <= found.status < 300:
            refused = ApiException(
                status=found.status, reason=found.reason, body=data.decode(errors="replace")
            )
            refused.headers = found.headers
            raise refused
        return data


def _read(found: urllib3.BaseHTTPResponse, path: str, end: float) -> bytes:
    pieces = []
    size = 0
    for piece in found.stream(_PIECE_BYTES, decode_content=True):
        size += len(piece)
        if size > ANSWER_BYTES_MAX:
            raise LimitReachedError(f"{path}: the answer is too large", limit="output")
        if time.monotonic() > end:
            raise UnavailableError(f"{path}: the answer did not end in time")
        pieces.append(piece)
    return b"".join(pieces)


@contextlib.contextmanager
def _our_errors(method: str, path: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise _error_of(error, f"{method} {path}") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise UnavailableError(
            f"the Kubernetes API does not answer {method} {path}: {error}"[:500]
        ) from error


def _error_of(error: ApiException, what: str) -> FcError:
    said = _refusal(error)
    message = f"{what}: {said.message or error.reason or said.code}"[:2000]
    match said.code:
        case 404:
            return NotFoundError(message)
        case 409:
            return ConflictError(message)
        case 401 | 403:
            return PrerequisiteError(message)
        case 410 | 429:
            return UnavailableError(message, delay_s=said.retry_after_s)
        case code if 400 <= code < 500:
            return InvalidError(message)
        case _:
            return UnavailableError(message, delay_s=said.retry_after_s)


def _refusal(error: ApiException) -> Refusal:
    try:
        status = json.loads(error.body or "{}")
    except ValueError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    details = status.get("details")
    details = details if isinstance(details, dict) else {}
    asked = (error.headers or {}).get("Retry-After") or details.get("retryAfterSeconds")
    try:
        retry_after_s = None if asked is None else float(asked)
    except (TypeError, ValueError):
        retry_after_s = None
    return Refusal(
        code=int(error.status or 0),
        reason=str(status.get("reason") or ""),
        message=str(status.get("message") or ""),
        details=details,
        retry_after_s=retry_after_s,
    )
