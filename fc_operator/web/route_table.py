"""All routes: what is not here does not exist."""

from __future__ import annotations

from fc_operator.web import cache
from fc_operator.web.api import (
    builders,
    builds,
    channels,
    config_repositories,
    documents,
    evaluations,
    health,
    jobs,
    jobsets,
    keys,
    logs,
    managed_resources,
    manifests,
    products,
    projects,
    queue,
    steps,
    tasks,
    webhooks,
)
from fc_operator.web.pages import assets, nouns
from fc_operator.web.routes import Route

ROUTES: tuple[Route, ...] = (
    *health.ROUTES,
    *projects.ROUTES,
    *jobsets.ROUTES,
    *evaluations.ROUTES,
    *builds.ROUTES,
    *steps.ROUTES,
    *logs.ROUTES,
    *products.ROUTES,
    *queue.ROUTES,
    *builders.ROUTES,
    *channels.ROUTES,
    *managed_resources.ROUTES,
    *config_repositories.ROUTES,
    *jobs.ROUTES,
    *keys.ROUTES,
    *manifests.ROUTES,
    *webhooks.ROUTES,
    *tasks.ROUTES,
    *documents.ROUTES,
    *cache.ROUTES,
    *nouns.ROUTES,
    *assets.ROUTES,
)
