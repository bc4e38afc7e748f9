"""A real cluster for tests: up once a session, a namespace of its own for each test."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest

from tests.cluster import images, machine
from tests.cluster.background import GitHost, Loop, Postgres
from tests.cluster.kubectl import Kubectl
from tests.cluster.programs import MissingError


def pytest_collection_modifyitems(items):
    here = str(Path(__file__).parent)
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.cluster)


def _missing(reason: str):
    if os.environ.get("CI"):
        pytest.fail(f"no cluster: {reason}")
    pytest.skip(f"no cluster: {reason}")


@pytest.fixture(scope="session")
def cluster():
    """The cluster that FC_CLUSTER_INSTANCE names (dev), if it is up; else one for this session.

    The tests' thread enters its network, so that all that they start is within it. The image is
    built before that, since it needs the world outside.
    """
    if reason := machine.unfit():
        _missing(reason)
    try:
        found = machine.find(os.environ.get("FC_CLUSTER_INSTANCE", "dev"))
        own = machine.find("session")
    except MissingError as error:
        _missing(str(error))
    if found.state()["state"] == "ready":
        with found.entered():
            yield found
    else:
        with machine.running(own) as here:
            here.import_image(images.make_pause(here.places))
            with here.entered():
                yield here


@pytest.fixture(scope="session")
def image(cluster):
    """The name of the project's image as the sources are now, imported."""
    if name := os.environ.get("FC_CLUSTER_IMAGE"):
        return name
    with cluster.left():
        try:
            return images.provide_image(cluster)
        except MissingError as error:
            _missing(str(error))


@pytest.fixture(scope="session")
def kubectl(cluster):
    """Runs kubectl as the administrator: ``kubectl("get", "pods")``; see ``Kubectl``."""
    return Kubectl(cluster.programs["kubectl"], cluster.environment())


@pytest.fixture(scope="session")
def helm(cluster):
    """Runs helm and returns what it printed."""

    def run(*words: str, stdin: str | None = None, timeout_s: float = 300) -> str:
        done = subprocess.run(
            [cluster.programs["helm"], *words],
            env={**cluster.environment(), "HELM_CACHE_HOME": str(cluster.places.dir / "helm")},
            input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"helm {' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def namespace(kubectl):
    """The name of a new namespace; it is asked to go at the end."""
    name = f"t-{uuid.uuid4().hex[:10]}"
    kubectl("create", "namespace", name)
    # A pod that mounts nothing of it is not held up; one that does would be.
    kubectl.wait_for(
        lambda: kubectl.within(name)("get", "serviceaccount", "default", "-o", "name"),
        f"{name} to have its service account",
    )
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def background(cluster):
    """Runs async parts of the product within the cluster's network."""
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def cluster_postgres(background):
    """PostgreSQL that pods reach; ``create()`` gives the URL of a new, empty database."""
    server = Postgres(background)
    yield server
    server.close()


@pytest.fixture
def cluster_database_url(cluster_postgres):
    """The URL of an empty database that pods reach."""
    url = cluster_postgres.create()
    yield url
    cluster_postgres.drop(url)


@pytest.fixture(scope="session")
def git_host(background):
    """A git host that pods reach, with the demo's repositories."""
    host = GitHost(background)
    host.serve_demo()
    yield host
    host.close()
