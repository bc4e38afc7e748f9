"""What people ask of declared builders: a look at one, and which host key is trusted."""

from __future__ import annotations

from dataclasses import dataclass

from fc_operator.clients import ssh
from fc_operator.errors import ConflictError
from fc_operator.store import listener, remote_builders
from fc_operator.store.database import Database, notify
from fc_operator.store.pages import builders
from fc_operator.store.pages.builders import Builder


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """What a builder shows, and what is trusted."""

    name: str
    host_key: str
    fingerprint: str
    trusted: str
    is_trusted: bool


async def request_test(database: Database, word: str) -> Builder:
    """Have a scheduler look at the builder with this name or id; how it stood before.

    Raises:
        NotFoundError: there is none.
    """
    async with database.transaction() as connection:
        before = await builders.fetch(connection, word)
        await remote_builders.request_test(connection, before["id"])
        await notify(connection, listener.RESOURCES)
    return before


async def pin(database: Database, word: str, host_key: str | None) -> HostKey:
    """The host key that a builder shows; trusted from now on where it is ``host_key``.

    Raises:
        NotFoundError: there is no such builder.
        UnavailableError: it does not answer.
        ConflictError: it shows another key than ``host_key``, or its manifest names another one.
    """
    async with database.session() as connection:
        found = await builders.fetch(connection, word)
    shown, fingerprint = await ssh.fetch_host_key(ssh.parse_uri(found["ssh_uri"]))
    declared = found["public_host_key"] or ""
    trusted = declared or found["pinned_host_key"] or ""
    if host_key is not None:
        if not ssh.same_host_key(host_key, shown):
            raise ConflictError(
                f"{found['name']} shows {fingerprint}, which is another key",
                hint="somebody may stand between; look at it again",
            )
        if declared and not ssh.same_host_key(declared, shown):
            raise ConflictError(
                f"the manifest of {found['name']} names another host key",
                hint=f"change its publicHostKey to: {shown}",
            )
        async with database.transaction() as connection:
            await remote_builders.pin(connection, found["id"], shown)
            await notify(connection, listener.RESOURCES)
        trusted = declared or shown
    return HostKey(
        name=found["name"],
        host_key=shown,
        fingerprint=fingerprint,
        trusted=trusted,
        is_trusted=ssh.same_host_key(trusted, shown),
    )
