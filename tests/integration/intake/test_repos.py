import asyncio
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from fc_operator.errors import InvalidError

_spec = importlib.util.spec_from_file_location(
    "intake_yaml", Path(__file__).with_name("conftest.py")
)
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
project, jobset = _module.project, _module.jobset

PROJECTS = "SELECT string_agg(name, ' ' ORDER BY name) FROM projects"
REVISION = "SELECT last_revision FROM config_repositories WHERE name = '_bootstrap'"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "config"
    folder.mkdir()
    return folder


@pytest.fixture
def team(git_host):
    return git_host.make("team")


# Directories --------------------------------------------------------------------------------


async def test_a_directory_is_in_force_at_once_and_watched(intake, folder):
    (folder / "demo.yaml").write_text(project("demo"))
    await intake.bootstrap(folder)
    await intake.start()
    await intake.until(PROJECTS, "demo")
    message = await intake.until_ready("True", "Reconciled")
    assert "1 object at sha256:" in message
    # The interval is an hour: only the watcher can have seen this.
    (folder / "deep").mkdir()
    (folder / "deep" / "more.yml").write_text(project("more"))
    await intake.until(PROJECTS, "demo more")


async def test_a_mounted_config_map_is_followed_when_it_is_exchanged(intake, folder):
    for day, names in (("..1", "a"), ("..2", "ab")):
        (folder / day).mkdir()
        for name in names:
            (folder / day / f"{name}.yaml").write_text(project(name))
    (folder / "..data").symlink_to("..1")
    for name in "ab":
        (folder / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")
    await intake.bootstrap(folder)
    await intake.start()
    await intake.until(PROJECTS, "a")
    await intake.until_ready("True", "Reconciled")
    (folder / "..new").symlink_to("..2")
    (folder / "..new").replace(folder / "..data")
    await intake.until(PROJECTS, "a b")


async def test_a_folder_that_comes_or_goes_whole_is_seen(intake, folder, tmp_path):
    aside = tmp_path / "aside"
    aside.mkdir()
    (aside / "b.yaml").write_text(project("b"))
    for name in "ac":
        (folder / f"{name}.yaml").write_text(project(name))
    await intake.bootstrap(folder)
    await intake.start()
    await intake.until(PROJECTS, "a c")
    await intake.until_ready("True", "Reconciled")
    aside.rename(folder / "inner")
    await intake.until(PROJECTS, "a b c")
    (folder / "inner").rename(tmp_path / "away")
    await intake.until("SELECT deleting_at IS NOT NULL FROM projects WHERE name = 'b'", True)


@pytest.mark.parametrize(
    ("path", "gone", "expected"),
    [
        ("a.yaml", False, True),
        ("deep/a.yml", True, True),
        ("inner", True, True),
        ("inner", False, False),
        (".state/postgres/base/1/2", False, False),
        (".state/x.yaml", False, False),
        ("state/base/16384", False, False),
        ("README.md", True, False),
        (".git/index.lock", True, False),
        ("..data", False, True),
        ("a.yaml.swp", False, False),
    ],
)
def test_what_moves_beside_the_manifests_wakes_nobody(tmp_path, path, gone, expected):
    from fc_operator.intake.directories import concerns_manifests

    assert concerns_manifests(tmp_path, str(tmp_path / path), gone=gone) is expected


async def test_a_directory_that_is_not_there_yet_is_found_when_it_comes(intake, folder):
    late = folder / "late"
    await intake.bootstrap(late, interval_s=1)
    await intake.start(poll_s=0.2)
    message = await intake.until_ready("False", "SourceUnreachable")
    assert "No such file" in message
    late.mkdir()
    (late / "demo.yaml").write_text(project("demo"))
    await intake.until(PROJECTS, "demo")


async def test_s08_path_traversal_links_out_of_the_directory_are_not_read(intake, folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.yaml").write_text(project("secret"))
    (folder / "link.yaml").symlink_to(outside / "secret.yaml")
    (folder / "linked").symlink_to(outside)
    (folder / "pipe.yaml").parent.mkdir(exist_ok=True)
    import os

    os.mkfifo(folder / "pipe.yaml")
    (folder / "inside.yaml").write_text(project("inside"))
    (folder / "again.yaml").symlink_to(folder / "inside.yaml")
    await intake.bootstrap(folder)
    await intake.start()
    await intake.until(PROJECTS, "inside")


async def test_a_huge_file_is_a_problem_and_no_load(intake, folder):
    (folder / "demo.yaml").write_text(project("demo"))
    (folder / "huge.yaml").write_bytes(b"# x\n" * 3_000_000)
    await intake.bootstrap(folder)
    await intake.start()
    assert "more than" in await intake.until_ready("False", "SourceInvalid")
    assert await intake.value(PROJECTS) == "demo"


# Git ----------------------------------------------------------------------------------------


async def test_a_git_source_is_cloned_followed_and_shown(intake, team):
    first = team.commit({"fc/demo.yaml": project("demo"), "README.md": "not a manifest"})
    await intake.bootstrap(team.url, branch="main", path="./fc")
    await intake.start()
    await intake.until(PROJECTS, "demo")
    await intake.until(REVISION, first)
    assert await intake.rows("SELECT source_name, path, revision FROM managed_resources") == [
        ("_bootstrap", "demo.yaml", first)
    ]
    second = team.commit({"fc/main.yaml": jobset("main")})
    await intake.sync()
    await intake.until(REVISION, second)
    assert await intake.rows("SELECT identity, revision FROM managed_resources ORDER BY 1") == [
        ("demo", first),
        ("demo/main", second),
    ]


async def test_commit_then_tree_then_blobs_and_only_what_changed_is_parsed(
    intake, team, monkeypatch
):
    from fc_operator.spec import manifests

    parsed = []
    real = manifests.parse_file
    monkeypatch.setattr(
        manifests, "parse_file", lambda path, *rest: parsed.append(path) or real(path, *rest)
    )
    team.commit({"fc/a.yaml": project("a"), "fc/b.yaml": project("b")})
    await intake.bootstrap(team.url, path="fc")
    await intake.start()
    await intake.until(PROJECTS, "a b")
    await intake.until_ready("True", "Reconciled")
    assert parsed == ["a.yaml", "b.yaml"]
    await intake.sync()  # the same commit
    head = team.commit({"elsewhere": "x"})  # another commit, the same tree
    await intake.sync()
    await intake.until(REVISION, head)
    assert parsed == ["a.yaml", "b.yaml"]
    team.git("mv", "fc/a.yaml", "fc/moved.yaml")  # the same blob at another path
    head = team.commit({"fc/b.yaml": project("b", ", description: new")})
    await intake.sync()
    await intake.until(REVISION, head)
    assert parsed == ["a.yaml", "b.yaml", "b.yaml"]
    assert await intake.value("SELECT path FROM managed_resources WHERE name = 'a'") == "moved.yaml"


async def test_one_change_among_many_is_in_force_before_all_are_compared(intake, team, monkeypatch):
    from fc_operator.intake import loads
    from fc_operator.operations import manifests

    monkeypatch.setattr(loads, "_MANY", 20)
    applied, real = [], manifests.apply

    async def noted(database, source, parsed, **options):
        report = await real(database, source, parsed, **options)
        applied.append((options["complete"], report.counts))
        return report

    monkeypatch.setattr(manifests, "apply", noted)
    files = {f"{nr}.yaml": project(f"p{nr}") for nr in range(30)}
    team.commit(files)
    await intake.bootstrap(team.url)
    await intake.start()
    await intake.until_ready("True", "Reconciled")
    head = team.commit(
        {
            "3.yaml": project("p3", ", description: new"),
            "new.yaml": jobset("j", "p4"),
            "9.yaml": None,
        }
    )
    await intake.sync()
    await intake.until(REVISION, head)
    assert applied == [
        (True, {"create": 30}),
        (False, {"create": 1, "update": 1}),
        (True, {"unchanged": 30, "prune": 1}),
    ]


async def test_an_unchanged_git_source_writes_nothing_but_its_lease(intake, team):
    team.commit({"a.yaml": project("a", ", members: [{user: ada}]"), "b.yaml": jobset("b", "a")})
    await intake.bootstrap(team.url)
    await intake.start()
    await intake.until_ready("True", "Reconciled")
    before = await intake.written()
    for _ in range(3):
        await intake.sync()
    assert await intake.written() == before


async def test_c07_what_stands_on_another_branch_is_never_in_force(intake, team):
    team.commit({"a.yaml": project("a")})
    team.git("checkout", "-q", "-b", "fork")
    team.commit({"evil.yaml": project("evil"), "a.yaml": project("a", ", description: evil")})
    team.git("tag", "main-evil")
    team.git("update-ref", "refs/pull/1/head", "HEAD")
    team.git("checkout", "-q", "main")
    await intake.bootstrap(team.url)
    await intake.start()
    await intake.until_ready("True", "Reconciled")
    await intake.sync()
    assert await intake.rows("SELECT name, description FROM projects") == [("a", "")]


async def test_an_unreachable_host_keeps_the_last_good_state_and_heals(intake, git_host, team):
    team.commit({"a.yaml": project("a")})
    await intake.bootstrap(team.url, interval_s=1)
    await intake.start(poll_s=0.2)
    await intake.until_ready("True", "Reconciled")
    git_host.status = 503
    message = await intake.until_ready("False", "SourceUnreachable")
    assert message.startswith("the last good state stays; ")
    assert (await intake.condition("Reconciling"))["reason"] == "ProgressingWithRetry"
    assert await intake.value(PROJECTS) == "a"
    git_host.status = 0
    await intake.until_ready("True", "Reconciled")
    assert await intake.condition("Reconciling") is None


async def test_a_broken_commit_keeps_the_last_good_state(intake, team):
    team.commit({"a.yaml": project("a"), "b.yaml": project("b")})
    await intake.bootstrap(team.url)
    await intake.start()
    await intake.until(PROJECTS, "a b")
    head = team.commit({"b.yaml": "kind: ["})
    await intake.sync()
    message = await intake.until_ready("False", "SourceInvalid")
    assert "b.yaml:2" in message
    assert (await intake.condition("Stalled"))["status"] == "True"
    assert await intake.value("SELECT count(*) FROM projects WHERE deleting_at IS NULL") == 2
    assert await intake.value(REVISION) == head
    team.commit({"b.yaml": project("b")})
    await intake.sync()
    await intake.until_ready("True", "Reconciled")
    assert await intake.condition("Stalled") is None


@pytest.mark.parametrize("how", ["empty", "gone"])
async def test_an_emptied_folder_keeps_the_last_good_state(intake, team, how):
    team.commit({"fc/a.yaml": project("a"), "other": "x"})
    await intake.bootstrap(team.url, path="fc")
    await intake.start()
    await intake.until(PROJECTS, "a")
    team.commit({"fc/a.yaml": None, **({"fc/README": "x"} if how == "empty" else {})})
    await intake.sync()
    await intake.until_ready("False", "SourceEmpty" if how == "empty" else "SourceInvalid")
    assert await intake.value("SELECT deleting_at FROM projects") is None


async def test_an_empty_repository_and_a_missing_branch_are_said(intake, team):
    await intake.bootstrap(team.url)
    await intake.start()
    assert "is empty" in await intake.until_ready("False", "SourceInvalid")
    team.commit({"a.yaml": project("a")})
    await intake.bootstrap(team.url, branch="nope")
    await intake.until(
        "SELECT conditions -> 0 ->> 'message' LIKE '%no branch nope%' FROM config_repositories",
        True,
    )
    await intake.bootstrap(team.url)
    await intake.until(PROJECTS, "a")


@pytest.mark.parametrize("force_push", ["Hold", "Follow"])
async def test_a_forced_push_is_told_and_taken_when_confirmed_or_by_setting(
    intake, team, force_push
):
    from fc_operator.operations.sources import confirm

    intake.config = replace(intake.config, force_push=force_push)
    team.commit({"a.yaml": project("a")})
    before = team.commit({"b.yaml": project("b")})
    await intake.bootstrap(team.url)
    await intake.start()
    await intake.until(PROJECTS, "a b")
    team.git("reset", "-q", "--hard", "HEAD~1")
    rewritten = team.commit({"b.yaml": project("b"), "c.yaml": project("c")})
    await intake.sync()
    if force_push == "Hold":
        told = await intake.until_ready("False", "HistoryRewritten")
        assert f"--confirm {rewritten}" in told
        await intake.sync()
        await intake.until(REVISION, before)
        await intake.until(PROJECTS, "a b")
        await confirm(intake.database, "_bootstrap", rewritten)
    await intake.until(PROJECTS, "a b c")
    await intake.until(REVISION, rewritten)
    told = await intake.condition("HistoryRewritten")
    assert "was force-pushed" in told["message"]
    await intake.sync()
    assert await intake.condition("HistoryRewritten")
    after = team.commit({"d.yaml": project("d")})
    await intake.sync()
    await intake.until(REVISION, after)
    assert await intake.condition("HistoryRewritten") is None


async def test_a_guarded_pruning_is_confirmed_for_one_revision(intake, team):
    from fc_operator.operations.sources import confirm

    team.commit({f"{name}.yaml": project(name) for name in "abcd"})
    await intake.bootstrap(team.url)
    await intake.start()
    await intake.until(PROJECTS, "a b c d")
    head = team.commit({f"{name}.yaml": None for name in "abc"})
    await intake.sync()
    assert "3 of 4" in await intake.until_ready("False", "PruneNeedsConfirmation")
    await confirm(intake.database, "_bootstrap", "0" * 40)
    await intake.sync()
    live = "SELECT count(*) FROM projects WHERE deleting_at IS NULL"
    assert await intake.value(live) == 4
    await confirm(intake.database, "_bootstrap", head)
    await intake.until(live, 1)
    await intake.until_ready("True", "Reconciled")


@pytest.mark.parametrize(
    "url",
    ["ext::sh -c 'touch x'", "file:///etc", "--upload-pack=x://y", "https://a:b@example.org/x"],
)
async def test_c01_a_url_that_is_always_refused_never_becomes_a_source(intake, url):
    with pytest.raises(InvalidError):
        await intake.bootstrap(url)
    assert await intake.value("SELECT count(*) FROM config_repositories") == 0


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x", "http://localhost/x", "git://example.org/x"]
)
async def test_c02_a_url_that_settings_refuse_is_a_condition(intake, url):
    await intake.bootstrap(url)
    await intake.start()
    await intake.until_ready("False", "SourceInvalid")


async def test_a_declared_config_repository_is_synced_with_its_secret(
    intake, git_host, team, folder
):
    git_host.need_password("ada", "s3cret")
    team.commit({"fc/a.yaml": project("a")})
    (folder / "team.yaml").write_text(
        f"{_module.HEAD}kind: ConfigRepository\nmetadata: {{name: team}}\n"
        f"spec: {{url: '{team.url}', path: fc, credentialsSecretRef: {{name: team-git}}}}\n"
    )
    await intake.bootstrap(folder)
    await intake.start()
    assert "no secret team-git" in await intake.until_ready("False", "SecretNotFound", "team")
    secret = intake.folder / "secrets" / "team-git"
    secret.mkdir(parents=True)
    (secret / "username").write_text("ada\n")
    (secret / "password").write_text("s3cret\n")
    await intake.sync("team")
    await intake.until(PROJECTS, "a")
    assert (
        await intake.value("SELECT source_name FROM managed_resources WHERE identity = 'a'")
        == "team"
    )


# Several processes ---------------------------------------------------------------------------


async def test_several_schedulers_sync_a_source_once(intake, git_host, team):
    team.commit({"a.yaml": project("a")})
    for _ in range(4):
        await intake.start(poll_s=0.05)
    await intake.bootstrap(team.url)
    await intake.until_ready("True", "Reconciled")
    for _ in range(3):
        await intake.sync()
    # Each sync asks the host once; each holder fetched at most once.
    asked = [path for method, path, _ in git_host.requests if method == "GET"]
    assert len(asked) <= 4 + 4


async def test_a_sync_whose_lease_went_writes_nothing(intake, team, monkeypatch):
    from fc_operator.intake import loads

    team.commit({"a.yaml": project("a")})
    await intake.bootstrap(team.url)
    reached, go_on = asyncio.Event(), asyncio.Event()
    real = loads.load

    async def slow(*arguments, **options):
        loaded = await real(*arguments, **options)
        reached.set()
        await go_on.wait()
        return loaded

    monkeypatch.setattr(loads, "load", slow)
    await intake.start()
    await reached.wait()
    await intake.run(
        "UPDATE config_repositories SET lease_owner = 'another', lease_until = now() + '1 hour'"
    )
    go_on.set()
    await asyncio.gather(*intake.services[0]._syncing)
    assert await intake.value("SELECT count(*) FROM projects") == 0
    assert await intake.value("SELECT lease_owner FROM config_repositories") == "another"


async def test_a_source_that_was_pointed_elsewhere_meanwhile_is_not_applied(
    intake, team, monkeypatch
):
    from fc_operator.intake import loads

    team.commit({"a.yaml": project("a")})
    await intake.bootstrap(team.url)
    reached, go_on = asyncio.Event(), asyncio.Event()
    real = loads.load

    async def slow(*arguments, **options):
        loaded = await real(*arguments, **options)
        reached.set()
        await go_on.wait()
        return loaded

    monkeypatch.setattr(loads, "load", slow)
    await intake.start()
    await reached.wait()
    await intake.bootstrap(team.url, path="nowhere")
    first = list(intake.services[0]._syncing)
    go_on.set()
    await asyncio.gather(*first)
    assert await intake.value("SELECT count(*) FROM projects") == 0


async def test_a_stopped_service_gives_up_its_leases(intake, git_host, team, monkeypatch):
    from fc_operator.intake import loads

    reached = asyncio.Event()

    async def never(*_, **__):
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(loads, "load", never)
    await intake.bootstrap(team.url)
    service = await intake.start()
    await reached.wait()
    assert await intake.value("SELECT lease_owner IS NOT NULL FROM config_repositories")
    await service.stop()
    await service.stop()
    assert await intake.value("SELECT lease_owner FROM config_repositories") is None


async def test_a_sync_asked_for_while_one_runs_is_not_lost(intake, team, monkeypatch):
    from fc_operator.intake import loads
    from fc_operator.operations.sources import request_sync

    team.commit({"a.yaml": project("a")})
    await intake.bootstrap(team.url)
    reached, go_on = asyncio.Event(), asyncio.Event()
    real = loads.load

    async def slow(*arguments, **options):
        loaded = await real(*arguments, **options)
        reached.set()
        await go_on.wait()
        return loaded

    monkeypatch.setattr(loads, "load", slow)
    await intake.start()
    await reached.wait()
    team.commit({"b.yaml": project("b")})
    await request_sync(intake.database, "_bootstrap")
    go_on.set()
    await intake.until(PROJECTS, "a b")


# Pruning's end --------------------------------------------------------------------------------


async def test_without_a_source_the_old_one_rests_and_its_objects_stay(intake, folder):
    from fc_operator.intake.repos import ensure_bootstrap
    from fc_operator.settings import ConfigSettings

    (folder / "a.yaml").write_text(project("a"))
    await intake.bootstrap(folder)
    await intake.start()
    await intake.until(PROJECTS, "a")
    assert await ensure_bootstrap(intake.database, ConfigSettings()) is None
    (folder / "b.yaml").write_text(project("b"))
    assert await intake.value("SELECT suspended FROM config_repositories")
    assert await intake.value("SELECT deleting_at FROM projects") is None
    await intake.bootstrap(folder)
    await intake.until(PROJECTS, "a b")
