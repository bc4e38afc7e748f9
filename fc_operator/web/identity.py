"""From a request's headers to a ``Principal``.

A key that is presented and no good is refused, even where nobody needs one: a caller must never
take the answer for strangers as its own. Good keys are remembered for less than a second, so a
revoked one is dead everywhere within that time.
"""

from __future__ import annotations

import time

from sanic import Request

from fc_operator.access import keys
from fc_operator.access.principals import Principal, anonymous
from fc_operator.errors import UnauthenticatedError
from fc_operator.settings import WebSettings
from fc_operator.store import api_keys
from fc_operator.store.database import Database
from fc_operator.web.context import is_loopback

_REMEMBERED_S = 0.8
_REMEMBERED_MAX = 1_000


class Identities:
    """Tells who asks."""

    def __init__(self, database: Database, settings: WebSettings) -> None:
        self._database = database
        self._known: dict[str, tuple[float, Principal]] = {}
        self._mode = settings.anonymous_read
        self._listens_locally = is_loopback(settings.host)
        self._open = anonymous(may_read=True, may_inspect=False)
        self._local = anonymous(may_read=True, may_inspect=True)
        self._closed = anonymous(may_read=False, may_inspect=False)
        self.nobody = self._closed

    async def identify(self, request: Request) -> Principal:
        """Who sent ``request``.

        Raises:
            UnauthenticatedError: it carries a key that is no good.
        """
        header = request.headers.get("authorization")
        if header is None:
            return self.stranger(request)
        scheme, _, text = header.partition(" ")
        if scheme.lower() != "bearer":
            raise _refused()
        return await self.holder(text.strip())

    async def holder(self, text: str) -> Principal:
        """Whose key ``text`` is.

        Raises:
            UnauthenticatedError: it is none, or no good any more.
        """
        if not keys.is_well_formed(text):
            raise _refused()
        return await self._holder(keys.hash_key(text))

    def stranger(self, request: Request) -> Principal:
        """Who sent ``request`` without any key."""
        if self._mode == "Always":
            return self._open
        # A page elsewhere that points its own name at 127.0.0.1 is not this machine's user, and
        # neither is who comes through a proxy under a public name.
        if self._mode == "Loopback" and self._listens_locally and _asks_locally(request):
            return self._local
        return self._closed

    async def _holder(self, key_hash: str) -> Principal:
        now_s = time.monotonic()
        known = self._known.get(key_hash)
        if known is not None and known[0] > now_s:
            return known[1]
        async with self._database.session() as connection:
            key = await api_keys.fetch_live(connection, key_hash)
            if key is None:
                self._known.pop(key_hash, None)
                raise _refused()
            if key.is_stale:
                await api_keys.touch(connection, key.id)
        principal = Principal(
            name=key.name, role=key.role, key_id=key.id, memberships=key.memberships
        )
        if len(self._known) >= _REMEMBERED_MAX:
            self._known.clear()
        self._known[key_hash] = (now_s + _REMEMBERED_S, principal)
        return principal


def _asks_locally(request: Request) -> bool:
    host: str = request.headers.get("host", "")
    name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    return is_loopback(name)


def _refused() -> UnauthenticatedError:
    return UnauthenticatedError(
        "the API key is unknown, revoked or expired", hint="`fc key create` makes another"
    )
