from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.errors import EvaluationError, InvalidError
from fc_operator.evaluator import expressions
from fc_operator.evaluator.checkouts import version_of
from fc_operator.evaluator.requests import Argument, Tree


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ()), (".", ()), (".#", ()), ("#", ()),
        ("hydraJobs", ("hydraJobs",)), (".#hydraJobs", ("hydraJobs",)), ("#x", ("x",)),
        ("packages.x86_64-linux", ("packages", "x86_64-linux")),
        ('a."b.c".d', ("a", "b.c", "d")), ('a."q\\"u"', ("a", 'q"u')),
    ],
)  # fmt: skip
def test_c23_the_attribute_of_a_flake_as_users_write_it(text, path):
    assert expressions.attribute(text) == path


@pytest.mark.parametrize("text", ["a..b", "a.", 'a"b"', '"open', ".#.x"])
def test_what_is_no_attribute_path_is_refused(text):
    with pytest.raises(InvalidError, match="not an attribute path"):
        expressions.attribute(text)


def test_c23_nixos_configurations_mean_their_toplevel():
    all_of_them = expressions.flake_root("path:/x", "nixosConfigurations", inner=False)
    assert 'configuration."config"."system"."build"."toplevel"' in all_of_them
    one = expressions.flake_root("path:/x", ".#nixosConfigurations.host", inner=False)
    assert '"nixosConfigurations"."host"."config"."system"."build"."toplevel"' in one


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_a_string_literal_has_no_way_out(text):
    literal = expressions.string(text)
    inner = literal[1:-1].replace("\\\\", "").replace('\\"', "").replace("\\${", "")
    assert '"' not in inner
    assert "${" not in inner
    assert not inner.endswith("\\") or "\\r" in inner


@pytest.mark.nix
def test_nix_reads_our_strings_as_they_were_meant():
    texts = ['"', "\\", "${x}", "$${x}", "''", "a\nb\tc\rd", "ü", "\\${", '\\"', "$", "$$"]
    literals = "[ " + " ".join(map(expressions.string, texts)) + " ]"
    argv = ["nix-instantiate", "--eval", "--strict", "--json", "-E", literals]
    assert json.loads(subprocess.run(argv, capture_output=True, check=True).stdout) == texts


def test_a_string_with_a_nul_is_refused():
    with pytest.raises(InvalidError):
        expressions.string("a\0b")


def test_a_flake_reference_is_locked_and_quoted():
    tree = Tree(path=Path("/w d/s&o"), revision="ab" * 20, rev_count=4, nar_hash="sha256-a+/=")
    assert expressions.flake_reference(tree) == (
        f"path:/w%20d/s%26o?narHash=sha256-a%2B%2F%3D&rev={'ab' * 20}&revCount=4"
    )


def tree(name: str) -> Tree:
    return Tree(path=Path(f"/w/{name}"), revision="cd" * 20, nar_hash=f"sha256-{name}")


def git(name: str) -> Argument:
    return Argument(name=name, type="git", tree=tree(name.replace("/", "-")))


LOCK = {
    "version": 7,
    "root": "root",
    "nodes": {
        "root": {"inputs": {"dep": "dep", "data": "data", "alias": ["dep", "lib"]}},
        "dep": {"inputs": {"lib": "lib"}, "locked": {"type": "x"}, "original": {"type": "x"}},
        "lib": {"locked": {"type": "y"}, "original": {"type": "y"}},
        "data": {"flake": False, "locked": {"type": "z"}, "original": {"type": "z"}},
    },
}


def test_an_input_is_replaced_in_a_lock_file_around_the_source():
    own = {
        "root": "root",
        "nodes": {"root": {"inputs": {"n": "n"}}, "n": {"locked": {"type": "n"}}},
    }
    text, lock = expressions.overriding_flake(tree("source"), LOCK, [(git("dep"), own)])
    nodes = json.loads(lock)["nodes"]
    assert 'inputs.inner.url = "path:/w/source?narHash=sha256-source' in text
    assert nodes["root"] == {"inputs": {"inner": "inner"}}
    assert nodes["inner"]["inputs"] == {
        "dep": "override/dep", "data": "inner/data", "alias": ["inner", "dep", "lib"],
    }  # fmt: skip
    assert nodes["override/dep"]["locked"]["path"] == "/w/dep"
    assert nodes["override/dep"]["inputs"] == {"n": "override/dep/n"}
    assert nodes["inner/data"]["flake"] is False


def test_an_input_that_is_no_flake_stays_none_and_nested_ones_can_be_replaced():
    _, lock = expressions.overriding_flake(
        tree("source"), LOCK, [(git("data"), LOCK), (git("dep/lib"), None)]
    )
    nodes = json.loads(lock)["nodes"]
    assert nodes["override/data"]["flake"] is False
    assert "inputs" not in nodes["override/data"]
    assert nodes["inner/dep"]["inputs"] == {"lib": "override/dep/lib"}


@pytest.mark.parametrize("name", ["nope", "nope/lib", "alias/x"])
def test_an_input_that_the_flake_has_not_is_an_error(name):
    with pytest.raises(EvaluationError, match=f"no input {name}"):
        expressions.overriding_flake(tree("source"), LOCK, [(git(name), None)])


@pytest.mark.parametrize(
    ("name", "version"),
    [("hello-2.10", "2.10"), ("a-b-1.0-x", "1.0-x"), ("plain", ""), ("x-unstable-2024", "2024")],
)
def test_the_version_of_a_name_is_what_nix_takes_for_it(name, version):
    assert version_of(name) == version
