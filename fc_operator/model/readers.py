"""Which private projects somebody may see; every read for people takes one."""

from __future__ import annotations

from dataclasses import dataclass

from fc_operator.model.ids import ProjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Public projects are seen by every reader."""

    all_projects: bool = False
    """Private ones too, whoever is a member."""
    projects: tuple[ProjectId, ...] = ()
    """Private projects of which the reader is a member."""


EVERYTHING = Reader(all_projects=True)
PUBLIC = Reader()
