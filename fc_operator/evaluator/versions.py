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
        try:
            done = await processes.run([path, "--version"], env=env)
        except (OSError, processes.ProcessLimitError) as error:
            raise PrerequisiteError(f"{program} can't be run: {error}") from error
        if done.code != 0:
            said = done.stderr.decode("utf-8", "replace")[-2000:].strip()
            raise PrerequisiteError(f"{program} is broken: {said}", hint="see nix.conf")
        found = _VERSION.search(done.stdout.decode("utf-8", "replace"))
        _known[file] = found.group() if found else "unknown"
    return _known[file]
