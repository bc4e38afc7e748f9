"""Structured logs: constant event names, data as fields, one formatter for every logger.

Events are ``room.past_tense``; ids go in fields, never whole objects; context is bound once per
unit of work with ``bound``. On a terminal lines are columns, elsewhere they are JSON.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterator


def get_logger() -> structlog.stdlib.BoundLogger:
    """A logger; the event name says the room, so it needs no name of its own."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger


@contextlib.contextmanager
def bound(**context: Any) -> Iterator[None]:
    """Add ``context`` to every log line inside the block (per task of asyncio)."""
    with structlog.contextvars.bound_contextvars(**context):
        yield


def configure(
    *, level: str = "info", stream: TextIO | None = None, json: bool | None = None
) -> None:
    """Send our logs and those of every library through one formatter.

    ``json`` None means: JSON unless ``stream`` is a terminal.
    """
    out = stream or sys.stderr
    as_json = not out.isatty() if json is None else json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if as_json:
        shared.append(structlog.processors.format_exc_info)
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Libraries speak up only when something is wrong.
    for name in (
        "sanic",
        "sanic.root",
        "sanic.access",
        "sanic.error",
        "asyncio",
        "git",
        "watchfiles",
        "celpy",
    ):
        foreign = logging.getLogger(name)
        foreign.handlers[:] = []
        foreign.propagate = True
        foreign.setLevel(logging.WARNING)
