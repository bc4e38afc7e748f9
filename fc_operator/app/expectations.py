"""What the demo declares about outcomes, and how it compares with what was found. Pure.

``expected.yaml`` names for each jobset the status of its evaluation, the attributes that do not
evaluate, and each job's status; a list holds those that are fine, a mapping says more. What it does
not name is judged too: a job or an error that nobody expected is a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fc_operator.errors import InvalidError
from fc_operator.kit import documents
from fc_operator.model.statuses import BuildStatus, EvaluationStatus


class Job(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job's outcome; None is not compared."""

    status: BuildStatus | tuple[BuildStatus, ...]
    """One, or those of which each is fine."""
    products: tuple[str, ...] | None = None
    """Names, in their order."""
    metrics: dict[str, float] | None = None
    release_name: str | None = None
    constituents: tuple[str, ...] | None = None
    """Names of jobs, in any order."""

    @property
    def statuses(self) -> tuple[BuildStatus, ...]:
        """Those of which each is fine."""
        return self.status if isinstance(self.status, tuple) else (self.status,)

    @property
    def has_more(self) -> bool:
        """Whether more than the status is wanted, so that the build itself has to be read."""
        return any(
            each is not None
            for each in (self.products, self.metrics, self.release_name, self.constituents)
        )


class Jobset(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A jobset's newest evaluation."""

    evaluation: EvaluationStatus
    errors: tuple[str, ...] = ()
    """Dotted paths of attributes, in any order."""
    jobs: dict[str, BuildStatus | tuple[BuildStatus, ...] | Job] = {}


class Project(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A project's jobsets and channels."""

    jobsets: dict[str, Jobset]
    channels: dict[str, str] = {}
    """Channel to the jobset whose newest evaluation it must point to."""


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that must be found."""

    projects: dict[str, Project]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundJob:
    """A job's newest build."""

    status: str
    url: str = ""
    products: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    release_name: str | None = None
    constituents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundJobset:
    """A jobset's newest evaluation and its builds."""

    evaluation: str
    id: str = ""
    url: str = ""
    errors: tuple[str, ...] = ()
    jobs: Mapping[str, FoundJob] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChannel:
    """Where a channel points: the id of an evaluation, or nowhere."""

    evaluation: str | None
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One thing that was declared or found."""

    thing: str
    """Such as ``demo/main`` or ``demo/main/hello``."""
    kind: str
    """evaluation, build or channel."""
    wanted: str
    """Empty when nobody expected it."""
    found: str
    """Empty when it is not there."""
    url: str = ""
    differences: tuple[str, ...] = ()
    """In words; empty when all is as declared."""


def parse(text: str) -> Expected:
    """Read ``expected.yaml``.

    Raises:
        InvalidError: it is not of that form.
    """
    read, problems = documents.load(text.encode())
    if problems or len(read) != 1:
        said = problems[0].message if problems else "it is not one document"
        raise InvalidError(f"expected.yaml: {said}")
    try:
        return msgspec.convert(read[0].value, Expected, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidError(f"expected.yaml: {error}") from error


def job(wanted: BuildStatus | tuple[BuildStatus, ...] | Job) -> Job:
    """Bare statuses as the job that they are short for."""
    return wanted if isinstance(wanted, Job) else Job(status=wanted)


def compare(
    expected: Expected,
    jobsets: Mapping[tuple[str, str], FoundJobset],
    channels: Mapping[tuple[str, str], FoundChannel],
) -> list[Outcome]:
    """Every declared and every found thing, jobset by jobset, each with what differs."""
    outcomes: list[Outcome] = []
    declared = {
        (name, jobset): wanted
        for name, project in expected.projects.items()
        for jobset, wanted in project.jobsets.items()
    }
    for key in [*declared, *sorted(set(jobsets) - set(declared))]:
        outcomes.extend(_jobset(key, declared.get(key), jobsets.get(key)))
    wanted_channels = {
        (name, channel): jobset
        for name, project in expected.projects.items()
        for channel, jobset in project.channels.items()
    }
    outcomes.extend(
        _channel(key, wanted, channels.get(key), jobsets.get((key[0], wanted)))
        for key, wanted in wanted_channels.items()
    )
    return outcomes


def _jobset(
    key: tuple[str, str], wanted: Jobset | None, found: FoundJobset | None
) -> Iterator[Outcome]:
    name = "/".join(key)
    differences = []
    if wanted is None:
        differences.append("nobody declared it")
    elif found is None:
        differences.append("it was not evaluated")
    else:
        if found.evaluation != wanted.evaluation:
            differences.append(f"it is {found.evaluation}, not {wanted.evaluation}")
        differences.extend(_sets("errors", wanted.errors, found.errors))
    yield Outcome(
        thing=name,
        kind="evaluation",
        wanted=_with_errors(wanted.evaluation, wanted.errors) if wanted else "",
        found=_with_errors(found.evaluation, found.errors) if found else "",
        url=found.url if found else "",
        differences=tuple(differences),
    )
    wanted_jobs = wanted.jobs if wanted else {}
    found_jobs = found.jobs if found else {}
    for each in [*wanted_jobs, *sorted(set(found_jobs) - set(wanted_jobs))]:
        yield _job(f"{name}/{each}", wanted_jobs.get(each), found_jobs.get(each))


def _with_errors(status: str, errors: Sequence[str]) -> str:
    noun = "error" if len(errors) == 1 else "errors"
    return f"{status}, {len(errors)} {noun}" if errors else status


def _job(
    thing: str,
    declared: BuildStatus | tuple[BuildStatus, ...] | Job | None,
    found: FoundJob | None,
) -> Outcome:
    wanted = job(declared) if declared is not None else None
    words = " or ".join(wanted.statuses) if wanted else ""
    differences: list[str] = []
    if wanted is None:
        differences.append("nobody declared it")
    elif found is None:
        differences.append("there is no such job")
    else:
        if found.status not in wanted.statuses:
            differences.append(f"it is {found.status}, not {words}")
        differences.extend(_contents(wanted, found))
    return Outcome(
        thing=thing,
        kind="build",
        wanted=words,
        found=found.status if found else "",
        url=found.url if found else "",
        differences=tuple(differences),
    )


def _contents(wanted: Job, found: FoundJob) -> Iterator[str]:
    if wanted.products is not None and wanted.products != found.products:
        yield f"products are {_list(found.products)}, not {_list(wanted.products)}"
    if wanted.metrics is not None and wanted.metrics != dict(found.metrics):
        yield f"metrics are {_pairs(found.metrics)}, not {_pairs(wanted.metrics)}"
    if wanted.release_name is not None and wanted.release_name != found.release_name:
        yield f"the release name is {found.release_name}, not {wanted.release_name}"
    if wanted.constituents is not None:
        yield from _sets("constituents", wanted.constituents, found.constituents)


def _sets(noun: str, wanted: Sequence[str], found: Sequence[str]) -> Iterator[str]:
    if sorted(wanted) != sorted(found):
        yield f"{noun} are {_list(sorted(found))}, not {_list(sorted(wanted))}"


def _list(values: Sequence[str]) -> str:
    return ", ".join(values) or "none"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in sorted(values.items())) or "none"


def _channel(
    key: tuple[str, str],
    jobset: str,
    found: FoundChannel | None,
    target: FoundJobset | None,
) -> Outcome:
    differences = []
    if found is None:
        differences.append("there is no such channel")
    elif found.evaluation is None:
        differences.append("it points nowhere")
    elif target is None or found.evaluation != target.id:
        differences.append(f"it does not point to the newest evaluation of {jobset}")
    return Outcome(
        thing="/".join(key),
        kind="channel",
        wanted=f"newest of {jobset}",
        found="-" if found is None or found.evaluation is None else "promoted",
        url=found.url if found else "",
        differences=tuple(differences),
    )
