"""Every verb against the running demo, as processes of their own."""

import json

import pytest

pytestmark = [pytest.mark.nix]


@pytest.fixture(scope="module")
def url(demo):
    return demo[1]


@pytest.fixture(scope="module")
def key(demo, fc, home):
    made = fc("key", "create", "tests", "--role", "admin", "--state", home / "demo")
    assert made.code == 0, made.err
    return made.out.strip()


@pytest.fixture(scope="module")
def verb(fc, url, key):
    """A verb with address and key in its environment."""

    def run(*words, **more):
        return fc(*words, FC_URL=url, FC_API_KEY=key, **more)

    return run


NOUNS = {
    "projects": ("name", {"demo", "flakes"}),
    "jobsets": ("name", {"main", "failures", "partly", "checks"}),
    "evaluations": ("status", {"completed"}),
    "builds": ("status", {"succeeded", "failed", "timeout"}),
    "builders": ("enabled", {True}),
    "channels": ("name", {"stable"}),
    "resources": ("kind", {"Project", "Jobset"}),
    "sources": ("bootstrap", {True}),
}


@pytest.mark.parametrize("noun", NOUNS)
def test_get_of_every_noun_in_every_form(verb, noun):
    field, wanted = NOUNS[noun]
    found = {item[field] for item in verb("get", noun, "-o", "json").data}
    assert found >= wanted
    table = verb("get", noun)
    assert table.code == 0
    assert len(table.out.splitlines()) > 1
    assert verb("get", noun, "-o", "yaml").out.startswith("- ")


def test_an_idle_queue_is_empty(verb):
    assert verb("get", "queue", "-o", "json").data == []


def test_the_overview_shows_sources_and_jobsets(verb, url):
    shown = verb("get")
    assert shown.out.startswith(f"FC Operator at {url}: ")
    assert "demo/main" in shown.out
    data = verb("get", "-o", "json").data
    assert {row["name"] for row in data["jobsets"]} >= {"main", "partly"}


def test_single_things_are_shown_whole(verb):
    jobset = verb("get", "jobsets", "demo/partly", "-o", "json").data
    assert jobset["errors"]["jobs"][0]["job"] == "typo"
    assert "never been written" in verb("get", "jobsets", "demo/partly").out
    builds = verb("get", "builds", "demo/main/tests.hello.unit", "-o", "json").data
    build = verb("get", "builds", builds[0]["number"], "-o", "json").data
    assert {metric["name"] for metric in build["metrics"]} == {"tests.passed", "coverage"}
    assert build["steps"]
    evaluation = verb("get", "evaluations", build["evaluation"], "-o", "json").data
    assert {each["name"] for each in evaluation["inputs"]} == {"greeting", "shout", "quotes"}


def test_lists_are_narrowed(verb):
    failed = verb("get", "builds", "demo", "--status", "failed,timeout", "-o", "json").data
    assert {row["job_name"] for row in failed} == {"broken", "slow", "silent"}
    few = verb("get", "builds", "--limit", "2")
    assert len(few.out.splitlines()) == 3
    assert "--limit shows more" in few.err


def test_what_is_not_there_is_an_error(verb):
    for words in (("builds", "999999"), ("jobsets", "demo/nope"), ("projects", "nope")):
        done = verb("get", *words)
        assert done.code == 1
        assert done.err.startswith("error: no ")


def test_logs_whole_and_in_part(verb):
    whole = verb("logs", "demo/main/hello")
    assert whole.out.splitlines() == ["compiling hello", "Good morning, world"]
    assert verb("logs", "demo/main/hello", "--tail", "1").out == "Good morning, world\n"


def test_a_build_that_was_not_run_shows_the_log_of_what_failed(verb):
    done = verb("logs", "demo/failures/dependent")
    assert done.code == 0
    assert "internal compiler error" in done.out
    assert "was not run, because broken is failed" in done.err


def test_following_a_log_tells_how_it_ended(verb):
    good = verb("logs", "demo/main/hello", "-f")
    assert good.code == 0
    assert good.out.splitlines() == ["compiling hello", "Good morning, world"]
    assert "demo/main/hello: succeeded" in good.err
    bad = verb("logs", "demo/failures/broken", "-f")
    assert bad.code == 3
    assert "internal compiler error" in bad.out


def test_writes_need_a_key(fc, url):
    refused = fc("cancel", "1", FC_URL=url)
    assert refused.code == 1
    assert "API key" in refused.err
    wrong = fc("get", FC_URL=url, FC_API_KEY="fc_wrong")
    assert wrong.code == 1


def test_a_key_of_another_installation_is_traced_to_its_file(fc, url, tmp_path):
    file = tmp_path / "fc" / "key"
    file.parent.mkdir()
    file.write_text("fc_of_another_installation\n")
    refused = fc("get", FC_URL=url, XDG_CONFIG_HOME=str(tmp_path))
    assert refused.code == 1
    assert f"the key is that of {file}" in refused.err


