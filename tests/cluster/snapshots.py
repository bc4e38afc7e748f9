"""Whether layers of images can be laid over one another here, or have to be copied."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.cluster.programs import system_program


def overlay_works(folder: Path) -> bool:
    """Whether the kernel lays folders below ``folder`` over another; on an overlay it does not."""
    with tempfile.TemporaryDirectory(dir=folder) as below:
        for name in ("lower", "upper", "work", "merged"):
            (Path(below) / name).mkdir()
        options = f"lowerdir={below}/lower,upperdir={below}/upper,workdir={below}/work"
        done = subprocess.run(
            [str(system_program("unshare")), "--mount", str(system_program("mount")),
             "-t", "overlay", "overlay", "-o", options, f"{below}/merged"],
            capture_output=True, check=False,
        )  # fmt: skip
    return done.returncode == 0


def driver(folder: Path) -> str:
    """buildah's word for it."""
    folder.mkdir(parents=True, exist_ok=True)
    return "overlay" if overlay_works(folder) else "vfs"


def snapshotter(folder: Path) -> str:
    """containerd's word for it."""
    return "overlayfs" if overlay_works(folder) else "native"
