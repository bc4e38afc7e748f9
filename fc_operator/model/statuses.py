"""Statuses and which may follow which. The same tables are enforced by triggers in PostgreSQL."""

from __future__ import annotations

from enum import StrEnum


class BuildStatus(StrEnum):
    """What users see of a job's build; a step has the same statuses (reference: seed schema)."""

    PENDING = "pending"
    """Not started: blocked, runnable, in backoff or without a builder."""
    RUNNING = "running"
    """A live lease holds an attempt."""
    SUCCEEDED = "succeeded"
    """All outputs are valid; also when they were found without a build."""
    FAILED = "failed"
    """The builder ran and failed, or made wrong outputs."""
    DEPENDENCY_FAILED = "dependency_failed"
    """A needed step failed; the root cause is linked."""
    ABORTED = "aborted"
    """Infrastructure failed until the retries were used up."""
    CANCELLED = "cancelled"
    """By a user, or because a newer evaluation took its place."""
    FAILED_WITH_OUTPUT = "failed_with_output"
    """Built, but an output holds ``nix-support/failed``; dependents go on."""
    TIMEOUT = "timeout"
    """The total time or the silence limit was hit; the reason says which."""
    CACHED_FAILURE = "cached_failure"
    """Its derivation failed before and the failure is still remembered."""
    UNSUPPORTED_SYSTEM = "unsupported_system"
    """No enabled builder for its system and features within the limit."""
    LOG_LIMIT_EXCEEDED = "log_limit_exceeded"
    """The log grew past its limit and the builder was killed."""
    NAR_SIZE_LIMIT_EXCEEDED = "nar_size_limit_exceeded"
    """An output is larger than allowed."""
    NON_DETERMINISTIC = "non_deterministic"
    """A check rebuild made something else; the first outputs stay valid."""


LIVE = frozenset({BuildStatus.PENDING, BuildStatus.RUNNING})
TERMINAL = frozenset(BuildStatus) - LIVE
OUTPUTS_VALID = frozenset(
    {BuildStatus.SUCCEEDED, BuildStatus.FAILED_WITH_OUTPUT, BuildStatus.NON_DETERMINISTIC}
)
"""Terminal statuses after which the outputs can be used, so that dependents go on."""
BLOCKING = TERMINAL - OUTPUTS_VALID
"""Terminal statuses that make dependents ``dependency_failed``."""
REMEMBERED = frozenset(
    {
        BuildStatus.FAILED,
        BuildStatus.LOG_LIMIT_EXCEEDED,
        BuildStatus.NAR_SIZE_LIMIT_EXCEEDED,
    }
)
"""Real failures of the derivation itself: only these enter ``failed_paths_cache``."""

TRANSITIONS: dict[BuildStatus, frozenset[BuildStatus]] = {
    # A start; or an end without a run (cached, dependency, unsupported, cancelled).
    BuildStatus.PENDING: TERMINAL | {BuildStatus.RUNNING},
    # An end; or back after a lost lease or an infrastructure retry.
    BuildStatus.RUNNING: TERMINAL | {BuildStatus.PENDING},
    # Only a restart leaves a terminal status.
    **{status: frozenset({BuildStatus.PENDING}) for status in TERMINAL},
}
"""Legal transitions of builds and steps; the function ``fc_check_transition`` holds the same."""


class EvaluationStatus(StrEnum):
    """What became of the evaluation of one revision."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    """The evaluator ended by itself; single jobs may still have errors."""
    FAILED = "failed"
    """No jobs: checkout or the whole evaluation failed."""
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


EVALUATION_TRANSITIONS: dict[EvaluationStatus, frozenset[EvaluationStatus]] = {
    EvaluationStatus.PENDING: frozenset(EvaluationStatus) - {EvaluationStatus.PENDING},
    EvaluationStatus.RUNNING: frozenset(EvaluationStatus) - {EvaluationStatus.RUNNING},
    **{
        status: frozenset()
        for status in EvaluationStatus
        if status not in {EvaluationStatus.PENDING, EvaluationStatus.RUNNING}
    },
}
"""Legal transitions of evaluations; a new try is a new evaluation."""


class JobsetState(StrEnum):
    """Whether and how a jobset evaluates (manifest values in CamelCase, rows in snake case)."""

    DISABLED = "disabled"
    ENABLED = "enabled"
    ONE_SHOT = "one_shot"
    """Evaluates once per generation of its declaration."""
    ONE_AT_A_TIME = "one_at_a_time"
    """Waits until the last evaluation has no unfinished build."""


class Forge(StrEnum):
    """Whose webhooks and statuses we speak."""

    GITHUB = "github"
    GITEA = "gitea"
    FORGEJO = "forgejo"
    GITLAB = "gitlab"


class Role(StrEnum):
    """What an API key may do (reference: seed schema, ``api_keys.role``)."""

    ADMIN = "admin"
    CREATE_PROJECTS = "create-projects"
    RESTART_JOBS = "restart-jobs"
    CANCEL_BUILD = "cancel-build"
    BUMP_TO_FRONT = "bump-to-front"
    EVAL_JOBSET = "eval-jobset"
    READ_ONLY = "read-only"
