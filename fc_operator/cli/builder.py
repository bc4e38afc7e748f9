"""``fc builder``: look at a declared builder, and pin its host key."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from fc_operator.cli import connections, exits

if TYPE_CHECKING:
    from fc_operator.clients.api import ApiClient

_EXAMPLES = """\
\b
Examples:
  fc builder test big-1     say what is wrong: host key, login, Nix, disk, trusted-users
  fc builder pin big-1      show its host key, and trust it after a question
"""
_TICK_S = 0.3


@click.group(short_help="Look at a declared builder; pin its host key.", epilog=_EXAMPLES)
def command() -> None:
    """Look at a declared builder, and pin its host key."""


@command.command("test", short_help="Try all that a build needs there.")
@click.argument("name")
@click.option("--timeout", "timeout_s", type=click.IntRange(min=1), default=120, show_default=True,
              metavar="SECONDS", help="How long to wait for a scheduler to look.")  # fmt: skip
@connections.server_options
def test(name: str, timeout_s: int) -> int:
    """Have a scheduler log in, send a path, and build something; say what is wrong.

    A builder that is found well gets work again at once.
    """

    async def work(client: ApiClient) -> int:
        path = f"/builders/{quote(name, safe='')}"
        await client.send("POST", f"{path}/test")
        try:
            async with asyncio.timeout(timeout_s):
                now = await _tested(client, path)
        except TimeoutError:
            click.secho(f"no scheduler looked at {name} within {timeout_s} s", fg="red", err=True)
            return exits.ENDED_BADLY
        for finding in now["findings"]:
            mark, colour = ("ok", "green") if finding["ok"] else ("FAILED", "red")
            click.secho(f"{mark:<7}", fg=colour, nl=False)
            click.echo(f"{finding['check']:<11}{finding['message']}")
            if finding["hint"]:
                click.echo(f"       hint: {finding['hint']}")
        well = all(finding["ok"] for finding in now["findings"])
        return exits.DONE if well else exits.ENDED_BADLY

    return connections.call(work)


async def _tested(client: ApiClient, path: str) -> dict[str, Any]:
    while True:
        now: dict[str, Any] = await client.get(path)
        if now["test_requested_at"] is None and now["tested_at"] is not None:
            return now
        await asyncio.sleep(_TICK_S)


@command.command("pin", short_help="Show its host key and trust it.")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connections.server_options
def pin(name: str, *, yes: bool) -> int:
    """Show the host key that a builder shows now, and trust it from then on.

    Compare the fingerprint with what its administrator says. A key that the manifest names goes
    before a pinned one.
    """

    async def work(client: ApiClient) -> int:
        path = f"/builders/{quote(name, safe='')}/pin"
        shown: dict[str, Any] = await client.send("POST", path, {})
        click.echo(f"{shown['name']} shows {shown['fingerprint']}")
        click.echo(f"publicHostKey: {shown['host_key']}")
        if shown["is_trusted"]:
            click.echo("it is trusted already")
            return exits.DONE
        if shown["trusted"]:
            click.secho(f"trusted is another one: {shown['trusted']}", fg="yellow")
        if not yes and not await asyncio.to_thread(click.confirm, "Trust it?"):
            return exits.ERROR
        await client.send("POST", path, {"host_key": shown["host_key"]})
        click.echo(f"{shown['name']} is pinned")
        return exits.DONE

    return connections.call(work)
