"""The CRDs in a real API server: one table through both doors, and what kubectl makes of them."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from fc_operator.model import desired
from fc_operator.spec import manifests, schemas
from tests.cluster.api_door import ApiDoor
from tests.cluster.kubectl import RefusedError
from tests.manifests import table

MANAGER = "fc-tests"
_SAYS = (
    # The words of our problems, and the reason that the API server gives then.
    ("is not known", "FieldUnknown"),
    ("is missing", "FieldValueRequired"),
    (" is not one of ", "FieldValueNotSupported"),
    ("must be ", "FieldValueTypeInvalid"),
    ("the list holds an item twice", "FieldValueDuplicate"),
    (" is already in ", "FieldValueDuplicate"),
    (" characters long", "FieldValueTooLong"),
    ("the list has ", "FieldValueTooMany"),
    ("", "FieldValueInvalid"),
)
_RULES = {
    rule["message"]
    for kind in desired.KINDS
    for path, node in [("", schemas.schema_of(kind)), *schemas.walk(schemas.schema_of(kind))]
    for where in (node, node.get("items", {}))
    for rule in where.get("x-kubernetes-validations", ())
}


@pytest.fixture(scope="session")
def kinds(kubectl):
    """Our kinds, installed as a user does."""
    kubectl(
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        str(schemas.crd_files()[0].parent.resolve()),
    )
    for crd in schemas.crds().values():
        kubectl("wait", "--for=condition=Established", f"crd/{crd['metadata']['name']}")


@pytest.fixture
def door(cluster, kinds, namespace):
    door = ApiDoor(cluster.environment()["KUBECONFIG"], namespace)
    yield door
    door.close()


def is_sendable(body) -> bool:
    """Whether it can be sent to one of our kinds at all; kubectl knows no other address."""
    return (
        isinstance(body, dict)
        and body.get("kind") in desired.KINDS
        and body.get("apiVersion") == desired.API_VERSION
    )


def covers(ours: str, theirs: str) -> bool:
    """Whether both speak of one place. What is of a wrong type has wrong parts too, and an API
    server's decoder names all labels where we name the one.
    """
    if theirs in {"metadata.labels", "metadata.annotations"} and ours.startswith(theirs):
        return True
    return ours == theirs or theirs.startswith((f"{ours}.", f"{ours}["))


def test_the_api_server_has_nothing_against_the_crds(kinds, kubectl):
    """Their rules cost less than its limits, or it would not have taken them."""
    for kind, crd in schemas.crds().items():
        found = kubectl.json("get", "crd", crd["metadata"]["name"])
        conditions = {each["type"]: each["status"] for each in found["status"]["conditions"]}
        assert conditions == {"NamesAccepted": "True", "Established": "True"}, kind
        assert found["status"]["storedVersions"] == ["v1alpha1"]


def test_a_rule_that_costs_too_much_would_be_refused(kinds, kubectl):
    """So that the test above says something: the same rule over an unbounded list is not taken."""
    crd = json.loads(json.dumps(schemas.crds()["Jobset"]))
    crd["metadata"]["name"] = "costly.fc-operator.dev"
    crd["spec"]["names"] = {"kind": "Costly", "plural": "costly", "singular": "costly"}
    inputs = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"][
        "properties"
    ]["inputs"]
    del inputs["maxItems"]
    del inputs["items"]["properties"]["value"]["maxLength"]
    with pytest.raises(RefusedError, match="exceeds budget"):
        kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(crd))


# One table, two doors -----------------------------------------------------------------------


def test_a_good_manifest_is_kept_as_the_other_door_understands_it(door, subtests):
    judged = 0
    for case in table.cases("good"):
        with subtests.test(case.id):
            verdict = door.judge(case.value)
            assert verdict.causes == ()
            declaration, problems = manifests.parse_object(case.value)
            assert problems == ()
            assert verdict.kept["spec"] == declaration.spec, "defaults and values are the same"
            again, problems = manifests.parse_object(verdict.kept)
            assert problems == ()
            assert again.desired == declaration.desired
            judged += 1
    assert judged >= 8


def test_a_bad_manifest_is_refused_by_both_for_the_same_fields(door, subtests):
    judged = 0
    for case in table.cases("bad"):
        if not is_sendable(case.value):
            continue
        judged += 1
        with subtests.test(case.id):
            ours = [(m.field, m.message) for m in case.marks if not m.only_git]
            # A new object may leave its name to the API server; in git nobody would know it again.
            ours = [each for each in ours if each[0] != "metadata.generateName"]
            verdict = door.judge(case.value)
            assert bool(verdict.causes) == bool(ours), verdict.causes
            for field, message in ours:
                said = [cause for cause in verdict.causes if covers(field, cause.field)]
                assert said, f"the API server has nothing against {field}: {verdict.causes}"
                if message in _RULES:
                    assert any(message in cause.message for cause in said), said
                elif field != "metadata" and not field.startswith("metadata."):
                    reason = next(reason for words, reason in _SAYS if words in message)
                    assert reason in {cause.reason for cause in said}, (field, message, said)
            for cause in verdict.causes:
                assert any(covers(field, cause.field) for field, _ in ours), f"unmarked: {cause}"
    assert judged >= 48


def test_a_manifest_of_another_kind_or_version_is_refused_by_kubectl_too(kinds, kubectl, namespace):
    """All but the one of Kubernetes' own kinds, which we refuse to own."""
    refused = 0
    for case in table.cases("bad"):
        if case.file.name != "not-ours.yaml" or not isinstance(case.value, dict):
            continue
        if case.value.get("kind") == "ConfigMap":
            continue
        with pytest.raises(RefusedError):
            kubectl.within(namespace)(
                "create", "--dry-run=server", "-f", "-", stdin=json.dumps(case.value)
            )
        refused += 1
    assert refused == 4


