"""What the declared value of an input means. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fc_operator.errors import InvalidError

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_JOB = re.compile(r"[A-Za-z_][A-Za-z0-9_.+-]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


def is_commit(text: str) -> bool:
    """Whether it is a whole commit id."""
    return _COMMIT.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class GitInput:
    """``URI [branch, tag or commit]``."""

    url: str
    ref: str | None = None
    """None is the repository's default branch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildInputRef:
    """``[[project:]jobset:]job``."""

    project: str
    jobset: str
    job: str


def parse_git(value: str) -> GitInput:
    """Read the value of a git input.

    Raises:
        InvalidError: it is not one or two words.
    """
    words = value.split()
    if len(words) not in {1, 2}:
        raise InvalidError(f"{value!r} is not a URL and perhaps a branch, tag or commit")
    return GitInput(url=words[0], ref=words[1] if len(words) == 2 else None)


def parse_build(value: str, *, project: str, jobset: str) -> BuildInputRef:
    """Read the value of a build input of a jobset.

    Raises:
        InvalidError: it names no job.
    """
    words = value.strip().split(":")
    names, job = words[:-1], words[-1]
    if len(names) > 2 or not _JOB.fullmatch(job) or not all(map(_NAME.fullmatch, names)):
        raise InvalidError(f"{value!r} is not project:jobset:job, jobset:job or job")
    return BuildInputRef(
        project=names[0] if len(names) == 2 else project,
        jobset=names[-1] if names else jobset,
        job=job,
    )
