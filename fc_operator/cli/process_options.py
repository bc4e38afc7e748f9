"""Options of the commands that run a process of ours, and the settings that they give."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _path(*names: str, text: str, value: str) -> Callable[[F], F]:
    return click.option(*names, metavar=value, type=click.Path(path_type=Path), help=text)


def settings_options(function: F) -> F:
    """``--settings``, ``--state``, ``--database-url`` and ``--set``."""
    for option in (
        click.option(
            "--set",
            "changed",
            metavar="GROUP.NAME=VALUE",
            multiple=True,
            help="Any setting, such as --set builds.local_slots=2; may be repeated.",
        ),
        click.option("--database-url", metavar="URL", help="PostgreSQL (FC_DATABASE_URL)."),
        _path("--state", text="The state directory (FC_STATE_DIR, .state).", value="DIR"),
        _path("--settings", "file", text="A settings file (FC_CONFIG_FILE).", value="FILE"),
    ):
        function = option(function)
    return function


def load(options: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Any:
    """The settings of file, environment and flags; logs are configured as they say.

    Raises:
        SettingsError: one of them is unknown or wrong.
        click.BadParameter: ``--set`` without a value.
    """
    from fc_operator import settings
    from fc_operator.app import logging

    flags = parse_changed(options.get("changed") or ())
    named = {"state.dir": options.get("state"), "database.url": options.get("database_url")}
    flags |= {name: value for name, value in {**named, **(more or {})}.items() if value is not None}
    file = options.get("file") or os.environ.get("FC_CONFIG_FILE")
    loaded = settings.load(file=Path(file) if file else None, env=os.environ, flags=flags)
    logging.configure(loaded.log)
    return loaded


def parse_changed(changed: Iterable[str]) -> dict[str, Any]:
    """Settings by ``group.name``, of every ``--set``.

    Raises:
        click.BadParameter: one has no value.
    """
    flags = {}
    for each in changed:
        name, equals, value = each.partition("=")
        if not equals:
            raise click.BadParameter(f"{each}: write GROUP.NAME=VALUE", param_hint="--set")
        flags[name] = value
    return flags
