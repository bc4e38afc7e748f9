"""What Nix knows of valid paths, from ``nix-store --dump-db``: one process, one stable format."""

from __future__ import annotations

from dataclasses import dataclass

from fc_operator.errors import ProtocolError
from fc_operator.model.ids import StorePath
from fc_operator.model.outcomes import OutputInfo

_NIX32 = "0123456789abcdfghijklmnpqrsvwxyz"


def nix32(digest: bytes) -> str:
    """Nix's own base 32 of a hash."""
    length = (len(digest) * 8 - 1) // 5 + 1
    number = int.from_bytes(digest, "little")
    return "".join(_NIX32[(number >> (5 * place)) & 31] for place in reversed(range(length)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PathInfo:
    """A valid path, as Nix registered it."""

    path: StorePath
    nar_hash: str
    """``sha256:<nix32>``."""
    nar_size_bytes: int
    deriver: str
    """Empty where Nix does not know it."""
    references: tuple[str, ...]


def parse_infos(text: str) -> list[PathInfo]:
    """The paths of a dump: of each its path, hash, size, deriver, and references.

    Raises:
        ProtocolError: the text is no such dump.
    """
    found = []
    lines = iter(text.splitlines())
    try:
        for path in lines:
            digest, size, deriver = bytes.fromhex(next(lines)), int(next(lines)), next(lines)
            references = [next(lines) for _ in range(int(next(lines)))]
            found.append(
                PathInfo(
                    path=StorePath(path),
                    nar_hash=f"sha256:{nix32(digest)}",
                    nar_size_bytes=size,
                    deriver=deriver,
                    references=tuple(references),
                )
            )
    except (ValueError, StopIteration) as error:
        raise ProtocolError("nix-store --dump-db printed something unknown") from error
    return found


def parse_registrations(text: str) -> dict[str, tuple[str, int]]:
    """``(sha256:<nix32>, NAR size)`` by path.

    Raises:
        ProtocolError: the text is no dump.
    """
    return {info.path: (info.nar_hash, info.nar_size_bytes) for info in parse_infos(text)}


def describe(paths: dict[str, str], registrations: dict[str, tuple[str, int]]) -> list[OutputInfo]:
    """The outputs, by name; ``out`` first, as people read them.

    Raises:
        ProtocolError: Nix left one of them out.
    """
    infos = []
    for name in sorted(paths, key=lambda name: (name != "out", name)):
        path = paths[name]
        if path not in registrations:
            raise ProtocolError(f"Nix built {path} but does not know it")
        nar_hash, size = registrations[path]
        infos.append(
            OutputInfo(name=name, path=StorePath(path), nar_hash=nar_hash, nar_size_bytes=size)
        )
    return infos
