from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.executors.classification import Evidence, Fault, Verdict, classify
from fc_operator.executors.log_format import BuildStarted, Message, Stopped, parse_line
from fc_operator.model.ids import DrvPath
from fc_operator.model.outcomes import Retry
from fc_operator.model.statuses import TERMINAL, BuildStatus

SAMPLES = Path(__file__).parent / "samples"
OWN = DrvPath(f"/nix/store/{'a' * 32}-own.drv")
OTHER = DrvPath(f"/nix/store/{'b' * 32}-other.drv")
S = BuildStatus
NEVER, INFRA, FREE = Retry.NEVER, Retry.INFRASTRUCTURE, Retry.FREE
BASE = Evidence(drv_path=OWN, build_began=True, builder_ended=True)

# Every text of reference features 3.3, of older and newer versions, with the exit code beside it.
TEXTS = [
    (f"builder for '{OWN}' failed with exit code 7", 100, S.FAILED, NEVER, "BuilderFailed"),
    (
        f"Cannot build '{OWN}'.\nReason: builder failed with exit code 7.",
        100,
        S.FAILED,
        NEVER,
        "BuilderFailed",
    ),
    (f"builder for '{OWN}' failed due to signal 9 (Killed)", 100, S.FAILED, NEVER, "BuilderKilled"),
    (
        f"Cannot build '{OWN}'.\nReason: builder failed due to signal 9 (Killed).",
        1,
        S.FAILED,
        NEVER,
        "BuilderKilled",
    ),
    (
        f"hash mismatch in fixed-output derivation '{OWN}':\n  specified: sha256-x\n  got: sha256-y",
        102,
        S.FAILED,
        NEVER,
        "HashMismatch",
    ),
    (
        f"builder for '{OWN}' failed to produce output path for output 'out' at '/nix/store/x'",
        1,
        S.FAILED,
        NEVER,
        "OutputMissing",
    ),
    (
        "output '/nix/store/x' is not allowed to refer to the following paths:\n  /nix/store/y",
        1,
        S.FAILED,
        NEVER,
        "ForbiddenReference",
    ),
    (
        f"building of '{OWN}!*' from .drv file timed out after 5 seconds",
        101,
        S.TIMEOUT,
        NEVER,
        "Timeout",
    ),
    (f"building of '{OWN}' timed out after 5 seconds of silence", 101, S.TIMEOUT, NEVER, "Silence"),
    (
        "killed after writing more than 1000 bytes of log output",
        1,
        S.LOG_LIMIT_EXCEEDED,
        NEVER,
        "LogLimit",
    ),
    (
        f"derivation '{OWN}' may not be deterministic: output '/nix/store/x' differs",
        104,
        S.NON_DETERMINISTIC,
        NEVER,
        "OutputDiffers",
    ),
    (
        f"1 dependencies of derivation '{OWN}' failed to build",
        100,
        S.DEPENDENCY_FAILED,
        INFRA,
        "InputFailed",
    ),
    (
        f"Cannot build '{OWN}'.\nReason: 1 dependency failed.",
        1,
        S.DEPENDENCY_FAILED,
        INFRA,
        "InputFailed",
    ),
    (
        f"a 'aarch64-linux' with features {{kvm}} is required to build '{OWN}', but I am a 'x'",
        1,
        S.UNSUPPORTED_SYSTEM,
        INFRA,
        "WrongMachine",
    ),
    (
        f"Cannot build '{OWN}'.\nReason: required system or feature not available",
        1,
        S.UNSUPPORTED_SYSTEM,
        INFRA,
        "WrongMachine",
    ),
    (
        f"Cannot build '{OWN}'.\nReason: platform mismatch",
        100,
        S.UNSUPPORTED_SYSTEM,
        INFRA,
        "WrongMachine",
    ),
    (
        f"Cannot build '{OWN}'.\nReason: missing system features",
        100,
        S.UNSUPPORTED_SYSTEM,
        INFRA,
        "WrongMachine",
    ),
    (
        f"builder for '{OWN}' failed with exit code 1\nnote: build failure may have been caused by lack of free disk space",
        100,
        S.ABORTED,
        INFRA,
        "DiskFull",
    ),
    ("writing to file: No space left on device", 1, S.ABORTED, INFRA, "DiskFull"),
    (
        "executing SQLite statement 'x': disk I/O error (in '/nix/var/nix/db/db.sqlite')",
        1,
        S.ABORTED,
        INFRA,
        "DiskBroken",
    ),
    (
        f"derivation '{OWN}' has '__noChroot' set, but that's not allowed when 'sandbox' is 'true'",
        1,
        S.FAILED,
        NEVER,
        "InputRejected",
    ),
    (
        f"derivation '{OWN}' requested impure path '/etc', but it was not in allowed-impure-host-deps",
        1,
        S.FAILED,
        NEVER,
        "InputRejected",
    ),
    (f"cannot build missing derivation '{OWN}'", 1, S.ABORTED, INFRA, "DerivationMissing"),
    (
        f"some substitutes for the outputs of derivation '{OWN}' failed (usually …)",
        1,
        S.ABORTED,
        INFRA,
        "SubstitutionFailed",
    ),
    ("cannot connect to socket at '/x'", 1, S.ABORTED, INFRA, "LinkLost"),
    ("failed to start SSH connection to 'b'", 1, S.ABORTED, INFRA, "LinkLost"),
    ("unexpected end-of-file", 255, S.ABORTED, INFRA, "LinkLost"),
    ("Nix daemon disconnected unexpectedly", 1, S.ABORTED, INFRA, "LinkLost"),
    ("interrupted by the user", 1, S.ABORTED, INFRA, "Interrupted"),
]


