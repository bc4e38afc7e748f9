"""Job rows in, a graph of steps out. Pure.

A step is a derivation that must be built: what Nix's dry run (or the evaluator itself) says will be
built. What is valid already, or can be fetched, is no step, so no edge leads to it either.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum

from fc_operator.clients.nix import Missing
from fc_operator.model.derivations import name_of
from fc_operator.model.ids import DrvPath, StorePath
from fc_operator.model.jobs import Derivation, JobError, JobRow

PRIORITY = 100
"""Of a job whose ``meta.schedulingPriority`` says nothing (Hydra's default)."""


class Presence(Enum):
    """Where the outputs of a job are before anything is built for it."""

    TO_BUILD = 1
    VALID = 2
    SUBSTITUTABLE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds that a build may take and may be silent, from jobset and settings."""

    timeout_s: int = 36_000
    max_silent_s: int = 3_600
    jobset_timeout_s: int | None = None
    jobset_max_silent_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One derivation to build, seen for the first time in this evaluation."""

    derivation: Derivation
    needs: tuple[DrvPath, ...]
    """Steps among its inputs."""
    priority: int
    """The highest of the jobs that need it."""
    job: int
    """Which of the batch's jobs caused it."""
    timeout_s: int | None = None
    """None is the default."""
    max_silent_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedJob:
    """One job, as it will be a build."""

    row: JobRow
    presence: Presence
    needs_jobs: tuple[DrvPath, ...] = ()
    """Its direct inputs; those that are jobs too become ``build_dependencies``."""

    @property
    def priority(self) -> int:
        """Among the steps of its jobset; larger goes first."""
        wanted = self.row.meta.scheduling_priority
        return PRIORITY if wanted is None else max(-(2**31), min(2**31 - 1, wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one batch of rows becomes."""

    jobs: tuple[PlannedJob, ...] = ()
    steps: tuple[PlannedStep, ...] = ()
    errors: tuple[JobError, ...] = ()
    """Jobs that can't be planned."""


def told(rows: Iterable[JobRow]) -> tuple[Missing, list[JobRow]]:
    """What the evaluator itself found out about validity, and the rows of which it did not."""
    will_build: dict[DrvPath, None] = {}
    will_fetch: set[StorePath] = set()
    silent = []
    for row in rows:
        if row.cache_status is None or row.input_drvs is None:
            silent.append(row)
        elif row.cache_status == "cached":
            will_fetch.update(path for path in row.outputs.values() if path)
        elif row.cache_status == "notBuilt":
            if row.needed_builds is None:
                silent.append(row)
                continue
            will_build.update(dict.fromkeys(row.needed_builds))
            will_build[row.drv_path] = None
    return Missing(will_build=tuple(will_build), will_fetch=frozenset(will_fetch)), silent


def facts_of(row: JobRow) -> Derivation:
    """What a row says about its derivation, as far as it goes."""
    return Derivation(
        drv_path=row.drv_path,
        name=row.name or name_of(row.drv_path),
        system=row.system,
        outputs=row.outputs,
        input_drvs=row.input_drvs or {},
        required_features=tuple(sorted(row.required_features or ())),
    )


def unread(
    rows: Sequence[JobRow], will_build: Collection[DrvPath], known: AbstractSet[DrvPath]
) -> list[DrvPath]:
    """Derivations whose .drv files are read: those of new steps and of all jobs.

    A job's attributes can say anything of its system and outputs; what is built says its .drv.
    """
    new = (drv for drv in will_build if drv not in known)
    return list(dict.fromkeys((*new, *(row.drv_path for row in rows))))


def _tells_all(row: JobRow) -> bool:
    return row.input_drvs is not None and row.required_features is not None


def plan(
    rows: Sequence[JobRow],
    missing: Missing,
    facts: Mapping[DrvPath, Derivation],
    *,
    known: AbstractSet[DrvPath] = frozenset(),
    limits: Limits = Limits(),
    more_needs: Mapping[DrvPath, Collection[DrvPath]] | None = None,
) -> Plan:
    """The plan of a batch.

    ``facts`` are the .drv files that were read; ``known`` are steps of earlier batches, which are
    not planned again; ``more_needs`` are needs that no .drv names (an aggregate's constituents).
    """
    to_build = set(missing.will_build)
    found = {row.drv_path: facts_of(row) for row in rows if _tells_all(row)} | dict(facts)
    errors = []
    jobs = []
    for told in rows:
        row = _truthful(told, facts.get(told.drv_path))
        presence = _presence(row, missing, to_build)
        lacks = row.drv_path in missing.unknown or (
            presence is Presence.TO_BUILD
            and row.drv_path not in found
            and row.drv_path not in known
        )
        if lacks:
            errors.append(
                JobError(attr_path=row.attr_path, message=f"its derivation {row.drv_path} is gone")
            )
            continue
        own = found.get(row.drv_path)
        if presence is not Presence.TO_BUILD and row.drv_path not in facts:
            row = replace(row, outputs={})
        inputs = row.input_drvs if row.input_drvs is not None else own.input_drvs if own else ()
        jobs.append(PlannedJob(row=row, presence=presence, needs_jobs=tuple(inputs)))
    steps = _steps(jobs, to_build, found, known, limits=limits, more_needs=more_needs or {})
    return Plan(jobs=tuple(jobs), steps=tuple(steps), errors=tuple(errors))


def _truthful(row: JobRow, own: Derivation | None) -> JobRow:
    """``row`` with what its .drv says where attributes may lie: a job must not pass off as its own
    what another has built.
    """
    return row if own is None else replace(row, outputs=own.outputs, system=own.system)


def _presence(row: JobRow, missing: Missing, to_build: AbstractSet[DrvPath]) -> Presence:
    if row.drv_path in to_build:
        return Presence.TO_BUILD
    if any(path in missing.will_fetch for path in row.outputs.values() if path):
        return Presence.SUBSTITUTABLE
    return Presence.VALID


def _steps(
    jobs: Sequence[PlannedJob],
    to_build: AbstractSet[DrvPath],
    found: Mapping[DrvPath, Derivation],
    known: AbstractSet[DrvPath],
    *,
    limits: Limits,
    more_needs: Mapping[DrvPath, Collection[DrvPath]],
) -> list[PlannedStep]:
    """Walk down from the jobs, the most urgent first, so that a step gets its priority at once."""
    wanted: dict[DrvPath, list[JobRow]] = {}
    needed: set[DrvPath] = set()
    order: dict[DrvPath, tuple[int, int, tuple[DrvPath, ...]]] = {}
    for number in sorted(range(len(jobs)), key=lambda number: -jobs[number].priority):
        job = jobs[number]
        if job.presence is not Presence.TO_BUILD:
            continue
        wanted.setdefault(job.row.drv_path, []).append(job.row)
        stack = [job.row.drv_path]
        while stack:
            drv = stack.pop()
            if drv in order or drv in known or drv not in found:
                continue
            inputs = dict.fromkeys((*found[drv].input_drvs, *more_needs.get(drv, ())))
            needs = tuple(need for need in inputs if need in to_build and need != drv)
            order[drv] = number, job.priority, needs
            needed.update(needs)
            stack.extend(needs)
    return [
        PlannedStep(
            derivation=found[drv],
            needs=tuple(need for need in needs if need in order or need in known),
            priority=priority,
            job=number,
            timeout_s=_limit(
                [row.meta.timeout_s for row in wanted.get(drv, ())],
                limits.timeout_s,
                limits.jobset_timeout_s,
                is_needed=drv in needed,
            ),
            max_silent_s=_limit(
                [row.meta.max_silent_s for row in wanted.get(drv, ())],
                limits.max_silent_s,
                limits.jobset_max_silent_s,
                is_needed=drv in needed,
            ),
        )
        for drv, (number, priority, needs) in order.items()
    ]


def _limit(
    of_jobs: Sequence[int | None], default: int, of_jobset: int | None, *, is_needed: bool
) -> int | None:
    """The longest that a job allows; what others need never goes below the default. 0: no limit."""
    plain = default if of_jobset is None else of_jobset
    values = [plain if value is None else value for value in of_jobs]
    if is_needed or not values:
        values.append(longest([default, plain]))
    found = longest(values)
    return None if found == default else found


def longest(values: Iterable[int]) -> int:
    """The longest of some limits, where 0 is none at all."""
    return max(values, key=lambda value: (value == 0, value))