def test_a_change_is_judged_alike(door, subtests):
    for file in table.files("changes"):
        with subtests.test(file.name):
            old, new = [case for case in table.cases("changes") if case.file == file]
            verdict = door.judge_change(old.value, new.value)
            expected = sorted((mark.field, mark.message) for mark in new.marks)
            # A rule that says what may change gives its message and nothing else.
            said = sorted(
                (cause.field, cause.message.removeprefix("Invalid value: "))
                for cause in verdict.causes
            )
            assert said == expected


# kubectl ------------------------------------------------------------------------------------


PROJECT = {
    "apiVersion": desired.API_VERSION,
    "kind": "Project",
    "metadata": {"name": "demo"},
    "spec": {"repositoryUrl": "https://git.example.org/demo.git"},
}
JOBSET = {
    "apiVersion": desired.API_VERSION,
    "kind": "Jobset",
    "metadata": {"name": "demo-main"},
    "spec": {"projectRef": {"name": "demo"}, "name": "main"},
}


@pytest.fixture
def mine(kinds, kubectl, namespace):
    """kubectl in a namespace of the test's own."""
    return kubectl.within(namespace)


def write_status(kubectl, what: str, **status) -> None:
    kubectl(
        "patch", what, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status})
    )


def condition(kind: str, status: str, reason: str, generation: int, message: str = "") -> dict:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "type": kind, "status": status, "reason": reason, "message": message,
        "observedGeneration": generation, "lastTransitionTime": at,
    }  # fmt: skip


def test_explain_has_words_for_every_field(kinds, kubectl, subtests):
    for kind in desired.KINDS:
        names = schemas.crds()[kind]["spec"]["names"]
        said = kubectl("explain", names["plural"], "--api-version", desired.API_VERSION)
        assert schemas.schema_of(kind)["description"].split(":")[0] in said
        tree = kubectl("explain", names["plural"], "--recursive")
        nodes = dict(schemas.walk(schemas.schema_of(kind)))
        for path, node in nodes.items():
            assert f"{path.rsplit('.', 1)[-1]}\t<" in tree, path
            if path != "metadata":
                assert node["description"], path
        # By the short name too, down to a leaf, with its default and its choices.
    said = kubectl("explain", "fcjs.spec.state")
    assert "OneShot: evaluated once per change" in " ".join(said.split())
    assert "ENUM: Disabled Enabled OneShot OneAtATime" in " ".join(said.split())
    assert "<string>" in said
    said = " ".join(kubectl("explain", "fcproj.spec.webhooks.secretRef.key").split())
    assert "The key inside the secret." in said
    assert "-required-" in kubectl("explain", "fcproj.spec.webhooks.secretRef")


def columns(text: str) -> list[str]:
    return text.splitlines()[0].split()


