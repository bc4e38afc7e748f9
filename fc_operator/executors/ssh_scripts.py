"""What we say to a builder's shell, and how its answers are read. Pure.

Everything is POSIX sh, Nix and the few programs that every system with Nix has. A build runs below
a shell that leads a process group, so that one signal ends all of it; that shell holds the build's
results until we let go of it, and ends the build by itself when the connection breaks or falls
silent: nobody may be there any more to tell it so.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fc_operator.errors import ProtocolError
from fc_operator.executors.process_tree import Usage

BEAT_S: Final = 15
"""We say that we are there this often."""
SILENCE_S: Final = 60
"""A build ends itself after such a silence of ours."""

_SEARCH: Final = (
    'PATH="${PATH:-/usr/bin:/bin}:/nix/var/nix/profiles/default/bin:'
    '${HOME:-/root}/.nix-profile/bin:/run/current-system/sw/bin:/usr/local/bin"; export PATH\n'
)
"""Where Nix is, when the login gives a plain PATH, as it mostly does without a terminal."""

_BUILD: Final = r"""
nonce=$1; silence=$2; shift 2
dir=$(mktemp -d "${TMPDIR:-/tmp}/fc-build.XXXXXXXXXX") || exit 1
trap 'rm -rf "$dir"' EXIT
trap : TERM HUP
exec 3<&0
printf '@fc-%s begin %s %s\n' "$nonce" "$$" "$dir" >&2
"$@" --add-root "$dir/root" </dev/null >/dev/null 3<&- &
nix=$!
(
  exec 2>/dev/null >/dev/null
  while read -r beat <&3; do : >"$dir/beat"; done
  [ -e "$dir/ended" ] || { kill -TERM "$nix"; sleep 5; [ -e "$dir/ended" ] || kill -KILL "$nix"; }
) &
reader=$!
(
  exec 2>/dev/null >/dev/null 3<&-
  while sleep "$silence" && rm "$dir/beat"; do :; done
  kill -TERM "$reader" "$nix"; sleep 5; [ -e "$dir/ended" ] || kill -KILL "$nix"
) &
(
  exec 2>/dev/null 3<&-
  pause=0.2
  while sleep "$pause"; do
    printf 'top %s\n' "$nix"
    cat /proc/[0-9]*/stat | sed 's/^\([0-9]*\) (.*) /\1 /' | cut -d' ' -f1,3,13-16,23
    printf '\n'
    case $pause in 0.2) pause=0.4 ;; 0.4) pause=0.8 ;; *) pause=2 ;; esac
  done
) &
code=0; wait "$nix" || code=$?
while [ "$code" -gt 128 ] && kill -0 "$nix" 2>/dev/null; do code=0; wait "$nix" || code=$?; done
: >"$dir/ended"
printf '\n@fc-%s end %s\n' "$nonce" "$code" >&2
exec 2>/dev/null
wait "$reader"
trap '' TERM
kill -s TERM -- "-$$"
"""

_KILL: Final = r"""
kill -s "$1" -- "-$2" 2>/dev/null || kill -s "$1" "$2" 2>/dev/null
:
"""

_SWEEP: Final = r"""
below_nix() {
  at=$1
  while [ "$at" -gt 1 ]; do
    read -r stat 2>/dev/null <"/proc/$at/stat" || return 1
    case ${stat#*\(} in nix*) return 0 ;; esac
    set -- ${stat##*\) }
    at=$2
  done
  return 1
}
[ -d /proc/self ] || exit 0
list=$(cat)
turn=0
while [ "$turn" -lt 10 ]; do
  found=
  for file in $(printf '%s\n' "$list" | grep -lszFx -f - /proc/[0-9]*/environ); do
    pid=${file#/proc/}; pid=${pid%/environ}
    grep -qsz '^NIX_BUILD_TOP=' "$file" || continue
    below_nix "$pid" && continue
    kill -KILL "$pid" 2>/dev/null && found=yes
  done
  [ -n "$found" ] || break
  turn=$((turn + 1))
done
:
"""

_DESCRIBE: Final = r"""
cd "$1" || exit 1
set --
for link in root root-*; do
  [ -h "$link" ] || continue
  path=$(readlink "$link"); printf '%s %s\n' "$link" "$path"; set -- "$@" "$path"
done
printf '\n'
[ "$#" -gt 0 ] && nix-store --dump-db "$@"
"""

_INVALID: Final = "xargs nix-store --check-validity --print-invalid"
_IMPORT: Final = "exec nix-store --import"
_EXPORT: Final = "exec nix-store --export $(cat)"
_REQUISITES: Final = 'exec nix-store --query --requisites "$@"'
_RUN: Final = 'exec "$@"'
_LOAD: Final = (
    'for kind in cpu memory io; do sed "s/^/$kind /" /proc/pressure/$kind 2>/dev/null; done; :'
)
_LOOK: Final = r"""
version=$(nix-store --version 2>&1) || version=
printf 'nix %s\n' "$version"
printf 'host %s\n' "$(uname -n)"
printf 'machine %s %s\n' "$(uname -m)" "$(uname -s)"
printf 'user %s\n' "$(id -un)"
printf 'free %s\n' "$(df -Pk "$1" 2>/dev/null | sed -n '2s/  */ /gp' | cut -d' ' -f4)"
for folder in /bin /usr /lib /lib32 /lib64; do
  [ -d "$folder" ] && printf 'folder %s\n' "$folder"
done
:
"""
_MARKER: Final = 'marker=$(mktemp) && chmod 644 "$marker" && printf %s "$marker"'


def _command(script: str, *words: str) -> str:
    return " ".join(
        ["exec", "/bin/sh", "-c", *map(shlex.quote, (_SEARCH + script.strip("\n"), "fc", *words))]
    )


def build(nonce: str, argv: Sequence[str]) -> str:
    """Run ``argv``, a call of Nix that takes ``--add-root``. Standard error holds Nix's own lines
    and ours (``parse_mark``), standard output what runs (``parse_sample``); input lines are beats,
    and its end lets go of everything.
    """
    return _command(_BUILD, nonce, str(SILENCE_S), *argv)


def kill(signal: str, group: int) -> str:
    """Send ``TERM`` or ``KILL`` to a process group."""
    return _command(_KILL, signal, str(group))


def sweep() -> str:
    """Kill builders that lost their Nix; input: ``name=path`` lines of their environments."""
    return _command(_SWEEP)


def describe(folder: str) -> str:
    """The links in a build's folder, an empty line, and what Nix knows of where they lead."""
    return _command(_DESCRIBE, folder)


def invalid() -> str:
    """Those of the paths on its input that are not valid there."""
    return _command(_INVALID)


def take() -> str:
    """Register an export."""
    return _command(_IMPORT)


def give() -> str:
    """Export the paths on its input."""
    return _command(_EXPORT)


def requisites(paths: Sequence[str]) -> str:
    """The closure of some paths, each after what it refers to."""
    return _command(_REQUISITES, *paths)


def run(argv: Sequence[str]) -> str:
    """Just run something."""
    return _command(_RUN, *argv)


def load() -> str:
    """How much processes wait for the machine, as ``parse_load`` reads it."""
    return _command(_LOAD)


def look(store_dir: str) -> str:
    """What machine it is, as ``parse_look`` reads it."""
    return _command(_LOOK, store_dir)


def marker() -> str:
    """Make a file that a sandbox must not show; prints its path."""
    return _command(_MARKER)


@dataclass(frozen=True, slots=True)
class Begun:
    """The build's shell is there."""

    group: int
    folder: str


@dataclass(frozen=True, slots=True)
class Ended:
    """Nix has ended."""

    code: int
    """Negative for a signal."""


def parse_mark(line: bytes, nonce: str) -> Begun | Ended | None:
    """A line of our own shell; None for all others. The nonce tells it from what builds print."""
    words = line.decode("utf-8", "replace").split(" ")
    if words[0] != f"@fc-{nonce}":
        return None
    match words[1:]:
        case ["begin", group, *folder] if group.isdigit() and folder:
            return Begun(int(group), " ".join(folder))
        case ["end", code] if code.isdigit():
            number = int(code)
            return Ended(128 - number if number > 128 else number)
    return None


_TICKS_S: Final = 100
_PAGE_BYTES: Final = 4096


def parse_sample(lines: Iterable[str]) -> Usage:
    """What runs below the process that ``top`` names: as ``process_tree.usage`` counts.

    Lines are: pid, parent, user and system time of itself and of its ended children, pages.
    """
    top = 0
    members: dict[int, tuple[int, list[int]]] = {}
    for line in lines:
        words = line.split()
        if words[:1] == ["top"] and len(words) == 2 and words[1].isdigit():
            top = int(words[1])
        elif len(words) == 7 and all(word.lstrip("-").isdigit() for word in words):
            pid, parent, *numbers = map(int, words)
            members[pid] = parent, numbers
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in members.items():
        children.setdefault(parent, []).append(pid)
    memory = ticks = 0
    todo, seen = [top], set()
    while todo:
        pid = todo.pop()
        if pid in seen or pid not in members:
            continue
        seen.add(pid)
        todo += children.get(pid, [])
        *times, pages = members[pid][1]
        if pid == top:
            ticks += sum(times[2:])
        else:
            ticks += sum(times)
            memory += pages * _PAGE_BYTES
    return Usage(memory, ticks * 1000 // _TICKS_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Share of the last ten seconds, in percent, in which processes waited for something."""

    cpu_some: float | None = None
    memory_full: float | None = None
    io_full: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether the machine tells it at all."""
        return self.cpu_some is not None

    @property
    def is_pressed(self) -> bool:
        """Beyond what Hydra's builders take as well: little good comes of more work there."""
        return (self.cpu_some or 0) > 75 or (self.memory_full or 0) > 80

    @property
    def rank(self) -> float:
        """Least first; what is not known is never first."""
        return 1000.0 if not self.is_known else (self.cpu_some or 0) + 2 * (self.memory_full or 0)


def parse_load(text: str) -> Load:
    """``/proc/pressure``, each line after its kind; nothing known where it says nothing."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = re.match(r"(cpu|memory|io) (some|full) avg10=([0-9]+(?:\.[0-9]+)?)\b", line)
        if match:
            found[f"{match[1]}_{match[2]}"] = float(match[3])
    return Load(
        cpu_some=found.get("cpu_some"),
        memory_full=found.get("memory_full"),
        io_full=found.get("io_full"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a builder says of itself."""

    nix_version: str
    """Empty where Nix is not found."""
    host: str
    machine: str
    user: str
    free_bytes: int | None
    folders: tuple[str, ...]
    """Folders that a sandbox may need to show, where its Nix brings no shell of its own."""


def parse_look(text: str) -> Look:
    """What ``look`` printed."""
    facts: dict[str, str] = {}
    folders = []
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "folder":
            folders.append(value)
        else:
            facts.setdefault(name, value)
    version = re.search(r"\d+\.\d+\S*", facts.get("nix", ""))
    free = facts.get("free", "")
    return Look(
        nix_version=version[0] if version else "",
        host=facts.get("host", ""),
        machine=facts.get("machine", ""),
        user=facts.get("user", ""),
        free_bytes=int(free) * 1024 if free.isdigit() else None,
        folders=tuple(folders),
    )


def parse_description(text: str) -> tuple[dict[str, str], str]:
    """Paths by output name, and the dump of Nix's database.

    Raises:
        ProtocolError: it is something else.
    """
    links, mark, dump = text.partition("\n\n")
    paths = {}
    for line in links.splitlines():
        link, _, path = line.partition(" ")
        if not re.fullmatch(r"root(-[^ /]+)?", link) or not path.startswith("/"):
            raise ProtocolError(f"the builder told of its outputs: {line[:200]!r}")
        paths[link.removeprefix("root").removeprefix("-") or "out"] = path
    if not mark or not paths:
        raise ProtocolError("the builder told of no outputs")
    return paths, dump


def environment_marks(outputs: Mapping[str, str]) -> bytes:
    """What the environment of a build's processes holds, one line each; empty where not known."""
    return "".join(f"{name}={path}\n" for name, path in outputs.items() if path).encode()
