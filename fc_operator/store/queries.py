"""Loads the named queries of one ``.sql`` file, each file by itself.

aiosql would merge a directory into one namespace, where of two equal names one silently vanishes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiosql

SQL_DIR = Path(__file__).parent / "sql"


def load(name: str) -> Any:
    """The queries of ``sql/<name>.sql`` as functions of a connection; their module types them."""
    return aiosql.from_path(SQL_DIR / f"{name}.sql", "asyncpg", mandatory_parameters=True)
