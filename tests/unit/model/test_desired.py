from hypothesis import given
from hypothesis import strategies as st

from fc_operator.model import desired
from fc_operator.model.desired import hash_spec
from fc_operator.model.problems import Problem

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
specs = st.dictionaries(st.text(max_size=5), values, max_size=4)


def turned(value):
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return [turned(item) for item in value] if isinstance(value, list) else value


@given(specs)
def test_the_hash_does_not_see_the_order_of_keys(spec):
    assert hash_spec("Project", "default", "a", spec) == hash_spec(
        "Project", "default", "a", turned(spec)
    )


@given(specs, specs)
def test_different_specs_have_different_hashes(first, second):
    import json

    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (
        hash_spec("Project", "default", "a", first) == hash_spec("Project", "default", "a", second)
    ) == same


def test_the_hash_is_of_all_that_names_the_object():
    hashes = {
        hash_spec("Project", "default", "a", {}),
        hash_spec("Jobset", "default", "a", {}),
        hash_spec("Project", "other", "a", {}),
        hash_spec("Project", "default", "b", {}),
        hash_spec("Project", "default", "a", {"x": None}),
    }
    assert len(hashes) == 5


def test_the_hash_is_the_same_in_every_release():
    """It is stored; another one would write every object again."""
    assert hash_spec("Project", "default", "a", {"b": [1, "ü"]}) == (
        "1bab9fce1675a57958ae850590174e2e11f7e9a464702a28e1e766a9f5bffbde"
    )


def test_defaults_of_the_nouns_are_those_of_the_manifests():
    """What a DesiredX leaves out means the same as a manifest that leaves it out."""
    from dataclasses import MISSING, fields

    from fc_operator.spec import defaults, rows, schemas

    least = {
        desired.PROJECT: {"repositoryUrl": "https://e/x"},
        desired.JOBSET: {"projectRef": {"name": "demo"}},
        desired.REMOTE_BUILDER: {
            "sshUri": "b",
            "systems": ["x86_64-linux"],
            "sshKeySecretRef": {"name": "k"},
            "publicHostKey": "ssh-ed25519 AAAA",
        },
        desired.CONFIG_REPOSITORY: {"url": "https://e/x"},
    }
    for kind, spec in least.items():
        filled = defaults.fill(schemas.schema_of(kind)["properties"]["spec"], spec)
        made = rows.desired_of(kind, "a", filled)
        for field in fields(made):
            if field.default is not MISSING:
                assert getattr(made, field.name) == field.default, f"{kind}.{field.name}"


def test_a_problem_reads_from_the_place_to_the_hint():
    whole = Problem(
        path="a.yaml",
        line=3,
        field="spec.x",
        kind="Project",
        name="demo",
        message="is wrong",
        hint="mend it",
    )
    assert str(whole) == "a.yaml:3: Project demo: spec.x: is wrong (mend it)"
    assert str(Problem(message="is wrong")) == "is wrong"
    assert min(whole, Problem(path="a.yaml", line=1, message="z")).line == 1
