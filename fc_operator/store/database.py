"""The pool, transactions and what every session of ours is bound to.

Queries run on a ``Connection``; a state change runs in ``Database.transaction`` and nothing that
waits for the outside happens inside one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import asyncpg
import orjson

from fc_operator.errors import UnavailableError

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

Connection: TypeAlias = "asyncpg.Connection[Any] | PoolConnectionProxy[Any]"
"""What the store's functions take as their first argument."""
Record = asyncpg.Record

T = TypeVar("T")

_CONFLICTS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    # Disk or memory full, an administrator's cut, a lock or statement that took too long.
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    ConnectionError,
    OSError,
)
_SESSION = {
    "statement_timeout": "60s",
    "lock_timeout": "10s",
    # Below the lock timeout: what a stopped process of ours holds is freed before anybody who waits
    # for it gives up. Nothing outside is awaited within a transaction, so none idles that long.
    "idle_in_transaction_session_timeout": "5s",
    "timezone": "UTC",
    # The rows of one query differ much in number; a generic plan for COPY-fed tables goes stale.
    "jit": "off",
}


async def _prepare_connection(connection: asyncpg.Connection[Any]) -> None:
    await connection.set_type_codec(
        "jsonb",
        encoder=lambda value: b"\x01" + orjson.dumps(value),
        decoder=lambda data: orjson.loads(data[1:]),
        schema="pg_catalog",
        format="binary",
    )


async def _reset_connection(connection: asyncpg.Connection[Any]) -> None:
    """Nothing of ours changes a session but transactions, so asyncpg's RESET ALL after every use
    would be a statement for nothing.
    """
    if connection.is_in_transaction():
        await connection.reset()


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """Turn the many ways in which a connection is lost into one ``UnavailableError``."""
    try:
        yield
    except TimeoutError:
        raise
    except _LOST as error:
        raise UnavailableError(
            f"PostgreSQL is not available: {str(error) or type(error).__name__}",
            hint="the work goes on by itself once it answers again",
        ) from error


class Database:
    """A pool of sessions to one PostgreSQL, and the transactions of our state changes."""

    def __init__(self, pool: asyncpg.Pool[Any], url: str) -> None:
        self._pool = pool
        self.url = url

    @classmethod
    async def open(cls, url: str, *, size: int = 8, name: str = "fc") -> Database:
        """Connect to ``url`` with at most ``size`` sessions.

        Raises:
            UnavailableError: nothing answers at ``url``.
        """
        with reachable():
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=size,
                init=_prepare_connection,
                reset=_reset_connection,
                server_settings={**_SESSION, "application_name": name},
                timeout=10,
                command_timeout=120,
                max_inactive_connection_lifetime=300,
                target_session_attrs=asyncpg.connect_utils.SessionAttribute.read_write,
            )
        return cls(pool, url)

    async def close(self) -> None:
        """Give running queries 5 s to end, then cut them."""
        try:
            async with asyncio.timeout(5):
                await self._pool.close()
        except (TimeoutError, *_LOST):
            self._pool.terminate()

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """A session for reads and single statements; ``UnavailableError`` when it is lost."""
        with reachable():
            async with self._pool.acquire(timeout=30) as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A transaction that commits when the block ends and rolls back when it raises."""
        async with self.session() as connection, connection.transaction():
            yield connection

    async def run(self, change: Callable[[Connection], Awaitable[T]], *, tries: int = 5) -> T:
        """Run ``change`` in a transaction, again when PostgreSQL chose it as a deadlock's victim.

        ``change`` must have no effect besides its writes, since it may run more than once.
        """
        for attempt in range(1, tries + 1):
            try:
                async with self.transaction() as connection:
                    return await change(connection)
            except _CONFLICTS:
                if attempt == tries:
                    raise
                await asyncio.sleep(random.uniform(0.01, 0.05) * attempt)  # noqa: S311 - only spreads retries
        raise AssertionError("unreachable")

    async def connect_alone(self) -> asyncpg.Connection[Any]:
        """A session outside the pool, for LISTEN; the caller closes it."""
        with reachable():
            connection: asyncpg.Connection[Any] = await asyncpg.connect(
                self.url, timeout=10, server_settings={"application_name": "fc-listener"}
            )
        return connection


async def notify(connection: Connection, channel: str, payload: str = "") -> None:
    """Announce a change at commit; ``payload`` holds ids only and stays below 8,000 bytes."""
    if len(payload) > 7_000:
        # Too many ids to name: the listeners re-read everything.
        payload = ""
    await connection.execute("SELECT pg_notify($1, $2)", channel, payload)


def owner_id(kind: str) -> str:
    """A name for this process that no other start ever has; leases are held under it."""
    import os
    import socket

    return f"{kind}@{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"
