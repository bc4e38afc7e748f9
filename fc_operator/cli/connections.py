"""Which server a verb speaks to and with which key; the loop that it speaks in."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fc_operator.errors import UnauthenticatedError

if TYPE_CHECKING:
    from fc_operator.clients.api import ApiClient

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_URL = "http://127.0.0.1:8080"


def key_file() -> Path:
    """Where ``fc key create --save`` puts a key and every verb looks for one."""
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "fc" / "key"


def server_options(command: F) -> F:
    """``--url`` and ``--key`` after the verb, as they may stand before it."""
    for name, text in (
        ("key", "The API key; better in FC_API_KEY."),
        ("url", "The server (FC_URL)."),
    ):
        command = click.option(
            f"--{name}",
            f"given_{name}",
            metavar=name.upper(),
            help=text,
            expose_value=False,
            callback=functools.partial(_remember, name),
        )(command)
    return command


def _remember(what: str, ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        ctx.ensure_object(dict)[what] = value


def address() -> str:
    """The server's root: flag, then ``FC_URL``, then this machine."""
    return _given("url") or os.environ.get("FC_URL") or DEFAULT_URL


def api_key() -> str:
    """The key: flag, then ``FC_API_KEY``, then the file; empty if there is none."""
    given = _given("key") or os.environ.get("FC_API_KEY")
    return given or _key_of_file()


def _key_of_file() -> str:
    try:
        return key_file().read_text().strip()
    except OSError:
        return ""


def _given(what: str) -> str:
    context = click.get_current_context(silent=True)
    while context is not None:
        if isinstance(context.obj, dict) and context.obj.get(what):
            return str(context.obj[what])
        context = context.parent
    return ""


def call(work: Callable[[ApiClient], Awaitable[T]]) -> T:
    """Run ``work`` with a client of the server."""
    from fc_operator.clients.api import ApiClient

    key = api_key()

    async def run() -> T:
        async with ApiClient(address(), key) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except UnauthenticatedError as error:
        if key and key == _key_of_file():
            raise UnauthenticatedError(
                error.message, hint=f"the key is that of {key_file()}; FC_API_KEY outranks it"
            ) from error
        raise
