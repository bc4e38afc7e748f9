"""kubectl, for tests: what it said, or an error that holds what it said."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class RefusedError(Exception):
    """kubectl ended with an error; its text is what kubectl said."""


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Runs kubectl as the administrator, or as whom ``as_user`` names."""

    program: str
    environment: Mapping[str, str]
    arguments: tuple[str, ...] = ()

    def __call__(self, *words: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        """What it printed.

        Raises:
            RefusedError: it ended with another code than 0.
        """
        done = subprocess.run(
            [self.program, *self.arguments, *words],
            input=stdin,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise RefusedError(f"kubectl {' '.join(words)}: {done.stderr.strip() or done.stdout}")
        return done.stdout

    def within(self, namespace: str) -> Kubectl:
        """The same in one namespace."""
        return self._with(f"--namespace={namespace}")

    def as_user(self, name: str, *groups: str) -> Kubectl:
        """The same with somebody else's rights, such as ``system:serviceaccount:a:b``."""
        return self._with(f"--as={name}", *(f"--as-group={group}" for group in groups))

    def _with(self, *words: str) -> Kubectl:
        return Kubectl(self.program, self.environment, (*self.arguments, *words))

    def json(self, *words: str) -> Any:
        """What ``-o json`` gives."""
        return json.loads(self(*words, "-o", "json"))

    def apply(self, *objects: Mapping[str, Any], server_side: bool = False) -> str:
        """Apply objects given as data."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        flags = ["--server-side"] if server_side else []
        return self("apply", *flags, "-f", "-", stdin=text)

    def wait_for(self, reached: Callable[[], Any], what: str, *, timeout_s: float = 60) -> Any:
        """Ask ``reached`` until it gives something true; an answer of kubectl's may be an error."""
        deadline_s = time.monotonic() + timeout_s
        last: object = None
        while time.monotonic() < deadline_s:
            try:
                last = reached()
                if last:
                    return last
            except RefusedError as error:
                last = error
            time.sleep(0.1)
        raise AssertionError(f"waited {timeout_s:g} s for {what}; last: {last}")

    def wait_gone(self, *words: str, timeout_s: float = 60) -> None:
        """Wait until ``get <words>`` finds nothing."""
        self.wait_for(
            lambda: not self("get", *words, "-o", "name", "--ignore-not-found").strip(),
            f"{' '.join(words)} to be gone",
            timeout_s=timeout_s,
        )


@dataclass(frozen=True, slots=True)
class Pod:
    """A restricted pod of the project's image for tests; ``restricted`` is what F and C render."""

    name: str
    image: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    writable: tuple[str, ...] = ("/nix", "/tmp", "/home/fc", "/var/lib/fc-operator")

    def manifest(self) -> dict[str, Any]:
        """It satisfies the pod security standard "restricted", and its root can't be written."""
        volumes = [f"v{number}" for number, _ in enumerate(self.writable)]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name},
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": False,
                "enableServiceLinks": False,
                "terminationGracePeriodSeconds": 1,
                "securityContext": {
                    "runAsNonRoot": True,
                    "runAsUser": 65532,
                    "runAsGroup": 65532,
                    "fsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [
                    {
                        "name": "main",
                        "image": self.image,
                        "imagePullPolicy": "Never",
                        "command": list(self.command),
                        "env": [{"name": k, "value": v} for k, v in self.environment.items()],
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [
                            {"name": name, "mountPath": path}
                            for name, path in zip(volumes, self.writable, strict=True)
                        ],
                    }
                ],
                "volumes": [{"name": name, "emptyDir": {}} for name in volumes],
            },
        }
