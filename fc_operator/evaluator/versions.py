"""Which programs there are, and of which version: asked once per file."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping

from fc_operator.errors import PrerequisiteError
from fc_operator.kit import processes

_VERSION = re.compile(r"\d+(?:\.\d+)+\S*")
_known: dict[tuple[str, int], str] = {}


def find(program: str, env: Mapping[str, str]) -> str | None:
    """The path of ``program`` on the PATH of ``env``."""
    return shutil.which(program, path=env.get("PATH"))


async def of(program: str, env: Mapping[str, str]) -> str:
    """The version that ``program --version`` names, or ``unknown``.

    Raises:
        PrerequisiteError: it is not on PATH or can't be run.
    """
    path = find(program, env)
    if path is None:
        raise PrerequisiteError(f"{program} is not on PATH", hint="install Nix")
    file = (path, os.stat(path).st_mtime_ns)  # noqa: PTH116 - a name, and one look at an inode
    if file not in _known:
        _known[file] = await _ask(path, program, env)
    return _known[file]


async def require(program: str, env: Mapping[str, str]) -> None:
    """Ask anew whether ``program`` runs: it ended badly, and its configuration may be broken.

    Raises:
        PrerequisiteError: it does not; ``of`` will ask again too.
    """
    for file in [file for file in _known if file[0] == find(program, env)]:
        del _known[file]
    await of(program, env)


async def _ask(path: str, program: str, env: Mapping[str, str]) -> str:
    try:
        done = await processes.run([path, "--version"], env=env)
    except (OSError, processes.ProcessLimitError) as error:
        raise PrerequisiteError(f"{program} can't be run: {error}") from error
    if done.code != 0:
        said = done.stderr.decode("utf-8", "replace")[-2000:].strip()
        raise PrerequisiteError(f"{program} is broken: {said}", hint="see nix.conf")
    found = _VERSION.search(done.stdout.decode("utf-8", "replace"))
    return found.group() if found else "unknown"