def test_get_shows_why_and_how_far_by_short_name_and_by_category(mine):
    mine.apply(PROJECT, JOBSET)
    assert columns(mine("get", "fcjs")) == [
        "NAME", "READY", "REASON", "PROJECT", "PASSING", "REVISION", "OK", "FAILED", "RUNNING",
        "AGE",
    ]  # fmt: skip
    assert columns(mine("get", "fcproj")) == [
        "NAME", "READY", "REASON", "REPOSITORY", "JOBSETS", "AGE",
    ]  # fmt: skip
    for short in ("fcrb", "fcrepo"):
        assert "No resources found" in mine("get", short) or not mine("get", short).strip()
    revision = "0123456789abcdef0123456789abcdef01234567"
    write_status(
        mine, "jobset/demo-main", observedGeneration=1, lastRevision=revision,
        builds={"total": 16, "succeeded": 12, "failed": 1, "running": 3, "queued": 0},
        conditions=[
            condition("Ready", "True", "Reconciled", 1, "all is well"),
            condition("Passing", "False", "BuildsFailed", 1),
        ],
    )  # fmt: skip
    row = mine("get", "fcjs", "--no-headers").split()
    assert row[:-1] == [
        "demo-main", "True", "Reconciled", "demo", "False", revision, "12", "1", "3",
    ]  # fmt: skip
    wide = mine("get", "fcjs", "-o", "wide")
    assert {"STATUS", "STATE", "SUSPENDED"} <= set(columns(wide))
    assert "all is well" in wide
    all_of_it = mine("get", "fc")
    assert "project.fc-operator.dev/demo" in all_of_it
    assert "jobset.fc-operator.dev/demo-main" in all_of_it
    assert "jobset" not in mine("get", "all"), "`get all` is for what runs"


def test_fields_select_what_is_asked_for(mine):
    other = {**JOBSET, "metadata": {"name": "other"}, "spec": {"projectRef": {"name": "other"}}}
    mine.apply(JOBSET, other)
    said = mine("get", "fcjs", "--field-selector=spec.projectRef.name=demo", "-o", "name")
    assert said.split() == ["jobset.fc-operator.dev/demo-main"]


# Server-side apply --------------------------------------------------------------------------


def apply_as(kubectl, manager: str, *objects, force: bool = False) -> str:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
    # A manager says only what it owns; kubectl itself would miss the rest.
    flags = ["--validate=false", *(["--force-conflicts"] if force else [])]
    return kubectl(
        "apply", "--server-side", f"--field-manager={manager}", *flags, "-f", "-", stdin=text
    )


def with_spec(body: dict, **spec) -> dict:
    return {**body, "spec": {**body["spec"], **spec}}


def test_two_managers_each_own_their_items_of_a_keyed_list(mine):
    nixpkgs = {"name": "nixpkgs", "type": "Git", "value": "https://e/nixpkgs.git"}
    flag = {"name": "flag", "type": "Boolean", "value": "true"}
    apply_as(mine, "one", with_spec(JOBSET, inputs=[nixpkgs]))
    bare = {key: JOBSET[key] for key in ("apiVersion", "kind", "metadata")}
    apply_as(mine, "two", {**bare, "spec": {"inputs": [flag]}})
    found = mine.json("get", "jobset", "demo-main")["spec"]["inputs"]
    assert {each["name"] for each in found} == {"nixpkgs", "flag"}
    # What one no longer says goes; what the other says stays.
    apply_as(mine, "one", JOBSET)
    found = mine.json("get", "jobset", "demo-main")["spec"]["inputs"]
    assert [each["name"] for each in found] == ["flag"]


def test_two_managers_of_one_field_are_a_conflict_that_names_it(mine):
    apply_as(mine, "one", with_spec(JOBSET, branch="main"))
    with pytest.raises(RefusedError, match=r'conflict with "one".*\.spec\.branch'):
        apply_as(mine, "two", with_spec(JOBSET, branch="next"))
    assert mine.json("get", "jobset", "demo-main")["spec"]["branch"] == "main"
    apply_as(mine, "two", with_spec(JOBSET, branch="next"), force=True)
    assert mine.json("get", "jobset", "demo-main")["spec"]["branch"] == "next"


def test_applying_the_same_again_changes_nothing(mine):
    apply_as(mine, "one", PROJECT, JOBSET)
    apply_as(mine, "one", PROJECT, JOBSET)  # the first change keeps the status that was only read
    before = mine.json("get", "fc")["items"]
    apply_as(mine, "one", PROJECT, JOBSET)
    assert mine.json("get", "fc")["items"] == before
    mine("apply", "-f", "-", stdin=json.dumps(JOBSET))  # its note of what was applied, no more
    after = mine.json("get", "fc")["items"]
    assert [each["metadata"]["generation"] for each in after] == [1, 1]
    assert [each["spec"] for each in after] == [each["spec"] for each in before]


# Status -------------------------------------------------------------------------------------


def test_a_new_object_says_that_nobody_has_looked_at_it(mine):
    mine.apply({**JOBSET, "status": {"observedGeneration": 1, "lastRevision": "forged"}})
    assert mine.json("get", "jobset", "demo-main")["status"] == {"observedGeneration": -1}


