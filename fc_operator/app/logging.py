"""Our log lines as the settings want them."""

from __future__ import annotations

from fc_operator.kit import logs
from fc_operator.settings import LogSettings


def configure(settings: LogSettings) -> None:
    """One formatter for all loggers, to stderr."""
    as_json = {"json": True, "console": False}.get(settings.format.lower())
    logs.configure(level=settings.level, json=as_json)
