"""How the table of good and bad manifests is read; README.md says what its marks mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fc_operator.kit import documents

TABLE = Path(__file__).parent
_MARK = re.compile(r"# problem(?P<only> here| in text)?: (?P<said>.*)$")


@dataclass(frozen=True, slots=True)
class Mark:
    """One problem that a comment names."""

    line: int
    field: str
    message: str
    only_git: bool = False
    """It is about the text or about the whole source, of which an API server sees neither."""


@dataclass(frozen=True, slots=True)
class Case:
    """One document of the table."""

    file: Path
    line: int
    value: Any
    marks: tuple[Mark, ...]

    @property
    def id(self) -> str:
        return f"{self.file.name}:{self.line}"


def files(folder: str) -> list[Path]:
    """The files of ``good``, ``bad`` or ``changes``."""
    found = sorted((TABLE / folder).iterdir())
    assert found, f"nothing in {folder}"
    return found


def marks(text: str) -> list[Mark]:
    """Every problem that the comments of a file name."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if mark := _MARK.search(line):
            for each in mark["said"].split("; problem: "):
                field, _, message = each.partition("|")
                found.append(Mark(number, field.strip(), message.strip(), bool(mark["only"])))
    return found


def cases(folder: str) -> list[Case]:
    """Every document of a folder's files with its own marks."""
    found = []
    for file in files(folder):
        data = file.read_bytes()
        read = documents.load(data)[0]
        ends = [*(document.line for document in read[1:]), 10**9][: len(read)]
        named = marks(data.decode())
        for document, end in zip(read, ends, strict=True):
            own = tuple(mark for mark in named if document.line <= mark.line < end)
            found.append(Case(file, document.line, document.value, own))
    return found
