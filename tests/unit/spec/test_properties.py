"""Properties of the parser: it never raises, defaults settle, hashes see only what is said."""

import copy
import json
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fc_operator.kit import documents
from fc_operator.model import desired as nouns
from fc_operator.spec import defaults, manifests, schemas

GOOD = [
    document.value
    for file in sorted((Path(__file__).parents[2] / "manifests" / "good").iterdir())
    for document in documents.load(file.read_bytes())[0]
]
for each in GOOD:
    # Compiling the rules raises the recursion limit once; not while hypothesis looks.
    manifests.parse_object(each)
slow = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["", "5m", "https://e/x", "Git", "demo", "a" * 5_000, "-x", "../x", "\n", "1h1h"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "spec", "kind", "metadata", "type", "value", "x"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def places(value, path=()):
    """Every way into a value."""
    yield path
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


@st.composite
def mutated(draw):
    """A good manifest with up to three places changed, removed, doubled or renamed."""
    manifest = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        ways = [path for path in places(manifest) if path]
        if not ways:
            break
        path = draw(st.sampled_from(ways))
        parent = manifest
        for part in path[:-1]:
            parent = parent[part]
        match draw(st.sampled_from(["change", "remove", "double", "rename"])):
            case "change":
                parent[path[-1]] = draw(values)
            case "remove":
                del parent[path[-1]]
            case "double" if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[path[-1]]))
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=8))] = parent.pop(path[-1])
    return manifest


def check(parsed) -> None:
    """What holds for every outcome."""
    for problem in parsed.problems:
        assert problem.message
        assert len(str(problem)) < 3_000
        json.dumps(problem.as_dict())
    for one in parsed.declarations:
        assert isinstance(one.desired, nouns.Desired)
        assert one.kind in nouns.KINDS
        assert len(one.spec_hash) == 64


@slow
@given(st.binary(max_size=200))
def test_no_bytes_make_it_raise(data):
    check(manifests.parse({"a.yaml": data}))


@slow
@given(values)
def test_no_value_makes_it_raise(value):
    check(manifests.parse({"a.yaml": documents.dump(value).encode()}))


@slow
@given(st.sampled_from(nouns.KINDS), values, values)
def test_no_spec_and_no_metadata_make_it_raise(kind, metadata, spec):
    body = {"apiVersion": nouns.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
    declaration, problems = manifests.parse_object(body)
    assert (declaration is None) == bool(problems)


@settings(slow, max_examples=400)
@given(mutated())
def test_no_mutation_of_a_good_manifest_makes_it_raise(manifest):
    body = copy.deepcopy(manifest)
    declaration, problems = (
        manifests.parse_object(manifest) if isinstance(manifest, dict) else (None, ())
    )
    assert manifest == body, "what was given was changed"
    for problem in problems:
        assert problem.message
    check(manifests.parse({"a.yaml": json.dumps(manifest).encode()}))
    if declaration is not None:
        # What is accepted is accepted again as it is kept, and means the same.
        again, none = manifests.parse_object(manifests._manifest_of(declaration))
        assert none == ()
        assert again.spec_hash == declaration.spec_hash
        assert again.desired == declaration.desired


@slow
@given(st.sampled_from(nouns.KINDS), values)
def test_defaults_settle_at_once(kind, spec):
    schema = schemas.schema_of(kind)["properties"]["spec"]
    once = defaults.fill(schema, spec)
    assert defaults.fill(schema, once) == once


@given(st.data(), st.sampled_from(GOOD))
def test_the_hash_does_not_see_the_order_of_keys(data, manifest):
    def turned(value):
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in data.draw(st.permutations(list(value)))}
        return [turned(item) for item in value] if isinstance(value, list) else value

    first, _ = manifests.parse_object(manifest)
    second, _ = manifests.parse_object(turned(manifest))
    assert first.spec_hash == second.spec_hash


@slow
@given(st.lists(st.sampled_from(GOOD), max_size=6), st.randoms())
def test_the_order_of_files_changes_nothing(chosen, rng):
    files = {f"f{n}.yaml": documents.dump(one).encode() for n, one in enumerate(chosen)}
    names = list(files)
    rng.shuffle(names)
    assert manifests.parse(files) == manifests.parse({name: files[name] for name in names})


@given(st.sampled_from(GOOD))
def test_what_is_rendered_is_parsed_back(manifest):
    first, _ = manifests.parse_object(manifest)
    (second,) = manifests.parse_file("a.yaml", manifests.render([first]).encode()).declarations
    assert (second.desired, second.spec, second.spec_hash, second.annotations) == (
        first.desired,
        first.spec,
        first.spec_hash,
        first.annotations,
    )


durations = st.lists(
    st.tuples(
        st.from_regex(r"[0-9]{1,6}(\.[0-9]{1,3})?", fullmatch=True),
        st.sampled_from(["ms", "s", "m", "h"]),
    ).map("".join),
    min_size=1,
    max_size=4,
).map("".join)


@slow
@given(durations)
def test_a_duration_means_the_same_to_the_rules_and_to_the_rows(text):
    """What CEL lets through lies within the bounds in seconds too."""
    spec = {"projectRef": {"name": "demo"}, "timeout": text}
    body = {
        "apiVersion": nouns.API_VERSION,
        "kind": "Jobset",
        "metadata": {"name": "a"},
        "spec": spec,
    }
    declaration, problems = manifests.parse_object(body)
    if declaration is not None:
        assert 1 <= declaration.desired.timeout_s <= 8760 * 3600
    else:
        assert len(text) > 32 or "between" in problems[0].message
