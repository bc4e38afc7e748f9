"""Objects of a cluster as a source: each namespace is on its own, and what is deleted goes."""

import pytest

from fc_operator.errors import LeaseLostError
from fc_operator.operations.cluster import Cluster, source_of
from fc_operator.spec import manifests

REPOSITORY = "https://git.example.org/demo.git"


def declared(kind, namespace, name, spec, **metadata):
    body = {
        "apiVersion": "fc-operator.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "uid": f"{namespace}-{name}"},
        "spec": spec,
    }
    body["metadata"].update({"generation": 1, **metadata})
    declaration, problems = manifests.parse_object(body)
    assert not problems
    return declaration


def project(namespace, name="demo", **spec):
    return declared("Project", namespace, name, {"repositoryUrl": REPOSITORY, **spec})


def jobset(namespace, name="main", of="demo", **spec):
    return declared("Jobset", namespace, name, {"projectRef": {"name": of}, **spec})


@pytest.fixture
def cluster(door):
    """A cluster as a source; ``cluster.held`` says whether the lease is ours."""

    async def still_held(_):
        return made.held

    made = Cluster(
        door.database,
        source_of("ci"),
        keyring=door.keyring,
        config=door.config,
        still_held=still_held,
    )
    made.held = True
    return made


@pytest.fixture
def ready(cluster):
    """Reason and message of an object's Ready."""

    async def find(kind, namespace, name):
        (state,) = await cluster.states(places=[(kind, namespace, name)])
        found = next(each for each in state.conditions if each.type == "Ready")
        return found.reason, found.message

    return find


async def test_objects_come_into_force_and_a_second_look_writes_nothing(cluster, door, ready):
    await cluster.bring([project("a"), jobset("a")])
    assert await ready("Jobset", "a", "main") == ("Reconciled", "")
    written = await door.written()
    await cluster.bring([project("a"), jobset("a")])
    await cluster.compare([project("a"), jobset("a")], (), confirm=False)
    assert await door.written() == written


async def test_what_waits_in_the_cluster_goes_on_when_what_it_needs_comes(cluster, ready):
    await cluster.bring([jobset("a")])
    assert (await ready("Jobset", "a", "main"))[0] == "ReferenceNotFound"
    touched = await cluster.bring([project("a")])
    assert ("Jobset", "a", "main") in touched
    assert (await ready("Jobset", "a", "main"))[0] == "Reconciled"


async def test_a_name_of_another_namespace_is_not_taken_over(cluster, ready, door):
    await cluster.bring([project("a")])
    await cluster.bring([project("b", repositoryUrl="https://git.example.org/evil.git")])
    assert await ready("Project", "b", "demo") == (
        "OwnedByOther", "it is owned by Kubernetes ci, a/demo"
    )  # fmt: skip
    assert await door.value("SELECT repository_url FROM projects") == REPOSITORY


async def test_a_name_that_was_another_namespaces_stays_its_history(cluster, ready, door):
    """Who deletes a project does not hand its builds to whoever comes next."""
    await cluster.bring([project("a")])
    await cluster.bring([], gone=[("Project", "a", "demo")])
    await cluster.bring([project("b")])
    reason, message = await ready("Project", "b", "demo")
    assert (reason, message) == ("OwnedByOther", "its history belongs to the namespace a")
    await cluster.bring([project("a")])
    assert (await ready("Project", "a", "demo"))[0] == "Reconciled"
    assert await door.value("SELECT deleting_at IS NULL FROM projects")


async def test_no_jobset_joins_a_project_of_another_namespace(cluster, ready, door):
    await cluster.bring([project("a")])
    await cluster.bring([jobset("b")])
    assert await ready("Jobset", "b", "main") == (
        "ReferenceNotPermitted", "the Project demo belongs to another namespace"
    )  # fmt: skip
    assert await door.value("SELECT count(*) FROM jobsets") == 0


async def test_waiting_for_a_project_keeps_no_name_from_its_own_namespace(cluster, ready, door):
    """The stranger came first, and may not hold the name when the project comes elsewhere."""
    await cluster.bring([jobset("b")])
    await cluster.bring([project("a"), jobset("a")])
    assert (await ready("Jobset", "a", "main"))[0] == "Reconciled"
    assert (await ready("Jobset", "b", "main"))[0] == "ReferenceNotPermitted"
    assert await door.value("SELECT count(*) FROM jobsets") == 1


async def test_a_stranger_gets_its_turn_when_the_project_leaves_for_good(cluster, ready, door):
    await cluster.bring([project("a")])
    await cluster.bring([project("b")])
    await cluster.bring([], gone=[("Project", "a", "demo")])
    await door.run("DELETE FROM managed_resources WHERE namespace = 'a'")
    await door.run("DELETE FROM projects")
    await cluster.bring([])
    assert (await ready("Project", "b", "demo"))[0] == "Reconciled"


