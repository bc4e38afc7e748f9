"""The second phase: what went is deleted, or kept as history, once its grace time is over."""

import asyncio

import pytest

from fc_operator.operations.sources import finish_pruning

DELETE = "deletionPolicy: Delete"


@pytest.fixture
def history(door):
    """Gives a jobset evaluations with builds and what hangs on them."""

    async def make(jobset, *, evaluations=2, builds=5, status="completed", build="succeeded"):
        await door.run(
            "INSERT INTO evaluations (jobset_id, commit_hash, status, builds_ended_at)"
            " SELECT j.id, md5($1::text || n || random()) || '00000000', $3,"
            " CASE WHEN $4 = 'pending' THEN NULL ELSE now() END"
            " FROM jobsets j, generate_series(1, $2) n WHERE j.name = $1",
            jobset,
            evaluations,
            status,
            build,
        )
        await door.run(
            "INSERT INTO builds (evaluation_id, job_name, drv_path, status, system)"
            " SELECT e.id, 'job' || n, '/nix/store/' || md5(e.id || n::text) || '-x.drv', $3,"
            " 'x86_64-linux' FROM evaluations e JOIN jobsets j ON j.id = e.jobset_id"
            " CROSS JOIN generate_series(1, $2::int) n WHERE j.name = $1 AND NOT EXISTS"
            " (SELECT FROM builds b WHERE b.evaluation_id = e.id)",
            jobset,
            builds,
            build,
        )
        await door.run(
            "INSERT INTO build_products (build_id, name, path) SELECT id, 'x', '/x' FROM builds b"
            " WHERE NOT EXISTS (SELECT FROM build_products p WHERE p.build_id = b.id)"
        )

    return make


async def counts(door):
    return {
        table: await door.value(f"SELECT count(*) FROM {table}")
        for table in ("projects", "jobsets", "evaluations", "builds", "build_products")
    }


async def test_before_the_grace_time_nothing_is_finished(door, make):
    await door.sync(make.project("demo"), make.project("other"))
    await door.sync(make.project("other"))
    assert await finish_pruning(door.database, grace_s=3600) == 0
    assert await door.value("SELECT count(*) FROM managed_resources") == 2


async def test_retained_history_stays_stopped_and_without_an_owner(door, make, history):
    await door.sync(make.project("demo"), make.jobset("main"), make.jobset("dev"))
    await history("main")
    before = await counts(door)
    await door.sync(make.project("demo"), make.jobset("dev"))
    assert await finish_pruning(door.database, grace_s=0) == 1
    assert await counts(door) == before
    assert await door.value("SELECT deleting_at IS NOT NULL FROM jobsets WHERE name = 'main'")
    assert (
        await door.value("SELECT count(*) FROM managed_resources WHERE identity = 'demo/main'") == 0
    )
    # Whoever declares it again goes on with its history.
    (id_,) = (await door.rows("SELECT id FROM jobsets WHERE name = 'main'"))[0]
    report = await door.sync(make.jobset("main"), source="other")
    assert [each.action for each in report.objects] == ["update"]
    assert await door.rows("SELECT id, deleting_at FROM jobsets WHERE name = 'main'") == [
        (id_, None)
    ]


async def test_deleted_history_goes_in_batches_and_takes_only_its_own(
    door, make, history, monkeypatch
):
    from fc_operator.operations import sources

    monkeypatch.setattr(sources, "_BATCH", 7)
    await door.sync(
        make.project("demo", DELETE), make.jobset("main"), make.jobset("dev"), make.project("keep"),
        make.jobset("main2", of="keep"),
    )  # fmt: skip
    for name in ("main", "dev", "main2"):
        await history(name, evaluations=3, builds=6)
    await door.sync(
        make.project("demo", DELETE), make.jobset("dev"), make.project("keep"),
        make.jobset("main2", of="keep"),
    )  # fmt: skip
    assert await finish_pruning(door.database, grace_s=0) == 1
    assert await counts(door) == {
        "projects": 2, "jobsets": 2, "evaluations": 6, "builds": 36, "build_products": 36
    }  # fmt: skip
    await door.sync(make.project("keep"), make.jobset("main2", of="keep"))
    assert await finish_pruning(door.database, grace_s=0) == 2
    assert await counts(door) == {
        "projects": 1, "jobsets": 1, "evaluations": 3, "builds": 18, "build_products": 18
    }  # fmt: skip
    assert await door.value("SELECT count(*) FROM managed_resources") == 2


async def test_a_deleted_project_takes_jobsets_that_others_declared_and_they_wait(
    door, make, history
):
    await door.sync(make.project("demo", DELETE), make.project("x"), make.project("w"))
    await door.sync(make.jobset("main"), source="jobs")
    await history("main")
    await door.sync(make.project("x"), make.project("w"))
    assert await finish_pruning(door.database, grace_s=0) == 1
    assert (await counts(door))["jobsets"] == 0
    await door.sync(make.jobset("main"), source="jobs")
    assert (await door.ready("demo/main", "jobs"))[:2] == ("False", "ReferenceNotFound")


