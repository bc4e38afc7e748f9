import asyncio

import pytest

from fc_operator.store.listener import JOBSETS, RESOURCES, SOURCES, Listener


def actions(report):
    return {each.identity: each.action for each in report.objects}


FULL = """
description: A demonstration
credentialsSecretRef: {name: demo-git}
webhooks:
  - {forge: Forgejo, secretRef: {name: demo-hook, key: secret}}
  - {forge: GitHub, secretRef: {name: demo-hook, key: other}, enabled: false}
notifications:
  - {type: ForgejoStatus, tokenSecretRef: {name: demo-forge, key: token}}
  - {type: Email, to: [ada@example.org], when: OnFailure, jobsets: [main]}
channels:
  - {name: demo-stable, jobset: main}
members:
  - {user: ci-admin, role: Maintainer}
"""
INPUTS = """
branch: main
inputs:
  - {name: nixpkgs, type: Git, value: "https://git.example.org/nixpkgs.git nixos-26.05"}
  - {name: fast, type: Boolean, value: "true"}
"""
BUILDER = """apiVersion: fc-operator.dev/v1alpha1
kind: RemoteBuilder
metadata: {name: big-1}
spec:
  sshUri: ssh://nix@builder-1.example.org
  systems: [x86_64-linux]
  maxJobs: 8
  supportedFeatures: [kvm]
  mandatoryFeatures: [big-parallel]
  sshKeySecretRef: {name: big-1-ssh, key: identity}
  publicHostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJL0mGmTnZ1m1Zc8nX9mTq0Yy0mJrQ0n1S8QbY5e6r1K
"""
REPOSITORY = """apiVersion: fc-operator.dev/v1alpha1
kind: ConfigRepository
metadata: {name: other-team}
spec:
  url: https://git.example.org/other/ci.git
  path: ./fc/
  webhooks: [{forge: Gitea, secretRef: {name: demo-hook, key: secret}}]
"""


@pytest.fixture
def whole(door, make):
    """One of everything, with its secrets."""
    door.secret("demo-git", username="ada", password="s3cret")
    door.secret("demo-hook", secret="hook-value", other="other-value")
    door.secret("demo-forge", token="t0ken")
    door.secret("big-1-ssh", identity="key")
    return (make.project("demo", FULL), make.jobset("main", spec=INPUTS), BUILDER, REPOSITORY)


async def test_one_of_each_kind_becomes_rows(door, whole):
    report = await door.sync(*whole)
    assert set(actions(report).values()) == {"create"}
    assert report.ok, report.as_dict()
    assert await door.rows(
        "SELECT name, description, credentials_secret, visibility, deleting_at FROM projects"
    ) == [("demo", "A demonstration", "demo-git", "public", None)]
    assert await door.rows(
        "SELECT p.name, j.name, branch, check_interval, state, generation, check_reason,"
        " next_check_at <= now() FROM jobsets j JOIN projects p ON p.id = project_id"
    ) == [("demo", "main", "main", 300, "enabled", 1, "declared", True)]
    assert sorted(await door.rows("SELECT name, input_type, value FROM jobset_inputs")) == [
        ("fast", "boolean", "true"),
        ("nixpkgs", "git", "https://git.example.org/nixpkgs.git nixos-26.05"),
    ]
    assert await door.rows(
        "SELECT name, ssh_uri, max_jobs, supported_features, ssh_key_secret FROM remote_builders"
    ) == [("big-1", "ssh://nix@builder-1.example.org", 8, ["kvm", "big-parallel"], "big-1-ssh")]
    assert await door.rows("SELECT name, url, path, kind FROM config_repositories") == [
        ("other-team", "https://git.example.org/other/ci.git", "fc", "git")
    ]
    assert sorted(await door.rows("SELECT notification_type, name FROM notification_configs")) == [
        ("email", ""),
        ("forgejo_status", ""),
    ]
    assert await door.rows(
        "SELECT c.name, j.name FROM channels c JOIN jobsets j ON j.id = jobset_id"
    ) == [("demo-stable", "main")]
    assert await door.rows(
        "SELECT u.username, u.role, u.password_hash, m.role FROM project_members m"
        " JOIN users u ON u.id = user_id"
    ) == [("ci-admin", "read-only", None, "maintainer")]
    for identity in ("demo", "demo/main", "big-1", "other-team"):
        assert await door.ready(identity) == ("True", "Reconciled", "")
    assert await door.rows(
        "SELECT count(*) FILTER (WHERE object_id IS NOT NULL AND owns), count(*)"
        " FROM managed_resources"
    ) == [(4, 4)]


