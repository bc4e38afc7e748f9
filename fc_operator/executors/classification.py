"""What became of an attempt, judged once from all the evidence. Pure and total.

The order is fixed, strongest sign first: our own verdict if we ended it; transport and pod; the
worker protocol's result; the text of Nix's own errors (``nix_texts.json``, one entry per kind with
the texts of all versions); the exit code; and by default ``failed`` if the builder ran and ended,
else infrastructure. What a builder printed is no evidence.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from dataclasses import dataclass
from enum import StrEnum

from fc_operator.executors import log_format
from fc_operator.model.ids import DrvPath
from fc_operator.model.outcomes import Outcome, Retry
from fc_operator.model.statuses import BuildStatus


class Verdict(StrEnum):
    """We ended it ourselves, for this reason."""

    CANCELLED = "Cancelled"
    LEASE_LOST = "LeaseLost"
    SHUTDOWN = "Shutdown"
    TIMEOUT = "Timeout"
    SILENCE = "Silence"
    LOG_LIMIT = "LogLimit"
    NAR_LIMIT = "NarLimit"
    STALLED = "Stalled"
    """Nix never came to building (a download that hangs, a lock that nobody gives up)."""
    DEPENDENCY_FAILED = "DependencyFailed"
    """A step of the same batch that this one needs failed; it never ran."""
    DEPENDENCY_RETRIES = "DependencyRetries"
    """Such a step will be tried again, so this one waits for it."""


class Fault(StrEnum):
    """The way to the builder broke."""

    SPAWN_FAILED = "SpawnFailed"
    """The program can't be started here."""
    STORE_UNREADABLE = "StoreUnreadable"
    """Built, but the outputs can't be read back from the store."""
    LINK_LOST = "LinkLost"
    """SSH exit 255, a connection that broke, an agent that went silent."""
    NODE_LOST = "NodeLost"
    EVICTED = "Evicted"
    IMAGE_PULL = "ImagePull"
    OUT_OF_MEMORY = "OutOfMemory"
    """The cgroup or the pod says so: the derivation's fault, not the builder's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known about an attempt that ended."""

    drv_path: DrvPath
    verdict: Verdict | None = None
    limit: int = 0
    """The limit that ``verdict`` is about: seconds or bytes."""
    fault: Fault | None = None
    detail: str = ""
    """Words about ``verdict`` or ``fault``."""
    build_result: int | None = None
    """``BuildResult`` status of the worker protocol."""
    errors: tuple[str, ...] = ()
    """Texts of Nix's own errors (``Message.from_nix``, level 0), never of builders."""
    exit_code: int | None = None
    """Negative for a signal, as in ``subprocess``."""
    build_began: bool = False
    """A Build activity for ``drv_path`` was seen."""
    builder_ended: bool = False
    """That activity stopped."""
    other_drvs: tuple[DrvPath, ...] = ()
    """Other derivations that Nix began to build: inputs that should have been there."""
    is_fixed_output: bool = False
    has_failed_file: bool = False
    was_valid: bool = False
    """Nothing ran because all outputs were valid before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    id: str
    status: BuildStatus
    retry: Retry
    blame: bool
    reason: str
    message: str
    patterns: tuple[re.Pattern[str], ...]
    is_cascade: bool
    is_builder: bool


@functools.cache
def _rules() -> tuple[_Rule, ...]:
    text = importlib.resources.files(__package__).joinpath("nix_texts.json").read_text("utf-8")
    return tuple(
        _Rule(
            id=row["id"],
            status=BuildStatus(row["status"]),
            retry=Retry(row.get("retry", "never")),
            blame=row.get("blame", False),
            reason=row["reason"],
            message=row["message"],
            patterns=tuple(re.compile(pattern) for pattern in row["texts"]),
            is_cascade=row.get("cascade", False),
            is_builder=row.get("builder", False),
        )
        for row in json.loads(text)
    )


_QUOTED_LOG_LINE = re.compile(r"^\s*(?:\x1b\[[0-9;]*m)*> .*$", re.MULTILINE)
_BUILD_RESULTS: dict[int, tuple[BuildStatus, Retry, str]] = {
    3: (BuildStatus.FAILED, Retry.NEVER, "BuilderFailed"),
    4: (BuildStatus.FAILED, Retry.NEVER, "InputRejected"),
    5: (BuildStatus.FAILED, Retry.NEVER, "OutputRejected"),
    6: (BuildStatus.ABORTED, Retry.INFRASTRUCTURE, "TransientFailure"),
    7: (BuildStatus.CACHED_FAILURE, Retry.NEVER, "CachedFailure"),
    8: (BuildStatus.TIMEOUT, Retry.NEVER, "Timeout"),
    10: (BuildStatus.DEPENDENCY_FAILED, Retry.INFRASTRUCTURE, "InputFailed"),
    11: (BuildStatus.LOG_LIMIT_EXCEEDED, Retry.NEVER, "LogLimit"),
    12: (BuildStatus.NON_DETERMINISTIC, Retry.NEVER, "OutputDiffers"),
}
"""9 (misc) says nothing: the text and the rest decide."""
_BUILD_RESULT_SUCCESSES = frozenset({0, 1, 2, 13})

_EXIT_BASE = 0x60
_EXIT_TIMEOUT, _EXIT_HASH, _EXIT_FAILURE, _EXIT_CHECK = 1, 2, 4, 8


def clean(message: str) -> str:
    """A message of Nix without colours and without the log lines that it may quote."""
    return log_format.strip_ansi(_QUOTED_LOG_LINE.sub("", message)).strip()


def classify(evidence: Evidence) -> Outcome:
    """The outcome of an attempt. Never raises, whatever the evidence; resource use is added later.

    ``message`` carries Nix's own words where there are some, cut to 4,000 characters.
    """
    return (
        _by_verdict(evidence)
        or _by_fault(evidence)
        or _by_build_result(evidence)
        or _by_success(evidence)
        or _by_text(evidence)
        or _by_exit_code(evidence)
        or _by_default(evidence)
    )


def _outcome(
    evidence: Evidence,
    status: BuildStatus,
    reason: str,
    message: str,
    *,
    retry: Retry = Retry.NEVER,
    blame: bool = False,
    exit_code: int | None = None,
    signal: int | None = None,
) -> Outcome:
    code = evidence.exit_code if exit_code is None else exit_code
    if code is not None and code < 0:
        signal, code = signal or -code, None
    return Outcome(
        status=status,
        retry=retry,
        blame_builder=blame,
        reason=reason,
        message=message[:4000],
        exit_code=code,
        signal=signal,
    )


def _by_verdict(evidence: Evidence) -> Outcome | None:
    limit, detail = evidence.limit, evidence.detail
    match evidence.verdict:
        case None:
            return None
        case Verdict.CANCELLED:
            found = BuildStatus.CANCELLED, Retry.NEVER, detail or "cancelled"
        case Verdict.LEASE_LOST:
            found = BuildStatus.ABORTED, Retry.FREE, "its lease went to somebody else"
        case Verdict.SHUTDOWN:
            found = BuildStatus.ABORTED, Retry.FREE, "our own process was stopped"
        case Verdict.TIMEOUT:
            found = BuildStatus.TIMEOUT, Retry.NEVER, f"ran longer than {limit} s"
        case Verdict.SILENCE:
            found = BuildStatus.TIMEOUT, Retry.NEVER, f"printed nothing for {limit} s"
        case Verdict.LOG_LIMIT:
            found = BuildStatus.LOG_LIMIT_EXCEEDED, Retry.NEVER, f"its log passed {limit} bytes"
        case Verdict.NAR_LIMIT:
            words = detail or f"its outputs are larger than {limit} bytes"
            found = BuildStatus.NAR_SIZE_LIMIT_EXCEEDED, Retry.NEVER, words
        case Verdict.STALLED:
            words = f"Nix did not begin to build within {limit} s"
            found = BuildStatus.ABORTED, Retry.INFRASTRUCTURE, words
        case Verdict.DEPENDENCY_FAILED:
            found = BuildStatus.DEPENDENCY_FAILED, Retry.NEVER, detail
        case Verdict.DEPENDENCY_RETRIES:
            found = BuildStatus.DEPENDENCY_FAILED, Retry.FREE, detail
    status, retry, message = found
    return _outcome(evidence, status, evidence.verdict.value, message, retry=retry)


def _by_fault(evidence: Evidence) -> Outcome | None:
    fault = evidence.fault
    if fault is None:
        return None
    if fault is Fault.OUT_OF_MEMORY:
        message = evidence.detail or "the build used up its memory"
        return _outcome(evidence, BuildStatus.FAILED, fault.value, message)
    return _outcome(
        evidence,
        BuildStatus.ABORTED,
        fault.value,
        evidence.detail or "the builder was lost",
        retry=Retry.INFRASTRUCTURE,
        blame=True,
    )


def _by_build_result(evidence: Evidence) -> Outcome | None:
    found = _BUILD_RESULTS.get(-1 if evidence.build_result is None else evidence.build_result)
    if found is None:
        return None
    status, retry, reason = found
    by_text = _by_text(evidence)
    if by_text is not None and by_text.status is status:
        return by_text  # the same, with better words
    return _outcome(evidence, status, reason, _words(evidence) or reason, retry=retry)


def _by_success(evidence: Evidence) -> Outcome | None:
    ended_well = evidence.build_result in _BUILD_RESULT_SUCCESSES
    if evidence.exit_code != 0 and not ended_well:
        return None
    if evidence.has_failed_file:
        message = "built, but an output holds nix-support/failed"
        return _outcome(evidence, BuildStatus.FAILED_WITH_OUTPUT, "FailedFile", message)
    if evidence.build_began:
        reason = "Built"
    else:
        reason = "AlreadyValid" if evidence.was_valid else "Substituted"
    return _outcome(evidence, BuildStatus.SUCCEEDED, reason, "")


def _words(evidence: Evidence) -> str:
    return "\n".join(text for text in map(clean, evidence.errors) if text)


def _by_text(evidence: Evidence) -> Outcome | None:
    texts = [clean(error) for error in evidence.errors]
    for rule in _rules():
        for text in texts:
            for pattern in rule.patterns:
                if (match := pattern.search(text)) is not None:
                    return _by_rule(evidence, rule, match)
    return None


def _by_rule(evidence: Evidence, rule: _Rule, match: re.Match[str]) -> Outcome:
    groups = match.groupdict()
    subject = groups.get("drv") or ""
    about_other = (
        not evidence.build_began and bool(evidence.other_drvs)
        if not subject
        else not _same_drv(subject, evidence.drv_path)
    )
    if about_other and rule.retry is Retry.NEVER:
        culprit = subject or evidence.other_drvs[0]
        return _outcome(
            evidence,
            BuildStatus.DEPENDENCY_FAILED,
            "InputFailed",
            f"its input {culprit} should have been there, had to be built and failed: "
            f"{_words(evidence)}",
            retry=Retry.INFRASTRUCTURE,
        )
    exit_code = int(groups["exit"]) if groups.get("exit") else None
    signal = int(groups["signal"]) if groups.get("signal") else None
    message = f"{rule.message}: {_words(evidence)}"
    if rule.is_builder and evidence.is_fixed_output:
        # A fixed-output build mostly fetches, and the other end may come back.
        return _outcome(
            evidence,
            BuildStatus.FAILED,
            "FetchFailed",
            message,
            retry=Retry.INFRASTRUCTURE,
            exit_code=exit_code,
            signal=signal,
        )
    return _outcome(
        evidence,
        rule.status,
        rule.reason,
        message,
        retry=rule.retry,
        blame=rule.blame,
        exit_code=exit_code,
        signal=signal,
    )


def _same_drv(left: str, right: str) -> bool:
    # Newer versions print base names in some messages.
    return left.rsplit("/", 1)[-1] == right.rsplit("/", 1)[-1]


def _by_exit_code(evidence: Evidence) -> Outcome | None:
    code = evidence.exit_code
    if code is None or not _EXIT_BASE < code < _EXIT_BASE + 16:
        return None
    words = _words(evidence)
    if evidence.other_drvs and not evidence.build_began:
        message = f"an input had to be built and failed: {words or evidence.other_drvs[0]}"
        retry = Retry.INFRASTRUCTURE
        return _outcome(
            evidence, BuildStatus.DEPENDENCY_FAILED, "InputFailed", message, retry=retry
        )
    bits = code - _EXIT_BASE
    if bits & _EXIT_HASH:
        found = BuildStatus.FAILED, "HashMismatch"
    elif bits & _EXIT_TIMEOUT:
        found = BuildStatus.TIMEOUT, "Timeout"
    elif bits & _EXIT_CHECK:
        found = BuildStatus.NON_DETERMINISTIC, "OutputDiffers"
    else:
        found = BuildStatus.FAILED, "BuilderFailed"
    status, reason = found
    return _outcome(evidence, status, reason, words or f"Nix ended with exit code {code}")


def _by_default(evidence: Evidence) -> Outcome:
    words = _words(evidence) or evidence.detail
    code = evidence.exit_code
    if evidence.build_began and evidence.builder_ended and code is not None and code > 0:
        message = words or f"Nix ended with exit code {code}"
        return _outcome(evidence, BuildStatus.FAILED, "BuilderFailed", message)
    how = "without an exit code" if code is None else f"with exit code {code}"
    if code is not None and code < 0:
        how = f"by signal {-code}"
    return _outcome(
        evidence,
        BuildStatus.ABORTED,
        "NixEnded",
        words or f"Nix ended {how} and said nothing",
        retry=Retry.INFRASTRUCTURE,
        blame=code is not None and code < 0,
    )
