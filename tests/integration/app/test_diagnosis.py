"""`fc doctor`'s checks against this machine, and against one that lacks everything."""

import os
import socket
import stat
from dataclasses import replace

import pytest

from fc_operator.app import diagnosis
from fc_operator.app.diagnosis import State
from fc_operator.kit import confine
from fc_operator.settings import DatabaseSettings, Settings, StateSettings, WebSettings


@pytest.fixture
def settings(tmp_path):
    return Settings(state=StateSettings(dir=tmp_path / "state"), web=WebSettings(port=0))


def program(folder, name, text):
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


async def test_this_machine_has_what_the_tests_need(settings):
    findings = {each.name: each for each in await diagnosis.diagnose(settings, os.environ)}
    for name in ("Python", "git", "Nix", "builds", "PostgreSQL", "state directory", "port"):
        assert findings[name].state is State.FOUND, findings[name]
        assert not findings[name].cure
    assert findings["PostgreSQL"].detail.startswith("embedded, ")


async def test_a_machine_without_programs_is_told_how_to_get_each(settings, tmp_path):
    findings = {
        each.name: each
        for each in await diagnosis.diagnose(settings, {"PATH": str(tmp_path), "HOME": "/"})
    }
    assert findings["git"].state is State.MISSING
    assert findings["git"].cure == "apt-get install git"
    assert findings["Nix"].state is State.MISSING
    assert findings["Nix"].cure == "apt-get install nix-bin"
    assert findings["builds"].state is State.MISSING
    # The walker does without it.
    assert findings["nix-eval-jobs"].state is State.OPTIONAL


async def test_an_old_nix_is_not_enough(settings, tmp_path):
    program(tmp_path, "nix-store", "echo 'nix-store (Nix) 2.3.16'")
    found = await diagnosis.nix(settings, {"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert found.state is State.MISSING
    assert "2.3.16; 2.8 is the least" in found.detail


async def test_a_broken_nix_conf_is_shown_in_nixs_own_words(settings, tmp_path):
    (tmp_path / "nix.conf").write_text("sandbox true\n")
    found = await diagnosis.nix(settings, {**os.environ, "NIX_CONF_DIR": str(tmp_path)})
    assert found.state is State.MISSING
    assert "nix.conf" in found.detail
    assert found.cure == "mend nix.conf"


async def test_a_database_that_does_not_answer_or_was_never_migrated(settings, empty_database_url):
    gone = replace(settings, database=DatabaseSettings(url="postgresql://x@127.0.0.1:1/x"))
    found = await diagnosis.postgres(gone, {})
    assert found.state is State.MISSING
    empty = replace(settings, database=DatabaseSettings(url=empty_database_url))
    found = await diagnosis.postgres(empty, {})
    assert (found.state, found.cure) == (State.MISSING, "fc migrate")


async def test_a_migrated_database_is_found(settings, database_url):
    there = replace(settings, database=DatabaseSettings(url=database_url))
    assert (await diagnosis.postgres(there, {})).state is State.FOUND


async def test_a_taken_port_is_said_and_may_be_ours(settings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        web = WebSettings(port=taken.getsockname()[1])
        found = await diagnosis.port(replace(settings, web=web), {})
    assert found.state is State.OPTIONAL
    assert "FC_WEB_PORT" in found.cure


async def test_a_state_directory_that_can_not_be_written(settings, tmp_path):
    (tmp_path / "state").write_text("a file")
    found = await diagnosis.state_directory(settings, {})
    assert found.state is State.MISSING
    assert found.cure.startswith("mkdir -p ")


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.8.0", (2, 8, 0)), ("2.34pre1", (2, 341)), ("3", (3,)), ("x", ())]
)
def test_versions_are_compared_by_numbers(version, numbers):
    assert diagnosis._numbers(version) == numbers


@pytest.mark.parametrize(("version", "state"), [(0, "optional"), (1, "optional"), (4, "found")])
async def test_a_kernel_without_landlock_is_told_and_not_needed(monkeypatch, version, state):
    monkeypatch.setattr(confine, "version", lambda: version)
    found = await diagnosis.confinement(Settings(), {})
    assert found.state == state
    assert bool(found.cure) == (state == "optional")
