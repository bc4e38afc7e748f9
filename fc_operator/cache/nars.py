"""Reads NARs, Nix's archives, in one pass, in constant memory, and refuses what Nix never writes.

A NAR is made of texts: a length of 8 bytes (little endian), the bytes, zeros up to a multiple of 8.
A file is ``( type regular [executable ""] contents <bytes> )``, a link ``( type symlink target
<text> )``, a folder ``( type directory entry ( name <name> node <node> ) … )`` with its names in
rising order. One content has one NAR, so whatever else could be read another way is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from fc_operator.errors import InvalidError

_MAGIC = b"nix-archive-1"
_TOKEN_BYTES_MAX = 4096
_DEPTH_MAX = 512
_PIECE_BYTES = 256 * 1024
_ENTRIES_MAX = 5_000_000


class Readable(Protocol):
    """Bytes, one after the other."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NarFacts:
    """What a NAR turned out to be."""

    sha256: bytes
    size_bytes: int
    flat_sha256: bytes | None
    """Of the content where the NAR is one plain file; such are .drv files and fetched ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A regular file met on the way."""

    path: tuple[str, ...]
    size_bytes: int
    executable: bool
    offset: int
    """Of its content, in the NAR."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A symbolic link met on the way."""

    path: tuple[str, ...]
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder met on the way, before what is in it."""

    path: tuple[str, ...]


Entry = File | Link | Folder


class _Source:
    """The bytes of the NAR; hashes and counts all that is taken."""

    def __init__(self, source: Readable, size_max: int) -> None:
        self._source = source
        self._size_max = size_max
        self._buffer = memoryview(b"")
        self.sha256 = hashlib.sha256()
        self.position = 0

    def _fill(self) -> bool:
        piece = self._source.read(_PIECE_BYTES)
        if not piece:
            return False
        if self.position + len(piece) > self._size_max:
            raise InvalidError(f"the NAR is larger than {self._size_max} bytes")
        self.sha256.update(piece)
        self._buffer = memoryview(piece)
        return True

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes, which are few."""
        buffer = self._buffer
        if len(buffer) >= size:
            self._buffer = buffer[size:]
            self.position += size
            return bytes(buffer[:size])
        parts = []
        left = size
        for part in self.pieces(size):
            parts.append(bytes(part))
            left -= len(part)
        return b"".join(parts)

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Exactly ``size`` bytes, in pieces."""
        while size:
            if not self._buffer and not self._fill():
                raise InvalidError("the NAR ends early")
            part = self._buffer[:size]
            self._buffer = self._buffer[len(part) :]
            self.position += len(part)
            size -= len(part)
            yield part

    def at_end(self) -> bool:
        return not self._buffer and not self._fill()

    def number(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def padding(self, size: int) -> None:
        rest = -size % 8
        if rest and self.take(rest) != bytes(rest):
            raise InvalidError("the NAR has something else than zeros between its parts")

    def token(self) -> bytes:
        size = self.number()
        if size > _TOKEN_BYTES_MAX:
            raise InvalidError("the NAR has a name that is too long")
        text = self.take(size)
        self.padding(size)
        return text

    def expect(self, *words: bytes) -> None:
        for word in words:
            found = self.token()
            if found != word:
                raise InvalidError(f"the NAR has {found[:40]!r} where {word!r} belongs")


def read(
    source: Readable,
    *,
    size_max: int,
    visit: Callable[[Entry], Any] | None = None,
    content: Callable[[memoryview], Any] | None = None,
) -> NarFacts:
    """Read a NAR to its end. ``visit`` is told each entry (with its content already passed),
    ``content`` gets the bytes of all files.

    Raises:
        InvalidError: it is no NAR that Nix would write, or larger than ``size_max``.
    """
    nar = _Source(source, size_max)
    nar.expect(_MAGIC)
    flat = hashlib.sha256()
    is_flat = False
    path: list[bytes] = []
    last: list[bytes] = []
    """Of each open folder the name that came last; the next one must be greater."""
    entries = 0

    def tell(entry: Entry) -> None:
        if visit is not None:
            visit(entry)

    def words() -> tuple[str, ...]:
        return tuple(name.decode("utf-8", "surrogateescape") for name in path)

    nar.expect(b"(", b"type")
    while True:
        # At the type of a node.
        entries += 1
        if entries > _ENTRIES_MAX:
            raise InvalidError("the NAR has too many entries")
        kind = nar.token()
        if kind == b"directory":
            if len(last) >= _DEPTH_MAX:
                raise InvalidError("the NAR is nested too deeply")
            tell(Folder(path=words()))
            last.append(b"")
        elif kind == b"regular":
            executable = _contents(nar)
            size = nar.number()
            offset = nar.position
            is_flat = not last and not executable
            for piece in nar.pieces(size):
                if is_flat:
                    flat.update(piece)
                if content is not None:
                    content(piece)
            nar.padding(size)
            nar.expect(b")")
            tell(File(path=words(), size_bytes=size, executable=executable, offset=offset))
        elif kind == b"symlink":
            nar.expect(b"target")
            target = nar.token()
            if not target or b"\0" in target:
                raise InvalidError("the NAR has a link to nothing")
            nar.expect(b")")
            tell(Link(path=words(), target=target.decode("utf-8", "surrogateescape")))
        else:
            raise InvalidError(f"the NAR has {kind[:40]!r} where a type belongs")
        if not _next_node(nar, path, last, opened=kind == b"directory"):
            break
    if not nar.at_end():
        raise InvalidError("the NAR goes on after its end")
    return NarFacts(
        sha256=nar.sha256.digest(),
        size_bytes=nar.position,
        flat_sha256=flat.digest() if is_flat else None,
    )


def _contents(nar: _Source) -> bool:
    """Up to the content of a file; whether it is executable."""
    word = nar.token()
    if word == b"contents":
        return False
    if word != b"executable":
        raise InvalidError(f"the NAR has {word[:40]!r} where a content belongs")
    nar.expect(b"", b"contents")
    return True


def _next_node(nar: _Source, path: list[bytes], last: list[bytes], *, opened: bool) -> bool:
    """After a node: up to the type of the next one; False after the last."""
    while True:
        if not last:
            return False
        if not opened:
            # The node was an entry of the folder that is open.
            nar.expect(b")")
            path.pop()
        opened = False
        word = nar.token()
        if word == b")":
            last.pop()
            continue
        if word != b"entry":
            raise InvalidError(f"the NAR has {word[:40]!r} where an entry belongs")
        nar.expect(b"(", b"name")
        name = nar.token()
        if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
            raise InvalidError(f"the NAR has an entry with the name {name[:40]!r}")
        if name <= last[-1]:
            raise InvalidError(f"the NAR has the entry {name[:40]!r} out of order, or twice")
        last[-1] = name
        path.append(name)
        nar.expect(b"node", b"(", b"type")
        return True


def listing(source: Readable, *, size_max: int, entries_max: int) -> dict[str, Any]:
    """What ``<hash>.ls`` holds: the tree of a NAR, with sizes and offsets, version 1.

    Raises:
        InvalidError: it is no NAR, or has more than ``entries_max`` entries.
    """
    root: dict[str, Any] = {}
    count = 0

    def visit(entry: Entry) -> None:
        nonlocal count, root
        count += 1
        if count > entries_max:
            raise InvalidError(f"the path has more than {entries_max} files")
        match entry:
            case Folder():
                node: dict[str, Any] = {"type": "directory", "entries": {}}
            case Link(target=target):
                node = {"type": "symlink", "target": _shown(target)}
            case File():
                node = {"type": "regular", "size": entry.size_bytes}
                if entry.executable:
                    node["executable"] = True
                node["narOffset"] = entry.offset
        if not entry.path:
            root = node
            return
        folder = root
        for name in entry.path[:-1]:
            folder = folder["entries"][_shown(name)]
        folder["entries"][_shown(entry.path[-1])] = node

    read(source, size_max=size_max, visit=visit)
    return {"version": 1, "root": root}


def _shown(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
