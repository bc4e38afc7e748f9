"""Aggregates with named constituents: names and globs against the jobs of an evaluation. Pure.

A missing name, a glob without a match or a cycle is an error of that aggregate alone (of each
member, for a cycle); all other jobs go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from fc_operator.model.jobs import JobError, JobRow

_GLOB = frozenset("*?[")


@dataclass(slots=True)
class Resolution:
    """What became of the names."""

    constituents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of jobs by name of aggregate, constituents before the aggregates that name them."""
    errors: list[JobError] = field(default_factory=list)


def resolve(aggregates: Sequence[JobRow], job_names: Iterable[str]) -> Resolution:
    """Resolve the named constituents of ``aggregates`` among ``job_names`` and each other."""
    rows = {row.job_name: row for row in aggregates}
    names = sorted({*job_names, *rows})
    known = set(names)
    resolution = Resolution()
    found: dict[str, tuple[str, ...]] = {}
    problems: dict[str, str] = {}
    for name, row in rows.items():
        members, missing = _members(row, names, known)
        if missing:
            problems[name] = "\n".join(missing)
        else:
            found[name] = members
    _fail_cycles(found, problems)
    _fail_of_failed(found, problems)
    resolution.errors = [
        JobError(attr_path=rows[name].attr_path, message=problem)
        for name, problem in sorted(problems.items())
    ]
    resolution.constituents = {
        name: found[name] for name in _in_order(found) if name not in problems
    }
    return resolution


def _members(
    row: JobRow, names: Sequence[str], known: set[str]
) -> tuple[tuple[str, ...], list[str]]:
    members: dict[str, None] = {}
    missing = []
    for word in row.named_constituents:
        if word in known and word != row.job_name:
            members[word] = None
        elif word in known:
            missing.append(f"constituent {word!r}: is the aggregate itself")
        elif row.glob_constituents or not _GLOB.isdisjoint(word):
            matches = [n for n in names if n != row.job_name and fnmatchcase(n, word)]
            members.update(dict.fromkeys(matches))
            if not matches:
                missing.append(f"constituent {word!r}: matches no job")
        else:
            missing.append(f"constituent {word!r}: there is no such job")
    return tuple(members), missing


def _fail_cycles(found: Mapping[str, tuple[str, ...]], problems: dict[str, str]) -> None:
    """Take away what has no open need, again and again; what is left is a cycle or above one."""
    open_needs = {
        name: {member for member in members if member in found} for name, members in found.items()
    }
    while True:
        free = [name for name, needs in open_needs.items() if not needs]
        if not free:
            break
        for name in free:
            del open_needs[name]
        for needs in open_needs.values():
            needs.difference_update(free)
    for name in open_needs:
        if _reaches(name, name, open_needs):
            ring = [
                other
                for other in sorted(open_needs)
                if _reaches(other, name, open_needs) and _reaches(name, other, open_needs)
            ]
            problems[name] = f"dependency cycle: {' <-> '.join(ring)}"


def _reaches(start: str, goal: str, needs: Mapping[str, set[str]]) -> bool:
    seen: set[str] = set()
    stack = list(needs.get(start, ()))
    while stack:
        name = stack.pop()
        if name == goal:
            return True
        if name not in seen:
            seen.add(name)
            stack.extend(needs.get(name, ()))
    return False


def _fail_of_failed(found: Mapping[str, tuple[str, ...]], problems: dict[str, str]) -> None:
    """An aggregate of an aggregate that can't be made can't be made either."""
    changed = True
    while changed:
        changed = False
        for name, members in found.items():
            broken = [member for member in members if member in problems]
            if broken and name not in problems:
                problems[name] = f"constituent {broken[0]!r}: has an error itself"
                changed = True


def _in_order(found: Mapping[str, tuple[str, ...]]) -> list[str]:
    order: dict[str, None] = {}
    waiting = dict(found)
    while waiting:
        free = [n for n, members in waiting.items() if not any(m in waiting for m in members)]
        if not free:  # a cycle, which is an error already
            break
        for name in sorted(free):
            order[name] = None
            del waiting[name]
    return list(order)