@pytest.mark.parametrize("row", TEXTS)
@pytest.mark.parametrize("through_daemon", [False, True])
def test_c04_each_text_of_nix_has_its_class(row, through_daemon):
    text, code, status, retry, reason = row
    coloured = text.replace(OWN, f"\x1b[35;1m{OWN}\x1b[0m")
    # A daemon's client says 1 for everything, so the text must do.
    found = classify(replace(BASE, errors=(coloured,), exit_code=1 if through_daemon else code))
    assert (found.status, found.retry, found.reason) == (status, retry, reason)


def test_a_builders_own_code_and_signal_are_shown():
    failed = classify(replace(BASE, errors=(TEXTS[0][0],), exit_code=100))
    assert (failed.exit_code, failed.signal) == (7, None)
    killed = classify(replace(BASE, errors=(TEXTS[2][0],), exit_code=100))
    assert killed.signal == 9


@pytest.mark.parametrize(
    ("sample", "code", "status", "reason"),
    [
        ("fail", 100, S.FAILED, "BuilderFailed"),
        ("fod", 102, S.FAILED, "HashMismatch"),
        ("missing", 1, S.FAILED, "OutputMissing"),
        ("feat", 1, S.UNSUPPORTED_SYSTEM, "WrongMachine"),
        ("dep", 100, S.DEPENDENCY_FAILED, "InputFailed"),
        ("kill", 100, S.FAILED, "BuilderKilled"),
        ("forbid", 1, S.FAILED, "ForbiddenReference"),
        ("timeout", 101, S.TIMEOUT, "Timeout"),
        ("max-silent-time", 101, S.TIMEOUT, "Silence"),
        ("max-build-log-size", 1, S.LOG_LIMIT_EXCEEDED, "LogLimit"),
        ("check", 104, S.NON_DETERMINISTIC, "OutputDiffers"),
        ("drv-gone", 1, S.ABORTED, "DerivationMissing"),
    ],
)
def test_recorded_streams_of_nix_2_8_are_classified(sample, code, status, reason):
    lines = (SAMPLES / f"nix-2.8-{sample}.jsonl").read_bytes().splitlines()
    events = [parse_line(line) for line in lines]
    listed = [
        e.text.strip()
        for e in events
        if isinstance(e, Message) and e.level == 3 and e.text.startswith("  ")
    ]
    builds = [e.drv_path for e in events if isinstance(e, BuildStarted)]
    own = DrvPath((listed or builds)[-1])
    found = classify(
        Evidence(
            drv_path=own,
            errors=tuple(e.text for e in events if isinstance(e, Message) and e.from_nix),
            exit_code=code,
            build_began=own in builds,
            builder_ended=any(isinstance(e, Stopped) for e in events),
            other_drvs=tuple(DrvPath(d) for d in builds if d != own),
        )
    )
    assert (found.status, found.reason) == (status, reason)