async def test_what_is_deleted_is_pruned_without_a_guard(cluster, door):
    """A person took each away by its name."""
    await cluster.bring([project("a"), *(jobset("a", f"j{n}") for n in range(9))])
    await cluster.bring([], gone=[("Jobset", "a", f"j{n}") for n in range(9)])
    assert await door.value("SELECT count(*) FROM jobsets WHERE deleting_at IS NOT NULL") == 9
    assert await door.value("SELECT deleting_at IS NULL FROM projects")


async def test_what_a_cluster_lost_all_at_once_stays_until_it_is_confirmed(cluster, door, ready):
    """Another kubeconfig, a restored etcd: nobody deleted anything."""
    everything = [project("a"), *(jobset("a", f"j{n}") for n in range(9))]
    await cluster.bring(everything)
    report = await cluster.compare([project("a")], (), confirm=False)
    assert "9 of 10 objects" in report.prune_blocked
    assert (await ready("Jobset", "a", "j3"))[0] == "PruneNeedsConfirmation"
    assert await door.value("SELECT count(*) FROM jobsets WHERE deleting_at IS NOT NULL") == 0
    await cluster.compare([project("a")], (), confirm=True)
    assert await door.value("SELECT count(*) FROM jobsets WHERE deleting_at IS NOT NULL") == 9


async def test_what_is_being_deleted_is_kept_by_no_guard_when_a_comparison_comes_first(
    cluster, door
):
    """It was deleted by name, and would hang in the cluster until somebody confirmed it."""
    await cluster.bring([project("a"), *(jobset("a", f"j{n}") for n in range(9))])
    gone = [("Project", "a", "demo"), *(("Jobset", "a", f"j{n}") for n in range(9))]
    report = await cluster.compare([], (), gone=gone, confirm=False)
    assert report.prune_blocked == ""
    assert await door.value("SELECT count(*) FROM jobsets WHERE deleting_at IS NULL") == 0
    assert await door.value("SELECT count(*) FROM projects WHERE deleting_at IS NULL") == 0
    assert (
        await door.value("SELECT count(*) FROM managed_resources WHERE pruning_since IS NULL") == 0
    )


async def test_what_can_not_be_understood_stays_as_it_was(cluster, door):
    await cluster.bring([project("a"), jobset("a")])
    await cluster.compare([project("a")], {("Jobset", "a", "main")}, confirm=False)
    assert await door.value("SELECT deleting_at IS NULL FROM jobsets")


async def test_a_config_repositorys_objects_are_refused_to_kubectl_and_the_other_way(
    cluster, door, make, ready
):
    await door.sync(make.project("demo"), source="team")
    await cluster.bring([project("default"), project("default", "mine")])
    assert await ready("Project", "default", "demo") == (
        "OwnedByOther", "it is owned by ConfigRepository team"
    )  # fmt: skip
    await door.sync(make.project("demo"), make.project("mine"), source="team")
    assert await door.ready("mine", source="team") == (
        "False", "OwnedByOther", "it is owned by Kubernetes ci"
    )  # fmt: skip
    # What is given up by one is taken over by the other, and never stops.
    await door.sync(make.project("mine"), source="team", confirm=True)
    assert (await ready("Project", "default", "demo"))[0] == "Reconciled"
    await cluster.bring([], gone=[("Project", "default", "mine")])
    assert (await door.ready("mine", source="team"))[1] == "Reconciled"
    assert await door.value("SELECT count(*) FROM projects WHERE deleting_at IS NOT NULL") == 0


async def test_who_lost_the_lease_writes_nothing(cluster, door):
    cluster.held = False
    written = await door.written()
    with pytest.raises(LeaseLostError):
        await cluster.bring([project("a")])
    assert await door.written() == written


async def test_states_tell_how_the_newest_evaluation_stands(cluster, door):
    await cluster.bring([project("a"), jobset("a")])
    await door.run(
        "INSERT INTO evaluations (jobset_id, commit_hash, status, errors)"
        " SELECT id, repeat('a', 40), 'completed', 2 FROM jobsets"
    )
    evaluation = await door.value("SELECT id FROM evaluations")
    for nr, status in enumerate(["succeeded", "failed", "running", "pending", "pending"]):
        await door.run(
            "INSERT INTO builds (evaluation_id, job_name, drv_path, status)"
            " VALUES ($1, $2, $2, $3)",
            evaluation, f"job{nr}", status,
        )  # fmt: skip
    (state,) = await cluster.states(evaluations=[evaluation])
    found = state.evaluation
    assert (found.commit, found.errors, found.ended) == ("a" * 40, 2, False)
    builds = found.builds
    assert (builds.total, builds.succeeded, builds.failed) == (5, 1, 1)
    assert (builds.running, builds.queued) == (1, 2)
    states = {each.kind: each for each in await cluster.states()}
    assert states["Project"].jobsets == 1
