"""A manifest judged by the real API server: what it would keep, or each field that it refuses.

It judges in turns: unknown fields and metadata of a wrong type first, then the schema, and rules
only where the schema found nothing of the worst. So what one turn refused is mended, and the rest
is sent again, until it has said everything.
"""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from typing import Any

from kubernetes import client

from fc_operator.model import desired
from fc_operator.spec import schemas

_UNKNOWN = re.compile(r'unknown field "([^"]+)"')
_METADATA = re.compile(r"cannot unmarshal .* into Go struct field ObjectMeta\.(\w+) of type")
_TURNS = 12
TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing that the API server refuses."""

    field: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What it says of one manifest: the object as it would be kept, or why not."""

    kept: dict[str, Any] | None
    causes: tuple[Cause, ...] = ()


class ApiDoor:
    """The API server, asked with dry runs and ``fieldValidation=Strict``."""

    def __init__(self, kubeconfig: str, namespace: str) -> None:
        from kubernetes import config

        settings = client.Configuration()
        config.load_kube_config(kubeconfig, client_configuration=settings)
        self._client = client.ApiClient(settings)
        self._namespace = namespace

    def close(self) -> None:
        self._client.close()

    def judge(self, body: dict[str, Any]) -> Verdict:
        """All that it has against a manifest."""
        body, causes = copy.deepcopy(body), []
        body.pop("status", None)  # what `kubectl get -o yaml` gives is taken, and not looked at
        for _ in range(_TURNS):
            kept, refused = self._create(body)
            if kept is not None:
                return Verdict(None if causes else kept, tuple(causes))
            causes += refused
            mended = [_mend(body, each) for each in refused]
            if not any(mended):
                return Verdict(None, tuple(causes))
        raise AssertionError(f"no end after {_TURNS} turns: {causes}")

    def judge_change(self, old: dict[str, Any], new: dict[str, Any]) -> Verdict:
        """All that it has against a change of an object that is there."""
        kept, refused = self._send("POST", old, "", dry_run=False)
        assert kept is not None, refused
        name = old["metadata"]["name"]
        try:
            version = kept["metadata"]["resourceVersion"]
            new = {**new, "metadata": {**new["metadata"], "resourceVersion": version}}
            changed, causes = self._send("PUT", new, f"/{name}", dry_run=True)
            return Verdict(changed, tuple(causes))
        finally:
            self._send("DELETE", old, f"/{name}", dry_run=False)

    def _create(self, body: dict[str, Any]) -> tuple[dict[str, Any] | None, list[Cause]]:
        return self._send("POST", body, "", dry_run=True)

    def _send(
        self, method: str, body: dict[str, Any], below: str, *, dry_run: bool
    ) -> tuple[dict[str, Any] | None, list[Cause]]:
        kind = body.get("kind")
        plural = schemas.crds()[kind]["spec"]["names"]["plural"]
        metadata = body.get("metadata")
        named = metadata.get("namespace") if isinstance(metadata, dict) else None
        # Any good name of a namespace will do: it stands for the one that is there.
        good = isinstance(named, str) and re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", named)
        if named is None or good:
            namespace = self._namespace
            if good:
                body = {**body, "metadata": {**metadata, "namespace": namespace}}
        else:
            namespace = str(named)
        query = [("fieldValidation", "Strict")] if method != "DELETE" else []
        parts = self._client.param_serialize(
            method,
            f"/apis/{desired.API_VERSION}/namespaces/{{namespace}}/{plural}{below}",
            {"namespace": namespace},
            [*query, ("dryRun", "All")] if dry_run else query,
            {"Accept": "application/json", "Content-Type": "application/json"},
            body if method != "DELETE" else None,
            auth_settings=["BearerToken"],
        )
        answer = self._client.call_api(*parts, _request_timeout=TIMEOUT_S)
        data = json.loads(answer.read())
        return (None, _causes(data)) if answer.status >= 400 else (data, [])


def _causes(status: dict[str, Any]) -> list[Cause]:
    message, details = status["message"], status.get("details", {})
    if unknown := _UNKNOWN.findall(message):
        return [Cause(field, "FieldUnknown", message) for field in unknown]
    if typed := _METADATA.search(message):
        return [Cause(f"metadata.{typed[1]}", "FieldValueTypeInvalid", message)]
    if status["reason"] == "NotFound" and details.get("kind") == "namespaces":
        return [Cause("metadata.namespace", "NotFound", message)]
    if "the namespace of the provided object does not match" in message:
        return [Cause("metadata.namespace", "NotFound", message)]
    return [
        Cause(each["field"], each["reason"], each["message"])
        for each in details.get("causes", ())
        if each["field"] != "<nil>"  # says that rules were not run, or repeats a type
    ] or [Cause("", status["reason"], message)]


def _mend(body: dict[str, Any], cause: Cause) -> bool:
    """Take away what was refused before all else was looked at."""
    if cause.reason == "FieldUnknown":
        return _remove(body, cause.field)
    if cause.field == "metadata.namespace":
        return body["metadata"].pop("namespace", None) is not None
    if cause.reason == "FieldValueTypeInvalid" and cause.field.startswith("metadata."):
        field = cause.field.removeprefix("metadata.")
        value = body["metadata"].get(field)
        if isinstance(value, dict) and any(isinstance(each, str) for each in value.values()):
            body["metadata"][field] = {k: v for k, v in value.items() if isinstance(v, str)}
            return True
        if field == "name":
            body["metadata"]["name"] = "mended"
            return True
        return body["metadata"].pop(field, None) is not None
    return False


def _remove(body: Any, path: str) -> bool:
    parts = [int(each) if each.isdigit() else each for each in re.findall(r"[^.\[\]]+", path)]
    for part in parts[:-1]:
        body = body[part]
    if parts[-1] not in body:
        return False
    del body[parts[-1]]
    return True
