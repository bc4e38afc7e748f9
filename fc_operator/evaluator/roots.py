"""Links that keep derivations from the garbage collector, below the store's own ``gcroots``.

One folder per evaluation; the collector follows folders and links there without any register, so a
root costs a symbolic link and no process.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from fc_operator.model.ids import DrvPath, StorePath

_STATE_DIR = "/nix/var/nix"


def default_dir(env: Mapping[str, str]) -> Path:
    """Where this process may keep roots: ``gcroots/fc``, or below ``per-user`` for others."""
    gcroots = Path(env.get("NIX_STATE_DIR", _STATE_DIR)) / "gcroots"
    if os.access(gcroots, os.W_OK) or not gcroots.exists():
        return gcroots / "fc"
    return gcroots / "per-user" / getpass.getuser() / "fc"


def keep(path: DrvPath | StorePath, folder: Path) -> bool:
    """Make ``path`` a root; false when it is not in the store any more.

    Asked after the link is there: what a collector took in between is seen to be gone.
    """
    with contextlib.suppress(FileExistsError):
        (folder / Path(path).name).symlink_to(path)
    return Path(path).exists()


def copy(source: Path, folder: Path) -> bool:
    """Keep what another evaluation keeps; false when that is not there whole any more."""
    if not source.is_dir():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    return all(keep(StorePath(str(link.readlink())), folder) for link in source.iterdir())


def drop(folder: Path) -> None:
    """Let go of all derivations of one evaluation."""
    shutil.rmtree(folder, ignore_errors=True)
