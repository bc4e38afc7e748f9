"""The schema as text: what all migrations add up to, for reading and for a test.

``python -m fc_operator.store.picture`` migrates an empty database of its own and writes
``migrations/schema.sql``; a test compares that file with what the migrations make.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from pathlib import Path

from fc_operator.errors import UnavailableError
from fc_operator.kit import logs, processes
from fc_operator.store import embedded, migrations

_HEAD = """\
-- What migrations/sql/ adds up to. Written by `python -m fc_operator.store.picture`; don't edit.

"""
_NOISE = re.compile(
    r"^(--.*|SET .*|SELECT pg_catalog\.set_config.*|\\(un)?restrict .*)\n", re.MULTILINE
)


def path() -> Path:
    """Where the picture is kept."""
    return migrations.directory() / "schema.sql"


def normalise(dump: str) -> str:
    """The text of ``pg_dump`` without what differs from run to run or says nothing."""
    text = _NOISE.sub("", dump).replace("public.", "")
    return _HEAD + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


async def draw(url: str) -> str:
    """The schema of the database at ``url``, without the table of alembic.

    Raises:
        UnavailableError: ``pg_dump`` could not read it.
    """
    done = await processes.run(
        [
            embedded.binaries() / "pg_dump", "--schema-only", "--no-owner", "--no-privileges",
            "--exclude-table=alembic_version", f"--dbname={url}",
        ],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    if done.code != 0:
        raise UnavailableError(f"pg_dump failed: {done.stderr.decode(errors='replace').strip()}")
    return normalise(done.stdout.decode())


async def _drawn_anew(folder: Path) -> str:
    server = embedded.EmbeddedPostgres(folder, extra_settings={"fsync": "off"})
    await server.start()
    try:
        await migrations.migrate(server.url)
        return await draw(server.url)
    finally:
        await server.stop()


def main() -> None:
    """Write the file anew."""
    logs.configure(level="warning")
    with tempfile.TemporaryDirectory(prefix="fc-picture-") as folder:
        Path(folder).chmod(0o755)  # the server's own user must get in
        text = asyncio.run(_drawn_anew(Path(folder)))
    changed = not path().exists() or path().read_text() != text
    path().write_text(text)
    sys.stdout.write(f"{path()}: {'written' if changed else 'nothing changed'}\n")


if __name__ == "__main__":
    main()
