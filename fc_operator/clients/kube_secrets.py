"""Secrets as Kubernetes keeps them: read by name from the namespace of the object that refers.

Nothing is listed, watched or kept, so that a rotated value is seen at the next look and our rights
can be as small as ``get``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

from fc_operator.clients import secrets
from fc_operator.clients.kube import SECRETS, Kube, refusal_of
from fc_operator.errors import InvalidError, NotFoundError, PrerequisiteError, SecretError

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_TYPES: Final = frozenset({"Opaque", "kubernetes.io/basic-auth", "kubernetes.io/ssh-auth"})
"""What people make for others to read. The rest are credentials of the cluster's own (tokens of
service accounts, of registries, of Helm): nobody's git host gets one of those by a reference.
"""


class KubernetesSecrets:
    """See ``clients.secrets.Secrets``."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def values(self, namespace: str, name: str) -> Mapping[str, bytes]:
        """See ``Secrets.values``."""
        secrets.check_name(name)
        if not _NAMESPACE.fullmatch(namespace):
            raise SecretError(f"{namespace!r} is no name of a namespace")
        try:
            found = await self._kube.get(SECRETS, namespace, name)
        except NotFoundError as error:
            raise SecretError(
                f"there is no secret {name} in namespace {namespace}",
                hint=f"kubectl create secret generic {name} --namespace {namespace} …",
            ) from error
        except PrerequisiteError as error:
            refusal = refusal_of(error)
            if refusal is None or refusal.code != 403:
                raise  # it is we who are not known, and nothing is said of the secret
            raise SecretError(
                f"the secret {name} can't be read: we have no right to read it in namespace "
                f"{namespace}",
                hint="add the namespace to rbac.objectNamespaces of the chart",
            ) from error
        except InvalidError as error:
            raise SecretError(f"the secret {name} can't be read: {error.message}") from error
        return _values(found, f"the secret {name} in namespace {namespace}")

    async def read(self, namespace: str, name: str, key: str) -> bytes:
        """See ``Secrets.read``."""
        secrets.check_key(key)
        values = await self.values(namespace, name)
        if key not in values:
            raise SecretError(
                f"the secret {name} has no key {key}",
                hint=f"its keys: {', '.join(values)}" if values else "it is empty",
            )
        return values[key]


def _values(found: Mapping[str, Any], what: str) -> Mapping[str, bytes]:
    kind = found.get("type") or "Opaque"
    if kind not in _TYPES:
        raise SecretError(
            f"{what} has the type {kind}, which is not ours to use",
            hint=f"make one of the type {', '.join(sorted(_TYPES))}",
        )
    data = found.get("data") or {}
    if len(data) > secrets.KEYS_MAX:
        raise SecretError(f"{what} has more than {secrets.KEYS_MAX} keys")
    try:
        return {
            key: secrets.without_newline(base64.b64decode(data[key], validate=True))
            for key in sorted(data)
            if secrets.is_key(key)
        }
    except (binascii.Error, TypeError) as error:
        raise SecretError(f"{what} holds what is no base64") from error