def test_keys_are_made_listed_and_revoked(verb, fc, url):
    made = verb("key", "create", "reader", "--expires", "1d").out.strip()
    assert fc("get", "projects", FC_URL=url, FC_API_KEY=made).code == 0
    assert fc("bump", "1", FC_URL=url, FC_API_KEY=made).code == 1
    rows = {row["name"]: row for row in verb("key", "list", "-o", "json").data}
    prefix = rows["reader"]["prefix"]
    assert made.startswith(prefix)
    assert made not in verb("key", "list").out
    assert verb("key", "revoke", prefix).code == 0


def test_evaluating_again_changes_nothing_unless_forced(verb):
    same = verb("evaluate", "demo/main", "--wait")
    assert same.code == 0
    assert "nothing has changed" in same.out
    forced = verb("evaluate", "demo/main", "--force", "--wait")
    assert forced.code == 0, forced.err
    assert "completed" in forced.out
    assert "6 succeeded" in forced.out
    badly = verb("evaluate", "demo/partly", "--force", "--wait")
    assert badly.code == 3
    assert "typo: " in badly.err


def test_where_nothing_has_changed_waiting_is_for_what_still_runs(verb):
    assert verb("evaluate", "demo/partly", "--wait").code == 3
    assert verb("restart", "demo/failures/slow").code == 0
    waited = verb("evaluate", "demo/failures", "--wait")
    assert waited.code == 3
    assert "nothing has changed" in waited.out
    *_, first, last = waited.out.splitlines()
    assert "1 running" in first or "1 pending" in first
    assert "running" not in last
    assert "pending" not in last


def test_keep_and_let_go(verb):
    kept = verb("keep", "demo/main/hello")
    assert kept.code == 0, kept.err
    assert "keeping build" in kept.out
    rows = verb("get", "builds", "demo/main/hello", "-o", "json").data
    assert rows[0]["keep"]
    assert verb("keep", "--off", "demo/main/hello").code == 0
    assert verb("keep", "demo/main").code == 1


def test_what_has_ended_can_not_be_bumped(verb):
    refused = verb("bump", "demo/main/hello")
    assert refused.code == 1
    assert "it has ended" in refused.err


def test_restart_builds_again_and_cancel_ends_it(verb):
    again = verb("restart", "demo/failures/slow")
    assert again.code == 0, again.err
    cancelled = verb("cancel", "demo/failures/slow")
    assert cancelled.code == 0, cancelled.err
    followed = verb("logs", "demo/failures/slow", "-f")
    assert followed.code == 3
    assert "slow: cancelled" in followed.err


def test_several_things_at_once_and_one_that_is_not_there(verb):
    done = verb("keep", "demo/main/hello", "999999", "demo/main/banner", "-o", "json")
    assert done.code == 1
    assert len(json.loads(done.out)) == 2
    assert "999999" in done.err


MANIFESTS = """\
apiVersion: fc-operator.dev/v1alpha1
kind: Project
metadata: {name: applied}
spec: {repositoryUrl: https://git.example.org/applied.git}
---
apiVersion: fc-operator.dev/v1alpha1
kind: Jobset
metadata: {name: applied-main}
spec: {projectRef: {name: applied}, name: main, state: Disabled}
"""


def test_plan_and_apply(verb):
    planned = verb("plan", "-", stdin=MANIFESTS)
    assert planned.code == 2, planned.err
    assert "+ Project applied" in planned.out
    applied = verb("apply", "-", stdin=MANIFESTS)
    assert applied.code == 0, applied.err
    assert "2 created" in applied.out
    assert verb("plan", "-", stdin=MANIFESTS).code == 0
    changed = MANIFESTS.replace("state: Disabled", "state: Disabled, schedulingShares: 7")
    planned = verb("plan", "-", stdin=changed)
    assert planned.code == 2
    assert "~ Jobset applied/main: scheduling_shares" in planned.out


def test_what_another_source_owns_is_refused(verb):
    taken = MANIFESTS.replace("name: applied}", "name: demo}", 1)
    refused = verb("apply", "-", stdin=taken.split("---")[0])
    assert refused.code == 1
    assert "! Project demo" in refused.out


def test_broken_manifests_are_told_with_file_and_line(verb):
    broken = MANIFESTS.replace("repositoryUrl", "repositryUrl")
    for name in ("plan", "apply"):
        done = verb(name, "-", stdin=broken)
        assert done.code == 1
        assert "stdin.yaml:4: " in done.err


def test_sync_waits_for_the_config_repository(verb):
    done = verb("sync", "--wait")
    assert done.code == 0, done.err
    assert " is at " in done.out


def test_doctor_finds_what_the_demo_needed(verb, home):
    done = verb("doctor", "-o", "json", "--state", home / "demo",
                "--set", f"nix.store_dir={home / 'store'}")  # fmt: skip
    assert done.code == 0, done.out
    found = {each["name"]: each["state"] for each in done.data}
    assert found["Nix"] == found["git"] == found["builds"] == "found"
