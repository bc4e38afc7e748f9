"""The CRDs as an API server would judge them, and the JSON Schemas that editors get from them.

The rules of structural schemas are those of apiextensions.k8s.io/v1; a real API server judges the
same files in the cluster suite.
"""

import json
import math
import re

import jsonschema
import pytest

from fc_operator.kit import documents
from fc_operator.model import desired as nouns
from fc_operator.spec import defaults, manifests, rows, rules, schemas

KINDS = nouns.KINDS
_STRUCTURAL = {
    "type", "description", "properties", "items", "required", "default", "enum", "pattern", "format",
    "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "additionalProperties", "maxProperties",
    "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip
"""The keywords that we use; every other is either forbidden in a structural schema or not needed."""


def crd(kind):
    return schemas.crds()[kind]


def version(kind):
    (only,) = crd(kind)["spec"]["versions"]
    return only


def nodes(schema, path=""):
    """Every node of a schema with its path, the root too."""
    yield path, schema
    for name, sub in schema.get("properties", {}).items():
        yield from nodes(sub, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from nodes(schema["items"], path + "[]")


def all_nodes():
    for kind in KINDS:
        for path, node in nodes(schemas.schema_of(kind)):
            yield kind, path, node


def all_rules():
    """(kind, path of the node, node, rule) of every CEL rule."""
    for kind, path, node in all_nodes():
        for rule in node.get("x-kubernetes-validations", ()):
            yield kind, path, node, rule


RULES = [pytest.param(*each, id=f"{each[0]}: {each[3]['message'][:50]}") for each in all_rules()]


# The objects around the schemas -------------------------------------------------------------


def test_there_is_one_file_per_kind_and_both_places_hold_the_same():
    from pathlib import Path

    top = Path(schemas.__file__).parents[2] / "crds"
    assert [file.name for file in schemas.crd_files()] == sorted(
        file.name for file in top.iterdir()
    )
    assert {file.stem for file in schemas.crd_files()} == {
        crd(kind)["spec"]["names"]["plural"] for kind in KINDS
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_columns_and_subresources_are_what_people_expect(kind):
    spec = crd(kind)["spec"]
    names, one = spec["names"], version(kind)
    assert crd(kind)["metadata"]["name"] == f"{names['plural']}.{spec['group']}"
    assert (spec["group"], spec["scope"], one["name"]) == (
        "fc-operator.dev",
        "Namespaced",
        "v1alpha1",
    )
    assert f"{spec['group']}/{one['name']}" == nouns.API_VERSION
    assert (names["kind"], names["listKind"]) == (kind, f"{kind}List")
    assert names["singular"] == kind.lower()
    assert names["categories"] == ["fc"]
    (short,) = names["shortNames"]
    assert re.fullmatch(r"fc[a-z]+", short), "an unusual short name collides with nobody's"
    assert one["served"] is one["storage"] is True
    assert one["subresources"] == {"status": {}}
    columns = {column["name"]: column for column in one["additionalPrinterColumns"]}
    assert list(columns)[:3] == ["Ready", "Reason", "Status"]
    assert list(columns)[-1] == "Age"
    assert all(column["description"] for column in columns.values())
    assert columns["Age"] == {
        **columns["Age"],
        "type": "date",
        "jsonPath": ".metadata.creationTimestamp",
    }


def test_short_names_differ():
    shorts = [short for kind in KINDS for short in crd(kind)["spec"]["names"]["shortNames"]]
    assert len(set(shorts)) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_selectable_fields_point_at_fields_that_exist(kind):
    known = dict(nodes(schemas.schema_of(kind)))
    for column in version(kind)["additionalPrinterColumns"]:
        path = re.sub(r"\[\?\(@\.type==\"[A-Z][a-z]+\"\)\]", "[]", column["jsonPath"]).removeprefix(
            "."
        )
        if path.startswith("metadata."):
            continue
        assert path in known, column
        assert column["type"] == known[path]["type"] or column["type"] == "date"
    selectable = [
        each["jsonPath"].removeprefix(".") for each in version(kind).get("selectableFields", ())
    ]
    assert len(selectable) <= 8
    for path in selectable:
        assert known[path]["type"] in {"string", "boolean", "integer"}
        assert "[]" not in path


@pytest.mark.parametrize("kind", KINDS)
def test_the_status_speaks_kstatus(kind):
    whole = schemas.schema_of(kind)["properties"]["status"]
    assert whole["default"] == {"observedGeneration": -1}, "before anybody has written one"
    status = whole["properties"]
    assert status["observedGeneration"]["default"] == -1
    conditions = status["conditions"]
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert set(conditions["items"]["required"]) == {
        "type",
        "status",
        "observedGeneration",
        "reason",
        "lastTransitionTime",
    }, "`kubectl wait` would take a condition without a generation for the present one"
    assert conditions["items"]["properties"]["status"]["enum"] == ["True", "False", "Unknown"]
    assert "lastHandledRequest" in status


def test_a_condition_of_ours_fits_the_schema():
    from datetime import UTC, datetime

    from fc_operator.model.conditions import Condition, with_condition

    (made,) = with_condition(
        (), Condition(type="Ready", status="True", reason="Reconciled"), datetime.now(UTC)
    )
    items = schemas.schema_of("Project")["properties"]["status"]["properties"]["conditions"][
        "items"
    ]
    jsonschema.validate(made.as_dict(), schemas.strict(items))


# The schemas --------------------------------------------------------------------------------


def test_every_field_has_a_description():
    missing = [
        f"{kind} {path}"
        for kind, path, node in all_nodes()
        # An API server takes nothing but a type and the name's bounds below `metadata`.
        if not node.get("description") and path != "metadata"
    ]
    assert missing == []


def test_a_description_is_a_sentence_and_no_two_lines():
    for kind, path, node in all_nodes():
        text = node.get("description", "x")
        assert text == text.strip(), (kind, path)
        assert "\n" not in text, (kind, path)


def test_the_schemas_are_structural():
    for kind, path, node in all_nodes():
        where = f"{kind} {path}"
        assert set(node) <= _STRUCTURAL, where
        assert node["type"] in {"object", "array", "string", "integer", "boolean"}, where
        assert ("properties" in node) <= (node["type"] == "object"), where
        assert ("items" in node) == (node["type"] == "array"), where
        assert ("additionalProperties" in node) <= ("properties" not in node), where
        assert set(node.get("required", ())) <= set(node.get("properties", ())), where
    for kind in KINDS:
        root = schemas.schema_of(kind)
        assert root["type"] == "object"
        assert "spec" in root["required"]
        assert set(root["properties"]) == {"apiVersion", "kind", "metadata", "spec", "status"}
        metadata = root["properties"]["metadata"]
        assert set(metadata) <= {"type", "properties"}
        assert set(metadata.get("properties", ())) <= {"name", "generateName"}


def test_keyed_lists_and_sets_keep_the_rules_of_server_side_apply():
    for kind, path, node in all_nodes():
        where = f"{kind} {path}"
        if node["type"] != "array":
            assert "x-kubernetes-list-type" not in node, where
            continue
        items = node["items"]
        match node["x-kubernetes-list-type"]:
            case "map":
                assert items["type"] == "object", where
                for key in node["x-kubernetes-list-map-keys"]:
                    field = items["properties"][key]
                    assert field["type"] in {"string", "integer", "boolean"}, where
                    assert key in items["required"] or "default" in field, where
            case "set":
                assert items["type"] in {"string", "integer", "boolean"}, where
            case other:
                pytest.fail(f"{where}: a list is keyed or a set, not {other}")


def test_everything_that_a_person_writes_is_bounded():
    """Or a rule over it costs too much, and one object fills the store."""
    for kind, path, node in all_nodes():
        if not path.startswith("spec"):
            continue
        where = f"{kind} {path}"
        if node["type"] == "string" and "enum" not in node:
            assert node["maxLength"] <= 8192, where
        if node["type"] == "array":
            assert node["maxItems"] <= 256, where
        if "additionalProperties" in node:
            assert node["maxProperties"] <= 256, where
            assert node["additionalProperties"]["maxLength"] <= 8192, where
        if node["type"] == "integer":
            assert {"minimum", "maximum", "format"} <= set(node), where
            assert node["minimum"] <= node["maximum"] < 2**31, where


def test_defaults_fit_their_own_schema_and_settle():
    for kind, path, node in all_nodes():
        if "default" in node:
            jsonschema.validate(node["default"], schemas.strict(node))
            assert defaults.fill(node, node["default"]) == node["default"], f"{kind} {path}"
        for name in node.get("required", ()):
            assert "default" not in node["properties"][name], (
                f"{kind} {path}.{name} is required for nothing"
            )


def test_a_default_fits_the_rules_too(good_file):
    """An object that says nothing but what it must passes; so the defaults break no rule."""
    if good_file.name == "smallest.yaml":
        assert manifests.parse({"a.yaml": good_file.read_bytes()}).problems == ()


def test_every_enum_word_has_its_word_in_rows_and_no_two_share_one():
    words = {
        word
        for _, path, node in all_nodes()
        if path.startswith("spec")
        for word in node.get("enum", ())
    }
    assert words == set(rows._WORDS)
    assert len(rows.WORDS_BACK) == len(rows._WORDS)
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", word) for word in words), "enum values are CamelCase"
    assert all(re.fullmatch(r"[a-z_]+", rows.word(word)) for word in words)


def patterns():
    for kind, path, node in all_nodes():
        if "pattern" in node:
            yield pytest.param(node["pattern"], node.get("maxLength", 253), id=f"{kind} {path}")
    for name in ("name", "namespace"):
        yield pytest.param(
            schemas._METADATA["properties"][name]["pattern"], 253, id=f"metadata {name}"
        )
    for name in ("labels", "annotations"):
        keys = schemas._METADATA["properties"][name]["propertyNames"]["pattern"]
        yield pytest.param(keys, 317, id=f"metadata {name}")


PATTERNS = list(patterns())


@pytest.mark.parametrize(("pattern", "longest"), PATTERNS)
def test_a_pattern_means_the_same_to_python_re2_and_javascript(pattern, longest):
    assert pattern.startswith("^")
    assert pattern.endswith("$")
    assert not re.search(r"\(\?|\\[AZzbBGpPQEdDwWsS]|[*+?}]\+", pattern)
    for escaped in re.findall(r"\\(.)", pattern):
        # No classes: RE2, Python and JavaScript differ in what is a space.
        assert escaped in "^$\\.*+?()[]{}|/-n", escaped


@pytest.mark.parametrize(("pattern", "longest"), PATTERNS)
def test_c17_no_pattern_takes_long_for_a_hostile_text(pattern, longest):
    import time

    compiled = re.compile(rules.anchored(pattern))
    for seed in (
        "a",
        "1",
        "a.",
        "a-",
        "-",
        ".",
        "/",
        "a/",
        "./",
        "1s",
        "1.1",
        "1h",
        "ssh://",
        "https://a",
        "a@",
        "[",
        " ",
    ):
        for tail in ("!", "\n", "\x00", "", "-", " x y"):
            text = (seed * longest)[: longest - len(tail)] + tail
            began_s = time.process_time()
            compiled.search(text)
            assert time.process_time() - began_s < 0.05, (seed, tail)


def test_no_pattern_lets_a_newline_through_at_its_end():
    for param in PATTERNS:
        pattern, _ = param.values
        for text in ("a", "demo", "main", "1h", "x86_64-linux", "https://e/x"):
            if re.search(rules.anchored(pattern), text):
                assert not re.search(rules.anchored(pattern), text + "\n"), pattern


# CEL ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "path", "node", "rule"), RULES)
def test_a_rule_compiles_and_says_what_is_wrong_and_where(kind, path, node, rule):
    compiled = rules.Rule(rule)
    assert compiled.message == rule["message"]
    assert len(rule["rule"]) <= 2048
    field = rule.get("fieldPath", "")
    here = node
    for part in filter(None, field.split(".")):
        here = here["properties"][part]
    assert field or "properties" not in node, "say which field is meant"


@pytest.mark.parametrize(("kind", "path", "node", "rule"), RULES)
def test_a_rule_reads_only_fields_that_exist(kind, path, node, rule):
    for named in re.findall(r"\b(?:self|oldSelf)((?:\.[A-Za-z_]\w*(?!\w*\())*)", rule["rule"]):
        here = node
        for part in filter(None, named.split(".")):
            if part == "metadata":
                break
            assert part in here["properties"], f"{kind} {path}: {named}"
            here = here["properties"][part]


@pytest.mark.parametrize(("kind", "path", "node", "rule"), RULES)
def test_a_field_that_may_be_absent_is_asked_for_first(kind, path, node, rule):
    """Reading an absent field is an error at the API server; with a default it is never absent."""
    text = rule["rule"]
    for name in set(re.findall(r"\bself\.([A-Za-z_]\w*)\b(?!\()", text)):
        if name == "metadata":
            continue
        field = node["properties"][name]
        always = name in node.get("required", ()) or "default" in field
        assert always or f"has(self.{name}" in text, f"{kind} {path}: {name}"


def cost(node, rule) -> float:
    """A coarse upper bound of what the API server will estimate for one run of a rule."""
    text = rule["rule"]
    total = 10.0 * len(re.findall(r"\b(?:self|oldSelf|has|size)\b|[<>=!&|]+", text))
    for field, pattern in re.findall(r"self\.(?:metadata\.)?(\w+)\.matches\(r?'([^']*)'\)", text):
        length = node.get("properties", {}).get(field, {}).get("maxLength", 253)
        total += math.ceil((length + 1) * 0.1) * math.ceil(len(pattern) * 0.25)
    for field in re.findall(r"self\.(\w+)\.(?:all|exists|map|filter)\(", text):
        total += node["properties"][field]["maxItems"] * 50
    for field in re.findall(r"self\.(\w+)\.(?:startsWith|endsWith|contains)\(", text):
        total += math.ceil(node["properties"][field].get("maxLength", 64) * 0.1) * 10
    return total


def test_no_rule_costs_more_than_the_api_server_allows():
    """Its limits: 10 million for a rule, 100 million for a CRD, lists taken at their longest."""
    sums = dict.fromkeys(KINDS, 0.0)
    for kind, path, node, rule in all_rules():
        times, here = 1, schemas.schema_of(kind)
        for part in filter(None, path.replace("[]", ".[]").split(".")):
            if part == "[]":
                times *= here["maxItems"]
                here = here["items"]
            else:
                here = here["properties"][part]
        total = cost(node, rule) * times
        assert total < 5_000_000, (kind, path, rule["rule"])
        sums[kind] += total
    assert max(sums.values()) < 50_000_000


def test_every_rule_has_a_bad_case_and_a_good_one():
    """Bad: its message is in the table. Good: a manifest that has what the rule is about."""
    from pathlib import Path

    table = Path(__file__).parents[2] / "manifests"
    marks = "".join(
        file.read_text() for folder in ("bad", "changes") for file in (table / folder).iterdir()
    )
    unbroken = sorted({rule["message"] for *_, rule in all_rules() if rule["message"] not in marks})
    assert unbroken == []
    kinds = {kind for kind, *_ in all_rules()}
    for kind in kinds:
        tree = rules.RuleTree.of(schemas.schema_of(kind))
        seen = set()
        for file in sorted((table / "good").iterdir()):
            for document in documents.load(file.read_bytes())[0]:
                if document.value["kind"] == kind:
                    spec = defaults.fill(
                        schemas.schema_of(kind)["properties"]["spec"], document.value["spec"]
                    )
                    value = {"metadata": document.value["metadata"], "spec": spec}
                    assert list(tree.check(value)) == []
                    seen |= reached(tree, value)
        every = {rule["message"] for each, _, _, rule in all_rules() if each == kind}
        assert every - seen == set(), "no good manifest has what these rules judge"


def reached(tree, value) -> set[str]:
    """The messages of all rules that had something to judge."""
    seen = {rule.message for rule in tree.rules}
    for name, below in tree.properties.items():
        if isinstance(value, dict) and name in value:
            seen |= reached(below, value[name])
    for item in value if tree.items and isinstance(value, list) else ():
        seen |= reached(tree.items, item)
    return seen


# JSON Schemas for editors -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_the_schema_for_editors_is_a_json_schema(kind):
    schema = schemas.json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema
    assert "x-kubernetes" not in json.dumps(schema)


def of_kind(value) -> str:
    return value["kind"] if isinstance(value, dict) and value.get("kind") in KINDS else "all"


def test_the_schema_for_editors_takes_the_good_table(good_file):
    for document in documents.load(good_file.read_bytes())[0]:
        value = document.value
        # What an API server adds is no part of what people write.
        value = {key: item for key, item in value.items() if key != "status"}
        value["metadata"] = manifests._own_metadata(value["metadata"])
        value["spec"] = defaults.fill(
            schemas.schema_of(value["kind"])["properties"]["spec"], value["spec"]
        )
        for kind in (of_kind(value), "all"):
            jsonschema.validate(value, schemas.json_schema(kind))


def test_the_schema_for_editors_refuses_the_bad_table_where_a_schema_can(bad_file, expected):
    """All but what CEL, keyed lists and whole sources say, which no JSON Schema can."""
    beyond = {rule["message"] for *_, rule in all_rules()}
    for document in documents.load(bad_file.read_bytes())[0]:
        value = document.value
        following = [line for line in starts(bad_file) if line > document.line]
        end = min(following, default=10**9)
        own = [message for line, _, message in expected if document.line <= line < end]
        schema_says = [
            message
            for message in own
            if message not in beyond and "is already" not in message and "there is no" not in message
            and "has no Jobset" not in message
        ]  # fmt: skip
        validator = jsonschema.Draft202012Validator(schemas.json_schema(of_kind(value)))
        assert bool(list(validator.iter_errors(value))) == bool(schema_says), (document.line, own)


def starts(file) -> list[int]:
    return [document.line for document in documents.load(file.read_bytes())[0]]


def test_an_unknown_kind_of_schema_is_a_key_error():
    with pytest.raises(KeyError):
        schemas.json_schema("Pod")


def test_walk_names_every_field_once():
    for kind in KINDS:
        paths = [path for path, _ in schemas.walk(schemas.schema_of(kind))]
        assert len(paths) == len(set(paths))
        assert "spec" in paths
