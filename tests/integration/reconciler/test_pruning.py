import pytest


def actions(report):
    return {each.identity: each.action for each in report.objects}


@pytest.fixture
def four(make):
    return [make.project("demo"), *(make.jobset(name) for name in ("a", "b", "c"))]


async def deleting(door):
    return sorted(
        name
        for (name,) in await door.rows("SELECT name FROM jobsets WHERE deleting_at IS NOT NULL")
    )


async def test_what_is_gone_is_stopped_first_and_heals_when_it_comes_back(door, four):
    await door.sync(*four)
    report = await door.sync(*four[:3])
    assert actions(report)["demo/c"] == "prune"
    assert await deleting(door) == ["c"]
    assert await door.value("SELECT next_check_at FROM jobsets WHERE name = 'c'") is None
    assert (await door.ready("demo/c"))[:2] == ("False", "Pruning")
    before = await door.written()
    await door.sync(*four[:3])
    assert await door.written() == before, "what is on its way out is left alone"
    report = await door.sync(*four)
    assert actions(report)["demo/c"] == "update"
    assert await deleting(door) == []
    assert (await door.ready("demo/c"))[:2] == ("True", "Reconciled")
    assert await door.value("SELECT next_check_at <= now() FROM jobsets WHERE name = 'c'")


async def test_a_sync_that_would_prune_more_than_half_stops_until_it_is_confirmed(door, four):
    await door.sync(*four)
    report = await door.sync(four[0])
    assert (
        report.prune_blocked == "3 of 4 objects would be pruned; they stay until this is confirmed"
    )
    assert report.prune_reason == "PruneNeedsConfirmation"
    assert not report.ok
    assert await deleting(door) == []
    before = await door.written()
    await door.sync(four[0])
    assert await door.written() == before
    await door.sync(four[0], confirm=True)
    assert await deleting(door) == ["a", "b", "c"]


async def test_new_objects_do_not_outvote_the_missing_ones(door, four, make):
    await door.sync(*four)
    new = [make.jobset(name) for name in ("k", "l", "m", "u", "v")]
    for _ in range(3):
        report = await door.sync(four[0], *new)
        assert report.prune_blocked
        assert (await door.ready("demo/a"))[:2] == ("False", "PruneNeedsConfirmation")
    assert await deleting(door) == []
    await door.sync(*four, *new)
    assert (await door.ready("demo/a"))[:2] == ("True", "Reconciled")


async def test_exactly_half_passes_and_small_sources_are_not_guarded(door, four, make):
    await door.sync(*four)
    assert not (await door.sync(*four[:2])).prune_blocked
    await door.sync(make.project("x"), make.project("w"), source="small")
    assert not (await door.sync(make.project("x"), source="small")).prune_blocked


async def test_an_empty_tree_keeps_the_last_good_state_however_small(door, make):
    await door.sync(make.project("demo"))
    report = await door.sync()
    assert (report.prune_reason, actions(report)) == ("SourceEmpty", {"demo": "keep"})
    assert await door.value("SELECT deleting_at FROM projects") is None
    await door.sync(confirm=True)
    assert await door.value("SELECT deleting_at IS NOT NULL FROM projects")


@pytest.mark.parametrize(
    "broken",
    [
        "kind: [",
        "\x00",
        "{{",
        "apiVersion: fc-operator.dev/v1alpha1\nkind: Jobset\nmetadata: {name: demo-c}\nspec: {}\n",
        "kind: Jobset\nmetadata: {name: demo-c}\n",
    ],
)
async def test_c09_objects_of_a_broken_file_are_never_pruned(door, four, make, broken):
    await door.sync(*four)
    report = await door.sync(*four[:3], broken)
    assert actions(report)["demo/c"] == "keep"
    assert report.problems
    assert report.prune_blocked == "nothing is pruned while a file is broken"
    assert await deleting(door) == []
    status, reason, message = await door.ready("demo/c")
    assert (status, reason) == ("False", "Invalid")
    assert "the last good state stays" in message
    assert await door.value("SELECT count(*) FROM source_problems") == len(report.problems)
    before = await door.written()
    await door.sync(*four[:3], broken)
    assert await door.written() == before
    report = await door.sync(*four)
    assert report.ok
    assert (await door.ready("demo/c"))[:2] == ("True", "Reconciled")
    assert await door.value("SELECT count(*) FROM source_problems") == 0


async def test_while_one_file_is_broken_others_change_and_nothing_is_pruned(door, four, make):
    await door.sync(*four)
    report = await door.sync(four[0], make.jobset("a", spec="branch: dev"), "kind: [")
    assert actions(report) == {
        "demo": "unchanged", "demo/a": "update", "demo/b": "keep", "demo/c": "keep"
    }  # fmt: skip
    assert await deleting(door) == []


async def test_a_dangling_reference_does_not_stop_pruning(door, four, make):
    await door.sync(*four, make.jobset("x", of="nowhere"))
    report = await door.sync(*four[:3], make.jobset("x", of="nowhere"))
    assert actions(report)["demo/c"] == "prune"


async def test_prune_false_leaves_what_is_gone_in_force(door, four):
    await door.sync(*four)
    report = await door.sync(*four[:3], prune=False)
    assert actions(report)["demo/c"] == "keep"
    assert report.ok
    assert await deleting(door) == []


async def test_an_incomplete_load_prunes_nothing(door, four):
    await door.sync(*four, kind="Apply")
    report = await door.sync(four[1], kind="Apply", complete=False)
    assert actions(report) == {"demo/a": "unchanged"}
    assert await deleting(door) == []


async def test_only_rows_of_the_synced_source_are_pruned(door, four, make):
    await door.sync(*four)
    await door.sync(make.project("other"), make.project("more"), source="second")
    await door.sync(make.project("other"), source="second")
    assert await door.rows("SELECT name FROM projects WHERE deleting_at IS NOT NULL") == [("more",)]
    assert await deleting(door) == []


async def test_a_claim_without_an_object_just_goes(door, make):
    await door.sync(make.project("demo"), source="first")
    await door.sync(make.project("demo"), make.project("own"), source="second")
    report = await door.sync(make.project("own"), source="second")
    assert actions(report)["demo"] == "release"
    assert await door.value("SELECT count(*) FROM managed_resources") == 2
    assert await door.value("SELECT deleting_at FROM projects WHERE name = 'demo'") is None


async def test_a_project_that_goes_makes_its_jobsets_wait(door, four, make):
    await door.sync(*four)
    report = await door.sync(*four[1:])
    assert actions(report)["demo"] == "prune"
    assert actions(report)["demo/a"] == "wait"
    assert (await door.ready("demo/a"))[:2] == ("False", "ReferenceNotFound")
