"""What handlers work with, built once by ``app`` and passed to all of them."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fc_operator.clients.objects import ObjectStore
    from fc_operator.clients.secrets import Secrets
    from fc_operator.kit.ciphers import Cipher
    from fc_operator.operations.cache import BinaryCache, Caller
    from fc_operator.settings import Settings
    from fc_operator.store.database import Database
    from fc_operator.store.listener import Listener
    from fc_operator.web.identity import Identities
    from fc_operator.web.measures import Measures


@dataclass(slots=True, kw_only=True)
class Context:
    """The parts below us."""

    database: Database
    listener: Listener
    objects: ObjectStore
    secrets: Secrets
    cipher: Cipher
    settings: Settings
    identities: Identities
    measures: Measures
    cache: BinaryCache | None = None
    """Where it is served here."""
    callers: dict[bytes, tuple[float, Caller]] = field(default_factory=dict)
    """Tasks that asked the cache, by the hash of their token, and until when that is believed."""
    streams: set[asyncio.Task[Any]] = field(default_factory=set)
    """Live log viewers at present; they never end by themselves."""


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether ``host`` (without a port) can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
