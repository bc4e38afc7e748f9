"""Which sandbox a machine's Nix can give, seen by building something that looks around."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Sequence

from fc_operator.errors import PrerequisiteError
from fc_operator.executors import nix_arguments
from fc_operator.executors.nix_arguments import Sandbox

_PROBE = """derivation {{
  name = "fc-sandbox-probe-{salt}";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" ''
    if [ -e "{marker}" ]; then echo it sees files of the host; exit 7; fi
    while read name rest; do
      case "$name" in Inter-*|face*|lo:*) ;; *) echo it sees the network; exit 8;; esac
    done < /proc/net/dev
    echo fine > $out
  '' ];
}}"""
_LOOKED_AROUND = re.compile(r"exit code [78]\b")
"""The probe ran, and saw something that it would not see in a sandbox."""

Words = Callable[..., Awaitable[tuple[int, str]]]
"""Calls a program of Nix on the machine: exit code, and what it printed (of a failure: why)."""


async def probe(words: Words, *, wish: str, folders: Sequence[str], marker: str) -> Sandbox:
    """The sandbox that comes into force where ``wish`` is wished.

    ``folders`` of the machine may be shown where its Nix brings no shell; ``marker`` is a file that
    nobody in a sandbox sees.

    Raises:
        PrerequisiteError: the sandbox is wished and can't be had, or Nix can't build at all.
    """
    if wish == "None":
        return Sandbox(in_force="None", why="by setting")
    problems: list[str] = []
    for paths in ((), tuple(folders)):
        # With its own shell if this Nix has one, else with the host's.
        candidate = Sandbox(in_force="Nix", paths=paths)
        problem = await _try(words, candidate, marker)
        if not problem:
            return candidate
        problems.append(problem)
    why = problems[-1]
    if wish == "Nix":
        raise PrerequisiteError(
            f"Nix's sandbox does not work here: {why}",
            hint="set nix.sandbox to None, or allow user and mount namespaces",
        )
    plainly = await _try(words, Sandbox(in_force="None"), marker)
    if plainly and not _LOOKED_AROUND.search(plainly):
        # A full disk, say: that tells nothing about the sandbox, so it is asked again later.
        raise PrerequisiteError(f"Nix can't build here: {plainly}", hint="see nix.conf")
    return Sandbox(in_force="None", why=f"the sandbox does not work here: {why}")


async def _try(words: Words, candidate: Sandbox, marker: str) -> str:
    """Empty when a build inside ``candidate`` sees neither host nor network; else why not."""
    text = _PROBE.format(salt=secrets.token_hex(8), marker=marker)
    code, drv = await words("nix-instantiate", "-E", text)
    if code != 0:
        raise PrerequisiteError(f"Nix can't instantiate: {drv}", hint="see nix.conf")
    code, said = await words(
        *("nix-store", "--realise", drv.splitlines()[-1]),
        *nix_arguments.sandbox_options(candidate),
        *("--option", "substituters", "", "--option", "builders", ""),
    )
    return "" if code == 0 else said
