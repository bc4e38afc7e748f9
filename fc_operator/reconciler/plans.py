"""What a source's declarations mean for the whole installation: who owns, who waits, what goes.

Pure: everything that was read is in a :class:`World`, everything to write is in a :class:`Plan`.
The stages of :func:`make` stand in the order in which they decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from fc_operator.model import conditions as terms
from fc_operator.model import desired as nouns
from fc_operator.model.conditions import Condition
from fc_operator.model.desired import Declaration, Desired, DesiredJobset, DesiredProject, Kind
from fc_operator.model.ids import new_uuid
from fc_operator.model.problems import Problem
from fc_operator.model.resources import Key, Place, Recorded, Resource
from fc_operator.model.sources import Source
from fc_operator.reconciler.diff import Change, diff, normal, order_of

Action = Literal["create", "update", "unchanged", "prune", "keep", "release", "refuse", "wait"]
"""create, update, unchanged: the object is as declared now. prune: its declaration is gone, so
nothing is scheduled and it goes after a grace time. keep: its declaration is gone or broken, but
it stays as it was. release: a claim without an object is gone. refuse, wait: see its condition."""

OWN_REASONS: Final = frozenset(
    {
        terms.INVALID, terms.OWNED_BY_OTHER, terms.REFERENCE_NOT_FOUND, terms.SECRET_NOT_FOUND,
        terms.PRUNING, terms.SUSPENDED, terms.RECONCILED, terms.PRUNE_NEEDS_CONFIRMATION,
        terms.SOURCE_EMPTY, terms.REFERENCE_NOT_PERMITTED, terms.NOT_PERMITTED,
    }
)  # fmt: skip
"""Reasons of Ready that the reconciler gives; others belong to those who evaluate and build."""
_NOT_PERMITTED: Final = frozenset({terms.REFERENCE_NOT_PERMITTED, terms.NOT_PERMITTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What was read, at one moment."""

    resources: Sequence[Resource] = ()
    """Those of the source, the owners of what it declares, and the waiting ones of others."""
    objects: Mapping[Key, Recorded] = field(default_factory=dict)
    jobsets: frozenset[str] = frozenset()
    """Identities of all jobsets of the projects concerned; channels refer to them."""
    waiting: Sequence[tuple[Resource, Declaration]] = ()
    """Declarations of other sources that wait for something that may come now."""
    broken_rules: Mapping[Place, tuple[Problem, ...]] = field(default_factory=dict)
    """By place, for what is in force: what its new version may not change (CEL with oldSelf)."""
    missing_secrets: Mapping[Key, tuple[str, ...]] = field(default_factory=dict)
    """By object: sentences about secrets that it refers to in vain."""
    rotated: frozenset[Key] = frozenset()
    """Objects whose secret has another value than the one that is kept encrypted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRules:
    """When and how far a sync may prune."""

    prune: bool = True
    share_max: float = 0.5
    guard_min: int = 3
    confirmed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a source says now."""

    source: Source
    declarations: Sequence[Declaration]
    problems: Sequence[Problem] = ()
    revision: str
    complete: bool
    """Whether it is all that the source says, so that what is missing is gone."""
    rules: PruneRules = PruneRules()
    gone: frozenset[Place] = frozenset()
    """Declarations that somebody took away one by one; they are pruned without a guard."""
    by_namespace: bool = False
    """Whether its declarations belong to different people, namespace by namespace: then none takes
    over what another namespace has or had."""
    builder_namespaces: frozenset[str] = frozenset()
    """The only namespaces in which RemoteBuilders count; empty: all."""

    def places(self) -> list[Place]:
        """Where it speaks of something."""
        return [
            *((each.kind, each.namespace, each.name) for each in self.declarations),
            *self.gone,
        ]

    def blocking(self) -> tuple[Problem, ...]:
        """Problems that hid a declaration; a dangling reference hides none."""
        if not self.problems:
            return ()
        seen = {(each.path, each.line, each.kind, each.name) for each in self.declarations}
        return tuple(
            each
            for each in self.problems
            if (each.path, each.line, each.kind, each.name) not in seen
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectReport:
    """What a sync does, or would do, with one declaration."""

    kind: Kind
    namespace: str
    name: str
    identity: str
    action: Action
    fields: tuple[str, ...] = ()
    reason: str = ""
    """A reason of conditions, where there is one to give."""
    message: str = ""
    path: str = ""
    line: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "identity": self.identity,
            "action": self.action,
            "fields": list(self.fields),
            "reason": self.reason,
            "message": self.message,
            "path": self.path,
            "line": self.line,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a sync did, or would do."""

    source: Source
    revision: str
    objects: tuple[ObjectReport, ...] = ()
    problems: tuple[Problem, ...] = ()
    prune_blocked: str = ""
    """Why nothing is pruned although something is missing; empty when nothing blocks."""
    prune_reason: str = ""
    """The reason of conditions that goes with it."""

    @property
    def counts(self) -> dict[str, int]:
        """How many objects met which action."""
        return dict(Counter(each.action for each in self.objects))

    @property
    def changes(self) -> bool:
        """Whether any object changes."""
        return any(each.action in {"create", "update", "prune", "release"} for each in self.objects)

    @property
    def ok(self) -> bool:
        """Whether everything that was declared is in force."""
        troubled = any(each.reason for each in self.objects)
        return not (troubled or self.problems or self.prune_blocked)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "source": {"kind": self.source.kind, "name": self.source.name},
            "revision": self.revision,
            "counts": self.counts,
            "changes": self.changes,
            "ok": self.ok,
            "objects": [each.as_dict() for each in self.objects],
            "problems": [each.as_dict() for each in self.problems],
            "prune_blocked": self.prune_blocked,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to write."""

    changes: tuple[Change, ...] = ()
    """Creations and updates of objects."""
    namespaces: Mapping[Key, str] = field(default_factory=dict)
    """Where the secrets of each object in force are."""
    deleting: tuple[Key, ...] = ()
    """Objects whose first phase of pruning begins."""
    resources: tuple[Resource, ...] = ()
    """New or changed rows of ``managed_resources``."""
    dropped: tuple[UUID, ...] = ()
    """Rows of ``managed_resources`` that go."""
    requested: tuple[Key, ...] = ()
    """Objects that were asked to run now."""
    report: Report

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return not (self.changes or self.resources or self.dropped or self.deleting)


@dataclass(slots=True)
class _Claim:
    """One declaration on its way through the stages."""

    source: Source
    declaration: Declaration
    old: Resource | None
    wanted: Desired
    owns: bool = False
    action: Action = "unchanged"
    fields: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""
    stalled: bool = False

    @property
    def key(self) -> Key:
        return self.declaration.kind, self.declaration.identity

    def refuse(self, reason: str, message: str) -> None:
        self.action, self.reason, self.message, self.stalled = "refuse", reason, message, True

    @property
    def in_force(self) -> bool:
        return self.action not in {"refuse", "wait"}


def make(world: World, load: Load, now: datetime) -> Plan:
    """The plan for a load, in a world; ``now`` is the database's time."""
    claims = _claims(world, load)
    _refuse_broken_rules(claims, world, load)
    _refuse_strange_builders(claims, load)
    _refuse_foreign_projects(claims, world)
    gone, blocked = _missing(claims, world, load)
    leaving = [each for each in gone if blocked is None]
    handed_over = _settle_ownership(claims, world, load, {each.id for each in leaving})
    pruned = [each for each in leaving if each.owns and each.id not in handed_over]
    _wait_for_references(claims, world, {each.key for each in pruned})
    changes = _changes(claims, world)
    rows = [(claim, _row(claim, world, load, now)) for claim in claims]
    broken = _broken_rows(claims, world, load, now)
    guarded = _guarded_rows(gone, blocked, now)
    in_force = [claim for claim in claims if claim.in_force]
    invalid = {old.id: new for old, new in broken}
    pruned_ids = {each.id for each in pruned}

    def missing_line(row: Resource) -> ObjectReport:
        if row.id in invalid:
            return _line(invalid[row.id], "keep")
        if blocked is not None:
            return _line(row, "keep", blocked)
        return _line(row, "prune" if row.id in pruned_ids else "release")

    return Plan(
        changes=changes,
        namespaces={claim.key: claim.declaration.namespace for claim in in_force},
        deleting=tuple(each.key for each in pruned if each.key in world.objects),
        resources=(
            *(row for claim, row in rows if row != claim.old),
            *(_pruning(each, now) for each in pruned),
            *(new for old, new in (*broken, *guarded) if new != old),
        ),
        dropped=tuple(sorted({*handed_over, *(each.id for each in leaving if not each.owns)})),
        requested=tuple(claim.key for claim in in_force if _is_requested(claim)),
        report=replace(
            _report(claims, (missing_line(each) for each in gone), load),
            prune_blocked=blocked.message if blocked else "",
            prune_reason=blocked.reason if blocked else "",
        ),
    )


# Stages -------------------------------------------------------------------------------------


def _claims(world: World, load: Load) -> list[_Claim]:
    mine = {each.place: each for each in world.resources if each.source == load.source}
    claims = [
        _Claim(
            source=load.source,
            declaration=each,
            old=mine.get((each.kind, each.namespace, each.name)),
            wanted=normal(each.desired),
        )
        for each in load.declarations
    ]
    claims += [
        _Claim(source=old.source, declaration=each, old=old, wanted=normal(each.desired))
        for old, each in world.waiting
        if old.source != load.source
    ]
    return sorted(claims, key=lambda claim: order_of(claim.key))


def _settle_ownership(
    claims: Sequence[_Claim], world: World, load: Load, leaving: set[UUID]
) -> set[UUID]:
    """Says who owns; returns the rows whose object was handed to another claim.

    An owner that is there stays. One that leaves or is on its way out, or whose source now declares
    the object under another name, hands over: what moves between sources never stops. Of several
    claims the one that waited longest wins.
    """
    owners = {each.key: each for each in world.resources if each.owns}
    by_row = {claim.old.id for claim in claims if claim.old is not None}
    leaving = leaving | {
        claim.old.id for claim in claims if claim.old is not None and claim.reason in _NOT_PERMITTED
    }
    handed_over: set[UUID] = set()
    taken: dict[Key, _Claim] = {}
    open_claims = [claim for claim in claims if claim.in_force]
    for claim in open_claims:
        owner = owners.get(claim.key)
        if owner is not None and claim.old is not None and owner.id == claim.old.id:
            claim.owns = True
            taken[claim.key] = claim
    # Ids grow with time: the oldest row waited longest, and a claim without one is new.
    open_claims.sort(key=lambda claim: (claim.old is None, str(claim.old.id) if claim.old else ""))
    for claim in open_claims:
        if claim.owns:
            continue
        owner = owners.get(claim.key)
        leaves = owner is not None and (
            owner.pruning_since is not None
            or owner.id in leaving
            or (
                not load.by_namespace
                and owner.source == claim.source == load.source
                and owner.id not in by_row
            )
        )
        there = world.objects.get(claim.key)
        if claim.key in taken:
            first = taken[claim.key]
            claim.refuse(terms.OWNED_BY_OTHER, _owned(first.declaration, first.source, claim))
        elif owner is not None and not leaves:
            claim.refuse(terms.OWNED_BY_OTHER, _owned(owner, owner.source, claim))
        elif load.by_namespace and claim.source == load.source and _is_foreign(claim, there):
            assert there is not None
            message = f"its history belongs to the namespace {there.namespace}"
            claim.refuse(terms.OWNED_BY_OTHER, message)
        else:
            claim.owns = True
            taken[claim.key] = claim
            if owner is not None:
                handed_over.add(owner.id)
    return handed_over


def _is_foreign(claim: _Claim, there: Recorded | None) -> bool:
    return there is not None and there.namespace not in {None, claim.declaration.namespace}


def _owned(owner: Resource | Declaration, source: Source, claim: _Claim) -> str:
    """A sentence for those who find it owned already; by name where they may know the name."""
    if source != claim.source:
        return f"it is owned by {source}"
    return f"it is owned by {source}, {owner.namespace}/{owner.name}"


def _refuse_broken_rules(claims: Iterable[_Claim], world: World, load: Load) -> None:
    for claim in claims:
        each = claim.declaration
        problems = world.broken_rules.get((each.kind, each.namespace, each.name))
        if problems and claim.source == load.source:
            claim.refuse(terms.INVALID, "; ".join(str(problem) for problem in problems))


def _refuse_strange_builders(claims: Iterable[_Claim], load: Load) -> None:
    """A builder gets work of everybody: not each namespace may bring one in."""
    allowed = load.builder_namespaces
    for claim in claims:
        each = claim.declaration
        if each.kind == nouns.REMOTE_BUILDER and allowed and each.namespace not in allowed:
            message = f"objects of the namespace {each.namespace} may not bring builders in"
            claim.refuse(terms.NOT_PERMITTED, message)


def _refuse_foreign_projects(claims: Iterable[_Claim], world: World) -> None:
    """No jobset of a project of another namespace: its owner would not know of it."""
    homes = {
        key[1]: each.namespace
        for key, each in world.objects.items()
        if key[0] == nouns.PROJECT and not each.deleting
    }
    for claim in claims:
        if claim.declaration.kind == nouns.PROJECT and claim.in_force:
            homes.setdefault(claim.declaration.identity, claim.declaration.namespace)
    for claim in claims:
        wanted = claim.wanted
        if not isinstance(wanted, DesiredJobset) or not claim.in_force:
            continue
        home = homes.get(wanted.project)
        if home not in {None, claim.declaration.namespace}:
            message = f"the Project {wanted.project} belongs to another namespace"
            claim.refuse(terms.REFERENCE_NOT_PERMITTED, message)


def _wait_for_references(claims: Sequence[_Claim], world: World, leaving: set[Key]) -> None:
    """A jobset waits for its project; a channel for its jobset, without holding its project up."""
    projects = {
        key[1]
        for key, each in world.objects.items()
        if key[0] == nouns.PROJECT and not each.deleting and key not in leaving
    }
    projects |= {
        claim.declaration.identity
        for claim in claims
        if claim.declaration.kind == nouns.PROJECT and claim.in_force
    }
    for claim in claims:
        wanted = claim.wanted
        if isinstance(wanted, DesiredJobset) and claim.in_force and wanted.project not in projects:
            claim.action, claim.reason = "wait", terms.REFERENCE_NOT_FOUND
            claim.message = f"there is no Project {wanted.project}"
    jobsets = world.jobsets | {
        claim.declaration.identity
        for claim in claims
        if claim.declaration.kind == nouns.JOBSET and claim.in_force
    }
    for claim in claims:
        if not claim.in_force:
            continue
        if isinstance(claim.wanted, DesiredProject):
            _drop_dangling_channels(claim, claim.wanted, jobsets)
        if missing := world.missing_secrets.get(claim.key):
            claim.reason, claim.message = terms.SECRET_NOT_FOUND, "; ".join(missing)


def _drop_dangling_channels(
    claim: _Claim, project: DesiredProject, jobsets: frozenset[str] | set[str]
) -> None:
    there = tuple(each for each in project.channels if f"{project.name}/{each.jobset}" in jobsets)
    if len(there) == len(project.channels):
        return
    names = sorted({each.jobset for each in project.channels} - {each.jobset for each in there})
    claim.wanted = replace(project, channels=there)
    claim.reason = terms.REFERENCE_NOT_FOUND
    claim.message = f"channels wait for what the project has not: Jobset {', '.join(names)}"


def _changes(claims: Sequence[_Claim], world: World) -> tuple[Change, ...]:
    wanted = {claim.key: claim.wanted for claim in claims if claim.in_force}
    recorded = {key: each.declared for key, each in world.objects.items() if key in wanted}
    by_key = {claim.key: claim for claim in claims if claim.in_force}
    found = {change.key: change for change in diff(recorded, wanted)}
    for key, claim in by_key.items():
        if key in found:
            claim.action = "create" if found[key].action == "create" else "update"
            claim.fields = found[key].fields
        if (there := world.objects.get(key)) is None:
            continue
        extra = _beyond_the_diff(claim, there, rotated=key in world.rotated)
        if extra:
            claim.action, claim.fields = "update", tuple(dict.fromkeys((*claim.fields, *extra)))
        if claim.action == "update" and key not in found:
            before = normal(world.objects[key].declared)
            found[key] = Change(key=key, before=before, after=claim.wanted)
    return tuple(found[key] for key in sorted(found, key=order_of))


def _beyond_the_diff(claim: _Claim, there: Recorded, *, rotated: bool) -> list[str]:
    """What a row has besides what is declared: its way out, its namespace, an old secret."""
    found = []
    if there.deleting:
        found.append("deleting_at")
    if there.namespace not in {None, claim.declaration.namespace}:
        found.append("namespace")
    if rotated:
        found.append("webhooks")
    return found


@dataclass(frozen=True, slots=True)
class _Blocked:
    reason: str
    message: str


def _missing(
    claims: Sequence[_Claim], world: World, load: Load
) -> tuple[list[Resource], _Blocked | None]:
    """Rows of the source that it no longer declares, and why they stay, if they do."""
    declared = {claim.old.id for claim in claims if claim.old is not None}
    mine = [each for each in world.resources if each.source == load.source]
    if not load.complete:
        taken = [each for each in mine if each.place in load.gone and each.pruning_since is None]
        return [each for each in taken if each.id not in declared], None
    renamed = {
        claim.key
        for claim in claims
        if not load.by_namespace and claim.source == load.source and claim.in_force
    }
    gone = [
        each
        for each in mine
        if each.id not in declared and each.pruning_since is None and each.key not in renamed
    ]
    if not gone:
        return [], None
    rules = load.rules
    owned = sum(each.owns and each.pruning_since is None for each in mine)
    leaving = sum(each.owns for each in gone)
    if load.blocking():
        return gone, _Blocked(terms.SOURCE_INVALID, "nothing is pruned while a file is broken")
    if not rules.prune:
        return gone, _Blocked("", "")
    if rules.confirmed:
        return gone, None
    if not load.declarations and leaving:
        message = f"it declares nothing any more; {leaving} objects stay until this is confirmed"
        return gone, _Blocked(terms.SOURCE_EMPTY, message)
    # Once kept, kept until it is confirmed: new objects must not outvote the missing ones.
    kept = any(_is_guarded(each) for each in gone)
    if kept or (owned >= rules.guard_min and leaving > rules.share_max * owned):
        message = f"{leaving} of {owned} objects would be pruned; they stay until this is confirmed"
        return gone, _Blocked(terms.PRUNE_NEEDS_CONFIRMATION, message)
    return gone, None


_GUARDED = frozenset({terms.PRUNE_NEEDS_CONFIRMATION, terms.SOURCE_EMPTY})


def _is_guarded(row: Resource) -> bool:
    ready = terms.find(row.conditions, terms.READY)
    return row.owns and ready is not None and ready.reason in _GUARDED


# Rows of managed_resources ------------------------------------------------------------------


def _is_requested(claim: _Claim) -> bool:
    asked = claim.declaration.requested_at
    return asked is not None and asked != (claim.old.last_handled_request if claim.old else None)


def _row(claim: _Claim, world: World, load: Load, now: datetime) -> Resource:
    declaration, old = claim.declaration, claim.old
    if claim.reason == terms.INVALID and old is not None:
        # What is in force is still the last good version; only its place and state move.
        row = replace(old, path=declaration.path, line=declaration.line)
        return replace(row, conditions=_conditions(claim, old.generation, now))
    changed = old is None or old.spec_hash != declaration.spec_hash
    generation = declaration.generation
    if generation is None:
        generation = 1 if old is None else old.generation + changed
    handled = old.last_handled_request if old else None
    if claim.in_force and declaration.requested_at is not None:
        handled = declaration.requested_at
    there = world.objects.get(claim.key)
    return Resource(
        id=old.id if old else new_uuid(),
        source=claim.source,
        kind=declaration.kind,
        namespace=declaration.namespace,
        name=declaration.name,
        identity=declaration.identity,
        owns=claim.owns,
        object_id=there.id if there is not None and claim.owns else None,
        path=declaration.path,
        line=declaration.line,
        uid=declaration.uid,
        revision=load.revision if old is None or changed else old.revision,
        spec_hash=declaration.spec_hash,
        generation=generation,
        observed_generation=generation,
        last_handled_request=handled,
        conditions=_conditions(claim, generation, now),
        spec=declaration.spec if changed else None,
    )


def _conditions(claim: _Claim, generation: int, now: datetime) -> tuple[Condition, ...]:
    old = claim.old.conditions if claim.old else ()
    if not claim.reason:
        return _ready(claim, generation, old, now)
    ready = Condition(
        type=terms.READY,
        status="False",
        reason=claim.reason,
        message=claim.message,
        observed_generation=generation,
    )
    # Who must act: a person (Stalled), or only time and others (Reconciling).
    kept = terms.without_condition(old, terms.RECONCILING if claim.stalled else terms.STALLED)
    also = replace(
        ready,
        type=terms.STALLED if claim.stalled else terms.RECONCILING,
        status="True",
        reason=claim.reason if claim.stalled else terms.PROGRESSING_WITH_RETRY,
    )
    return terms.with_condition(terms.with_condition(kept, ready, now), also, now)


def _ready(
    claim: _Claim, generation: int, old: Sequence[Condition], now: datetime
) -> tuple[Condition, ...]:
    suspended = getattr(claim.wanted, "suspended", False)
    ready = Condition(
        type=terms.READY,
        status="True",
        reason=terms.SUSPENDED if suspended else terms.RECONCILED,
        message="nothing is scheduled for it" if suspended else "",
        observed_generation=generation,
    )
    before = terms.find(old, terms.READY)
    if (
        before is not None
        and before.reason not in OWN_REASONS
        and before.observed_generation == generation
        and claim.action == "unchanged"
    ):
        return tuple(old)  # what evaluating it came to is not ours to overwrite
    if before is not None and len(old) == 1:
        ready = replace(ready, last_transition_time=before.last_transition_time)
        if ready == before:
            return tuple(old)
    kept = terms.without_condition(terms.without_condition(old, terms.RECONCILING), terms.STALLED)
    return terms.with_condition(kept, ready, now)


def _pruning(row: Resource, now: datetime) -> Resource:
    message = "its declaration is gone; nothing is scheduled, and it goes after the grace time"
    ready = Condition(
        type=terms.READY,
        status="False",
        reason=terms.PRUNING,
        message=message,
        observed_generation=row.generation,
    )
    progress = replace(ready, type=terms.RECONCILING, status="True")
    kept = terms.without_condition(row.conditions, terms.STALLED)
    conditions = terms.with_condition(terms.with_condition(kept, ready, now), progress, now)
    return replace(row, pruning_since=now, conditions=conditions)


def _broken_rows(
    claims: Sequence[_Claim], world: World, load: Load, now: datetime
) -> list[tuple[Resource, Resource]]:
    """Rows whose declaration can't be read any more: they stay in force and say what is wrong."""
    blocking = load.blocking()
    if not blocking or not load.complete:
        return []
    declared = {claim.old.id for claim in claims if claim.old is not None}
    by_name: dict[tuple[str, str], list[Problem]] = {}
    by_path: dict[str, list[Problem]] = {}
    for problem in blocking:
        if problem.kind and problem.name:
            by_name.setdefault((problem.kind, problem.name), []).append(problem)
        else:
            by_path.setdefault(problem.path, []).append(problem)
    rows = []
    for row in world.resources:
        if row.source != load.source or row.id in declared or not row.owns:
            continue
        found = by_name.get((row.kind, row.name)) or by_path.get(row.path)
        if found and row.pruning_since is None:
            message = "the last good state stays; " + "; ".join(str(each) for each in found[:4])
            rows.append((row, _stalled(row, terms.INVALID, message, now)))
    return rows


def _guarded_rows(
    gone: Sequence[Resource], blocked: _Blocked | None, now: datetime
) -> list[tuple[Resource, Resource]]:
    """Rows that the guard keeps: they stay in force and say what they wait for."""
    if blocked is None or blocked.reason not in _GUARDED:
        return []
    message = "its declaration is gone; it stays in force until the pruning is confirmed"
    return [(row, _stalled(row, blocked.reason, message, now)) for row in gone if row.owns]


def _stalled(row: Resource, reason: str, message: str, now: datetime) -> Resource:
    ready = Condition(
        type=terms.READY,
        status="False",
        reason=reason,
        message=message,
        observed_generation=row.generation,
    )
    kept = terms.without_condition(row.conditions, terms.RECONCILING)
    also = replace(ready, type=terms.STALLED, status="True")
    conditions = terms.with_condition(terms.with_condition(kept, ready, now), also, now)
    return replace(row, conditions=conditions)


# The report ---------------------------------------------------------------------------------


def _report(claims: Sequence[_Claim], missing: Iterable[ObjectReport], load: Load) -> Report:
    lines = [
        ObjectReport(
            kind=claim.declaration.kind,
            namespace=claim.declaration.namespace,
            name=claim.declaration.name,
            identity=claim.declaration.identity,
            action=claim.action,
            fields=claim.fields,
            reason=claim.reason,
            message=claim.message,
            path=claim.declaration.path,
            line=claim.declaration.line,
        )
        for claim in claims
        if claim.source == load.source
    ]
    lines += missing
    return Report(
        source=load.source,
        revision=load.revision,
        objects=tuple(sorted(lines, key=lambda line: order_of((line.kind, line.identity)))),
        problems=load.blocking(),
    )


def _line(row: Resource, action: Action, blocked: _Blocked | None = None) -> ObjectReport:
    """A line about a row whose declaration is gone; without ``blocked`` its condition says why."""
    ready = terms.find(row.conditions, terms.READY) if action == "keep" else None
    reason, message = (ready.reason, ready.message) if ready else ("", "")
    if blocked is not None:
        reason, message = blocked.reason, blocked.message
    return ObjectReport(
        kind=row.kind,
        namespace=row.namespace,
        name=row.name,
        identity=row.identity,
        action=action,
        reason=reason,
        message=message,
        path=row.path,
        line=row.line,
    )
