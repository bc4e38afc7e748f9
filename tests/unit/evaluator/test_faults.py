"""What an evaluator says at its bad end: the machine's fault, or the source's."""

import pytest

from fc_operator.errors import PrerequisiteError, UnavailableError
from fc_operator.evaluator import faults


@pytest.mark.parametrize(
    "told",
    [
        "error: writing to file: No space left on device",
        "trace: x\nerror: creating directory '/nix/store/x': \x1b[35;1mDisk quota exceeded\x1b[0m",
        "error: executing SQLite statement: database or disk is full (in '/nix/var/nix/db')",
        "error: executing SQLite statement 'pragma x': disk I/O error (in '/nix/var/nix/db/db.sqlite')",
        "error: cannot connect to socket at '/nix/var/nix/daemon-socket/socket': Connection refused",
    ],
)
def test_q17_a_machine_in_trouble_is_no_fault_of_the_source(told):
    with pytest.raises(UnavailableError):
        faults.refuse(told)


@pytest.mark.parametrize(
    "told",
    [
        "",
        "error: undefined variable 'x'",
        "error: No space left on device is what this source throws, with more words",
        "error: attribute 'disk' missing",
    ],
)
def test_what_a_source_says_is_its_own(told):
    faults.refuse(told)


async def test_a_program_that_does_not_run_any_more_is_asked_anew(tmp_path):
    program = tmp_path / "nix-instantiate"
    program.write_text(
        '#!/bin/sh\n[ -e "$0.broken" ] && { echo bad conf >&2; exit 1; }; echo 2.8.0\n'
    )
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    await faults.require_sound("nix-instantiate", "error: it is the source", env)
    (tmp_path / "nix-instantiate.broken").touch()
    with pytest.raises(PrerequisiteError, match="bad conf"):
        await faults.require_sound("nix-instantiate", "error: it is the source", env)
    (tmp_path / "nix-instantiate.broken").unlink()
    await faults.require_sound("nix-instantiate", "error: it is the source", env)
