"""Reads a directory of manifests as a commit is read: plain files below it, each with an id.

Nothing outside is ever read: a link counts only if it ends inside (a mounted ConfigMap is made of
such links), hidden folders are skipped, and a file is opened without following a link that
appeared in between.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from fc_operator.errors import InvalidError, UnavailableError
from fc_operator.spec import manifests

FILES_MAX = 20_000
FILE_BYTES_MAX = 1024 * 1024
"""Of a larger file one byte more than this is read, which the parser refuses as too large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The manifests of a directory at one moment."""

    files: dict[str, bytes]
    """By path relative to the directory."""
    ids: dict[str, str]
    """What each file holds, as a hash."""

    @property
    def revision(self) -> str:
        """Names the content; equal content has equal revisions."""
        digest = hashlib.sha256()
        for path in sorted(self.ids):
            digest.update(f"{path}\0{self.ids[path]}\n".encode(errors="surrogateescape"))
        return f"sha256:{digest.hexdigest()}"


def read(directory: Path) -> Snapshot:
    """All manifests below a directory. Blocks; call it in a thread.

    Raises:
        UnavailableError: it is not there or can't be read.
        InvalidError: it holds too many files.
    """
    try:
        home = directory.resolve(strict=True)
        names = sorted(_walk(home))
    except OSError as error:
        raise UnavailableError(
            f"the directory {directory} can't be read: {error.strerror or error}"
        ) from error
    files = {}
    for name in names:
        if (data := _read_inside(home, name)) is not None:
            files[name] = data
    return Snapshot(
        files=files,
        ids={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )


def concerns_manifests(directory: Path, path: str, *, gone: bool) -> bool:
    """Whether something that moved below a directory can have changed its manifests.

    A state directory or a checkout may lie inside, where thousands of other files move.
    """
    relative = os.path.relpath(path, directory)
    parts = relative.split("/")
    if parts[-1] == "..data":
        return True  # a mounted ConfigMap is exchanged by this link
    if any(part.startswith(".") for part in parts):
        return False
    if manifests.is_manifest(relative):
        return True
    # A folder that came or went brings or takes its files; what is gone can only be guessed at.
    return "." not in parts[-1] if gone else Path(path).is_dir()


def _walk(home: Path) -> list[str]:
    if not home.is_dir():
        raise NotADirectoryError(20, "it is not a directory")
    found: list[str] = []
    for folder, folders, files in os.walk(home, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(folder, home)
        for name in files:
            path = name if relative == "." else f"{relative}/{name}"
            if manifests.is_manifest(path):
                found.append(path)
        if len(found) > FILES_MAX:
            raise InvalidError(f"the directory {home} holds more than {FILES_MAX} manifest files")
    return found


def _raise(error: OSError) -> None:
    raise error


def _read_inside(home: Path, name: str) -> bytes | None:
    """The content of a plain file inside; None for what is none, or is gone again."""
    try:
        target = (home / name).resolve(strict=True)
        if not target.is_relative_to(home):
            return None
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return file.read(FILE_BYTES_MAX + 1)
