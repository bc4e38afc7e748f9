"""What runs below a process, how much it uses, and an end to what outlived it. Linux ``/proc``.

Nix starts each builder in a session of its own and under a build user, so a process group does not
reach it; Nix's own clean-up does, unless Nix itself was killed or builds run as root, where a
builder's child in yet another session survives. What is left is found by its environment: Nix
tells every builder its output paths, and children inherit them.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory and CPU of a tree at one moment."""

    memory_bytes: int
    """Resident memory, summed; pages shared between processes count in each."""
    cpu_ms: int
    """User and system time of all that lives, and of all ended children that were waited for."""


def descendants(pid: int) -> Iterator[int]:
    """``pid`` and all that runs below it, parents first."""
    yield pid
    try:
        children = (_PROC / f"{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from descendants(int(child))


def usage(pid: int) -> Usage:
    """What runs below ``pid`` uses; ``pid`` itself counts only with children that it waited for.

    Zeros where ``/proc`` does not know it, or where a daemon builds instead.
    """
    memory = ticks = 0
    for member in descendants(pid):
        try:
            stat = (_PROC / f"{member}/stat").read_text()
        except OSError:
            continue
        words = _stat_fields(stat)
        if member == pid:
            ticks += sum(int(word) for word in words[13:15])
        else:
            ticks += sum(int(word) for word in words[11:15])
            memory += int(words[21]) * _PAGE_BYTES
    return Usage(memory, ticks * 1000 // _TICKS_S)


def _stat_fields(stat: str) -> list[str]:
    # The name stands in parentheses and may hold anything; from state on, words are words.
    return stat[stat.rfind(")") + 2 :].split()


def started_ticks(pid: int) -> int | None:
    """When ``pid`` started, in ticks since boot: with the pid, the name of one process for good."""
    try:
        return int(_stat_fields((_PROC / f"{pid}/stat").read_text())[19])
    except OSError:
        return None


def _is_below_nix(pid: int) -> bool:
    # Somebody's living Nix looks after it; only what has lost its Nix is ours to end.
    while pid > 1:
        try:
            stat = (_PROC / f"{pid}/stat").read_text()
        except OSError:
            return False
        if stat[stat.find("(") + 1 :].startswith("nix"):
            return True
        pid = int(_stat_fields(stat)[1])
    return False


def builders(output_paths: Collection[str], *, orphans: bool = False) -> list[int]:
    """Processes that build one of ``output_paths``, as their environment says.

    With ``orphans`` only those without a living Nix above them.
    """
    marks = [os.fsencode(path) for path in output_paths if path]
    found: list[int] = []
    if not marks:
        return found
    for entry in os.listdir(_PROC):  # noqa: PTH208 - names are all we want, a thousand of them
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            words = (_PROC / entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        is_builder = any(word.startswith(b"NIX_BUILD_TOP=") for word in words)
        if not is_builder or not any(word.partition(b"=")[2] in marks for word in words):
            continue
        if not (orphans and _is_below_nix(int(entry))):
            found.append(int(entry))
    return found


def end_builders(output_paths: Collection[str]) -> int:
    """Kill what still builds one of ``output_paths``, again until nothing is left to find.

    Returns how many were killed. Builders of a Nix that lives are left to it.
    """
    killed: set[int] = set()
    for _ in range(10):  # a fork bomb may outrun one pass
        alive = [pid for pid in builders(output_paths, orphans=True) if pid not in killed]
        if not alive:
            break
        for pid in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    return len(killed)
