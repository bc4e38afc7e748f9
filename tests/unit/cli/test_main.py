"""The command as a whole: its help, its speed, its exit codes, and how errors look."""

import importlib
import subprocess
import sys
from pathlib import Path

import click
import pytest

from fc_operator.cli import exits, main
from fc_operator.cli.main import COMMANDS, run

NAMES = [name for section in COMMANDS.values() for name in section]


@pytest.fixture
def fc(capsys):
    """Runs a command line; gives its exit code, standard output and standard error."""

    def call(*words):
        code = run(list(words))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_is_there_and_the_table_says_of_it_what_it_says_itself(name):
    module = importlib.import_module(f"fc_operator.cli.{name}")
    assert isinstance(module.command, click.Command)
    text = next(section[name] for section in COMMANDS.values() if name in section)
    assert module.command.short_help == text


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_teaches_by_example(fc, name):
    code, out, _ = fc(name, "--help")
    assert code == exits.DONE
    assert "Examples:" in out
    assert f"fc {name}" in out


def test_help_names_every_verb_and_every_exit_code(fc):
    code, out, _ = fc("--help")
    assert code == exits.DONE
    for name in NAMES:
        assert f"  {name} " in out
    for exit_code in (exits.DONE, exits.ERROR, exits.CHANGES, exits.ENDED_BADLY, exits.INTERRUPTED):
        assert f"\n    {exit_code} " in out


def test_help_loads_no_verb_and_no_library_of_theirs():
    """What makes `fc --help` fast; the time itself is no test."""
    code = (
        "import sys; from fc_operator.cli.main import run; run(['--help']);"
        "print([m for m in sys.modules if m.split('.')[0] in"
        " {'rich', 'aiohttp', 'asyncpg', 'sanic', 'yaml', 'jsonschema', 'celpy'}],"
        " file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_nothing_at_all_shows_the_help(fc):
    code, out, err = fc()
    assert code == exits.DONE
    assert "Run:" in out + err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plon"], "Did you mean 'plan'?"),
        (["xyzzy"], "No such command 'xyzzy'"),
        (["--nope"], "No such option"),
        (["validate"], "Missing argument 'PATH...'"),
        (["get", "builds", "--limit", "0"], "0 is not in the range"),
        (["get", "projects", "--status", "failed"], "--status does not narrow projects"),
        (["get", "jobbset"], "did you mean jobsets?"),
        (["logs", "12", "-f", "--tail", "3"], "take either"),
        (["cancel", "demo"], "names nothing"),
        (["key", "create", "x", "--expires", "soon"], "is no time such as"),
    ],
)
def test_wrong_usage_exits_with_1_because_2_says_that_a_plan_has_changes(fc, words, said):
    code, _, err = fc(*words)
    assert code == exits.ERROR
    assert said in err


def test_a_server_that_is_not_there_is_an_error_with_a_hint(fc, monkeypatch):
    from fc_operator.clients import api

    monkeypatch.setattr(api, "_TRIES", 1)
    code, out, err = fc("--url", "http://127.0.0.1:1", "get", "projects")
    assert (code, out) == (exits.ERROR, "")
    assert err.startswith("error: http://127.0.0.1:1 does not answer")
    assert "hint:  is `fc up` running there?" in err


@pytest.mark.parametrize(
    "words", [["--url", "ftp://x", "get"], ["get", "--url", "ftp://x"]], ids=["before", "after"]
)
def test_the_server_may_be_named_before_and_after_the_verb(fc, words):
    code, _, err = fc(*words)
    assert code == exits.ERROR
    assert "'ftp://x' is no http or https address" in err


def test_a_reader_that_has_seen_enough_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -c 'from fc_operator.cli.main import main; main()' schema | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_an_interrupt_has_its_own_code(fc, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(main.cli, "main", interrupted)
    code, _, err = fc("get")
    assert (code, err) == (exits.INTERRUPTED, "interrupted\n")


def test_completion_needs_no_verb_loaded():
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [sys.executable, "-c", "from fc_operator.cli.main import main; main()",
             "completion", shell],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "_FC_COMPLETE" in done.stdout


def test_in_bash_fc_is_ours_once_its_completion_is_there():
    """It is a builtin of bash, which says nothing and succeeds where it is not asked by hand."""
    script = 'eval "$(env fc completion bash)"; fc --version; type -t fc'
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("fc, version")
    assert done.stdout.endswith("file\n")
