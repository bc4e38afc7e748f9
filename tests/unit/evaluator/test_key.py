from __future__ import annotations

from dataclasses import fields, replace

from fc_operator.evaluator.key import Deciding, key_of
from fc_operator.evaluator.requests import Versions
from fc_operator.model.evaluations import ResolvedInput

INPUT = ResolvedInput(name="a", type="string", value="bc", revision=None, store_path=None)
BASE = Deciding(
    commit="a" * 40,
    expression="release.nix",
    is_flake=False,
    inputs=(INPUT,),
    systems=("x86_64-linux",),
    versions=Versions(evaluator="walker", version="1"),
)
OTHER = {
    "commit": "b" * 40,
    "expression": "other.nix",
    "is_flake": True,
    "inputs": (),
    "systems": (),
    "allow_import_from_derivation": True,
    "trust": "unreviewed",
    "versions": Versions(evaluator="nix-eval-jobs", version="1"),
    "store_dir": "/other/store",
}
OTHER_INPUT = {
    "name": "x",
    "type": "git",
    "value": "x",
    "revision": "c" * 40,
    "store_path": "/nix/store/x",
}


def test_c10_each_field_alone_changes_the_key():
    assert set(OTHER) == {field.name for field in fields(Deciding)}
    keys = {key_of(replace(BASE, **{name: value})) for name, value in OTHER.items()}
    keys.add(key_of(replace(BASE, versions=Versions(evaluator="walker", version="2"))))
    assert len(keys - {key_of(BASE)}) == len(OTHER) + 1


def test_c10_each_part_of_an_input_changes_the_key():
    assert set(OTHER_INPUT) == {field.name for field in fields(ResolvedInput)}
    keys = {
        key_of(replace(BASE, inputs=(replace(INPUT, **{name: value}),)))
        for name, value in OTHER_INPUT.items()
    }
    assert len(keys - {key_of(BASE)}) == len(OTHER_INPUT)


def test_c10_words_do_not_run_into_each_other():
    def key(name, value):
        return key_of(replace(BASE, inputs=(replace(INPUT, name=name, value=value),)))

    assert key("a", "bc") != key("ab", "c")


def test_the_order_of_inputs_and_systems_does_not_matter():
    two = (INPUT, replace(INPUT, name="b"))
    assert key_of(replace(BASE, inputs=two)) == key_of(replace(BASE, inputs=two[::-1]))
    systems = ("a", "b", "a")
    assert key_of(replace(BASE, systems=systems)) == key_of(replace(BASE, systems=("b", "a")))
