"""HTML from templates: all is escaped, nothing is undefined, and no template is a user's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


class Templates:
    """The templates of one folder, compiled once each."""

    def __init__(
        self, folder: Path, *, filters: Mapping[str, Callable[..., Any]], values: Mapping[str, Any]
    ) -> None:
        """``filters`` and ``values`` are known to every template."""
        self._environment = Environment(
            loader=FileSystemLoader(folder),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters.update(filters)
        self._environment.globals.update(values)

    def render(self, name: str, **values: Any) -> str:
        """The text of a template with these values."""
        return self._environment.get_template(name).render(values)
