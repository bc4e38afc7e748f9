"""How an attempt at a step ended, classified once: status, retry, blame."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from fc_operator.model.ids import StorePath
from fc_operator.model.statuses import BuildStatus


class Retry(StrEnum):
    """What happens to the step next."""

    NEVER = "never"
    """The outcome is final: a success, or a failure that would come again."""
    INFRASTRUCTURE = "infrastructure"
    """Try again after a backoff, up to the cap; then ``aborted``."""
    FREE = "free"
    """Try again at once and charge nothing (lost lease, stop of our own process)."""
    LOST = "lost"
    """As FREE, but counted for itself: that with which its holders vanish again and again is put
    aside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputInfo:
    """One valid output."""

    name: str
    path: StorePath
    nar_hash: str = ""
    """``sha256:<nix32>``."""
    nar_size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One line of ``nix-support/hydra-build-products``, or the implicit one of an output."""

    nr: int
    type: str
    subtype: str
    name: str
    path: str
    default_path: str = ""
    output: str = "out"
    is_directory: bool = False
    sha256: str | None = None
    size_bytes: int | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of ``nix-support/hydra-metrics``."""

    name: str
    value: float
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """What the outputs of a successful step say about themselves (Hydra's contracts)."""

    outputs: tuple[OutputInfo, ...] = ()
    products: tuple[Product, ...] = ()
    metrics: tuple[Metric, ...] = ()
    release_name: str | None = None
    has_failed_file: bool = False
    """Some output holds ``nix-support/failed``."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of one attempt."""

    status: BuildStatus
    """A terminal status; unless ``retry`` is NEVER, it is what the step gets when retries end."""
    retry: Retry = Retry.NEVER
    blame_builder: bool = False
    reason: str = ""
    """A CamelCase word that does not change: ``BuilderFailed``, ``HashMismatch``, ``Silence``, …"""
    message: str = ""
    """For people; what failed and what would help."""
    exit_code: int | None = None
    signal: int | None = None
    peak_memory_bytes: int | None = None
    cpu_ms: int | None = None
    harvest: Harvest = field(default_factory=Harvest)
