"""`fc operator` in the test's process, on a real PostgreSQL and an API server that can misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
import time
from pathlib import Path

import pytest

from fc_operator import settings as all_settings
from fc_operator.app.operator import Operator


def load(name: str):
    """A module beside this file; test folders are no packages."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
users: [{{name: u, user: {{token: t-0}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""


@pytest.fixture
def kube_api():
    return load("kube_api")


@pytest.fixture
async def running(database_url, tmp_path):
    """``await running(api)`` gives a started Operator; ``operator.ended`` says why it must end."""
    async with contextlib.AsyncExitStack() as stack:

        async def run(api, **changed):
            await api.start()
            stack.push_async_callback(api.stop)
            file = tmp_path / "kubeconfig"
            await asyncio.to_thread(file.write_text, KUBECONFIG.format(url=api.url))
            flags = {
                "database.url": database_url,
                "state.dir": str(tmp_path / "state"),
                "kubernetes.kubeconfig": str(file),
                "kubernetes.installation": "ci",
                "operator.compare_s": "2",
                "operator.status_s": "0.05",
                "operator.lease_s": "5",
                "operator.health_host": "127.0.0.1",
                "operator.health_port": "0",
                **changed,
            }
            ended = []
            operator = Operator(all_settings.load(flags=flags), end=ended.append)
            operator.ended = ended
            stack.push_async_callback(operator.stop)
            await operator.start()
            return operator

        yield run


@pytest.fixture
def reached():
    """Waits until something is so; the state is another process's or another thread's."""

    async def wait(check, what, timeout_s=30):
        end = time.monotonic() + timeout_s
        while True:
            found = check()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
            await asyncio.sleep(0.02)

    return wait