async def test_what_still_runs_is_cancelled_before_it_goes(door, make, history):
    await door.sync(make.project("demo", DELETE), make.jobset("main"), make.jobset("dev"))
    await history("main", evaluations=2, builds=3, status="completed", build="pending")
    await history("main", evaluations=1, builds=0, status="pending", build="pending")
    await door.sync(make.project("demo", DELETE), make.jobset("dev"))
    for _ in range(5):
        if await finish_pruning(door.database, grace_s=0):
            break
    assert (await counts(door))["builds"] == 0
    assert await door.value("SELECT count(*) FROM jobsets") == 1
    assert await door.value("SELECT count(*) FROM audit_log WHERE actor = 'pruning'") >= 1


async def test_an_evaluation_whose_process_still_lives_is_waited_for(door, make, history):
    await door.sync(make.project("demo", DELETE), make.jobset("main"), make.jobset("dev"))
    await history("main", evaluations=1, builds=0, status="running", build="pending")
    await door.sync(make.project("demo", DELETE), make.jobset("dev"))
    assert await finish_pruning(door.database, grace_s=0) == 0
    assert await door.value("SELECT cancel_requested FROM evaluations")
    assert await door.value("SELECT count(*) FROM jobsets") == 2
    await door.run("UPDATE evaluations SET status = 'cancelled', builds_ended_at = now()")
    assert await finish_pruning(door.database, grace_s=0) == 1
    assert await door.value("SELECT count(*) FROM jobsets") == 1


async def test_a_manifest_that_comes_back_between_two_batches_stops_the_deletion(
    door, make, history, monkeypatch
):
    from fc_operator.store import jobsets

    texts = (make.project("demo", DELETE), make.jobset("main"), make.jobset("dev"))
    await door.sync(*texts)
    await history("main", evaluations=2, builds=50)
    await door.sync(texts[0], texts[2])
    real, calls = jobsets.delete_some_history, 0
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def some(connection, id_, size):
        nonlocal calls
        calls += 1
        if calls == 3:
            reached.set()
            await go_on.wait()
        return await real(connection, id_, 10)

    monkeypatch.setattr(jobsets, "delete_some_history", some)
    ending = asyncio.create_task(finish_pruning(door.database, grace_s=0))
    await reached.wait()
    await door.sync(*texts)
    go_on.set()
    assert await ending == 0
    assert await door.value("SELECT count(*) FROM builds") == 80
    assert await door.rows("SELECT deleting_at FROM jobsets WHERE name = 'main'") == [(None,)]
    assert (await door.ready("demo/main"))[:2] == ("True", "Reconciled")


async def test_two_processes_end_the_same_prunings(door, make, history):
    await door.sync(make.project("demo", DELETE), make.jobset("main"), make.project("x"))
    await history("main", evaluations=4, builds=50)
    await door.sync(make.project("x"), confirm=True)
    await asyncio.gather(*(finish_pruning(door.database, grace_s=0) for _ in range(4)))
    await finish_pruning(door.database, grace_s=0)
    assert await counts(door) == {
        "projects": 1, "jobsets": 0, "evaluations": 0, "builds": 0, "build_products": 0
    }  # fmt: skip


BUILDER = """apiVersion: fc-operator.dev/v1alpha1
kind: RemoteBuilder
metadata: {name: big-1}
spec:
  sshUri: ssh://nix@builder-1.example.org
  systems: [x86_64-linux]
  sshKeySecretRef: {name: big-1-ssh, key: identity}
  publicHostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJL0mGmTnZ1m1Zc8nX9mTq0Yy0mJrQ0n1S8QbY5e6r1K
"""


async def test_a_builder_goes(door, make):
    await door.sync(BUILDER, make.project("x"), make.project("w"))
    await door.sync(make.project("x"), make.project("w"))
    assert await door.value("SELECT deleting_at IS NOT NULL FROM remote_builders")
    assert await finish_pruning(door.database, grace_s=0) == 1
    assert await door.value("SELECT count(*) FROM remote_builders") == 0


@pytest.mark.parametrize("prune", [True, False])
async def test_with_a_config_repository_goes_what_it_declared_if_it_prunes(door, make, prune):
    repository = (
        f"{make.head}kind: ConfigRepository\nmetadata: {{name: inner}}\n"
        f"spec: {{url: 'https://git.example.org/x', prune: {str(prune).lower()}}}\n"
    )
    await door.sync(repository, make.project("x"), make.project("w"), source="outer")
    await door.sync(make.project("demo"), make.jobset("main"), source="inner")
    await door.sync(make.project("x"), make.project("w"), source="outer")
    assert await door.value("SELECT deleting_at IS NOT NULL FROM config_repositories")
    await finish_pruning(door.database, grace_s=0)
    assert await door.value("SELECT count(*) FROM config_repositories") == 0
    deleting = "SELECT deleting_at IS NOT NULL FROM projects WHERE name = 'demo'"
    assert await door.value(deleting) is prune
    await finish_pruning(door.database, grace_s=0)
    assert (
        await door.value("SELECT count(*) FROM managed_resources WHERE source_name = 'inner'") == 0
    )
    # Without an owner it can be taken over as it is.
    report = await door.sync(make.project("demo"), source="another")
    assert [each.action for each in report.objects] == ["update" if prune else "unchanged"]
