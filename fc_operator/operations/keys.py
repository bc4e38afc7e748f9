"""Makes and ends API keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from fc_operator.access import keys
from fc_operator.errors import InvalidError, NotFoundError
from fc_operator.model.ids import new_uuid
from fc_operator.model.statuses import Role
from fc_operator.store import api_keys, audit
from fc_operator.store.database import Connection, Database

NAME_LENGTH_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedKey:
    """The answer to its maker, once."""

    id: UUID
    name: str
    role: Role
    prefix: str
    key: str
    expires_at: datetime | None

    def __repr__(self) -> str:
        return f"CreatedKey({self.prefix}…)"


async def create(
    database: Database,
    name: str,
    role: Role,
    *,
    user: str | None = None,
    expires_at: datetime | None = None,
    actor: str = "administrator",
) -> CreatedKey:
    """Make a key; its text is in the answer and nowhere else.

    Raises:
        InvalidError: no usable name, or no such user.
    """
    if not name.strip() or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise InvalidError(f"a key's name has 1 to {NAME_LENGTH_MAX} printable characters")
    made, id_ = keys.make(), new_uuid()

    async def change(connection: Connection) -> None:
        user_id = None
        if user is not None:
            user_id = await api_keys.fetch_user(connection, user)
            if user_id is None:
                raise InvalidError(f"there is no user {user}")
        await api_keys.insert(
            connection,
            id=id_,
            name=name,
            role=role,
            key_hash=made.hash,
            prefix=made.shown,
            user_id=user_id,
            expires_at=expires_at,
        )
        await audit.insert(
            connection,
            actor=actor,
            action="keys.create",
            object=f"api_keys/{id_}",
            details={"name": name, "role": role, "prefix": made.shown},
        )

    await database.run(change)
    return CreatedKey(
        id=id_, name=name, role=role, prefix=made.shown, key=made.text, expires_at=expires_at
    )


async def revoke(database: Database, ref: str, *, actor: str = "administrator") -> UUID:
    """End the key with this id or shown prefix; every server refuses it within a second.

    Raises:
        NotFoundError: there is no such key.
    """

    async def change(connection: Connection) -> UUID:
        found = await api_keys.revoke(connection, ref)
        if found is None:
            raise NotFoundError(f"no key {ref}")
        id_, name = found
        await audit.insert(
            connection,
            actor=actor,
            action="keys.revoke",
            object=f"api_keys/{id_}",
            details={"name": name},
        )
        return id_

    return await database.run(change)
