"""What builders' shells answer, read."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.clients import ssh
from fc_operator.errors import InvalidError, ProtocolError
from fc_operator.executors import ssh_scripts
from fc_operator.executors.ssh_scripts import Begun, Ended, Load
from fc_operator.model.ids import ClassId, JobsetId, new_uuid
from fc_operator.queue import shares


def test_marks_are_told_from_what_builds_print():
    assert ssh_scripts.parse_mark(b"@fc-n1 begin 12 /tmp/fc-build.x y", "n1") == Begun(
        12, "/tmp/fc-build.x y"
    )
    assert ssh_scripts.parse_mark(b"@fc-n1 end 0", "n1") == Ended(0)
    assert ssh_scripts.parse_mark(b"@fc-n1 end 137", "n1") == Ended(-9)
    for other in (b"@fc-n2 end 0", b"@fc-n1 end x", b"@fc-n1", b"", b"\xff", b"@nix {}"):
        assert ssh_scripts.parse_mark(other, "n1") is None


def test_a_sample_counts_the_tree_below_nix_and_nothing_else():
    sample = ["top 10", "1 0 5 5 5 5 9", "10 1 7 7 20 10 100", "11 10 1 2 3 4 5", "12 11 1 0 0 0 1"]
    usage = ssh_scripts.parse_sample(sample)
    assert (usage.memory_bytes, usage.cpu_ms) == (6 * 4096, (30 + 10 + 1) * 10)
    assert ssh_scripts.parse_sample(["top 1", "1 1 0 0 0 0 0"]).cpu_ms == 0, "its own parent"


@given(st.lists(st.text(alphabet="0123456789 -top\n", max_size=40), max_size=20))
def test_no_sample_breaks_the_reader(lines):
    usage = ssh_scripts.parse_sample(lines)
    assert isinstance(usage.memory_bytes, int)


def test_c05_a_load_that_is_not_known_is_never_first():
    text = (
        "cpu some avg10=1.50 avg60=0.00 avg300=0.00 total=1\n"
        "memory some avg10=9.00 avg60=0 avg300=0 total=0\n"
        "memory full avg10=2.00 avg60=0 avg300=0 total=0\n"
    )
    known = ssh_scripts.parse_load(text)
    assert known == Load(cpu_some=1.5, memory_full=2.0)
    assert not known.is_pressed
    assert ssh_scripts.parse_load("cpu some avg10=80.00 x").is_pressed
    unknown = ssh_scripts.parse_load("cat: no such file")
    assert not unknown.is_known
    assert known.rank < unknown.rank


def test_a_description_without_outputs_is_refused():
    assert ssh_scripts.parse_description("root /s/a\nroot-doc /s/b\n\ndump") == (
        {"out": "/s/a", "doc": "/s/b"},
        "dump",
    )
    for text in ("", "\n\n", "root /s/a", "evil /s/a\n\n", "root s\n\n"):
        with pytest.raises(ProtocolError):
            ssh_scripts.parse_description(text)


def test_every_script_is_one_that_sh_understands():
    for command in (
        ssh_scripts.build("n", ["nix-store", "--realise", "it's"]),
        ssh_scripts.kill("TERM", 5),
        ssh_scripts.sweep(),
        ssh_scripts.describe("/tmp/a b"),
        ssh_scripts.invalid(),
        ssh_scripts.take(),
        ssh_scripts.give(),
        ssh_scripts.requisites(["/nix/store/a"]),
        ssh_scripts.load(),
        ssh_scripts.look("/nix/store"),
        ssh_scripts.marker(),
    ):
        script = subprocess.run(
            ["sh", "-c", f'printf() {{ :; }}; set -- {command.removeprefix("exec ")}; echo "$3"'],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_words_reach_the_program_as_they_are():
    odd = ["a b", "it's", '"', "$HOME", "*", ""]
    done = subprocess.run(
        ["sh", "-c", ssh_scripts.run(["printf", "%s|", *odd])],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "".join(f"{word}|" for word in odd)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("ssh://nix@h.example:2222", "nix@h.example:2222"),
        ("h", "root@h:22"),
        ("ssh://u@[2001:db8::1]:22/", "u@[2001:db8::1]:22"),
    ],
)
def test_addresses(uri, told):
    assert str(ssh.parse_uri(uri)) == told


@pytest.mark.parametrize("uri", ["", "-oProxyCommand=x", "ssh://h/path", "ssh://h:0", "http://h"])
def test_what_is_no_address_is_refused(uri):
    with pytest.raises(InvalidError):
        ssh.parse_uri(uri)


@given(st.lists(st.integers(1, 9), max_size=9), st.integers(-1, 40))
def test_a_cut_keeps_the_first_of_what_was_allotted(counts, most):
    quotas = [(ClassId(n), JobsetId(new_uuid()), count) for n, count in enumerate(counts)]
    kept = shares.cut(quotas, most)
    assert sum(count for _, _, count in kept) == min(max(most, 0), sum(counts))
    assert [key for *key, _ in kept] == [key for *key, _ in quotas[: len(kept)]]
