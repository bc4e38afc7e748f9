"""How people name things on a command line, and which thing that is.

``12`` is a build by number, ``demo/main/hello`` the newest build of a job, ``evaluation/7`` an
evaluation by number, ``demo/main`` the newest evaluation of a jobset; an id stands for itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import quote

from fc_operator.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from fc_operator.clients.api import ApiClient

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_PREFIXES = {
    "b": "build", "build": "build", "builds": "build",
    "e": "evaluation", "eval": "evaluation", "evaluation": "evaluation",
    "evaluations": "evaluation",
}  # fmt: skip

HELP = """\
\b
REF is one of:
  12               the build with this number
  demo/main/hello  the newest build of a job
  evaluation/7     the evaluation with this number
  demo/main        the newest evaluation of a jobset
"""


@dataclass(frozen=True, slots=True)
class Numbered:
    """By number or id, as the API takes it."""

    noun: Literal["build", "evaluation"]
    word: str


@dataclass(frozen=True, slots=True)
class OfJobset:
    """A jobset, or a job of it."""

    project: str
    jobset: str
    job: str = ""


Reference: TypeAlias = Numbered | OfJobset


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A thing that is there."""

    noun: Literal["build", "evaluation"]
    word: str
    shown: str

    @property
    def path(self) -> str:
        """Where it is below ``/api/v1``."""
        return f"/{self.noun}s/{self.word}"


def parse(text: str, *, bare: Literal["build", "evaluation"] = "build") -> Reference:
    """What ``text`` names; ``bare`` is what a number or an id alone means.

    Raises:
        InvalidError: it can't be a name of ours.
    """
    if _is_numbered(text):
        return Numbered(bare, text)
    first, _, rest = text.partition("/")
    if first in _PREFIXES and _is_numbered(rest):
        return Numbered("build" if _PREFIXES[first] == "build" else "evaluation", rest)
    parts = text.split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise InvalidError(
            f"{text!r} names nothing",
            hint="write 12 or project/jobset/job for a build, evaluation/7 or project/jobset",
        )
    return OfJobset(*parts)


def parse_jobset(text: str) -> OfJobset:
    """``project/jobset``.

    Raises:
        InvalidError: it is not of that form.
    """
    project, _, jobset = text.partition("/")
    if not project or not jobset or "/" in jobset:
        raise InvalidError(f"{text!r} is no jobset", hint="write project/jobset, such as demo/main")
    return OfJobset(project, jobset)


def _is_numbered(text: str) -> bool:
    return (text.isascii() and text.isdigit()) or _UUID.fullmatch(text) is not None


def jobset_path(of: OfJobset) -> str:
    """Where a jobset is below ``/api/v1``."""
    return f"/projects/{quote(of.project, safe='')}/jobsets/{quote(of.jobset, safe='')}"


async def resolve(client: ApiClient, reference: Reference) -> Target:
    """The build or evaluation that is meant.

    Raises:
        NotFoundError: there is none.
    """
    if isinstance(reference, Numbered):
        shown = f"{reference.noun} {reference.word}"
        return Target(noun=reference.noun, word=reference.word, shown=shown)
    name = f"{reference.project}/{reference.jobset}"
    if not reference.job:
        path = f"{jobset_path(reference)}/evaluations"
        page = await client.get(path, {"limit": 1})
        return _newest("evaluation", page["items"], name)
    page = await client.get(
        "/builds",
        {
            "project": reference.project,
            "jobset": reference.jobset,
            "job": reference.job,
            "limit": 1,
        },
    )
    return _newest("build", page["items"], f"{name}/{reference.job}")


def _newest(
    noun: Literal["build", "evaluation"], items: list[dict[str, object]], name: str
) -> Target:
    if not items:
        raise NotFoundError(f"{name} has no {noun} yet")
    number = str(items[0]["number"])
    return Target(noun=noun, word=number, shown=f"{noun} {number} ({name})")
