"""The seam ``clients.secrets.Secrets``, kept by a folder; by Kubernetes: tests/cluster."""

from tests.conformance.secrets.suite import *  # noqa: F403 - the tests themselves
