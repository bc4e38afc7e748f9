"""The administrator's list, and who gets what of it."""

import pytest

from fc_operator.executors import targets
from fc_operator.executors.targets import Defaults

DEFAULTS = Defaults(namespace="ci", systems=("x86_64-linux",), features=("kvm",))


def parse(text: str):
    return targets.parse_targets(text.encode(), DEFAULTS)


def test_a_target_has_what_the_installation_has_unless_it_says_otherwise():
    found, problems = parse("""
targets:
  - {name: default, objectNamespaces: ["team-*"]}
  - name: big
    objectNamespaces: [team-a]
    namespace: builds-big
    serviceAccountName: nobody
    sandbox: Nix
    systems: [aarch64-linux]
    features: []
    allowedTemplateFields: [resources]
    podTemplate: {spec: {nodeSelector: {pool: big}}}
""")
    assert problems == ()
    small, big = found
    assert (small.namespace, small.systems, small.features) == ("ci", ("x86_64-linux",), ("kvm",))
    assert small.sandbox == "Pod"
    assert (big.namespace, big.service_account, big.sandbox) == ("builds-big", "nobody", "Nix")
    assert (big.systems, big.features) == (("aarch64-linux",), ())
    assert big.pod_template == {"spec": {"nodeSelector": {"pool": "big"}}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("targets: [{objectNamespaces: ['*']}]", "no name"),
        ("targets: [{name: a}]", "does not say objectNamespaces"),
        ("targets: [{name: a, objectNamespaces: '*'}]", "list of texts"),
        ("targets: [{name: A, objectNamespaces: ['*']}]", "small letters"),
        ("targets: [{name: a, objectNamespaces: ['*'], namespace: A_b}]", "small letters"),
        ("targets: [{name: a, objectNamespaces: ['Team']}]", "can't match"),
        ("targets: [{name: a, objectNamespaces: ['*'], sandbox: None}]", "one of Pod, Nix"),
        ("targets: [{name: a, objectNamespaces: ['*'], podTemplate: []}]", "is a mapping"),
        (
            "targets: [{name: a, objectNamespaces: ['*'], podTemplate: {status: {}}}]",
            "metadata and spec",
        ),
        (
            "targets: [{name: a, objectNamespaces: ['*'], podTemplate: {spec: {containers: [{}]}}}]",
            "containers with names",
        ),
        ("targets: [{name: a, objectNamespaces: ['*'], zone: x}]", "no field zone"),
        (
            "targets: [{name: a, objectNamespaces: ['*'], allowedTemplateFields: [hostNetwork]}]",
            "not hostNetwork",
        ),
        (
            "targets: [{name: a, objectNamespaces: ['*']}, {name: a, objectNamespaces: ['*']}]",
            "already",
        ),
        ("targets: []", "no target"),
        ("targets: text", "no list"),
        ("{", "2: this is not YAML"),
    ],
)
def test_what_is_wrong_is_said(text, said):
    _, problems = parse(text)
    assert any(said in problem for problem in problems), problems


def test_a_target_is_for_the_namespaces_that_the_administrator_says():
    found, _ = parse("""
targets:
  - {name: shared, objectNamespaces: ["team-*"]}
  - {name: secret, objectNamespaces: [team-a], namespace: vault}
""")
    assert targets.choose(found, object_namespace="team-a", name="secret").target is found[1]
    refused = targets.choose(found, object_namespace="team-b", name="secret")
    absent = targets.choose(found, object_namespace="team-b", name="nothing")
    assert refused.target is None
    assert refused.reason == "TargetNotAllowed"
    # Nobody learns which targets others have.
    assert refused.message.replace("secret", "nothing") == absent.message
    nowhere = targets.choose(found, object_namespace="other")
    assert (nowhere.target, nowhere.reason) == (None, "TargetNotAllowed")


def test_without_a_name_it_is_default_then_the_first():
    found, _ = parse("""
targets:
  - {name: first, objectNamespaces: ["*"]}
  - {name: default, objectNamespaces: [a]}
""")
    assert targets.choose(found, object_namespace="a").target is found[1]
    assert targets.choose(found, object_namespace="b").target is found[0]


def test_a_target_may_let_projects_say_less():
    found, _ = parse("targets: [{name: a, objectNamespaces: ['*'], allowedTemplateFields: []}]")
    refused = targets.choose(found, object_namespace="x", template_fields=("resources",))
    assert refused.reason == "TemplateNotAllowed"
    assert "resources" in refused.message
    assert targets.choose(found, object_namespace="x").target is found[0]


def test_without_a_list_all_objects_run_in_our_own_namespace():
    only = targets.only_default(DEFAULTS)
    assert targets.choose(only, object_namespace="any").target is only[0]
    assert only[0].namespace == "ci"
