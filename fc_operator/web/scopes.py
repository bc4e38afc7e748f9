"""What a list is narrowed to: a project, or one of its jobsets."""

from __future__ import annotations

from uuid import UUID

from fc_operator.errors import InvalidError
from fc_operator.model.readers import Reader
from fc_operator.store.database import Connection
from fc_operator.store.pages import jobsets, projects


async def find(
    connection: Connection, reader: Reader, project: str | None, jobset: str | None
) -> tuple[UUID | None, UUID | None]:
    """Ids of the project and of the jobset that the parameters name.

    Raises:
        InvalidError: a jobset without its project.
        NotFoundError: one does not exist, or the reader may not see it.
    """
    if jobset is not None:
        if project is None:
            raise InvalidError("`jobset` needs `project`: jobsets are named within theirs")
        found = await jobsets.fetch(connection, reader, project, jobset)
        return found["project_id"], found["id"]
    if project is not None:
        return (await projects.fetch(connection, reader, project))["id"], None
    return None, None
