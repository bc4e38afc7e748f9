"""Flakes with the walker: pure, locked by content, inputs replaced."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os

import pytest

from fc_operator.errors import EvaluationError
from fc_operator.evaluator import flakes, locks
from fc_operator.evaluator.requests import Argument, Tree

pytestmark = pytest.mark.nix

DRV = 'drv = name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; };'


def flake(bench, outputs: str, *, inputs: str = "", arguments: str = "self") -> None:
    bench.write(
        "flake.nix",
        f"{{ {inputs} outputs = {{ {arguments} }}: let {DRV} in {{ {outputs} }}; }}",
    )


async def jobs(bench, expression="", **more):
    return await bench.jobs(None, expression=expression, is_flake=True, **more)


async def test_hydra_jobs_else_checks_else_an_error(bench):
    flake(bench, 'hydraJobs.a = drv "h"; checks.x86_64-linux.b = drv "c";')
    rows, errors = await jobs(bench)
    assert ({name: row.name for name, row in rows.items()}, errors) == ({"a": "h"}, {})
    flake(bench, 'checks.x86_64-linux.b = drv "c"; bad = 1;')
    rows, _ = await jobs(bench, ".#")
    assert sorted(rows) == ["x86_64-linux.b"]
    flake(bench, "nothing = 1;")
    with pytest.raises(EvaluationError, match="neither an output hydraJobs nor checks"):
        await jobs(bench)
    with pytest.raises(EvaluationError, match="no output packages"):
        await jobs(bench, "packages")


async def test_c23_attributes_as_users_write_them(bench):
    flake(
        bench,
        """packages.x86_64-linux."a.b" = drv "p";
        nixosConfigurations.one.config.system.build.toplevel = drv "one";
        nixosConfigurations.two.config.system.build.toplevel = throw "two is broken";""",
    )
    rows, _ = await jobs(bench, ".#packages.x86_64-linux")
    assert sorted(rows) == ['"a.b"']
    rows, _ = await jobs(bench, 'packages.x86_64-linux."a.b"')
    assert {name: row.name for name, row in rows.items()} == {'"a.b"': "p"}
    rows, errors = await jobs(bench, "nixosConfigurations")
    assert ({n: r.name for n, r in rows.items()}, errors) == (
        {"one": "one"},
        {"two": "two is broken"},
    )
    rows, _ = await jobs(bench, "#nixosConfigurations.one")
    assert [row.name for row in rows.values()] == ["one"]


async def test_cve_class_lost_sandbox_flag_flakes_are_pure(bench):
    bench.env["CANARY"] = "canary"
    flake(
        bench,
        """hydraJobs = {
          env = drv ("e" + builtins.getEnv "CANARY" + builtins.getEnv "HOME");
          passwd = drv (builtins.substring 0 4 (builtins.readFile "/etc/passwd"));
          system = drv builtins.currentSystem;
          unlocked = drv (builtins.getFlake "path:/tmp").rev;
          ifd = import (drv "ifd");
          exec = builtins.exec [ "true" ];
          good = drv "good";
        };""",
    )
    rows, errors = await jobs(bench)
    assert {name: row.name for name, row in rows.items()} == {"env": "e", "good": "good"}
    assert sorted(errors) == ["exec", "ifd", "passwd", "system", "unlocked"]


async def test_the_flake_knows_its_revision_and_gives_the_same_wherever_it_lies(bench, tmp_path):
    flake(
        bench,
        """hydraJobs.a = derivation { name = "a"; system = "x86_64-linux"; builder = "/bin/sh";
        src = "${self}"; v = "${self.rev} ${toString self.revCount} ${self.lastModifiedDate}"; };""",
    )
    found = set()
    for folder in ("one", "two"):
        copy = tmp_path / folder / "source"
        copy.mkdir(parents=True)
        (copy / "flake.nix").write_text((bench.source / "flake.nix").read_text())
        for path in (copy / "flake.nix", copy):
            os.utime(path, (1_700_000_000, 1_700_000_000))
        tree = Tree(path=copy, revision="ab" * 20, rev_count=7, last_modified=1_700_000_000)
        rows, errors = await jobs(bench, source=tree)
        assert errors == {}
        found.add(bench.read_drv(rows["a"]))
    (drv,) = found
    assert f"{'ab' * 20} 7 20231114221320" in drv


async def test_git_inputs_replace_flake_inputs(bench, tmp_path):
    flake(
        bench,
        'hydraJobs.a = drv "a-${dep.value}-${builtins.readFile "${data}/text"}";',
        inputs="""inputs.dep.url = "git+https://nowhere.invalid/dep.git";
        inputs.data = { url = "git+https://nowhere.invalid/data.git"; flake = false; };""",
        arguments="self, dep, data",
    )

    def locked(name):
        place = {"type": "git", "url": f"https://nowhere.invalid/{name}.git"}
        return {
            "original": place,
            "locked": place | {"rev": "0" * 40, "narHash": f"sha256-{'A' * 43}="},
        }

    bench.write(
        "flake.lock",
        json.dumps(
            {
                "version": 7,
                "root": "root",
                "nodes": {
                    "root": {"inputs": {"dep": "dep", "data": "data"}},
                    "dep": locked("dep"),
                    "data": locked("data") | {"flake": False},
                },
            }
        ),
    )
    dep, data = tmp_path / "dep" / "source", tmp_path / "data" / "source"
    for folder in (dep, data):
        folder.mkdir(parents=True)
    (dep / "flake.nix").write_text('{ outputs = { self }: { value = "new"; }; }')
    (data / "text").write_text("text")
    given = [
        Argument(name=name, type="git", tree=Tree(path=folder, revision="cd" * 20))
        for name, folder in (("dep", dep), ("data", data))
    ]
    rows, errors = await jobs(bench, arguments=tuple(given))
    assert errors == {}
    assert rows["a"].name == "a-new-text"
    with pytest.raises(EvaluationError, match="no input other"):
        await jobs(bench, arguments=(Argument(name="other", type="git", tree=Tree(path=dep)),))


async def test_what_is_no_flake_says_so(bench):
    with pytest.raises(EvaluationError, match=r"no flake\.nix"):
        await jobs(bench)
    bench.write("flake.nix", "{ outputs = ; }")
    with pytest.raises(EvaluationError, match="syntax error"):
        await jobs(bench)
    flake(bench, "")
    with pytest.raises(EvaluationError, match="not an attribute path"):
        await jobs(bench, "a..b")


async def test_h17_a_locked_git_input_does_not_meet_restrict_eval(bench, git_host):
    """Nix itself fetches it: restricted evaluation lets it where the lock file was judged."""
    repository = git_host.make("locked")
    revision = repository.commit({"flake.nix": '{ outputs = { self }: { value = "locked"; }; }'})
    url = f"git+{repository.url}"
    nar_hash = bench.nix.run(
        "nix-instantiate", "--eval", "--strict", "--json",
        "--option", "experimental-features", "nix-command flakes", "-E",
        f'(builtins.fetchTree {{ type = "git"; url = "{repository.url}"; ref = "main"; rev = "{revision}"; }}).narHash',
    ).strip('"')  # fmt: skip
    flake(
        bench,
        "hydraJobs.a = drv dep.value;",
        inputs=f'inputs.dep.url = "{url}?ref=main&rev={revision}";',
        arguments="self, dep",
    )
    place = {"type": "git", "url": repository.url, "ref": "main", "rev": revision}
    bench.write(
        "flake.lock",
        json.dumps(
            {
                "version": 7,
                "root": "root",
                "nodes": {
                    "root": {"inputs": {"dep": "dep"}},
                    "dep": {"original": place, "locked": place | {"narHash": nar_hash}},
                },
            }
        ),
    )
    lock = await asyncio.to_thread(flakes.read_lock, bench.source)
    uris = locks.allowed_uris(lock, lambda url: None)
    rows, errors = await jobs(bench, allowed_uris=uris)
    assert (errors, [row.name for row in rows.values()]) == ({}, ["locked"])


async def test_cve_class_pure_flake_reads_this_machine(bench, git_host, tmp_path):
    """Pure evaluation fetches whatever the code locks, with the rights of the server."""
    secret = tmp_path / "secret" / "key"
    secret.parent.mkdir()
    secret.write_text("canary")
    digest = hashlib.sha256(b"canary").hexdigest()
    locked = await flakes.hashed(Tree(path=secret.parent), env=bench.env, timeout_s=60)
    repository = git_host.make("private")
    revision = repository.commit({"key": "canary"})
    hostile = {
        "file": f'builtins.fetchurl {{ url = "file://{secret}"; sha256 = "{digest}"; }}',
        "url": f'builtins.fetchurl {{ url = "{repository.url}/HEAD"; sha256 = "{digest}"; }}',
        "git": f'builtins.fetchGit {{ url = "{repository.path}"; rev = "{revision}"; }}',
        "gitfile": f'builtins.fetchGit {{ url = "file://{repository.path}"; rev = "{revision}"; }}',
        "githost": f'builtins.fetchGit {{ url = "{repository.url}"; rev = "{revision}"; }}',
        "tree": (
            f'builtins.fetchTree {{ type = "git"; url = "file://{repository.path}"; '
            f'rev = "{revision}"; }}'
        ),
        # Only the kernel keeps it from this one (and newer versions of Nix do).
        "path": (
            f'builtins.fetchTree {{ type = "path"; path = "{secret.parent}"; '
            f'narHash = "{locked.nar_hash}"; }}'
        ),
        "plain": f"{secret.parent}",
    }
    flake(
        bench,
        "".join(
            f'hydraJobs.{name} = drv (builtins.readFile "${{{code}}}/key");\n'
            for name, code in hostile.items()
        ),
    )
    asked = len(git_host.requests)
    rows, errors = await jobs(bench)
    assert (rows, set(errors)) == ({}, set(hostile))
    assert len(git_host.requests) == asked
    assert "canary" not in str(errors)