async def test_a_sync_with_nothing_changed_writes_nothing(door, whole):
    await door.sync(*whole)
    before = await door.written()
    for _ in range(2):
        report = await door.sync(*whole)
        assert set(actions(report).values()) == {"unchanged"}
    assert await door.written() == before


async def test_the_order_of_files_and_lists_means_nothing(door, whole, make):
    await door.sync(*whole)
    before = await door.written()
    swapped = make.jobset(
        "main",
        spec="""
branch: main
inputs:
  - {name: fast, type: Boolean, value: "true"}
  - {name: nixpkgs, type: Git, value: "https://git.example.org/nixpkgs.git nixos-26.05"}
""",
    )
    report = await door.sync(swapped, *whole[2:], whole[0])
    assert set(actions(report).values()) == {"unchanged"}
    # The declarations moved to other files; only where they stand is written.
    assert await door.written() - before <= 4


async def test_a_plan_writes_nothing_and_says_the_same_as_the_apply(door, whole, make):
    before = await door.written()
    planned = await door.plan(*whole)
    assert await door.written() == before
    applied = await door.sync(*whole)
    assert actions(planned) == actions(applied)
    changed = (make.project("demo", FULL), make.jobset("main", spec="branch: dev"))
    planned = await door.plan(*changed, confirm=True)
    line = next(each for each in planned.objects if each.identity == "demo/main")
    assert (line.action, set(line.fields)) == ("update", {"branch", "inputs"})
    assert actions(planned) == actions(await door.sync(*changed, confirm=True))


async def test_c14_every_change_wakes_its_jobsets_once_per_channel(door, whole, make):
    heard = []

    class Hearing(Listener):
        def _on_notify(self, connection, pid, channel, payload):
            heard.append(channel)
            super()._on_notify(connection, pid, channel, payload)

    listener = Hearing(door.database)
    await listener.start()
    async with asyncio.timeout(5):
        await listener.connected.wait()
    try:
        with listener.subscribe(RESOURCES) as subscription:
            await subscription.wait(0.05)
            await door.sync(*whole)
            await subscription.wait(5)
            assert sorted(heard) == sorted([JOBSETS, SOURCES, RESOURCES])
            heard.clear()
            await door.run("UPDATE jobsets SET next_check_at = NULL")
            await door.sync(whole[0].replace("demo.git", "moved.git"), *whole[1:])
            await subscription.wait(5)
            assert sorted(heard) == sorted([JOBSETS, RESOURCES])
            assert await door.rows(
                "SELECT next_check_at <= now(), check_reason, generation FROM jobsets"
            ) == [(True, "declared", 2)]
            heard.clear()
            await door.sync(whole[0].replace("demo.git", "moved.git"), *whole[1:])
            assert await subscription.wait(0.2) is None
            assert heard == []
    finally:
        await listener.stop()


async def test_c09_what_was_edited_by_hand_comes_back(door, whole):
    await door.sync(*whole)
    await door.run("UPDATE projects SET repository_url = 'https://evil.example.org/x'")
    await door.run("UPDATE jobsets SET branch = 'evil', state = 'disabled'")
    await door.run("UPDATE jobset_inputs SET value = 'false' WHERE name = 'fast'")
    await door.run(
        "INSERT INTO jobset_inputs (jobset_id, name, input_type, value)"
        " SELECT id, 'extra', 'string', 'x' FROM jobsets"
    )
    await door.run("UPDATE remote_builders SET max_jobs = 1000")
    await door.run("DELETE FROM project_members")
    await door.run("DELETE FROM channels")
    await door.run("UPDATE webhook_configs SET enabled = NOT enabled")
    await door.run("UPDATE notification_configs SET config = '{}'")
    await door.run("UPDATE config_repositories SET prune = false, deleting_at = now()")
    report = await door.sync(*whole)
    assert set(actions(report).values()) == {"update"}
    planned = await door.plan(*whole)
    assert set(actions(planned).values()) == {"unchanged"}
    assert await door.value("SELECT count(*) FROM jobset_inputs") == 2


