"""All routes: what is not here does not exist."""

from __future__ import annotations

from fc_operator.web.api import builds, evaluations, health, jobsets, projects
from fc_operator.web.routes import Route

ROUTES: tuple[Route, ...] = (
    *health.ROUTES,
    *projects.ROUTES,
    *jobsets.ROUTES,
    *evaluations.ROUTES,
    *builds.ROUTES,
)
