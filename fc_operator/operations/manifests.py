"""Manifests come into force: plan without writing, or apply in one transaction.

Every door calls these: config repositories, ``fc apply`` and the operator. Secrets are read
before the transaction begins; nothing outside is awaited inside one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, replace

from fc_operator.clients.secrets import Secrets, UnreadError
from fc_operator.errors import LeaseLostError, SecretError
from fc_operator.kit import logs
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.desired import Declaration
from fc_operator.model.resources import Place
from fc_operator.model.sources import Source
from fc_operator.reconciler import apply as reconciling
from fc_operator.reconciler.plans import Load, PruneRules, Report
from fc_operator.reconciler.secrets import Reference, Vault, references
from fc_operator.settings import ConfigSettings
from fc_operator.spec.manifests import Parsed
from fc_operator.store import managed_resources
from fc_operator.store.database import Connection, Database

_log = logs.get_logger()
_SECRETS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Keyring:
    """Where secrets are read, and the key for those that are kept."""

    secrets: Secrets
    cipher: Cipher


async def plan(
    database: Database,
    source: Source,
    parsed: Parsed,
    *,
    keyring: Keyring,
    config: ConfigSettings,
    revision: str = "",
    complete: bool = True,
    prune: bool = True,
    confirm: bool = False,
) -> Report:
    """What :func:`apply` would do now. Nothing is written and nothing is locked."""
    load = _load(source, parsed, config, revision, complete=complete, prune=prune, confirm=confirm)
    vault = await _read_secrets(database, load, keyring)
    async with (
        database.session() as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        return await reconciling.plan(connection, load, vault)


async def apply(
    database: Database,
    source: Source,
    parsed: Parsed,
    *,
    keyring: Keyring,
    config: ConfigSettings,
    revision: str,
    complete: bool,
    prune: bool = True,
    confirm: bool = False,
    gone: Collection[Place] = (),
    by_namespace: bool = False,
    still_held: Callable[[Connection], Awaitable[bool]] | None = None,
) -> Report:
    """Bring what a source says into force, in one transaction.

    ``complete`` says that ``parsed`` is all of it, so that what is missing is pruned (if ``prune``)
    unless a file is broken; ``confirm`` lets a pruning pass that the guard would stop. Valid
    declarations come into force also when others are broken. ``gone`` names what was taken away one
    by one, and ``by_namespace`` says that the declarations belong to different people (see
    ``Load``). ``still_held`` is asked inside the transaction.

    Raises:
        LeaseLostError: ``still_held`` said no; nothing is written.
    """
    load = _load(source, parsed, config, revision, complete=complete, prune=prune, confirm=confirm)
    load = replace(load, gone=frozenset(gone), by_namespace=by_namespace)
    vault = await _read_secrets(database, load, keyring)

    async def change(connection: Connection) -> Report:
        if still_held is not None and not await still_held(connection):
            raise LeaseLostError(f"{source} is synced by somebody else now, or says something else")
        return await reconciling.apply(connection, load, vault)

    report = await database.run(change)
    if report.changes or not report.ok:
        _log.info(
            "operations.manifests_applied",
            source=str(source),
            revision=revision,
            problems=len(report.problems),
            prune_blocked=report.prune_blocked or None,
            **report.counts,
        )
    return report


async def reapply(
    database: Database, source: Source, *, keyring: Keyring, config: ConfigSettings
) -> Report:
    """Bring what a source once said into force again: repairs drift, finds rotated secrets and
    what has come meanwhile, for sources that nobody syncs (``Apply``).

    Raises:
        LeaseLostError: the source said something else meanwhile; nothing is written.
    """
    async with database.session() as connection:
        rows = await managed_resources.list_of_source(connection, source)
    said = {(row.id, row.spec_hash, row.pruning_since) for row in rows}

    async def says_the_same(connection: Connection) -> bool:
        await managed_resources.lock(connection)
        present = await managed_resources.list_of_source(connection, source)
        return said == {(row.id, row.spec_hash, row.pruning_since) for row in present}

    declarations = [reconciling.declaration_of(row) for row in rows if row.pruning_since is None]
    return await apply(
        database,
        source,
        Parsed(declarations=tuple(declarations)),
        keyring=keyring,
        config=config,
        revision="",
        complete=False,
        still_held=says_the_same,
    )


def _load(
    source: Source,
    parsed: Parsed,
    config: ConfigSettings,
    revision: str,
    *,
    complete: bool,
    prune: bool,
    confirm: bool,
) -> Load:
    return Load(
        source=source,
        declarations=parsed.declarations,
        problems=parsed.problems,
        revision=revision,
        complete=complete,
        rules=PruneRules(
            prune=prune,
            share_max=config.prune_share_max,
            guard_min=config.prune_guard_min,
            confirmed=confirm,
        ),
        builder_namespaces=frozenset(config.builder_namespaces),
    )


async def _read_secrets(database: Database, load: Load, keyring: Keyring) -> Vault:
    async with database.session() as connection:
        waiting = await reconciling.waiting_declarations(connection, load)
    by_secret: dict[tuple[str, str], list[Reference]] = {}
    for reference in _references([*load.declarations, *waiting]):
        by_secret.setdefault((reference.namespace, reference.name), []).append(reference)
    values: dict[Reference, bytes] = {}
    missing: dict[Reference, str] = {}
    turns = asyncio.Semaphore(_SECRETS_AT_ONCE)

    async def look(namespace: str, name: str, wanted: list[Reference]) -> None:
        try:
            async with turns:
                found = await keyring.secrets.values(namespace, name)
        except UnreadError:
            return  # nothing is known of it here; the pass of another process will tell
        except SecretError as error:
            missing.update(dict.fromkeys(wanted, error.message))
            return
        for reference in wanted:
            if reference.key in found:
                values[reference] = found[reference.key]
            elif reference.key:
                missing[reference] = f"the secret {name} has no key {reference.key}"

    looks = (look(*secret, wanted) for secret, wanted in by_secret.items())
    for ended in await asyncio.gather(*looks, return_exceptions=True):
        if ended is not None:
            raise ended
    return Vault(cipher=keyring.cipher, values=values, missing=missing)


def _references(declarations: Iterable[Declaration]) -> list[Reference]:
    return sorted({reference for each in declarations for reference, _ in references(each)})