async def test_c09_a_row_that_was_deleted_by_hand_is_made_again(door, whole):
    await door.sync(*whole)
    await door.run("DELETE FROM projects")
    report = await door.sync(*whole)
    assert actions(report)["demo"] == actions(report)["demo/main"] == "create"
    assert await door.value(
        "SELECT m.object_id = j.id FROM managed_resources m, jobsets j WHERE m.kind = 'Jobset'"
    )


@pytest.mark.parametrize("emptied", ["webhooks", "notifications", "channels", "members"])
async def test_c09_an_emptied_list_leaves_no_rows(door, whole, emptied):
    await door.sync(*whole)
    lines, dropping = [], False
    for line in whole[0].split("\n"):
        dropping = line.startswith(f"  {emptied}:") or (dropping and line.startswith("    "))
        if not dropping:
            lines.append(line)
    report = await door.sync("\n".join(lines), *whole[1:])
    assert actions(report)["demo"] == "update"
    table = {
        "webhooks": "webhook_configs WHERE project_id IS NOT NULL",
        "notifications": "notification_configs",
        "channels": "channels",
        "members": "project_members",
    }[emptied]
    assert await door.value(f"SELECT count(*) FROM {table}") == 0


async def test_parts_keep_their_ids_when_others_change(door, whole):
    await door.sync(*whole)

    async def ids():
        return await door.rows(
            "SELECT forge_type, id FROM webhook_configs WHERE project_id IS NOT NULL ORDER BY 1"
        )

    before = await ids()
    await door.sync(whole[0].replace("A demonstration", "Another"), *whole[1:])
    assert await ids() == before


async def test_a_second_claimant_is_refused_and_told_who_owns(door, make):
    await door.sync(make.project("demo"), source="first")
    report = await door.sync(make.project("demo", "description: mine"), source="second")
    assert actions(report) == {"demo": "refuse"}
    assert await door.ready("demo", "second") == (
        "False", "OwnedByOther", "it is owned by ConfigRepository first"
    )  # fmt: skip
    assert await door.value("SELECT description FROM projects") == ""
    before = await door.written()
    await door.sync(make.project("demo", "description: mine"), source="second")
    assert await door.written() == before


async def test_a_refused_claimant_takes_over_when_the_owner_leaves(door, make):
    await door.sync(make.project("demo"), make.project("keep"), source="first")
    await door.sync(make.project("demo", "description: mine"), source="second")
    report = await door.sync(make.project("keep"), source="first")
    assert actions(report)["demo"] == "release", "what moves between sources never stops"
    report = await door.sync(make.project("demo", "description: mine"), source="second")
    assert actions(report) == {"demo": "unchanged"}
    assert await door.rows("SELECT description, deleting_at FROM projects WHERE name = 'demo'") == [
        ("mine", None)
    ]
    assert await door.rows(
        "SELECT source_name FROM managed_resources WHERE identity = 'demo' AND owns"
    ) == [("second",)]


async def test_fifty_sources_claim_one_name_at_once_and_one_has_it(door, make):
    reports = await asyncio.gather(
        *(door.sync(make.project("demo"), source=f"s{nr}") for nr in range(50))
    )
    found = [actions(report)["demo"] for report in reports]
    assert found.count("create") == 1
    assert found.count("refuse") == 49
    assert await door.value("SELECT count(*) FROM managed_resources WHERE owns") == 1


async def test_a_jobset_waits_for_its_project_and_comes_with_it(door, make):
    report = await door.sync(make.jobset("main"), source="jobs")
    assert actions(report) == {"demo/main": "wait"}
    assert await door.ready("demo/main", "jobs") == (
        "False", "ReferenceNotFound", "there is no Project demo"
    )  # fmt: skip
    # The project comes through another door; nobody syncs the jobset's source again.
    await door.sync(make.project("demo"), source="projects", kind="Apply", complete=False)
    assert await door.value("SELECT count(*) FROM jobsets") == 1
    assert (await door.ready("demo/main", "jobs"))[:2] == ("True", "Reconciled")


