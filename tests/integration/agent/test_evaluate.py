"""An evaluation pod's two containers: real git with a password, real Nix, real HTTP."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

import pytest

from fc_operator.agent.session import Ending
from fc_operator.errors import ProtocolError
from fc_operator.executors.local import own_system
from fc_operator.model.evaluations import ResolvedInput
from fc_operator.model.ids import CommitId, EvaluationId
from fc_operator.model.statuses import BuildStatus
from fc_operator.model.work import BuildInput, EvaluationWork, GitWork

pytestmark = pytest.mark.nix

PASSWORD = "hunter2-very-secret"
JOB = f"""name: needs: derivation {{
  inherit name needs; system = "{own_system()}"; builder = "/bin/sh";
  args = [ "-c" "echo made-$name; cat $needs > $out; echo x >> $out" ]; PATH = "/usr/bin:/bin";
}}"""
SLOW = """let sum = builtins.foldl' (a: b: a + b) 0; numbers = builtins.genList (n: n) 100000; in
  { slow = sum (map (n: sum (map (m: n + m) numbers)) numbers); }"""


@pytest.fixture
def evaluation(server, git_host):
    """Make ``server`` give out the evaluation of files, behind a password."""

    def make(files, expression="release.nix", **more) -> EvaluationWork:
        repository = git_host.make(f"r{len(list(git_host.folder.iterdir()))}")
        commit = repository.commit(files)
        git_host.need_password("ci", PASSWORD)
        server.credentials = [{"url": repository.url, "username": "ci", "password": PASSWORD}]
        server.work = EvaluationWork(
            task_id=server.task_id,
            evaluation_id=EvaluationId(uuid.uuid4()),
            repository_url=repository.url,
            commit=CommitId(commit),
            expression=expression,
            is_flake=False,
            git=GitWork(allowed_schemes=("http",), allowed_hosts=(git_host.listed,)),
            nix=server.nix_work(),
            **more,
        )
        return server.work

    return make


def holders_of(folder, text: str) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes()
    ]


def rows_of(server) -> dict[str, dict]:
    return {".".join(row["attrPath"]): row for report in server.reports for row in report}


async def test_a_commit_becomes_rows_and_its_derivations_are_in_the_cache_first(
    nix, server, evaluation, agent, tmp_path
):
    nix.forget_all()
    evaluation(
        {
            "release.nix": f"""let job = {JOB}; base = job "base" ./data; in {{
              inherit base;
              top = job "top" (job "middle" base);
              bad = throw "no way";
            }}""",
            "data": "content of the source\n",
        }
    )
    async with agent("fetch") as pod:
        assert await pod.ending() is Ending.DONE
    assert server.checkout["subject"] == "change"
    assert server.checkout["author"] == "Ada Author <ada@example.org>"
    assert len(server.checkout["tree"]) == 40
    for folder in (tmp_path / "work", nix.dir):
        assert holders_of(folder, PASSWORD) == []
    assert not (tmp_path / "work" / "mirrors").exists()
    async with agent("work") as pod:
        assert await pod.ending() is Ending.DONE
    rows = rows_of(server)
    assert rows.keys() == {"base", "top", "bad"}
    assert "no way" in rows["bad"]["error"]
    top, base = rows["top"], rows["base"]
    assert (base["cacheStatus"], base["neededBuilds"]) == ("notBuilt", [])
    (middle,) = top["inputDrvs"]
    assert list(rows) == ["base", "top", "bad"]
    assert top["neededBuilds"] == [middle], "base is a row before"
    first_rows = server.happened.index("rows")
    for drv in (top["drvPath"], middle, base["drvPath"]):
        assert server.happened.index(f"cached {drv}") < first_rows
    assert server.ended["status"] == "completed"
    assert server.ended["evaluator"] in {"walker", "nix-eval-jobs"}
    assert server.ended["checkout_ms"] > 0


async def test_another_pod_builds_what_was_evaluated_from_the_cache_alone(
    nix, server, evaluation, batch, agent
):
    nix.forget_all()
    evaluation({"release.nix": f'{{ job = ({JOB}) "base" ./data; }}', "data": "from git\n"})
    async with agent("fetch") as pod:
        await pod.ending()
    async with agent("work") as pod:
        await pod.ending()
    (order,) = await batch(rows_of(server)["job"]["drvPath"])
    async with agent("work") as pod:
        await pod.ending()
    outcome = server.end_of(order).outcome
    assert outcome.status is BuildStatus.SUCCEEDED, outcome.message
    assert server.log_of(order) == b"made-base\n"


async def test_inputs_of_every_type_are_there(  # noqa: PLR0917 - as many fixtures
    nix, server, evaluation, batch, agent, git_host
):
    built = nix.drv("echo from-a-build > $out", name="lib-1.2")
    (order,) = await batch(built)
    async with agent() as pod:
        await pod.ending()
    path = server.end_of(order).outcome.harvest.outputs[0].path
    nix.forget_all()
    server.phases.clear()
    other = git_host.make("other")
    commit = other.commit({"value": "from-another-repository"})
    evaluation(
        {
            "release.nix": f"""{{ text, flag, lib, other, here }}: {{
              job = ({JOB}) "job-${{text}}-${{builtins.readFile "${{other}}/value"}}" lib;
              version = ({JOB}) "v${{lib.version}}-${{if flag then "on" else "off"}}" "${{here}}";
            }}""",
            "sub/file": "x",
        },
        inputs=(
            ResolvedInput(name="text", type="string", value="hello"),
            ResolvedInput(name="flag", type="boolean", value="true"),
            ResolvedInput(name="other", type="git", value=other.url, revision=commit),
            ResolvedInput(name="here", type="path", value="sub"),
            ResolvedInput(name="lib", type="build", value="p:j:b", store_path=path),
        ),
        input_urls={"other": other.url},
        builds={"lib": BuildInput(drv_path=built, name="lib-1.2")},
    )
    server.credentials.append(server.credentials[0] | {"url": other.url})
    async with agent("fetch") as pod:
        assert await pod.ending() is Ending.DONE
    assert server.ended == {"remaining": "none"}, "only that of the build before"
    assert set(server.checkout["store_paths"]) == {"other", "lib"}
    async with agent("work") as pod:
        assert await pod.ending() is Ending.DONE
    names = {name: row.get("name", row.get("error")) for name, row in rows_of(server).items()}
    assert names == {"job": "job-hello-from-another-repository", "version": "v1.2-on"}
    job = rows_of(server)["job"]
    assert (job["cacheStatus"], job["neededBuilds"]) == ("notBuilt", [])


async def test_what_an_evaluation_built_itself_is_built_again_where_others_have_it(
    nix, server, evaluation, batch, agent
):
    nix.forget_all()
    evaluation(
        {
            "release.nix": f"""let job = {JOB}; plain = derivation {{ name = "plain";
                system = "{own_system()}"; builder = "/bin/sh"; args = [ "-c" "echo yes > $out" ];
              }}; in {{
              alone = plain;
              again = if builtins.readFile plain == "yes\n" then job "again" plain else null; }}"""
        },
        allow_import_from_derivation=True,
    )
    async with agent("fetch") as pod:
        await pod.ending()
    async with agent("work") as pod:
        await pod.ending()
    rows = rows_of(server)
    plain = rows["alone"]["drvPath"]
    assert rows.keys() == {"alone", "again"}
    assert rows["alone"]["cacheStatus"] == "notBuilt", "it is valid in that pod only"
    assert rows["again"]["neededBuilds"] == [plain]
    (order,) = await batch(plain)
    async with agent() as pod:
        await pod.ending()
    assert server.end_of(order).outcome.status is BuildStatus.SUCCEEDED


async def test_what_is_in_the_cache_already_is_told(nix, server, evaluation, batch, agent):
    nix.forget_all()
    files = {"release.nix": f'let j = {JOB}; in {{ one = j "one" ./data; }}', "data": "x"}
    for _ in range(2):
        evaluation(files)
        async with agent("fetch") as pod:
            await pod.ending()
        async with agent("work") as pod:
            await pod.ending()
        row = rows_of(server)["one"]
        server.reports.clear()
        server.checkout = None
        (order,) = await batch(row["drvPath"])
        async with agent() as pod:
            await pod.ending()
        nix.forget_all()
        server.phases.clear()
    assert row["cacheStatus"] == "cached"
    assert server.end_of(order).outcome.reason == "AlreadyValid"


async def test_a_wrong_password_is_told_as_the_end(server, evaluation, agent):
    evaluation({"release.nix": "{}"})
    server.credentials[0]["password"] = "wrong"
    async with agent("fetch") as pod:
        assert await pod.ending() is Ending.DONE
    assert (server.ended["status"], server.ended["reason"]) == ("failed", "CheckoutFailed")
    assert server.ended["error_kind"] == "fetch"
    assert "wrong" not in server.ended["message"]
    async with agent("work") as pod:
        with pytest.raises(ProtocolError, match="has left no checkout"):
            await pod.ending()


async def test_an_expression_that_does_not_evaluate_is_told_as_the_end(server, evaluation, agent):
    evaluation({"release.nix": "{ a = "})
    async with agent("fetch") as pod:
        await pod.ending()
    async with agent("work") as pod:
        assert await pod.ending() is Ending.DONE
    assert (server.ended["status"], server.ended["reason"]) == ("failed", "EvaluationFailed")
    assert "syntax error" in server.ended["message"]


async def test_rows_survive_a_server_that_restarts_and_one_that_is_behind(
    nix, server, evaluation, agent
):
    nix.forget_all()
    evaluation(
        {
            "release.nix": f"""let job = {JOB}; in builtins.listToAttrs (builtins.genList (n: {{
              name = "job-${{toString n}}"; value = job "job-${{toString n}}" ./data; }}) 600)""",
            "data": "x",
        }
    )
    async with agent("fetch") as pod:
        await pod.ending()
    server.refuse["/rows"] = [429, 0, 429, 503]
    async with agent("work") as pod:
        await server.until(lambda: server.reports)
        await server.down()
        await asyncio.sleep(0)
        await server.up()
        server.broken = 2
        assert await pod.ending() is Ending.DONE
    names = [".".join(row["attrPath"]) for report in server.reports for row in report]
    assert len(names) == len(set(names)) == 600
    assert len(server.reports) > 1
    assert server.ended["status"] == "completed"


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("stop", {"status": "cancelled", "interrupted": True}),
        ("cancel", {"status": "cancelled", "reason": "Superseded", "interrupted": False}),
    ],
)
async def test_an_evaluation_is_ended_from_outside(server, evaluation, agent, how, wanted):
    evaluation({"release.nix": SLOW})
    async with agent("fetch") as pod:
        await pod.ending()
    async with agent("work") as pod:
        await server.until(lambda: len(server.beats) > 5)
        if how == "stop":
            pod.stopping.set()
        else:
            server.cancel_task = "Superseded"
        ending = await pod.ending(20)
    assert ending is (Ending.STOPPED if how == "stop" else Ending.DONE)
    assert {name: server.ended[name] for name in wanted} == wanted


async def test_a_flake_is_evaluated_with_the_age_of_its_commit(nix, server, evaluation, agent):
    nix.forget_all()
    evaluation(
        {
            "flake.nix": f"""{{ outputs = {{ self }}: {{ hydraJobs.job = ({JOB})
              "of-${{toString (self.lastModified > 1000000000)}}" ./data; }}; }}""",
            "data": "x",
        },
        expression="hydraJobs",
    )
    server.work = replace(server.work, is_flake=True)
    async with agent("fetch") as pod:
        assert await pod.ending() is Ending.DONE
    async with agent("work") as pod:
        assert await pod.ending() is Ending.DONE
    assert server.ended["status"] == "completed", server.ended["message"]
    assert rows_of(server)["job"]["name"] == "of-1"


async def test_a_fetch_that_is_stopped_is_not_charged(server, evaluation, agent):
    evaluation({"release.nix": "{}"})
    server.refuse["/credentials"] = [503] * 1000
    async with agent("fetch") as pod:
        await server.until(lambda: len(server.beats) > 2)
        pod.stopping.set()
        assert await pod.ending(20) is Ending.STOPPED
    assert server.ended["interrupted"] is True
