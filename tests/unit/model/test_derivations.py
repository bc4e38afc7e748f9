import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fc_operator.errors import ProtocolError
from fc_operator.model import derivations

PATH = "/nix/store/" + "a" * 32 + "-hello-2.12.drv"


def quote(text):
    for old, new in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(old, new)
    return f'"{text}"'


def render(env, outputs='("out","/nix/store/x","","")', inputs="", head="Derive("):
    pairs = ",".join(f"({quote(k)},{quote(v)})" for k, v in env.items())
    return f'{head}[{outputs}],[{inputs}],["/nix/store/src"],"x86_64-linux","/bin/sh",["-c","x"],[{pairs}])'


def test_a_plain_derivation():
    text = render(
        {"requiredSystemFeatures": "kvm big-parallel"}, inputs='("/nix/store/i.drv",["out","dev"])'
    )
    found = derivations.parse(PATH, text)
    assert (found.name, found.system, found.builder, found.args) == (
        "hello-2.12",
        "x86_64-linux",
        "/bin/sh",
        ("-c", "x"),
    )
    assert found.outputs == {"out": "/nix/store/x"}
    assert found.input_drvs == {"/nix/store/i.drv": ("out", "dev")}
    assert found.input_srcs == ("/nix/store/src",)
    assert found.required_features == ("big-parallel", "kvm")
    assert not found.is_fixed_output


def test_c17_structured_attributes_are_read():
    attrs = {"requiredSystemFeatures": ["kvm"], "preferLocalBuild": True, "nested": {"a": [1]}}
    found = derivations.parse(PATH, render({"__json": json.dumps(attrs), "out": "/nix/store/x"}))
    assert (found.required_features, found.prefer_local) == (("kvm",), True)
    assert found.env["nested"] == {"a": [1]}


@pytest.mark.parametrize(
    ("outputs", "expected", "fixed"),
    [
        ('("out","/nix/store/x","r:sha256","abcd")', {"out": "/nix/store/x"}, True),
        ('("out","","r:sha256","")', {"out": None}, False),
        ('("dev","/d","",""),("out","/o","","")', {"dev": "/d", "out": "/o"}, False),
    ],
)
def test_outputs(outputs, expected, fixed):
    found = derivations.parse(PATH, render({}, outputs=outputs))
    assert (found.outputs, found.is_fixed_output) == (expected, fixed)


def test_a_dynamic_derivation():
    text = render(
        {},
        inputs='("/nix/store/i.drv",(["out"],[("x",["y"])]))',
        head='DrvWithVersion("xp-dyn-drv",',
    )
    assert derivations.parse(PATH, text).input_drvs == {"/nix/store/i.drv": ("out",)}


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_any_environment_is_read_back(env):
    env.pop("__json", None)
    assert derivations.parse(PATH, render(env)).env == env


@given(
    st.text()
    | st.text().map(lambda t: f"Derive({t}")
    | st.integers(0, 150).map(lambda n: render({"a": "b"})[:n])
)
def test_no_other_text_raises_anything_else(text):
    with contextlib.suppress(ProtocolError):
        derivations.parse(PATH, text)


def test_absurd_systems_and_features_stay_short_and_stay_wrong():
    """They are keys of an index, which takes no longer ones."""
    assert derivations.system_of("x86_64-linux") == "x86_64-linux"
    assert derivations.features_of(["kvm big", "a", "kvm"]) == ("a", "big", "kvm")
    assert len(derivations.system_of("s" * 5000)) == 129
    many = derivations.features_of(f"feature{n}" * 100 for n in range(1000))
    assert sum(map(len, many)) < 1024
    assert "…" in many
