"""Every exception we raise, as one tree, grouped by what the caller does next.

::

    FcError
    ├── RetryLaterError          try again after a delay; nobody needs to act
    │   ├── UnavailableError     an outside service did not answer (database, git host, store)
    │   ├── BusyError            more is waiting already than we are ready to keep
    │   └── LimitReachedError    a time, memory or size limit of ours ended the work
    ├── GiveUpError              trying again would end the same way
    │   ├── EvaluationError      the Nix code of a jobset does not evaluate
    │   ├── LeaseLostError       somebody else owns the work now; stop and write nothing
    │   └── ProtocolError        a program spoke a format that we do not know
    ├── HumanNeededError         an administrator has to mend something first
    │   ├── PrerequisiteError    a program or a permission is missing on this machine
    │   ├── SettingsError        a setting is unknown or wrong
    │   ├── SchemaVersionError   the database is newer than this program, or was never migrated
    │   └── SecretError          a referenced secret is missing or unreadable
    └── CallerError              the request itself is wrong
        ├── InvalidError         it can't be understood or breaks a rule
        │   └── TooLargeError    it is larger than we are ready to take
        ├── NotFoundError        it names something that does not exist
        ├── GoneError            what it is about is over and does not come back
        ├── ConflictError        it contradicts the present state
        ├── UnauthenticatedError it carries no valid credential
        └── ForbiddenError       its credential does not allow it

An adapter that catches an outside library's error raises one of these ``from`` it.
"""

from __future__ import annotations


class FcError(Exception):
    """The root. ``hint`` says what to do, in words for a person; it may be empty."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RetryLaterError(FcError):
    """Try again later. ``delay_s`` is the wait that the source of the error asked for, if any."""

    def __init__(self, message: str, *, hint: str = "", delay_s: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.delay_s = delay_s


class UnavailableError(RetryLaterError):
    """An outside service did not answer or answered that it can't."""


class BusyError(RetryLaterError):
    """More is waiting already than we are ready to keep; come again after a while."""


class LimitReachedError(RetryLaterError):
    """A limit of ours ended the work. ``limit`` is ``time``, ``memory`` or ``output``, where it
    matters which; else it is empty.
    """

    def __init__(self, message: str, *, hint: str = "", limit: str = "") -> None:
        super().__init__(message, hint=hint)
        self.limit = limit


class GiveUpError(FcError):
    """Trying again would end the same way."""


class EvaluationError(GiveUpError):
    """The Nix code of a jobset does not evaluate."""


class LeaseLostError(GiveUpError):
    """The lease went to somebody else; stop, kill what runs, write nothing."""


class ProtocolError(GiveUpError):
    """A program printed something that its format does not allow."""


class HumanNeededError(FcError):
    """An administrator has to mend something first."""


class PrerequisiteError(HumanNeededError):
    """A program or a permission is missing on this machine."""


class SettingsError(HumanNeededError):
    """A setting is unknown or has a wrong value."""


class SchemaVersionError(HumanNeededError):
    """The database's schema is newer than this program, or was never migrated."""


class SecretError(HumanNeededError):
    """A referenced secret is missing or can't be read."""


class CallerError(FcError):
    """The request itself is wrong."""


class InvalidError(CallerError):
    """The request can't be understood or breaks a rule."""


class TooLargeError(InvalidError):
    """The request, or what it stands for, is larger than we are ready to take."""


class NotFoundError(CallerError):
    """The request names something that does not exist."""


class GoneError(CallerError):
    """What the request is about is over and does not come back."""


class ConflictError(CallerError):
    """The request contradicts the present state. ``expected`` is the number that would have been
    right, where one was wrong.
    """

    def __init__(self, message: str, *, hint: str = "", expected: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.expected = expected


class UnauthenticatedError(CallerError):
    """The request carries no valid credential."""


class ForbiddenError(CallerError):
    """The credential does not allow this."""
