"""Whose steps go next: bumped ones, then the jobset with the least used of its share. Pure.

The backlog is never sorted: what waits is known by the head of each (class, jobset), and the
queue's index gives the order inside.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fc_operator.model.ids import ClassId, JobsetId

EXPECTED_S = 30.0
"""What a step is thought to cost until it has run: keeps a burst of claims fair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Ready steps of one class and jobset."""

    class_id: ClassId
    jobset_id: JobsetId
    bump: int = 0
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a jobset may have and what it had."""

    jobset_id: JobsetId
    shares: int
    used_s: float
    running: int = 0


def allot(
    heads: Iterable[Head], shares: Sequence[Share], free: int
) -> list[tuple[ClassId, JobsetId, int]]:
    """How many of the ``free`` slots each (class, jobset) may claim; a jobset without share: none.

    How many steps wait behind a head is not known, so a jobset may be allotted more than it has;
    the next round gives the rest to others.
    """
    by_jobset: dict[JobsetId, list[Head]] = {}
    for head in heads:
        by_jobset.setdefault(head.jobset_id, []).append(head)
    queue = [
        (-max(head.bump for head in by_jobset[share.jobset_id]), _used(share, 0), n)
        for n, share in enumerate(shares)
        if share.jobset_id in by_jobset
    ]
    heapq.heapify(queue)
    counts: dict[tuple[ClassId, JobsetId], int] = {}
    given = [0] * len(shares)
    for _ in range(free if queue else 0):
        _, _, n = queue[0]
        share = shares[n]
        mine = sorted(by_jobset[share.jobset_id], key=_urgency)
        # Of several classes each in turn, bumped ones first.
        head = mine[given[n] % len(mine)]
        counts[head.class_id, head.jobset_id] = counts.get((head.class_id, head.jobset_id), 0) + 1
        given[n] += 1
        # One bumped head is one step for certain; what follows it goes by shares.
        bump = -max((h.bump for h in mine[given[n] :]), default=0)
        heapq.heapreplace(queue, (bump, _used(share, given[n]), n))
    return [(class_id, jobset_id, n) for (class_id, jobset_id), n in counts.items()]


def _urgency(head: Head) -> tuple[int, int, int]:
    return -head.bump, -head.priority, head.class_id


def _used(share: Share, given: int) -> float:
    return (share.used_s + given * EXPECTED_S) / max(1, share.shares)


def cut(
    quotas: Sequence[tuple[ClassId, JobsetId, int]], most: int
) -> list[tuple[ClassId, JobsetId, int]]:
    """The first ``most`` of what was allotted, in its order."""
    kept = []
    for class_id, jobset_id, count in quotas:
        if most <= 0:
            break
        kept.append((class_id, jobset_id, min(count, most)))
        most -= count
    return kept
