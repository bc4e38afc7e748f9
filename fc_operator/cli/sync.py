"""``fc sync``: a config repository is read now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from fc_operator.cli import connections, exits, nouns
from fc_operator.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from fc_operator.clients.api import ApiClient

_EXAMPLES = """\
\b
Examples:
  fc sync                 the only config repository, such as that of `fc up --config`
  fc sync team --wait     and wait until it has been read

\b
Exit codes: 0, or with --wait 3 when something is wrong with it afterwards.
"""
_TICK_S = 0.2


@click.command(short_help="Sync a config repository now.", epilog=_EXAMPLES)
@click.argument("name", required=False)
@click.option("--wait", is_flag=True, help="Wait until it has been read.")
@click.option("--timeout", "timeout_s", type=click.IntRange(min=1), default=60, show_default=True,
              metavar="SECONDS", help="How long to wait.")  # fmt: skip
@connections.server_options
def command(name: str | None, *, wait: bool, timeout_s: int) -> int:
    """Sync a config repository now, without waiting for its interval.

    NAME may be left out where there is only one.
    """

    async def work(client: ApiClient) -> int:
        before = await _find(client, name)
        path = f"/config-repositories/{quote(before['name'], safe='')}"
        await client.send("POST", f"{path}/sync")
        if not wait:
            click.echo(f"{before['name']} will be read")
            return exits.DONE
        try:
            async with asyncio.timeout(timeout_s):
                now = await _synced(client, path, before)
        except TimeoutError:
            click.secho(f"{before['name']} was not read within {timeout_s} s", fg="red", err=True)
            return exits.ENDED_BADLY
        status, message = nouns.ready(now)
        click.echo(f"{now['name']} is at {(now['last_revision'] or '-')[:12]}: {message or status}")
        return exits.DONE if status == "True" else exits.ENDED_BADLY

    return connections.call(work)


async def _find(client: ApiClient, name: str | None) -> dict[str, Any]:
    if name:
        found: dict[str, Any] = await client.get(f"/config-repositories/{quote(name, safe='')}")
        return found
    there = await client.all("/config-repositories", most=2)
    if not there:
        raise NotFoundError(
            "there is no config repository", hint="`fc up --config` or a ConfigRepository makes one"
        )
    if len(there) > 1:
        raise InvalidError("there are several config repositories", hint="`fc get sources`")
    return there[0]


async def _synced(client: ApiClient, path: str, before: dict[str, Any]) -> dict[str, Any]:
    """The repository after a sync that ended, well or not, later than ``before`` was seen."""
    while True:
        now: dict[str, Any] = await client.get(path)
        ended = ("last_synced_at", "sync_failures")
        if any(now[each] != before[each] for each in ended):
            return now
        await asyncio.sleep(_TICK_S)
