"""What a builder can take: system, features, mandatory features. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

ANYWHERE = "builtin"
"""The system of derivations that Nix itself builds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one builder has."""

    systems: tuple[str, ...]
    features: tuple[str, ...] = ()
    mandatory: tuple[str, ...] = ()
    """It takes only what asks for all of these; they count as its features too, as in Nix."""


def fits(offer: Offer, system: str, required: Collection[str]) -> bool:
    """Whether a step of this system, with these required features, may go to the builder."""
    has = {*offer.features, *offer.mandatory}
    return (
        (system == ANYWHERE or system in offer.systems)
        and set(required) <= has
        and set(offer.mandatory) <= set(required)
    )
