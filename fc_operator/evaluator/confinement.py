"""What an evaluator's process may see of this machine.

Nix' own restrictions are the first wall. This is the second, where the kernel has it: Nix before
2.19 lets pure code copy any folder whose hash it names, and a bug there must not show our secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from fc_operator.evaluator.requests import EvaluationRequest
from fc_operator.kit import logs, processes
from fc_operator.kit.processes import Confinement, Process

_log = logs.get_logger()
_PROGRAMS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix", "/run/current-system")
_NAMES = ("hosts", "resolv.conf", "nsswitch.conf", "host.conf", "gai.conf", "services", "protocols")
_ETC = tuple(
    f"/etc/{name}"
    for name in (
        *(*_NAMES, "passwd", "group", "localtime", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
        *("ssl", "pki", "ca-certificates", "ca-certificates.conf", "alternatives", "nix", "static"),
    )
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
_KERNEL = ("/proc", "/sys/fs/cgroup", "/sys/devices/system/cpu", "/run/systemd/resolve")
_FILES_NAMED = ("NIX_CONF_DIR", "NIX_SSL_CERT_FILE", "SSL_CERT_FILE", "LOCALE_ARCHIVE")
_STATE_DIR, _LOG_DIR = "/nix/var/nix", "/nix/var/log/nix"


def confinement_of(
    request: EvaluationRequest, env: Mapping[str, str], *, store_dir: str
) -> Confinement:
    """Programs and what they need to run, the store, and this evaluation's own folders."""
    trees = (request.source, *(each.tree for each in request.arguments))
    return Confinement(
        readable=(
            *_PROGRAMS,
            *(folder for folder in env.get("PATH", "").split(":") if folder.startswith("/")),
            *_ETC,
            *_KERNEL,
            *(env[name] for name in _FILES_NAMED if env.get(name)),
            *(str(tree.path) for tree in trees if tree is not None),
        ),
        writable=(
            store_dir,
            env.get("NIX_STATE_DIR", _STATE_DIR),
            env.get("NIX_LOG_DIR", _LOG_DIR),
            env["HOME"],
            str(request.work_dir),
            *_DEVICES,
        ),
    )


def is_possible(request: EvaluationRequest, env: Mapping[str, str]) -> bool:
    """Whether it can be confined; not where it builds itself, for inside no sandbox can be had."""
    if not request.allow_import_from_derivation:
        return processes.can_confine()
    remote = env.get("NIX_REMOTE", "")
    builds_itself = remote in {"", "auto", "local"} and os.access(
        env.get("NIX_STATE_DIR", _STATE_DIR), os.W_OK
    )
    return processes.can_confine() and not builds_itself


async def start(
    argv: Sequence[str],
    request: EvaluationRequest,
    *,
    env: Mapping[str, str],
    store_dir: str,
    stdin: bool = False,
) -> Process:
    """Start an evaluator, confined where that is possible.

    Raises:
        OSError: it does not exist, or may not be run.
    """
    if not is_possible(request, env):
        _warn(ifd=request.allow_import_from_derivation)
        return await processes.start(argv, env=env, cwd=request.work_dir, stdin=stdin)
    temporary = request.work_dir / "tmp"
    confinement = confinement_of(request, env, store_dir=store_dir)
    # A rule is about what is there; Nix would make its own folders otherwise.
    folders = [Path(path) for path in confinement.writable if path not in _DEVICES]
    await asyncio.to_thread(_make, temporary, *folders)
    return await processes.start(
        argv,
        env={**env, "TMPDIR": str(temporary)},
        cwd=request.work_dir,
        stdin=stdin,
        confinement=confinement,
    )


@cache
def _warn(*, ifd: bool) -> None:
    """Once for each cause."""
    why = "it may build what it imports" if ifd else "this kernel has no Landlock (Linux 5.19)"
    _log.warning("evaluator.unconfined", why=why)


def _make(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(PermissionError):  # a daemon's
            folder.mkdir(parents=True, exist_ok=True)
