"""How Nix is called for a step. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fc_operator.model.tasks import StepOrder
from fc_operator.settings import NixSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What isolates builds, as a probe saw it."""

    in_force: str
    """``Nix`` or ``None``."""
    paths: tuple[str, ...] = ()
    """Host folders that the sandbox needs, because this Nix brings no shell of its own."""
    why: str = ""
    """For people: what the probe saw, where it is not what was wished."""


def sandbox_options(sandbox: Sandbox) -> list[str]:
    """Options that bring ``sandbox`` into force, and never anything less."""
    words = ["--option", "sandbox", "true" if sandbox.in_force == "Nix" else "false"]
    words += ["--option", "sandbox-fallback", "false"]
    if sandbox.in_force == "Nix" and sandbox.paths:
        words += ["--option", "sandbox-paths", " ".join(sandbox.paths)]
    return words


def realise(
    order: StepOrder,
    *,
    nix: NixSettings,
    sandbox: Sandbox,
    features: Sequence[str] = (),
    extra_platforms: Sequence[str] = (),
    check: bool = False,
) -> list[str]:
    """The call that builds ``order``; who starts it adds where the roots of its outputs go."""
    options = {
        "substituters": " ".join(nix.substituters),
        "trusted-public-keys": " ".join(nix.trusted_public_keys),
        "timeout": str(order.timeout_s),
        "max-silent-time": str(order.max_silent_s),
        "max-build-log-size": str(order.log_bytes_max),
        "max-jobs": "1",
        "builders": "",
        "keep-going": "false",
    }
    # Left out where we have no opinion: empty would take away what Nix finds by itself.
    if features:
        options["system-features"] = " ".join(features)
    if extra_platforms:
        options["extra-platforms"] = " ".join(extra_platforms)
    return [
        *("nix-store", "--realise", order.drv_path, *(["--check"] if check else [])),
        *("--log-format", "internal-json"),
        *sandbox_options(sandbox),
        *(word for name, value in options.items() for word in ("--option", name, value)),
    ]
