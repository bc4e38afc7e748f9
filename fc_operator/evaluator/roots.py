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

from fc_operator.model.ids import DrvPath

_STATE_DIR = "/nix/var/nix"


def default_dir(env: Mapping[str, str]) -> Path:
    """Where this process may keep roots: ``gcroots/fc``, or below ``per-user`` for others."""
    gcroots = Path(env.get("NIX_STATE_DIR", _STATE_DIR)) / "gcroots"
    if os.access(gcroots, os.W_OK) or not gcroots.exists():
        return gcroots / "fc"
    return gcroots / "per-user" / getpass.getuser() / "fc"


def keep(drv_path: DrvPath, folder: Path) -> bool:
    """Make ``drv_path`` a root; false when it is not in the store any more.

    Asked after the link is there: a derivation that a collector took in between is seen to be gone.
    """
    with contextlib.suppress(FileExistsError):
        (folder / Path(drv_path).name).symlink_to(drv_path)
    return Path(drv_path).exists()


def drop(folder: Path) -> None:
    """Let go of all derivations of one evaluation."""
    shutil.rmtree(folder, ignore_errors=True)