async def test_a_channel_waits_for_its_jobset_without_holding_its_project_up(door, make):
    report = await door.sync(make.project("demo", "channels: [{name: stable, jobset: main}]"))
    assert actions(report) == {"demo": "create"}
    assert (await door.ready("demo"))[:2] == ("False", "ReferenceNotFound")
    await door.sync(make.jobset("main"), source="jobs")
    assert await door.rows("SELECT name FROM channels") == [("stable",)]
    assert (await door.ready("demo"))[:2] == ("True", "Reconciled")


async def test_a_missing_secret_is_a_condition_and_heals(door, make):
    text = make.project("demo", "webhooks: [{forge: GitHub, secretRef: {name: hook, key: secret}}]")
    await door.sync(text)
    status, reason, message = await door.ready("demo")
    assert (status, reason) == ("False", "SecretNotFound")
    assert "the webhook of github" in message
    assert await door.value("SELECT secret_ciphertext FROM webhook_configs") is None
    door.secret("hook", secret="v1")
    await door.sync(text)
    assert (await door.ready("demo"))[0] == "True"
    assert await _opened(door) == b"v1"


async def test_a_rotated_secret_is_noticed_and_nothing_is_kept_in_clear(door, make):
    door.secret("hook", secret="first-value")
    text = make.project("demo", "webhooks: [{forge: GitHub, secretRef: {name: hook, key: secret}}]")
    await door.sync(text)
    door.secret("hook", secret="second-value")
    report = await door.sync(text)
    assert [each.fields for each in report.objects] == [("webhooks",)]
    assert await _opened(door) == b"second-value"
    before = await door.written()
    await door.sync(text)
    assert await door.written() == before
    kept = await door.value("SELECT secret_ciphertext FROM webhook_configs")
    assert b"second-value" not in kept


async def test_s06_a_webhooks_ciphertext_opens_in_no_other_row(door, make):
    door.secret("hook", secret="value")
    await door.sync(
        make.project("demo", "webhooks: [{forge: GitHub, secretRef: {name: hook, key: secret}}]")
    )
    from fc_operator.kit.ciphers import CipherError

    kept = await door.value("SELECT secret_ciphertext FROM webhook_configs")
    with pytest.raises(CipherError):
        door.cipher.decrypt(kept, context="webhook_configs/00000000-0000-0000-0000-000000000000")


async def _opened(door):
    id_, kept = (await door.rows("SELECT id, secret_ciphertext FROM webhook_configs"))[0]
    return door.cipher.decrypt(kept, context=f"webhook_configs/{id_}")


async def test_requested_at_asks_for_a_run_once_and_is_echoed(door, make):
    def asked(at):
        return make.jobset(
            "main", metadata=f", annotations: {{fc-operator.dev/requestedAt: '{at}'}}"
        )

    await door.sync(make.project("demo"), make.jobset("main"))
    await door.run("UPDATE jobsets SET next_check_at = NULL")
    await door.sync(make.project("demo"), asked("now"))
    assert await door.rows(
        "SELECT next_check_at <= now(), check_reason, generation FROM jobsets"
    ) == [(True, "request", 1)]
    echoed = "SELECT last_handled_request FROM managed_resources WHERE kind = 'Jobset'"
    assert await door.value(echoed) == "now"
    await door.run("UPDATE jobsets SET next_check_at = NULL")
    before = await door.written()
    await door.sync(make.project("demo"), asked("now"))
    assert await door.written() == before
    await door.sync(make.project("demo"), asked("again"))
    assert await door.value(echoed) == "again"
    assert await door.value("SELECT next_check_at <= now() FROM jobsets")


async def test_a_name_can_not_change_and_the_last_good_state_stays(door, make):
    await door.sync(make.project("demo"), make.jobset("main"))
    renamed = (
        make.jobset("main")
        .replace("name: main\n", "name: other\n")
        .replace("demo-other", "demo-main")
    )
    report = await door.sync(make.project("demo"), renamed)
    assert [each.action for each in report.objects if each.kind == "Jobset"] == ["refuse"]
    status, reason, message = await door.ready("demo/main")
    assert (status, reason) == ("False", "Invalid")
    assert "name cannot be changed" in message
    assert await door.rows("SELECT name, deleting_at FROM jobsets") == [("main", None)]
    await door.sync(make.project("demo"), make.jobset("main"))
    assert (await door.ready("demo/main"))[0] == "True"


