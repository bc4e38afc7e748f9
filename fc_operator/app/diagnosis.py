"""What ``fc doctor`` looks at: each prerequisite of this machine, found or missing, and its cure.

Every check is a function of its own that never raises; together they take a few seconds, most of
which is the build that proves Nix and its sandbox.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fc_operator.errors import FcError
from fc_operator.executors.local import LocalExecutor
from fc_operator.kit import confine, processes
from fc_operator.model.outcomes import Harvest
from fc_operator.settings import Settings
from fc_operator.store import embedded, migrations

_PYTHON_LEAST = (3, 11)
_NIX_LEAST = (2, 8)
_FREE_BYTES_LEAST = 2 * 1024**3
_LIMITS = processes.Limits(timeout_s=20, output_bytes=1 << 20)


class State(StrEnum):
    """How a check ended."""

    FOUND = "found"
    MISSING = "missing"
    """Needed, and not there or not usable."""
    OPTIONAL = "optional"
    """Not there, and nothing needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check saw."""

    name: str
    state: State
    detail: str
    cure: str = ""
    """A command, or what to do in words; only where something is missing."""


Check = Callable[[Settings, Mapping[str, str]], Awaitable[Finding]]


async def diagnose(settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """All findings, in a fixed order; the checks run side by side."""
    # Two that are the first to open an empty store, as in a new pod, trip over each other.
    await _words(["nix-store", "--init"], env)
    return list(await asyncio.gather(*(check(settings, env) for check in CHECKS)))


async def python(_: Settings, __: Mapping[str, str]) -> Finding:
    """The interpreter."""
    version = platform.python_version()
    if sys.version_info >= _PYTHON_LEAST:
        return Finding(name="Python", state=State.FOUND, detail=version)
    return Finding(
        name="Python", state=State.MISSING, detail=f"{version} is too old",
        cure="apt-get install python3.11 python3.11-venv",
    )  # fmt: skip


async def git(_: Settings, env: Mapping[str, str]) -> Finding:
    """Fetching sources."""
    code, said = await _words(["git", "--version"], env)
    if code == 0:
        return Finding(name="git", state=State.FOUND, detail=said.removeprefix("git version "))
    return Finding(name="git", state=State.MISSING, detail=said, cure="apt-get install git")


async def nix(_: Settings, env: Mapping[str, str]) -> Finding:
    """Nix itself, and whether its configuration can be read."""
    code, said = await _words(["nix-store", "--version"], env)
    if code != 0:
        return Finding(
            name="Nix", state=State.MISSING, detail=said,
            cure="apt-get install nix-bin" if _is(said, "not found") else "mend nix.conf",
        )  # fmt: skip
    version = said.split()[-1]
    if _numbers(version) < _NIX_LEAST:
        least = ".".join(map(str, _NIX_LEAST))
        return Finding(
            name="Nix", state=State.MISSING, detail=f"{version}; {least} is the least",
            cure="see https://nixos.org/download",
        )  # fmt: skip
    code, said = await _words(["nix-instantiate", "--eval", "-E", "1 + 1"], env)
    if code != 0:
        return Finding(
            name="Nix", state=State.MISSING, detail=f"{version} can't evaluate: {said}",
            cure="mend nix.conf",
        )  # fmt: skip
    return Finding(name="Nix", state=State.FOUND, detail=version)


async def evaluator(_: Settings, env: Mapping[str, str]) -> Finding:
    """nix-eval-jobs, which is faster than the built-in walker."""
    code, said = await _words(["nix-eval-jobs", "--version"], env)
    if code == 0 or not _is(said, "not found"):
        return Finding(name="nix-eval-jobs", state=State.FOUND, detail=said)
    return Finding(
        name="nix-eval-jobs", state=State.OPTIONAL, detail="not found; the built-in walker is used",
        cure="nix profile install nixpkgs#nix-eval-jobs",
    )  # fmt: skip


async def confinement(_: Settings, __: Mapping[str, str]) -> Finding:
    """Whether the kernel can keep evaluators from the files of this machine."""
    version = await asyncio.to_thread(confine.version)
    if version >= confine.VERSION_MIN:
        return Finding(name="Landlock", state=State.FOUND, detail=f"version {version}")
    return Finding(
        name="Landlock", state=State.OPTIONAL,
        detail="not in this kernel; only Nix itself keeps evaluations from other files",
        cure="Linux 5.19 or newer, with landlock among the lsm= of its command line",
    )  # fmt: skip


async def builds(settings: Settings, env: Mapping[str, str]) -> Finding:
    """Whether something can really be built, and in which sandbox."""
    with tempfile.TemporaryDirectory(prefix="fc-doctor-") as folder:
        executor = LocalExecutor(
            nix=settings.nix,
            builds=settings.builds,
            dir=Path(folder),
            harvest=lambda _: Harvest(),
            env=env,
        )
        try:
            sandbox = await executor.probe()
        except (FcError, OSError, processes.ProcessLimitError) as error:
            return Finding(
                name="builds", state=State.MISSING, detail=_line(str(error)),
                cure=getattr(error, "hint", "") or "see nix.conf",
            )  # fmt: skip
    systems = ", ".join(executor.systems)
    if sandbox.in_force == "Nix":
        return Finding(name="builds", state=State.FOUND, detail=f"{systems}, sandboxed by Nix")
    why = f" ({_line(sandbox.why)})" if sandbox.why else ""
    return Finding(name="builds", state=State.FOUND, detail=f"{systems}, no sandbox{why}")


async def postgres(settings: Settings, _: Mapping[str, str]) -> Finding:
    """The database: the one that is named, else the one that we bring."""
    try:
        if settings.database.url:
            state = await migrations.state(settings.database.url)
            detail = "reached" if state.current else "reached; its schema is not this program's"
            cure = "" if state.current else "fc migrate"
            found = State.FOUND if state.current else State.MISSING
            return Finding(name="PostgreSQL", state=found, detail=detail, cure=cure)
        binaries = await asyncio.to_thread(embedded.binaries)
    except (FcError, OSError) as error:
        return Finding(
            name="PostgreSQL", state=State.MISSING, detail=_line(str(error)),
            cure=getattr(error, "hint", "") or "set FC_DATABASE_URL",
        )  # fmt: skip
    _code, said = await _words([str(binaries / "postgres"), "--version"], {})
    version = said.split()[-1] if said else "?"
    return Finding(name="PostgreSQL", state=State.FOUND, detail=f"embedded, {version}")


async def state_directory(settings: Settings, _: Mapping[str, str]) -> Finding:
    """Room to write."""
    folder = settings.state.dir.absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            name="state directory", state=State.MISSING, detail=f"{there} can't be written",
            cure=f"mkdir -p {folder} && chown {_user()} {folder}",
        )  # fmt: skip
    free = shutil.disk_usage(there).free
    detail = f"{folder}, {free / 1024**3:.1f} GiB free"
    if free < _FREE_BYTES_LEAST:
        return Finding(
            name="state directory", state=State.MISSING, detail=detail,
            cure="free some space, or choose another with FC_STATE_DIR",
        )  # fmt: skip
    return Finding(name="state directory", state=State.FOUND, detail=detail)


async def port(settings: Settings, _: Mapping[str, str]) -> Finding:
    """The address of the HTTP service."""
    where = (settings.web.host, settings.web.port)
    shown = f"{where[0]}:{where[1]}"
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            return Finding(
                name="port", state=State.OPTIONAL, detail=f"{shown}: {error.strerror}",
                cure="fine if that is FC Operator; else choose another with FC_WEB_PORT",
            )  # fmt: skip
    return Finding(name="port", state=State.FOUND, detail=f"{shown} is free")


CHECKS: tuple[Check, ...] = (
    python, git, nix, evaluator, confinement, builds, postgres, state_directory, port,
)  # fmt: skip


async def _words(argv: list[str], env: Mapping[str, str]) -> tuple[int, str]:
    """Exit code and first words of a program, or why it can't be run."""
    kept = {
        name: env[name] for name in ("PATH", "HOME", "NIX_CONF_DIR", "NIX_REMOTE") if name in env
    }
    try:
        done = await processes.run(argv, env=kept, limits=_LIMITS)
    except FileNotFoundError:
        return 127, "not found"
    except (OSError, processes.ProcessLimitError) as error:
        return 126, str(error)
    text = (done.stdout if done.code == 0 else done.stderr or done.stdout).decode(errors="replace")
    return done.code, _line(text)


def _is(said: str, words: str) -> bool:
    return words in said


def _line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _numbers(version: str) -> tuple[int, ...]:
    """``2.8.0pre1`` as (2, 8, 0)."""
    digits = ("".join(c for c in part if c.isdigit()) for part in version.split(".")[:3])
    return tuple(int(each) for each in digits if each)


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name
