"""A Nix store of the suite's own, derivations that need no nixpkgs, and the executors under test."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import stat
import subprocess
import tempfile
import uuid
from contextlib import aclosing
from functools import partial
from pathlib import Path

import pytest

from fc_operator.clients.nix import Nix
from fc_operator.executors.local import LocalExecutor, own_system
from fc_operator.executors.ssh import Declared, SshExecutor
from fc_operator.model.ids import DrvPath, StepId, TaskId
from fc_operator.model.tasks import StepEnded, StepOrder
from fc_operator.results import support
from fc_operator.settings import BuildSettings, NixSettings
from tests import ssh_machine
from tests.task_server import AgentExecutor, TaskServer


class NixHome:
    """A private store: nothing of it is shared with the machine or with other tests."""

    def __init__(self, shared_build_users) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="fc-nix-")).resolve()
        self.dir.chmod(0o755)  # build users have to pass
        conf = self.dir / "conf"
        conf.mkdir()
        (conf / "nix.conf").write_text("sandbox = false\nsubstituters =\n")
        self.store_dir = self.dir / "store"
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.dir),
            "NIX_REMOTE": "local",
            "NIX_STORE_DIR": str(self.store_dir),
            "NIX_STATE_DIR": str(shared_build_users(self.dir / "var")),
            "NIX_LOG_DIR": str(self.dir / "log"),
            "NIX_CONF_DIR": str(conf),
        }
        self._steps = itertools.count(1)

    def run(self, *argv: str) -> str:
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def drv(self, script: str, *, name: str = "sample", attrs: str = "") -> DrvPath:
        """A new derivation that runs ``script`` in /bin/sh; ``attrs`` is more Nix text."""
        text = re.sub(r"(\$\{|'')", r"''\1", script)
        expression = f"""derivation {{
          name = "{name}"; system = "{own_system()}"; builder = "/bin/sh";
          args = [ "-c" ''{text}'' ]; PATH = "/usr/bin:/bin"; salt = "{uuid.uuid4()}"; {attrs}
        }}"""
        return DrvPath(self.run("nix-instantiate", "-E", expression).splitlines()[-1].split("!")[0])

    def order(self, drv_path: DrvPath, **more) -> StepOrder:
        return StepOrder(
            step_id=StepId(next(self._steps)),
            attempt=1,
            task_id=TaskId(uuid.uuid4()),
            drv_path=drv_path,
            name="sample",
            system=own_system(),
            **more,
        )

    def close(self) -> None:
        for folder, _, _ in os.walk(self.dir):
            Path(folder).chmod(stat.S_IRWXU)
        shutil.rmtree(self.dir)


@pytest.fixture(scope="session")
def nix(shared_build_users):
    if shutil.which("nix-store") is None:
        if os.environ.get("CI"):
            pytest.fail("nix-store is not on PATH")
        pytest.skip("nix-store is not on PATH")
    home = NixHome(shared_build_users)
    yield home
    home.close()


@pytest.fixture
def make_local(nix, tmp_path):
    def make(*, slots: int = 2, sandbox: str = "None", env=None) -> LocalExecutor:
        return LocalExecutor(
            nix=NixSettings(sandbox=sandbox, store_dir=str(nix.store_dir)),
            builds=BuildSettings(local_slots=slots),
            dir=tmp_path / "executor",
            harvest=partial(support.harvest, store_dir=nix.store_dir),
            env=env or nix.env,
        )

    return make


@pytest.fixture
async def task_server(nix):
    server = TaskServer(nix.store_dir)
    await server.up()
    yield server
    await server.down()


@pytest.fixture
def make_agent(task_server, nix, tmp_path):
    def make() -> AgentExecutor:
        return AgentExecutor(task_server, nix.env, tmp_path)

    return make


@pytest.fixture(scope="session")
def machine(nix, shared_build_users):
    """A second machine, over SSH, with a store of its own."""
    ssh_machine.require()
    machine = ssh_machine.SshMachine(nix.dir, nix.env, shared_build_users)
    machine.start()
    yield machine
    machine.close()


@pytest.fixture
async def make_ssh(nix, tmp_path, request):
    made = []

    def make(*, slots: int = 2, sandbox: str = "None", machine=None, **more) -> SshExecutor:
        machine = machine or request.getfixturevalue("machine")
        declared = {
            "name": "second",
            "ssh_uri": machine.uri,
            "host_key": machine.public_host_key,
            "systems": (own_system(),),
            "max_jobs": slots,
        }
        executor = SshExecutor(
            Declared(**declared | more.pop("declared", {})),
            **{
                "read_key": machine.read_key,
                "nix": Nix(NixSettings(store_dir=str(nix.store_dir)), nix.env),
                "settings": NixSettings(sandbox=sandbox, store_dir=str(nix.store_dir)),
                "dir": tmp_path / "executor",
                "harvest": partial(support.harvest, store_dir=nix.store_dir),
            }
            | more,
        )
        made.append(executor)
        return executor

    yield make
    for executor in made:
        await executor.close()


@pytest.fixture(params=["local", "agent", "ssh"])
def executor(request, make_local, make_agent, make_ssh):
    """Each executor in turn; others join by a name and a maker here."""
    return {"local": make_local, "agent": make_agent, "ssh": make_ssh}[request.param]()


@pytest.fixture
def is_kept(executor, nix, task_server):
    """Whether an output is protected: by a root, or in the cache of a store that goes."""

    def is_kept(path: str) -> bool:
        if executor.name == "agent":
            return task_server.caches(path)
        return nix.run("nix-store", "-q", "--roots", path) != ""

    return is_kept


class Story:
    """All events of a batch, and what they say together."""

    def __init__(self, events) -> None:
        self.events = events

    def of(self, order, kind):
        return [
            event
            for event in self.events
            if event.step_id == order.step_id and isinstance(event, kind)
        ]

    def end(self, order) -> StepEnded:
        (end,) = self.of(order, StepEnded)
        return end

    def outcome(self, order):
        return self.end(order).outcome


@pytest.fixture
def tell(executor):
    """Run a batch to its end."""

    async def tell(*orders, each=None) -> Story:
        events = []
        async with aclosing(executor.start(orders)) as stream:
            async for event in stream:
                events.append(event)
                if each:
                    await each(event)
        return Story(events)

    return tell