def test_a_fixed_output_builder_that_fails_may_heal():
    found = classify(replace(BASE, errors=(TEXTS[0][0],), exit_code=1, is_fixed_output=True))
    assert (found.status, found.retry, found.reason) == (S.FAILED, INFRA, "FetchFailed")


def test_our_own_verdict_comes_before_every_other_sign():
    for verdict in Verdict:
        found = classify(replace(BASE, verdict=verdict, errors=(TEXTS[0][0],), exit_code=0))
        assert found.reason == verdict.value


def test_c03_a_lost_link_is_never_a_build_failure():
    for fault in set(Fault) - {Fault.OUT_OF_MEMORY}:
        found = classify(replace(BASE, fault=fault, errors=(TEXTS[0][0],), exit_code=255))
        assert (found.status, found.retry, found.blame_builder) == (S.ABORTED, INFRA, True)
    found = classify(replace(BASE, fault=Fault.OUT_OF_MEMORY))
    assert (found.status, found.retry, found.reason) == (S.FAILED, NEVER, "OutOfMemory")


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (100, S.FAILED, "BuilderFailed"),
        (101, S.TIMEOUT, "Timeout"),
        (102, S.FAILED, "HashMismatch"),
        (103, S.FAILED, "HashMismatch"),
        (104, S.NON_DETERMINISTIC, "OutputDiffers"),
        (1, S.FAILED, "BuilderFailed"),
        (-9, S.ABORTED, "NixEnded"),
        (None, S.ABORTED, "NixEnded"),
    ],
)
def test_without_words_the_exit_code_decides(code, status, reason):
    found = classify(replace(BASE, exit_code=code))
    assert (found.status, found.reason) == (status, reason)


def test_exit_one_without_a_build_is_infrastructure():
    found = classify(Evidence(drv_path=OWN, exit_code=1, errors=("what is this?",)))
    assert (found.status, found.retry) == (S.ABORTED, INFRA)
    assert "what is this?" in found.message


def test_quoted_log_lines_of_newer_nix_are_no_evidence():
    text = (
        f"Cannot build '{OWN}'.\nReason: builder failed with exit code 1.\nLast 2 log lines:\n"
        "> error: timed out after 5 seconds\n> No space left on device\nFor full logs, run: x"
    )
    found = classify(replace(BASE, errors=(text,), exit_code=1))
    assert (found.status, found.reason) == (S.FAILED, "BuilderFailed")


def test_a_failure_of_another_derivation_is_an_input_that_was_missing():
    text = f"builder for '{OTHER}' failed with exit code 1"
    found = classify(Evidence(drv_path=OWN, errors=(text,), exit_code=100, other_drvs=(OTHER,)))
    assert (found.status, found.retry, found.reason) == (S.DEPENDENCY_FAILED, INFRA, "InputFailed")
    assert OTHER in found.message


def test_success_says_how():
    assert classify(replace(BASE, exit_code=0)).reason == "Built"
    assert classify(Evidence(drv_path=OWN, exit_code=0)).reason == "Substituted"
    assert classify(Evidence(drv_path=OWN, exit_code=0, was_valid=True)).reason == "AlreadyValid"
    failed = classify(replace(BASE, exit_code=0, has_failed_file=True))
    assert failed.status is S.FAILED_WITH_OUTPUT


@given(
    st.builds(
        Evidence,
        drv_path=st.just(OWN),
        verdict=st.none() | st.sampled_from(Verdict),
        limit=st.integers(),
        fault=st.none() | st.sampled_from(Fault),
        detail=st.text(max_size=10),
        build_result=st.none() | st.integers(-5, 40),
        errors=st.lists(
            st.sampled_from([row[0] for row in TEXTS]) | st.text(max_size=40), max_size=3
        ).map(tuple),
        exit_code=st.none() | st.integers(-64, 300),
        build_began=st.booleans(),
        builder_ended=st.booleans(),
        other_drvs=st.lists(st.just(OTHER), max_size=1).map(tuple),
        is_fixed_output=st.booleans(),
        has_failed_file=st.booleans(),
        was_valid=st.booleans(),
    )
)
def test_it_is_total_and_every_end_is_an_end(evidence):
    found = classify(evidence)
    assert found.status in TERMINAL
    assert found.reason.isalnum()
    if found.status is S.SUCCEEDED:
        assert found.retry is NEVER
