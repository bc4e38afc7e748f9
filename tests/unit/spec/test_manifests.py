"""The table of manifests, linking, hashes, caching and what a parse costs."""

import json
import resource
import time

import pytest

from fc_operator.kit import documents
from fc_operator.model import desired as nouns
from fc_operator.spec import manifests

HEAD = "apiVersion: fc-operator.dev/v1alpha1\n"
PROJECT = HEAD + "kind: Project\nmetadata: {name: demo}\nspec: {repositoryUrl: 'https://e/x'}\n"
JOBSET = HEAD + "kind: Jobset\nmetadata: {name: main}\nspec: {projectRef: {name: demo}}\n"


def found(problems) -> list[tuple[int, str, str]]:
    return sorted((each.line, each.field, each.message) for each in problems)


def declared(text: str, **options):
    """The only declaration of a text without problems."""
    parsed = manifests.parse_file("a.yaml", text.encode(), **options)
    assert parsed.problems == ()
    (declaration,) = parsed.declarations
    return declaration


# The table ----------------------------------------------------------------------------------


def test_a_good_source_has_no_problems(good_file):
    parsed = manifests.parse({good_file.name: good_file.read_bytes()})
    assert parsed.problems == ()
    assert parsed.declarations


def test_a_bad_source_has_exactly_the_problems_that_are_marked(bad_file, expected):
    parsed = manifests.parse({bad_file.name: bad_file.read_bytes()})
    assert found(parsed.problems) == expected
    assert expected, "a bad file without a mark"
    assert all(each.path == bad_file.name for each in parsed.problems)


def test_a_change_is_judged_as_the_marks_say(change_file, expected):
    parsed = manifests.parse_file(change_file.name, change_file.read_bytes())
    assert parsed.problems == ()
    old, new = parsed.declarations
    assert {line for line, _, _ in expected} <= set(
        range(new.line, new.line + 100)
    )  # marks are in the second
    problems = manifests.check_transition(old, new)
    assert sorted((each.field, each.message) for each in problems) == sorted(
        (field, message) for _, field, message in expected
    )
    assert manifests.check_transition(old, old) == ()


def test_every_problem_reads_as_one_line_with_its_place(bad_file):
    for problem in manifests.parse({bad_file.name: bad_file.read_bytes()}).problems:
        text = str(problem)
        assert text.startswith(f"{bad_file.name}:{problem.line}: ")
        assert "\n" not in text
        assert json.loads(json.dumps(problem.as_dict()))["message"] == problem.message


def test_the_table_shows_every_field_of_every_kind_with_another_value_than_its_default():
    """``everything.yaml`` is the example that nothing is missing from."""
    from fc_operator.spec import schemas

    file = next(file for file in _good() if file.name == "everything.yaml")
    shown = {kind: set() for kind in nouns.KINDS}

    def collect(kind, value, path):
        if isinstance(value, dict):
            for key, item in value.items():
                shown[kind].add(f"{path}.{key}")
                collect(kind, item, f"{path}.{key}")
        elif isinstance(value, list):
            for item in value:
                collect(kind, item, f"{path}[]")

    for document in documents.load(file.read_bytes())[0]:
        collect(document.value["kind"], document.value["spec"], "spec")
    for kind in nouns.KINDS:
        fields = {
            path for path, _ in schemas.walk(schemas.schema_of(kind)) if path.startswith("spec.")
        }
        assert fields - shown[kind] == set(), kind


def _good():
    from pathlib import Path

    return sorted((Path(__file__).parents[2] / "manifests" / "good").iterdir())


# The words of rows --------------------------------------------------------------------------


def test_a_jobset_in_the_words_of_its_row():
    text = (
        HEAD
        + "kind: Jobset\nmetadata: {name: demo-main}\nspec:\n  projectRef: {name: demo}\n  name: main\n"
        "  state: OneAtATime\n  checkInterval: 1m30s\n  timeout: 2h\n"
        "  inputs: [{name: a, type: Git, value: 'https://e/x main'}]\n"
    )
    one = declared(text)
    assert one.identity == "demo/main"
    assert one.desired == nouns.DesiredJobset(
        project="demo",
        name="main",
        nix_expression="release.nix",
        state="one_at_a_time",
        check_interval_s=90,
        timeout_s=7200,
        inputs=(nouns.InputSpec(name="a", type="git", value="https://e/x main"),),
    )


