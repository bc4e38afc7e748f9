"""Reads manifests from the paths of a command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from fc_operator.errors import InvalidError, NotFoundError
from fc_operator.spec import manifests

FILE_BYTES_MAX = 16 * 1024 * 1024
"""Larger files are refused unread; the parser's own limit is lower and says so with a line."""


def read(paths: Sequence[str]) -> dict[str, bytes]:
    """Content of every manifest by the path as a person would write it; ``-`` is standard input.

    Of a folder the YAML and JSON files below it are taken, hidden ones left out; a file that is
    named is taken whatever it is called.

    Raises:
        NotFoundError: a path does not exist, or there is no manifest in what was named.
        InvalidError: a file can't be read.
    """
    found: dict[str, bytes] = {}
    for path in paths:
        if path == "-":
            found["stdin.yaml"] = sys.stdin.buffer.read(FILE_BYTES_MAX + 1)
            continue
        for file, shown in _files(Path(path)):
            found[shown] = _content(file)
    if not found:
        raise NotFoundError(
            f"no manifests in {', '.join(paths)}", hint="they end in .yaml, .yml or .json"
        )
    return found


def names_of(paths: Iterable[str]) -> dict[str, str]:
    """For each path a name under which the server takes it for a manifest.

    It leaves hidden files and unknown endings out, and knows no folders above: what was named here
    is meant, so ``../.ci/demo.yml`` becomes ``ci/demo.yml`` and ``demo`` becomes ``demo.yaml``.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        parts = [part.lstrip(".") for part in PurePosixPath(path).parts if part != "/"]
        name = "/".join(part for part in parts if part) or "manifest"
        if not manifests.is_manifest(name):
            name += ".yaml"
        stem, dot, ending = name.rpartition(".")
        number = 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}{dot}{ending}"
        taken.add(name)
        names[path] = name
    return names


def _files(path: Path) -> list[tuple[Path, str]]:
    if path.is_dir():
        return [
            (file, file.as_posix())
            for file in sorted(path.rglob("*"))
            if file.is_file() and manifests.is_manifest(file.relative_to(path).as_posix())
        ]
    if not path.exists():
        raise NotFoundError(f"{path} does not exist")
    return [(path, path.as_posix())]


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidError(f"{file} can't be read: {error.strerror}") from error
