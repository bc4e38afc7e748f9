"""Agents of two pods against the real server, its database and its binary cache: from a commit to
builds that have ended well.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fc_operator.agent.session import Ending
from fc_operator.app.agent import Agent
from fc_operator.cache.knowledge import CacheKnowledge
from fc_operator.evaluator import rows
from fc_operator.executors.local import own_system
from fc_operator.kit.ciphers import Cipher
from fc_operator.model.evaluations import EvaluationEnd
from fc_operator.model.ids import CommitId, Owner
from fc_operator.model.jobs import JobError, JobRow
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.model.work import (
    Credentials,
    EvaluationReport,
    EvaluationWork,
    GitCredential,
    GitWork,
    NixWork,
)
from fc_operator.operations import tasks
from fc_operator.operations.ingest import Ingest
from fc_operator.queue import claims
from fc_operator.queue.offers import Offer
from fc_operator.settings import AgentSettings, BuildSettings, QueueSettings
from tests.integration.agent.conftest import load
from tests.task_server import KEY

_here = Path(__file__).parents[1]
_cache = load("cache_conftest", _here / "cache" / "conftest.py")
_engine = load("engine_conftest", _here / "operations" / "conftest.py")
serve = _cache.serve

pytestmark = pytest.mark.nix

CIPHER = Cipher(b"k" * 32)
FILES = {
    "release.nix": f"""let job = name: needs: derivation {{
        inherit name needs; system = "{own_system()}"; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
        args = [ "-c" ''echo making $name
          for i in 1 2 3 4 5 6 7 8; do echo at $i; sleep 0.2; done
          mkdir -p $out/nix-support; cp $needs $out/data
          echo "file data $out/data" > $out/nix-support/hydra-build-products'' ]; }};
      in rec {{ base = job "base" ./data; other = job "other" ./data;
        top = job "top" "${{base}}/data"; bad = job "bad" ./missing-file; }}""",
    "data": "content\n",
}


@pytest.fixture
def world(serve, database, nix, git_host, tmp_path):
    return World(serve, database, nix, git_host, tmp_path)


class World:
    """A server, a git host with a password, and pods that come one after the other."""

    def __init__(self, serve, database, nix, git_host, folder) -> None:
        self.serve, self.database, self.nix = serve, database, nix
        self.git_host, self.folder = git_host, folder
        self.engine = _engine.Engine(database, None)

    def nix_work(self, served) -> NixWork:
        return NixWork(
            store_dir=str(self.nix.store_dir),
            cache_url=served.cache_url,
            cache_public_keys=(KEY.public,),
        )

    async def give(self, task_id, work, credentials=None) -> None:
        sealed = credentials and tasks.seal_credentials(CIPHER, task_id, credentials)
        await self.engine.sql(
            "UPDATE tasks SET work = $2, credentials_ciphertext = $3 WHERE id = $1",
            task_id,
            work.to_json(),
            sealed,
        )

    async def pod(self, served, task_id, phase="work") -> Ending:
        """One container of a pod."""
        settings = AgentSettings(
            server=served.url,
            task=str(task_id),
            token=tasks.opening_token(CIPHER, task_id).text,
            phase=phase,
            folder=self.folder / "work",
        )
        settings.folder.mkdir(exist_ok=True)
        async with asyncio.timeout(90):
            return await Agent(settings, self.nix.env).run(asyncio.Event())

    async def evaluate(self, served, files):
        """Evaluate files in a pod, and take its reports as the scheduler does."""
        self.nix.forget_all()
        repository = self.git_host.make("repository")
        commit = repository.commit(files)
        self.git_host.need_password("ci", "hunter2")
        fence = await self.engine.evaluation(await self.engine.jobset(), commit=commit)
        work = EvaluationWork(
            task_id=fence.task_id,
            evaluation_id=fence.evaluation_id,
            repository_url=repository.url,
            commit=CommitId(commit),
            expression="release.nix",
            is_flake=False,
            git=GitWork(allowed_schemes=("http",), allowed_hosts=(self.git_host.listed,)),
            nix=self.nix_work(served),
        )
        credential = GitCredential(url=repository.url, username="ci", password="hunter2")
        await self.give(fence.task_id, work, Credentials(credentials=(credential,)))
        assert await self.pod(served, fence.task_id, "fetch") is Ending.DONE
        assert await self.engine.one(
            "SELECT credentials_ciphertext IS NULL FROM tasks WHERE id = $1", fence.task_id
        )
        assert await self.pod(served, fence.task_id) is Ending.DONE
        knowledge = CacheKnowledge(self.database, served.objects, store_dir=str(self.nix.store_dir))
        ingest = Ingest(self.database, knowledge, BuildSettings(), roots_dir=self.folder / "roots")
        reports = await self.engine.sql(
            "SELECT payload FROM task_reports WHERE task_id = $1 ORDER BY seq", fence.task_id
        )
        *batches, end = [tasks.read_report(report["payload"]) for report in reports]
        for batch in batches:
            items = [
                rows.parse_row(data, store_dir=str(self.nix.store_dir), name_of_root="release.nix")
                for data in batch
            ]
            await ingest.add(
                fence,
                [item for item in items if isinstance(item, JobRow)],
                [item for item in items if isinstance(item, JobError)],
            )
        assert isinstance(end, EvaluationReport)
        assert end.status is EvaluationStatus.COMPLETED, end.message
        await ingest.finish(fence, EvaluationEnd(status=end.status))
        return fence

    async def claim(self, served):
        """What a pod would get now, as a task with its work."""
        found = await claims.claim(
            self.database,
            Offer(systems=(own_system(),)),
            8,
            owner=Owner("pods"),
            executor="pod",
            settings=QueueSettings(),
        )
        if not found:
            return None
        task_id = found[0].task_id
        work = tasks.steps_work(
            task_id, found, builds=BuildSettings(), nix=self.nix_work(served), slots=2
        )
        await self.give(task_id, work)
        self.nix.forget_all()
        return task_id


async def test_a_commit_is_built_in_pods_that_share_nothing_but_the_cache(world):
    async with world.serve() as served:
        fence = await world.evaluate(served, FILES)
        assert {*(await world.engine.builds(fence))} == {"base", "other", "top"}
        pods = 0
        while (task_id := await world.claim(served)) is not None:
            pods += 1
            assert await world.pod(served, task_id) in {Ending.DONE, Ending.GONE}
        assert pods == 2, "top has to wait for base"
        builds = await world.engine.builds(fence)
        assert {build["status"] for build in builds.values()} == {"succeeded"}
        assert await world.engine.invariants() == []
        logs = await world.engine.sql(
            "SELECT s.name, count(*) AS pieces FROM log_chunks c JOIN steps s ON s.id = c.step_id"
            " GROUP BY s.name ORDER BY s.name"
        )
        assert [row["name"] for row in logs] == ["base", "other", "top"]
        products = await world.engine.sql("SELECT name, file_size FROM build_products")
        assert [tuple(row) for row in products] == [("data", 8)] * 3


async def test_the_real_server_may_restart_while_a_pod_builds(world):
    async with world.serve() as served:
        fence = await world.evaluate(served, FILES)
        task_id = await world.claim(served)
        port = int(served.url.rsplit(":", 1)[1])
        pod = asyncio.create_task(world.pod(served, task_id))
        while not await world.engine.one("SELECT count(*) FROM log_chunks"):
            await asyncio.sleep(0.05)
    assert not pod.done()
    async with world.serve(port=port) as served:
        assert await pod in {Ending.DONE, Ending.GONE}
        ended = await world.engine.sql("SELECT name FROM steps WHERE status = 'succeeded'")
        assert {row["name"] for row in ended} == {"base", "other"}
        assert await world.engine.one("SELECT max(attempt) FROM steps") == 1
        builds = await world.engine.builds(fence)
        for name in ("base", "other"):
            url = f"{served.url}/api/v1/builds/{builds[name]['id']}/log"
            async with served.session.get(url, headers={"Accept": "text/plain"}) as answer:
                log = await answer.text()
            assert log.splitlines() == [f"making {name}", *(f"at {n}" for n in range(1, 9))]