@pytest.mark.parametrize(
    ("spec", "expression"),
    [
        ("{}", "release.nix"),
        ("{flakeMode: true}", ""),
        ("{nixExpression: ''}", "release.nix"),
        ("{flakeMode: true, nixExpression: checks}", "checks"),
    ],
)
def test_what_is_evaluated_when_nothing_is_said(spec, expression):
    spec = spec.replace("{", "{projectRef: {name: demo}, ", 1).replace(", }", "}")
    one = declared(HEAD + f"kind: Jobset\nmetadata: {{name: main}}\nspec: {spec}\n")
    assert one.desired.nix_expression == expression


def test_a_builder_in_the_words_of_its_row():
    text = (
        HEAD
        + "kind: RemoteBuilder\nmetadata: {name: big-1}\nspec:\n  sshUri: nix@b:22/\n  systems: [x86_64-linux]\n"
        "  supportedFeatures: [kvm]\n  mandatoryFeatures: [big, kvm]\n  sshKeySecretRef: {name: k}\n"
        "  publicHostKey: ssh-ed25519 AAAAC3NzaC1lZDI1\n"
    )
    assert declared(text).desired == nouns.DesiredBuilder(
        name="big-1",
        ssh_uri="ssh://nix@b:22",
        systems=("x86_64-linux",),
        public_host_key="ssh-ed25519 AAAAC3NzaC1lZDI1",
        ssh_key=nouns.SecretRef(name="k", key="identity"),
        supported_features=("kvm", "big"),
        mandatory_features=("big", "kvm"),
    )


@pytest.mark.parametrize(
    ("path", "folder"),
    [(".", ""), ("./", ""), ("", ""), ("./fc/", "fc"), ("fc/prod", "fc/prod")],
)
def test_the_folder_of_a_config_repository_in_one_form(path, folder):
    text = (
        HEAD
        + f"kind: ConfigRepository\nmetadata: {{name: t}}\nspec: {{url: 'https://e/x', path: '{path}'}}\n"
    )
    assert declared(text).desired.path == folder


# Defaults and hashes ------------------------------------------------------------------------


def test_what_is_left_out_and_what_is_null_are_the_default():
    plain = declared(PROJECT)
    assert plain.spec["visibility"] == "Public"
    assert plain.spec["suspend"] is False
    for nothing in ("null", "~", "", "!!null ''"):
        text = PROJECT.replace("'https://e/x'}", f"'https://e/x', visibility: {nothing}}}")
        assert declared(text).spec_hash == plain.spec_hash
    block = HEAD + "kind: Project\nmetadata: {name: demo}\nspec:\n  repositoryUrl: https://e/x\n"
    assert declared(block + "  visibility:\n  description:\n").spec_hash == plain.spec_hash


def test_the_hash_does_not_see_order_layout_or_defaults_written_out(good_file):
    parsed = manifests.parse({good_file.name: good_file.read_bytes()})
    again = manifests.parse({"b.yaml": manifests.render(parsed.declarations).encode()})
    assert [each.spec_hash for each in again.declarations] == [
        each.spec_hash for each in parsed.declarations
    ]
    turned = json.dumps(_turned(manifests._manifest_of(parsed.declarations[0])))
    (first,) = manifests.parse_file("c.json", turned.encode()).declarations
    assert first.spec_hash == parsed.declarations[0].spec_hash


