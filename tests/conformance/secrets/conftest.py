"""A folder of secrets that is turned as kubelet turns a mounted one: by one link, at once."""

from __future__ import annotations

import asyncio
import itertools
import shutil

import pytest

from fc_operator.clients.secrets import DirectorySecrets


class Folder:
    """See ``suite.Keeper``."""

    namespace = "default"

    def __init__(self, folder) -> None:
        self.folder = folder
        self.secrets = DirectorySecrets(folder)
        self._turn = itertools.count()

    async def put(self, name, values) -> None:
        await asyncio.to_thread(self._put, name, values)

    async def remove(self, name) -> None:
        await asyncio.to_thread(shutil.rmtree, self.folder / name)

    def _put(self, name, values) -> None:
        home = self.folder / name
        home.mkdir(parents=True, exist_ok=True)
        before = (home / "..data").resolve() if (home / "..data").exists() else None
        now = home / f"..turn-{next(self._turn)}"
        now.mkdir()
        for key, value in values.items():
            (now / key).write_bytes(value)
        (home / "..new").symlink_to(now.name)
        (home / "..new").rename(home / "..data")
        for key in values:
            if not (home / key).is_symlink():
                (home / key).symlink_to(f"..data/{key}")
        for link in home.iterdir():
            if not link.name.startswith("..") and link.name not in values:
                link.unlink()
        if before is not None:
            shutil.rmtree(before)


@pytest.fixture
def keeper(tmp_path):
    return Folder(tmp_path / "secrets")
