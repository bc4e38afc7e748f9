"""``fc key``: API keys are made, listed and revoked."""

from __future__ import annotations

import asyncio
import os
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from fc_operator.cli import connections, exits, outputs, process_options
from fc_operator.cli.outputs import Column, field
from fc_operator.errors import HumanNeededError

_ROLES = (
    "admin", "create-projects", "eval-jobset", "restart-jobs", "cancel-build", "bump-to-front",
    "read-only",
)  # fmt: skip
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_EXAMPLES = """\
\b
Examples:
  fc key create me --role admin --save     the first one, kept for later verbs
  fc key create ci --role eval-jobset --expires 90d
  fc key list
  fc key revoke fc_3kTzP1aQ

A key is shown once, when it is made; only its hash is stored.
"""
_COLUMNS = (
    Column("KEY", field("prefix")),
    Column("NAME", field("name")),
    Column("ROLE", field("role")),
    Column("AGE", lambda key: outputs.ago(key.get("created_at"))),
    Column("USED", lambda key: outputs.ago(key.get("last_used_at"))),
    Column("EXPIRES", field("expires_at")),
    Column("REVOKED", field("revoked_at")),
)


@click.group(short_help="Create, list and revoke API keys.", epilog=_EXAMPLES)
def command() -> None:
    """Create, list and revoke API keys."""


def _expiry(_: click.Context, __: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    read = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", value)
    if read is None:
        raise click.BadParameter(f"{value!r} is no time such as 12h, 90d or 4w")
    return datetime.now(UTC) + int(read[1]) * _UNITS[read[2]]


@command.command(short_help="Make a key and show it once.")
@click.argument("name")
@click.option("--role", type=click.Choice(_ROLES), default="read-only", show_default=True,
              help="What it may do.")  # fmt: skip
@click.option("--expires", "expires_at", metavar="TIME", callback=_expiry,
              help="When it ends: 12h, 90d, 4w; never by default.")  # fmt: skip
@click.option("--save", is_flag=True, help="Keep it in ~/.config/fc/key, where verbs look for it.")
@process_options.settings_options
@connections.server_options
def create(name: str, role: str, expires_at: datetime | None, *, save: bool, **options: Any) -> int:
    """Make a key and show it once.

    With a key of the role admin (--key, FC_API_KEY) this asks the server. Without any, it is made
    in the database of this machine's `fc up` (--state) or of --database-url: the first key.
    """
    if connections.api_key() and not options["database_url"] and not options["state"]:
        body = {"name": name, "role": role}
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        made = connections.call(lambda client: client.send("POST", "/api-keys", body))
        text = str(made["key"])
    else:
        text = _in_the_database(name, role, expires_at, options)
    if save:
        click.echo(f"saved in {_save(text)}", err=True)
    click.echo(text)
    return exits.DONE


def _in_the_database(
    name: str, role: str, expires_at: datetime | None, options: dict[str, Any]
) -> str:
    from fc_operator.app import keys
    from fc_operator.kit import logs
    from fc_operator.model.statuses import Role

    settings = process_options.load(options)
    logs.configure(level="error")
    return asyncio.run(keys.create(settings, name, Role(role), expires_at=expires_at)).key


def _save(text: str) -> str:
    file = connections.key_file()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(f"{text}\n")
    except OSError as error:
        # Not an end: the key exists and has to be shown.
        click.secho(f"could not save it in {file}: {error.strerror}", fg="red", err=True)
    return str(file)


@command.command("list", short_help="List keys; none is shown whole.")
@outputs.output_option
@connections.server_options
def list_keys(output: str) -> int:
    """List keys by their first characters."""
    items = connections.call(lambda client: client.all("/api-keys"))
    outputs.show(output, items, _COLUMNS, items)
    return exits.DONE


@command.command(short_help="End a key at once.")
@click.argument("key", metavar="KEY")
@connections.server_options
def revoke(key: str) -> int:
    """End a key at once. KEY is its id or its first characters, as `fc key list` shows them."""
    if len(key) > 40 and key.startswith("fc_"):
        raise HumanNeededError(
            "that is a whole key", hint="only its first characters are needed, and safe to type"
        )
    connections.call(lambda client: client.send("DELETE", f"/api-keys/{key}"))
    click.echo(f"{key} is revoked")
    return exits.DONE