def test_a_status_is_written_apart_and_bumps_no_generation(mine):
    mine.apply(JOBSET)
    write_status(mine, "jobset/demo-main", observedGeneration=1)
    forged = {"spec": {"branch": "next"}, "status": {"observedGeneration": 7}}
    mine("patch", "jobset/demo-main", "--type=merge", "-p", json.dumps(forged))
    found = mine.json("get", "jobset", "demo-main")
    assert (found["metadata"]["generation"], found["status"]["observedGeneration"]) == (2, 1)
    mine(
        "patch", "jobset/demo-main", "--subresource=status", "--type=merge",
        "-p", json.dumps({"spec": {"branch": "x"}, "status": {"observedGeneration": 2}}),
    )  # fmt: skip
    found = mine.json("get", "jobset", "demo-main")
    assert found["spec"]["branch"] == "next"
    assert (found["metadata"]["generation"], found["status"]["observedGeneration"]) == (2, 2)


def test_a_condition_without_its_generation_is_refused(mine):
    mine.apply(JOBSET)
    nameless = condition("Ready", "True", "Reconciled", 1)
    del nameless["observedGeneration"]
    with pytest.raises(RefusedError, match="observedGeneration"):
        write_status(mine, "jobset/demo-main", conditions=[nameless])


@pytest.mark.parametrize("kind", desired.KINDS)
def test_wait_is_never_satisfied_by_a_stale_generation(mine, kind):
    """Neither before anybody looked, nor by a Ready of the spec before this one."""
    case = next(
        case for case in table.cases("good")
        if case.file.name == "smallest.yaml" and case.value["kind"] == kind
    )  # fmt: skip
    name = case.value["metadata"]["name"]
    what = f"{kind.lower()}/{name}"
    metadata = {"name": name}
    mine.apply({**case.value, "metadata": metadata})

    def is_ready(timeout: str = "1s") -> bool:
        try:
            mine("wait", "--for=condition=Ready", what, f"--timeout={timeout}")
        except RefusedError as error:
            if "timed out" not in str(error):
                raise
            return False
        return True

    assert not is_ready()
    ready = condition("Ready", "True", "Reconciled", 1)
    write_status(mine, what, observedGeneration=1, conditions=[ready])
    assert is_ready()
    mine("patch", what, "--type=merge", "-p", json.dumps({"spec": {"suspend": True}})
         if kind != "RemoteBuilder" else json.dumps({"spec": {"maxJobs": 2}}))  # fmt: skip
    assert mine.json("get", what)["metadata"]["generation"] == 2
    assert not is_ready(), "its Ready speaks of the generation before"
    # A writer that raises only the number above, and forgets the condition, satisfies nobody.
    write_status(mine, what, observedGeneration=2)
    assert not is_ready()
    ready = condition("Ready", "True", "Reconciled", 2)
    write_status(mine, what, observedGeneration=2, conditions=[ready])
    assert is_ready()


# What nobody has thought of -------------------------------------------------------------------


def is_plain(value) -> bool:
    """Whether its keys are words: paths with other keys can't be told apart again."""
    if isinstance(value, dict):
        return all(
            re.fullmatch(r"[A-Za-z0-9_./-]+", key) and is_plain(item) for key, item in value.items()
        )
    return not isinstance(value, list) or all(is_plain(item) for item in value)


def test_a_good_manifest_that_was_spoilt_at_random_is_judged_alike(door):
    """Changed, cut and doubled at some places: the same fields are refused, or the same is kept."""
    from tests.unit.spec.test_properties import mutated

    judged = {"kept": 0, "refused": 0}

    @settings(
        max_examples=300, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(mutated())
    def compare(body):
        assume(is_sendable(body) and isinstance(body.get("metadata"), dict) and is_plain(body))
        declaration, problems = manifests.parse_object(body)
        verdict = door.judge(body)
        ours = {each.field for each in problems}
        # What an API server writes itself (uid, finalizers, …) we take and don't look at.
        written = {f"metadata.{field}" for field in manifests._SERVER_METADATA}
        theirs = {cause.field for cause in verdict.causes} - written
        if declaration is not None:
            assert theirs == set(), body
            assert verdict.kept is None or verdict.kept["spec"] == declaration.spec, body
            judged["kept"] += 1
            return
        judged["refused"] += 1
        for field in ours:
            assert any(covers(field, each) for each in theirs), (field, verdict.causes, body)
        for field in theirs:
            # An item without its key is like any other without it; we say only what is missing.
            assert any(covers(each, field) or each.startswith(f"{field}.") for each in ours), (
                field, problems, body,
            )  # fmt: skip

    compare()
    assert judged["kept"] > 15
    assert judged["refused"] > 50