def _turned(value):
    """The value with the keys of all its mappings in opposite order."""
    if isinstance(value, dict):
        return {key: _turned(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [_turned(item) for item in value]
    return value


def test_the_hash_sees_the_name_the_place_and_every_change():
    hashes = {
        declared(text).spec_hash
        for text in (
            PROJECT,
            PROJECT.replace("name: demo", "name: demo2"),
            PROJECT.replace("name: demo", "name: demo, namespace: team"),
            PROJECT.replace("e/x", "e/y"),
        )
    }
    assert len(hashes) == 4


# Sources ------------------------------------------------------------------------------------


def test_which_files_are_manifests():
    yes = ["a.yaml", "b/c.yml", "x.JSON", "deep/er/a.yaml"]
    no = [
        "a.txt",
        "README.md",
        ".a.yaml",
        ".git/a.yaml",
        "kustomization.yaml",
        "x/Kustomization.yml",
        "a",
    ]
    assert [path for path in yes + no if manifests.is_manifest(path)] == yes


def test_declarations_come_in_the_order_in_which_they_can_be_made():
    files = {"a.yaml": JOBSET.encode(), "b.yaml": PROJECT.encode()}
    kinds = [each.kind for each in manifests.parse(files).declarations]
    assert kinds == ["Project", "Jobset"]


def test_of_a_thing_declared_twice_the_first_by_path_stays():
    files = {"b.yaml": JOBSET.encode(), "a.yaml": (JOBSET + "---\n" + PROJECT).encode()}
    parsed = manifests.parse(files)
    assert [each.path for each in parsed.declarations] == ["a.yaml", "a.yaml"]
    (problem,) = parsed.problems
    assert (problem.path, problem.message) == (
        "b.yaml",
        "Jobset demo/main is already declared in a.yaml:1",
    )


def test_a_reference_may_be_to_something_known_from_elsewhere():
    file = manifests.parse_file("a.yaml", JOBSET.encode())
    (problem,) = manifests.link([file]).problems
    assert problem.message == "there is no Project demo"
    assert manifests.link([file]).declarations
    assert manifests.link([file], known=[("Project", "demo")]).problems == ()


def test_one_broken_file_takes_nothing_from_the_others():
    files = {
        "a.yaml": b"\xff",
        "b.yaml": PROJECT.encode(),
        "c.yaml": b"a: *b\n",
        "d.yaml": JOBSET.encode(),
    }
    parsed = manifests.parse(files)
    assert len(parsed.declarations) == 2
    assert [each.path for each in parsed.problems] == ["a.yaml", "c.yaml"]


def test_what_stands_before_broken_text_is_still_read():
    parsed = manifests.parse_file("a.yaml", (PROJECT + "---\na: [\n").encode())
    assert len(parsed.declarations) == 1
    assert len(parsed.problems) == 1


def test_a_file_that_did_not_change_is_not_parsed_again(monkeypatch):
    cache = {}
    files = {"a.yaml": PROJECT.encode(), "b.yaml": JOBSET.encode()}
    first = manifests.parse(files, cache=cache)
    calls = []
    real = manifests.parse_file
    monkeypatch.setattr(manifests, "parse_file", lambda *a: calls.append(a[0]) or real(*a))
    assert manifests.parse(files, cache=cache) == first
    assert calls == []
    manifests.parse({**files, "b.yaml": JOBSET.encode() + b"#"}, cache=cache)
    assert calls == ["b.yaml"]


def test_a_moved_file_says_the_same_at_its_new_place():
    text = (JOBSET + "---\nkind: x\n").encode()
    moved = manifests.relocate(manifests.parse_file("a.yaml", text), "b.yaml")
    assert moved == manifests.parse_file("b.yaml", text)


def test_an_object_of_an_api_server_is_read_like_a_file():
    body = documents.load(PROJECT.encode())[0][0].value
    server = {"uid": "u-1", "generation": 4, "resourceVersion": "9", "namespace": "default"}
    body = {**body, "metadata": {**body["metadata"], **server}, "status": {"x": 1}}
    one, problems = manifests.parse_object(body)
    assert problems == ()
    assert (one.uid, one.generation) == ("u-1", 4)
    assert one.spec_hash == declared(PROJECT).spec_hash


def test_the_annotation_that_asks_for_a_run():
    text = PROJECT.replace(
        "{name: demo}", "{name: demo, annotations: {fc-operator.dev/requestedAt: now}}"
    )
    assert declared(text).requested_at == "now"
    assert declared(PROJECT).requested_at is None


# What it costs ------------------------------------------------------------------------------


def jobset_text(number: int) -> str:
    return (
        HEAD
        + f"kind: Jobset\nmetadata: {{name: demo-{number}}}\nspec:\n  projectRef: {{name: demo}}\n"
        f"  name: main-{number}\n  nixExpression: release{number}.nix\n  checkInterval: {number % 50 + 1}m\n"
        f"  inputs:\n    - {{name: pkgs, type: Git, value: 'https://git.example.org/n{number}.git main'}}\n"
        "    - {name: flag, type: Boolean, value: 'true'}\n"
    )


def test_looking_for_likeness_among_many_names_has_an_end():
    """A thousand jobsets of projects that are not there, beside a thousand projects that are."""
    projects = "---\n".join(PROJECT.replace("demo", f"demo{n}") for n in range(1_000))
    lost = "---\n".join(jobset_text(n) for n in range(1_000))
    began_s = time.process_time()
    parsed = manifests.parse({"a.yaml": projects.encode(), "b.yaml": lost.encode()})
    assert len(parsed.problems) == 1_000
    assert time.process_time() - began_s < 10  # it was minutes


def test_a_file_full_of_mistakes_is_cut_short():
    parsed = manifests.parse_file("a.yaml", b"---\nx: 1\n" * 9_000)
    assert len(parsed.problems) < 600
    assert parsed.problems[-1].message.startswith("the file has too many problems")
    many = JOBSET.replace("{name: demo}}", "{name: demo}, inputs: [" + "{a: b}," * 1_000 + "]}")
    problems = manifests.parse_file("a.yaml", many.encode()).problems
    assert len(problems) == 51
    assert problems[-1].message == "it has more problems; the rest is not shown"


HOSTILE = {
    "unknown fields": JOBSET.replace("{name: demo}}", "{name: demo}, " + "".join(f"k{n}: 1, " for n in range(9_000)) + "}"),
    "mixed types in a set": JOBSET.replace(
        "{name: demo}}", "{name: demo}, systems: [" + "".join(f"a{n}, {n}, [x], " for n in range(2_000)) + "]}"
    ),
    "items that lack everything": JOBSET.replace("{name: demo}}", "{name: demo}, inputs: [" + "{a: b}," * 2_000 + "]}"),
    "a branch of a megabyte": JOBSET.replace("{name: demo}}", "{name: demo}, branch: " + "a" * 1_000_000 + "}"),
    "an interval of a megabyte": JOBSET.replace("{name: demo}}", "{name: demo}, checkInterval: " + "1" * 1_000_000 + "}"),
    "an expression of a megabyte": JOBSET.replace("{name: demo}}", "{name: demo}, nixExpression: " + "a." * 500_000 + "}"),
    "a name of a megabyte": JOBSET.replace("{name: main}", "{name: " + "a" * 1_000_000 + "}"),
    "a kind of a megabyte": "kind: " + "K" * 1_000_000,
    "a version of a megabyte": "apiVersion: " + "v" * 1_000_000 + "\nkind: Jobset\n",
    "an enum of a megabyte": JOBSET.replace("{name: demo}}", "{name: demo}, state: " + "E" * 1_000_000 + "}"),
    "many documents that are wrong": "---\n" + "---\nkind: Projekt\n" * 9_000,
    "many documents that are text": "---\nx\n" * 9_000,
    "deep annotations": PROJECT.replace("{name: demo}", "{name: demo, annotations: " + "{a: " * 40 + "1" + "}" * 41),
}  # fmt: skip


def cheapest(call):
    """(CPU seconds, result) of the best of ten: what it costs, not what else the machine does."""
    costs = []
    for _ in range(10):
        began_s = time.process_time()
        result = call()
        costs.append(time.process_time() - began_s)
    return min(costs), result


@pytest.mark.parametrize("name", HOSTILE)
def test_c16_a_hostile_manifest_costs_100_ms_and_20_mib(name):
    manifests.parse_file("a.yaml", (PROJECT + "---\n" + JOBSET).encode())  # compiled once
    data = HOSTILE[name].encode()
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took_s, parsed = cheapest(lambda: manifests.parse({"a.yaml": data}))
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
    assert parsed.problems
    assert all(len(str(problem)) < 2_000 for problem in parsed.problems)
    assert took_s < 0.1
    assert grown_mib < 20
