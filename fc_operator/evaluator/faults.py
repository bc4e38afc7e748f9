"""Bad ends of an evaluator that are no fault of the source: the machine has troubles of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fc_operator.errors import UnavailableError
from fc_operator.evaluator import rows, versions

_OF_THE_MACHINE = re.compile(
    r": (?:No space left on device|Disk quota exceeded|Read-only file system|"
    r"Input/output error|Too many open files)$"
    r"|SQLite (?:statement|database)|database or disk is full|database is (?:busy|locked)"
    r"|cannot connect to (?:socket|daemon)|Nix daemon disconnected",
    re.MULTILINE,
)
"""What the system says ends a line of Nix; a source that says the same is only tried again."""


def refuse(told: str) -> None:
    """Raise when ``told`` says that the machine failed, not the source.

    Raises:
        UnavailableError: it does; with what it said.
    """
    told = rows.clean_message(told)
    if found := _OF_THE_MACHINE.search(told):
        start = told.rfind("\n", 0, found.start()) + 1
        line = told[start:].splitlines()[0].strip().removeprefix("error:").strip()
        raise UnavailableError(line[:500], hint="it is tried again by itself")


async def require_sound(program: str, told: str, env: Mapping[str, str]) -> None:
    """After ``program`` ended badly: raise unless that may be the source's doing.

    Raises:
        UnavailableError: the machine failed, such as a full disk.
        PrerequisiteError: the program does not run at all, such as by a broken nix.conf.
    """
    refuse(told)
    await versions.require(program, env)
