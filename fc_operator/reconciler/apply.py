"""Reads the world, makes the plan, writes it: one transaction, set-wise, one NOTIFY per channel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar
from uuid import UUID

from fc_operator.model import desired as nouns
from fc_operator.model.desired import (
    Declaration,
    DesiredBuilder,
    DesiredConfigRepository,
    DesiredJobset,
    DesiredProject,
)
from fc_operator.model.problems import Problem
from fc_operator.model.resources import Key, Place, Recorded, Resource, WebhookRow
from fc_operator.reconciler import plans, secrets
from fc_operator.reconciler.plans import Load, Plan, Report, World
from fc_operator.reconciler.secrets import Vault
from fc_operator.spec import manifests
from fc_operator.spec import rows as words
from fc_operator.store import (
    config_repositories,
    jobsets,
    managed_resources,
    projects,
    remote_builders,
    webhook_configs,
)
from fc_operator.store.database import Connection, notify
from fc_operator.store.listener import JOBSETS, RESOURCES, SOURCES

T = TypeVar("T")

_WAKING = frozenset({"repository_url", "credentials_secret", "suspended", "deleting_at"})
"""Fields of a project that decide what its jobsets see."""


async def plan(connection: Connection, load: Load, vault: Vault) -> Report:
    """What :func:`apply` would do now; nothing is written."""
    now = await managed_resources.clock(connection)
    world, _ = await _read(connection, load, vault)
    return plans.make(world, load, now).report


async def apply(connection: Connection, load: Load, vault: Vault) -> Report:
    """Bring the rows to what a source says. Call it in a transaction of its own.

    Where nothing differs, nothing is written and nobody is notified.
    """
    now = await managed_resources.lock(connection)
    world, webhooks = await _read(connection, load, vault)
    made = plans.make(world, load, now)
    await _write(connection, made, webhooks, vault)
    if load.complete:
        await managed_resources.replace_problems(connection, load.source, made.report.problems)
    return made.report


async def waiting_declarations(connection: Connection, load: Load) -> list[Declaration]:
    """Declarations of other sources that this load may help; for reading their secrets before."""
    rows = await managed_resources.list_waiting(connection, load.source)
    return [declaration_of(row) for row in rows]


def declaration_of(row: Resource) -> Declaration:
    """A declaration as it was kept. Its row must have been read with its spec."""
    assert row.spec is not None
    spec = dict(row.spec)
    handled = row.last_handled_request
    return Declaration(
        kind=row.kind,
        namespace=row.namespace,
        name=row.name,
        identity=row.identity,
        spec=spec,
        spec_hash=row.spec_hash,
        desired=words.desired_of(row.kind, row.name, spec),
        path=row.path,
        line=row.line,
        annotations={} if handled is None else {nouns.REQUESTED_AT: handled},
        generation=row.generation,
        uid=row.uid,
    )


# Reading ------------------------------------------------------------------------------------


async def _read(
    connection: Connection, load: Load, vault: Vault
) -> tuple[World, dict[UUID, list[WebhookRow]]]:
    """The world that a load meets, and the webhooks of what is there, by parent."""
    keys = [(each.kind, each.identity) for each in load.declarations]
    rows = await managed_resources.list_concerned(
        connection, load.source, keys, None if load.complete else load.places()
    )
    waiting = [
        (row, declaration_of(row))
        for row in await managed_resources.list_waiting(connection, load.source)
    ]
    claimed = {row.key for row in rows} | {row.key for row, _ in waiting} | set(keys)
    # Owners of what waits elsewhere decide too.
    known = {row.id for row in rows}
    if waiting:
        more = await managed_resources.list_concerned(
            connection, load.source, [row.key for row, _ in waiting], ()
        )
        rows += [row for row in more if row.id not in known]
    objects = await _objects(connection, claimed)
    declarations = [*load.declarations, *(declaration for _, declaration in waiting)]
    webhooks = await _webhooks(connection, objects)
    with_channels = {
        each.desired.name
        for each in declarations
        if isinstance(each.desired, DesiredProject) and each.desired.channels
    }
    world = World(
        resources=rows,
        objects=objects,
        jobsets=(
            await projects.list_jobset_identities(connection, with_channels)
            if with_channels
            else frozenset()
        ),
        waiting=waiting,
        broken_rules=await _broken_rules(connection, load, rows),
        missing_secrets=secrets.missing_by_object(declarations, vault),
        rotated=_rotated(declarations, objects, webhooks, vault),
    )
    return world, webhooks


async def _objects(connection: Connection, claimed: Collection[Key]) -> dict[Key, Recorded]:
    names: dict[str, set[str]] = {kind: set() for kind in nouns.KINDS}
    for kind, identity in claimed:
        names[kind].add(identity)
        if kind == nouns.JOBSET:
            names[nouns.PROJECT].add(identity.split("/", 1)[0])
    found: dict[Key, Recorded] = {}
    for each in await projects.list_recorded(connection, names[nouns.PROJECT]):
        found[nouns.PROJECT, words.identity_of(each.declared)] = each
    for each in await jobsets.list_recorded(connection, names[nouns.JOBSET]):
        found[nouns.JOBSET, words.identity_of(each.declared)] = each
    for each in await remote_builders.list_recorded(connection, names[nouns.REMOTE_BUILDER]):
        found[nouns.REMOTE_BUILDER, words.identity_of(each.declared)] = each
    repositories = names[nouns.CONFIG_REPOSITORY]
    for each in await config_repositories.list_recorded(connection, repositories):
        found[nouns.CONFIG_REPOSITORY, words.identity_of(each.declared)] = each
    return found


async def _webhooks(
    connection: Connection, objects: Mapping[Key, Recorded]
) -> dict[UUID, list[WebhookRow]]:
    def parents(kind: str) -> list[UUID]:
        return [each.id for key, each in objects.items() if key[0] == kind]

    found: dict[UUID, list[WebhookRow]] = {}
    if ids := parents(nouns.PROJECT):
        for row in await webhook_configs.list_of_projects(connection, ids):
            found.setdefault(row.parent_id, []).append(row)
    if ids := parents(nouns.CONFIG_REPOSITORY):
        for row in await webhook_configs.list_of_config_repositories(connection, ids):
            found.setdefault(row.parent_id, []).append(row)
    return found


async def _broken_rules(
    connection: Connection, load: Load, rows: Sequence[Resource]
) -> dict[Place, tuple[Problem, ...]]:
    """What new versions of declarations in force may not change."""
    old_rows = {
        row.place: row
        for row in rows
        if row.source == load.source and row.owns and row.object_id is not None
    }
    changed = [
        (old, each)
        for each in load.declarations
        if (old := old_rows.get((each.kind, each.namespace, each.name))) is not None
        and old.spec_hash != each.spec_hash
    ]
    if not changed:
        return {}
    specs = await managed_resources.list_specs(connection, [old.id for old, _ in changed])
    found = {}
    for old, new in changed:
        before = declaration_of(replace(old, spec=specs[old.id]))
        if problems := manifests.check_transition(before, new):
            found[old.place] = problems
    return found


def _rotated(
    declarations: Iterable[Declaration],
    objects: Mapping[Key, Recorded],
    webhooks: Mapping[UUID, Sequence[WebhookRow]],
    vault: Vault,
) -> frozenset[Key]:
    found = set()
    for each in declarations:
        there = objects.get((each.kind, each.identity))
        if there is not None and any(
            secrets.is_stale(row, each.namespace, vault) for row in webhooks.get(there.id, ())
        ):
            found.add((each.kind, each.identity))
    return frozenset(found)


# Writing ------------------------------------------------------------------------------------


async def _write(
    connection: Connection,
    made: Plan,
    webhooks: Mapping[UUID, Sequence[WebhookRow]],
    vault: Vault,
) -> None:
    if made.empty:
        return
    # Who leaves goes first: an identity has one owner at any moment.
    await managed_resources.delete(connection, made.dropped)
    ids = {
        **await _write_projects(connection, made, webhooks, vault),
        **await _write_builders(connection, made),
        **await _write_config_repositories(connection, made, webhooks, vault),
    }
    await mark_deleting(connection, made.deleting)
    await _request(connection, made.requested)
    rows = [
        replace(row, object_id=ids[row.key]) if row.owns and row.key in ids else row
        for row in made.resources
    ]
    await managed_resources.upsert(connection, [row for row in rows if not row.owns])
    await managed_resources.upsert(connection, [row for row in rows if row.owns])
    await _announce(connection, made)


async def _write_projects(
    connection: Connection,
    made: Plan,
    webhooks: Mapping[UUID, Sequence[WebhookRow]],
    vault: Vault,
) -> dict[Key, UUID]:
    """Projects, then their jobsets, then what hangs on projects and may refer to jobsets."""
    ids: dict[Key, UUID] = {}
    declared = _wanted(made, DesiredProject)
    if declared:
        by_name = await projects.upsert(
            connection, list(declared.values()), _places(made, nouns.PROJECT)
        )
        ids = {(nouns.PROJECT, name): id_ for name, id_ in by_name.items()}
    if anew := _waking(made):
        moved = {key[1] for key in declared if "repository_url" in _fields(made, key)}
        await jobsets.wake_of_projects(connection, anew, anew=moved & anew)
    if of_projects := _wanted(made, DesiredJobset):
        found = await jobsets.upsert(connection, list(of_projects.values()))
        ids |= {(nouns.JOBSET, identity): id_ for identity, id_ in found.items()}
    if declared:
        parts = {ids[key]: each for key, each in declared.items()}
        rows = {
            ids[key]: secrets.webhook_rows(
                ids[key], each.webhooks, webhooks.get(ids[key], ()), made.namespaces[key], vault
            )
            for key, each in declared.items()
        }
        await webhook_configs.replace(connection, "project", rows)
        await projects.replace_notifications(
            connection, {id_: each.notifications for id_, each in parts.items()}
        )
        await projects.replace_members(
            connection, {id_: each.members for id_, each in parts.items()}
        )
        await projects.replace_channels(
            connection, {id_: each.channels for id_, each in parts.items()}
        )
    return ids


async def _write_builders(connection: Connection, made: Plan) -> dict[Key, UUID]:
    declared = list(_wanted(made, DesiredBuilder).values())
    if not declared:
        return {}
    by_name = await remote_builders.upsert(
        connection, declared, _places(made, nouns.REMOTE_BUILDER)
    )
    return {(nouns.REMOTE_BUILDER, name): id_ for name, id_ in by_name.items()}


async def _write_config_repositories(
    connection: Connection,
    made: Plan,
    webhooks: Mapping[UUID, Sequence[WebhookRow]],
    vault: Vault,
) -> dict[Key, UUID]:
    declared = _wanted(made, DesiredConfigRepository)
    if not declared:
        return {}
    by_name = await config_repositories.upsert(
        connection, list(declared.values()), _places(made, nouns.CONFIG_REPOSITORY)
    )
    ids: dict[Key, UUID] = {(nouns.CONFIG_REPOSITORY, name): id_ for name, id_ in by_name.items()}
    rows = {
        ids[key]: secrets.webhook_rows(
            ids[key], each.webhooks, webhooks.get(ids[key], ()), made.namespaces[key], vault
        )
        for key, each in declared.items()
        if key in ids
    }
    await webhook_configs.replace(connection, "config_repository", rows)
    return ids


def _wanted(made: Plan, kind: type[T]) -> dict[Key, T]:
    """What objects of one kind shall become, by key."""
    return {change.key: change.after for change in made.changes if isinstance(change.after, kind)}


def _places(made: Plan, kind: str) -> dict[str, str]:
    """Namespaces by name, of one kind."""
    return {name: place for (each, name), place in made.namespaces.items() if each == kind}


def _fields(made: Plan, key: Key) -> tuple[str, ...]:
    return next((change.fields for change in made.changes if change.key == key), ())


def _waking(made: Plan) -> set[str]:
    """Projects whose present jobsets see something else now."""
    return {
        line.identity
        for line in made.report.objects
        if line.kind == nouns.PROJECT and line.action == "update" and _WAKING & set(line.fields)
    }


async def mark_deleting(connection: Connection, keys: Sequence[Key]) -> None:
    """First phase of pruning: nothing is scheduled for these objects any more."""

    def of(kind: str) -> list[str]:
        return [identity for each, identity in keys if each == kind]

    await projects.mark_deleting(connection, of(nouns.PROJECT))
    await jobsets.mark_deleting(connection, of(nouns.JOBSET))
    await remote_builders.mark_deleting(connection, of(nouns.REMOTE_BUILDER))
    await config_repositories.mark_deleting(connection, of(nouns.CONFIG_REPOSITORY))


async def _request(connection: Connection, keys: Sequence[Key]) -> None:
    asked: list[tuple[str, str | None]] = []
    for kind, identity in keys:
        project, _, jobset = identity.partition("/")
        if kind in {nouns.PROJECT, nouns.JOBSET}:
            asked.append((project, jobset or None))
    if asked:
        await jobsets.request(connection, asked)
    if builders := [identity for kind, identity in keys if kind == nouns.REMOTE_BUILDER]:
        await remote_builders.request(connection, builders)
    if names := [identity for kind, identity in keys if kind == nouns.CONFIG_REPOSITORY]:
        await config_repositories.request(connection, names)


async def _announce(connection: Connection, made: Plan) -> None:
    """Each channel once, at most."""
    touched = {kind for kind, _ in (*made.requested, *(change.key for change in made.changes))}
    if nouns.JOBSET in touched or nouns.PROJECT in touched:
        await notify(connection, JOBSETS)
    if nouns.CONFIG_REPOSITORY in touched:
        await notify(connection, SOURCES)
    await notify(connection, RESOURCES)
