"""Brings the schema up: alembic's order, plain SQL files, one advisory lock, forward only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from fc_operator.errors import PrerequisiteError, SchemaVersionError
from fc_operator.store.database import reachable

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

_LOCK_KEY = 0x66635F6D  # "fc_m"
_TIMEOUTS = "SET lock_timeout = '4s'; SET statement_timeout = '10min'"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaState:
    """Which revision the database has and which this program needs; None is an empty database."""

    present: str | None
    wanted: str
    known: bool
    """Whether this program knows the present revision; False means it is newer than we are."""

    @property
    def current(self) -> bool:
        """Nothing is to be done."""
        return self.present == self.wanted


def directory() -> Path:
    """Where the migrations lie, in a checkout or an installation.

    In a checkout ``revisions`` beside this module is a link to ``migrations/`` at the top, which
    has them packed into the wheel too.

    Raises:
        PrerequisiteError: they are not there.
    """
    found = Path(__file__).with_name("revisions").resolve()
    if not (found / "env.py").is_file():
        raise PrerequisiteError("the migrations are missing from this installation of fc-operator")
    return found


def run_sql_file(name: str) -> None:
    """Run ``migrations/sql/<name>`` as one script inside alembic's transaction."""
    from alembic import op

    sql = (directory() / "sql" / name).read_text()
    # The raw driver: SQLAlchemy would prepare the text, and a script can't be prepared.
    driver: Any = op.get_bind().connection.dbapi_connection
    driver.run_async(lambda connection: connection.execute(sql))


def revisions() -> list[str]:
    """Every revision that this program knows, first to last, from the names of their files.

    Alembic and SQLAlchemy cost a third of a second and 25 MB, so a start that has nothing to
    migrate does without them.
    """
    return sorted(
        path.name.partition("_")[0] for path in (directory() / "versions").glob("[0-9]*_*.py")
    )


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(directory()))
    config.set_main_option("path_separator", "os")
    return config


async def state(url: str) -> SchemaState:
    """Compare the database at ``url`` with this program.

    Raises:
        UnavailableError: nothing answers at ``url``.
    """
    known_revisions = await asyncio.to_thread(revisions)
    with reachable():
        connection = await asyncpg.connect(url, timeout=10)
        try:
            present = None
            if await connection.fetchval("SELECT to_regclass('alembic_version')") is not None:
                present = await connection.fetchval("SELECT version_num FROM alembic_version")
        finally:
            await connection.close()
    known = present is None or present in known_revisions
    return SchemaState(present=present, wanted=known_revisions[-1], known=known)


def require(found: SchemaState) -> None:
    """Refuse to work on a schema that is not exactly ours.

    Raises:
        SchemaVersionError: it is newer, older or absent.
    """
    if not found.known:
        raise SchemaVersionError(
            f"the database has schema {found.present}, which is newer than this program's "
            f"{found.wanted}",
            hint="run a release of fc-operator that is at least as new as the database",
        )
    if not found.current:
        raise SchemaVersionError(
            f"the database has schema {found.present or 'none'}, this program needs {found.wanted}",
            hint="run `fc migrate`",
        )


async def migrate(url: str, *, target: str = "head") -> tuple[SchemaState, SchemaState]:
    """Bring the database at ``url`` up to ``target``; two at once wait for each other.

    Returns the states before and after.

    Raises:
        SchemaVersionError: the database is newer than this program.
        UnavailableError: nothing answers at ``url``.
    """
    before = await state(url)
    if before.current:
        return before, before
    with reachable():
        lock = await asyncpg.connect(url, timeout=10)
        try:
            await lock.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
            before = await state(url)
            if not before.known:
                require(before)
            if not before.current:
                await _upgrade(url, target)
        finally:
            await lock.close()
    return before, await state(url)


async def _upgrade(url: str, target: str) -> None:
    from alembic import command
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import NullPool

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda *_args, **_kwargs: asyncpg.connect(url, timeout=10),
        poolclass=NullPool,
    )

    def upgrade(connection: Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, target)

    try:
        async with engine.connect() as connection:
            raw: Any = await connection.get_raw_connection()
            await raw.driver_connection.execute(_TIMEOUTS)
            await connection.run_sync(upgrade)
            await connection.commit()
    finally:
        await engine.dispose()
