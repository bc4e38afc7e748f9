"""Ids and other words that must not be mixed up, as NewTypes."""

from __future__ import annotations

import os
import time
from typing import NewType
from uuid import UUID

ProjectId = NewType("ProjectId", UUID)
JobsetId = NewType("JobsetId", UUID)
BuilderId = NewType("BuilderId", UUID)
EvaluationId = NewType("EvaluationId", UUID)
BuildId = NewType("BuildId", UUID)
TaskId = NewType("TaskId", UUID)
ConfigRepositoryId = NewType("ConfigRepositoryId", UUID)
StepId = NewType("StepId", int)
"""A step's row; small and dense, because edges are made of pairs of them."""
ClassId = NewType("ClassId", int)
"""A step class: one system with one sorted set of required features."""

DrvPath = NewType("DrvPath", str)
"""A full store path that ends in ``.drv``."""
StorePath = NewType("StorePath", str)
"""A full store path, ``/nix/store/<hash32>-<name>``."""
CommitId = NewType("CommitId", str)
"""40 or 64 lower-case hex digits."""
Owner = NewType("Owner", str)
"""Who holds leases: one process since its start, never a host or pod name alone."""


def new_uuid() -> UUID:
    """A UUIDv7 (RFC 9562): made by the client, so that a retried insert is the same row, and
    growing with time, so that indexes stay dense.
    """
    millis = time.time_ns() // 1_000_000
    rand = int.from_bytes(os.urandom(10), "big")
    value = (millis & (2**48 - 1)) << 80
    value |= 0x7 << 76
    value |= ((rand >> 62) & 0xFFF) << 64
    value |= 0b10 << 62
    value |= rand & (2**62 - 1)
    return UUID(int=value)