async def test_renamed_metadata_with_the_same_spec_name_keeps_its_object(door, make):
    await door.sync(make.project("demo"), make.jobset("main"))
    (id_,) = (await door.rows("SELECT id FROM jobsets"))[0]
    report = await door.sync(
        make.project("demo"), make.jobset("main").replace("demo-main", "renamed")
    )
    assert actions(report)["demo/main"] == "unchanged"
    assert await door.rows("SELECT id, deleting_at FROM jobsets") == [(id_, None)]
    assert await door.rows("SELECT name, owns FROM managed_resources WHERE kind = 'Jobset'") == [
        ("renamed", True)
    ]


async def test_what_others_found_out_is_not_overwritten_by_an_idle_sync(door, make):
    await door.sync(make.project("demo"), make.jobset("main"))
    failed = [
        {
            "type": "Ready", "status": "False", "reason": "EvaluationFailed", "message": "boom",
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
    ]  # fmt: skip
    await door.run(
        "UPDATE managed_resources SET conditions = $1 WHERE identity = 'demo/main'", failed
    )
    await door.sync(make.project("demo"), make.jobset("main"))
    assert await door.ready("demo/main") == ("False", "EvaluationFailed", "boom")
    await door.sync(make.project("demo"), make.jobset("main", spec="branch: dev"))
    assert await door.ready("demo/main") == ("True", "Reconciled", "")


async def test_members_are_known_in_any_case(door, make):
    await door.run("INSERT INTO users (username) VALUES ('Ada')")
    text = make.project("demo", "members: [{user: ada}, {user: ADA, role: Admin}]")
    await door.sync(text)
    assert await door.rows(
        "SELECT username, m.role FROM users u JOIN project_members m ON m.user_id = u.id"
    ) == [("Ada", "admin")]
    before = await door.written()
    await door.sync(text)
    assert await door.written() == before


async def test_a_nul_in_a_text_is_a_problem_of_its_file_and_not_the_end_of_the_sync(door, make):
    report = await door.sync(make.project("demo"), make.project("bad", r'description: "a\0b"'))
    assert actions(report) == {"demo": "create"}
    assert "NUL" in str(report.problems[0])


async def test_what_was_applied_by_hand_is_applied_again_without_anybody(door, make):
    from fc_operator.model.sources import Source
    from fc_operator.operations.manifests import reapply

    async def again():
        return await reapply(
            door.database, Source("Apply", "key"), keyring=door.keyring, config=door.config
        )

    text = make.project("demo", "webhooks: [{forge: GitHub, secretRef: {name: hook, key: secret}}]")
    await door.sync(text, source="key", kind="Apply", complete=False)
    assert (await door.ready("demo", "key"))[1] == "SecretNotFound"
    door.secret("hook", secret="v1")
    await door.run("UPDATE projects SET repository_url = 'https://evil.example.org/x'")
    await again()
    assert (await door.ready("demo", "key"))[:2] == ("True", "Reconciled")
    assert await _opened(door) == b"v1"
    assert (await door.value("SELECT repository_url FROM projects")).endswith("demo.git")
    before = await door.written()
    await again()
    assert await door.written() == before
    assert await door.value("SELECT revision FROM managed_resources") == "r1"


async def test_applying_again_never_overwrites_what_was_applied_meanwhile(door, make, monkeypatch):
    from fc_operator.errors import LeaseLostError
    from fc_operator.model.sources import Source
    from fc_operator.operations import manifests

    await door.sync(make.project("demo"), source="key", kind="Apply", complete=False)
    real = manifests._read_secrets

    async def meanwhile(*arguments):
        monkeypatch.setattr(manifests, "_read_secrets", real)
        await door.sync(
            make.project("demo", "description: new"), source="key", kind="Apply", complete=False
        )
        return await real(*arguments)

    monkeypatch.setattr(manifests, "_read_secrets", meanwhile)
    with pytest.raises(LeaseLostError):
        await manifests.reapply(
            door.database, Source("Apply", "key"), keyring=door.keyring, config=door.config
        )
    assert await door.value("SELECT description FROM projects") == "new"
