"""The real Nix against the real server: copy to and from, realise with signatures required, log."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fc_operator.errors import UnavailableError

pytestmark = pytest.mark.nix


@dataclass
class Closure:
    """Two derivations that were built, the second refers to the first."""

    drv: str
    out: str
    base: str
    base_drv: str


@pytest.fixture
async def closure(served, nix):
    expression = f"""
    let
      base = derivation {{ name = "base"; system = builtins.currentSystem; builder = "/bin/sh";
        args = ["-c" "echo base > $out"]; salt = "{served.folder}"; }};
    in derivation {{ name = "top"; system = builtins.currentSystem; builder = "/bin/sh";
      src = builtins.toFile "text" "some text";
      args = ["-c" "read x < ${{base}}; echo ${{base}} $x > $out"]; }}"""
    drv = nix.run("nix-instantiate", "-E", expression).splitlines()[-1]
    out = nix.run("nix-store", "--realise", drv).splitlines()[-1]
    base = nix.run("nix-store", "--query", "--references", out)
    base_drv = nix.run("nix-store", "--query", "--deriver", base)
    return Closure(drv, out, base, base_drv)


def text_of(path) -> str:
    return Path(path).read_text()


@pytest.mark.parametrize("compression", ["zstd", "xz", "bzip2", "none"])
async def test_nix_copies_a_closure_to_the_cache_and_another_machine_gets_it(
    served, nix, machine, closure, compression
):
    """Whatever it came as, it lies there as zstd."""
    key = await served.key()
    url = f"{served.cache_url}?compression={compression}&write-nar-listing=true"
    await served.nix_run(nix, "nix", "copy", "--to", url, closure.out, password=key)
    paths = await served.sql("SELECT * FROM cache_paths ORDER BY store_path")
    assert {row["store_path"] for row in paths} == {closure.out, closure.base}
    for row in paths:
        assert (await served.objects.get(row["object_key"]))[:4] == b"\x28\xb5\x2f\xfd"
    trust = {"trusted-public-keys": served.cache.public_keys[0]}
    await served.nix_run(
        machine, "nix", "copy", "--from", served.cache_url, "--to", machine.store, closure.out,
        password=key, **trust,
    )  # fmt: skip
    assert text_of(machine.real(closure.out)) == text_of(closure.out)
    again = await served.nix_run(nix, "nix", "copy", "--to", url, closure.out, password=key)
    assert again[0] == 0


async def test_what_is_not_signed_by_a_trusted_key_is_not_taken(served, nix, machine, closure):
    key = await served.key()
    url = f"{served.cache_url}?compression=zstd"
    await served.nix_run(nix, "nix", "copy", "--to", url, closure.out, password=key)
    code, _, words = await served.nix_run(
        machine, "nix", "copy", "--from", served.cache_url, "--to", machine.store, closure.out,
        password=key, check=False, **{"trusted-public-keys": ""},
    )  # fmt: skip
    assert code != 0
    assert "lacks a valid signature" in words
    # What names itself needs none.
    await served.nix_run(nix, "nix", "copy", "--derivation", "--to", url, closure.drv, password=key)
    await served.nix_run(
        machine, "nix", "copy", "--derivation", "--from", served.cache_url,
        "--to", machine.store, closure.drv, password=key, **{"trusted-public-keys": ""},
    )  # fmt: skip
    assert text_of(machine.real(closure.drv)) == text_of(closure.drv)


async def test_nix_realises_from_the_cache_with_signatures_required(served, nix, closure, tools):
    """Also while one key takes the place of another."""
    key = await served.key()
    url = f"{served.cache_url}?compression=zstd"
    await served.nix_run(nix, "nix", "copy", "--to", url, closure.out, password=key)
    content = text_of(closure.out)
    for trusted, code in ((tools.NEXT_KEY.public, 1), (tools.KEY.public, 0)):
        await asyncio.to_thread(nix.run, "nix-store", "--delete", closure.out, closure.base)
        done = await served.nix_run(
            nix, "nix-store", "--realise", closure.out, password=key, check=False,
            **{
                "substituters": served.cache_url,
                "trusted-public-keys": trusted,
                "require-sigs": "true",
                "max-jobs": "0",
            },
        )  # fmt: skip
        assert done[0] == code, done
        if code:
            await asyncio.to_thread(nix.run, "nix-store", "--realise", closure.drv)
    assert text_of(closure.out) == content


async def test_two_keys_sign_while_one_takes_the_place_of_the_other(
    serve, served, machine, tools, closure
):
    """What was uploaded under the old key alone carries both, then only the new one."""
    key = await served.key()
    url = f"{served.cache_url}?compression=zstd"
    await served.nix_run(served.nix, "nix", "copy", "--to", url, closure.out, password=key)
    part = closure.out.rsplit("/", 1)[-1][:32]
    for keys in ((tools.KEY, tools.NEXT_KEY), (tools.NEXT_KEY,)):
        async with serve(keys=keys) as rotated:
            body, _ = await rotated.request("GET", f"{part}.narinfo", token=key)
            names = [line.split()[1].partition(":")[0] for line in body.decode().splitlines()
                     if line.startswith("Sig:")]  # fmt: skip
            assert names == [each.name for each in keys]
            await rotated.nix_run(
                machine, "nix", "copy", "--from", rotated.cache_url, "--to", machine.store,
                closure.out, password=key, **{"trusted-public-keys": tools.NEXT_KEY.public},
            )  # fmt: skip


async def test_nix_itself_finds_our_signatures_good(served, nix, machine, closure):
    key = await served.key()
    url = f"{served.cache_url}?compression=zstd"
    await served.nix_run(nix, "nix", "copy", "--to", url, closure.out, password=key)
    await served.nix_run(
        nix, "nix", "store", "verify", "--recursive", "--store", served.cache_url, closure.out,
        password=key, **{"trusted-public-keys": served.cache.public_keys[0]},
    )  # fmt: skip


async def test_tasks_carry_a_step_from_one_pod_to_another(served, nix, machine, closure):
    """An evaluation brings derivations and sources; a task its outputs; the next one gets all."""
    url = f"{served.cache_url}?compression=zstd"
    project = await served.project(visibility="private")
    _, evaluation = await served.task(project, kind="evaluation")
    await served.nix_run(
        nix, "nix", "copy", "--derivation", "--to", url, closure.drv, password=evaluation
    )
    code, _, words = await served.nix_run(
        nix, "nix", "copy", "--to", url, closure.out, password=evaluation, check=False
    )
    assert code != 0
    assert "403" in words
    drvs = [(closure.base_drv, {"out": closure.base}), (closure.drv, {"out": closure.out})]
    _, steps = await served.task(project, drvs=drvs)
    await served.nix_run(nix, "nix", "copy", "--to", url, closure.out, password=steps)
    _, reading = await served.task(project, drvs=[(f"{closure.drv[:-4]}-next.drv", {})])
    trust = {"trusted-public-keys": served.cache.public_keys[0]}
    for more, path in ((["--derivation"], closure.drv), ([], closure.out)):
        await served.nix_run(
            machine, "nix", "copy", *more, "--from", served.cache_url, "--to", machine.store, path,
            password=reading, **trust,
        )  # fmt: skip
        assert text_of(machine.real(path)) == text_of(path)
    derivers = await served.sql(
        "SELECT deriver FROM cache_paths WHERE store_path = $1", closure.out
    )
    assert derivers[0]["deriver"] == Path(closure.drv).name
    # Another project's task, and strangers, find nothing.
    other = await served.project("other")
    _, foreign = await served.task(other, drvs=[(f"{closure.drv[:-4]}-other.drv", {})])
    for password in (foreign, None):
        code, _, _ = await served.nix_run(
            machine, "nix", "path-info", "--store", served.cache_url, closure.out,
            password=password, check=False,
        )  # fmt: skip
        assert code != 0
    # Until an evaluation of its own shows that it has the derivation.
    _, evaluation = await served.task(other, kind="evaluation")
    await served.nix_run(
        nix, "nix", "copy", "--derivation", "--to", url, closure.drv, password=evaluation
    )
    served.cache._paths._kept.clear()
    await served.nix_run(
        machine, "nix", "path-info", "--store", served.cache_url, closure.out, password=foreign
    )


async def test_nix_log_shows_the_log_of_a_step(served, nix, machine, closure):
    project = await served.project()
    _, token = await served.task(project, kind="evaluation")
    url = f"{served.cache_url}?compression=zstd"
    await served.nix_run(
        nix, "nix", "copy", "--derivation", "--to", url, closure.drv, password=token
    )
    jobset = await served.jobset(project)
    step = await served.step(jobset, closure.drv, {"out": closure.out})
    await served.sql(
        "INSERT INTO attempts (step_id, attempt, task_id, executor, owner, started_at, ended_at,"
        " status, log_bytes, log_lines) VALUES ($1, 1, gen_random_uuid(), 'local', 'x', $2, $2,"
        " 'succeeded', 12, 2)",
        step,
        datetime.now(UTC),
    )
    await served.sql(
        "INSERT INTO log_chunks (step_id, attempt, start_offset, data) VALUES ($1, 1, 0, $2)",
        step,
        b"one\nand two\n",
    )
    _, out, _ = await served.nix_run(
        machine, "nix", "log", "--store", served.cache_url, closure.drv
    )
    assert out == "one\nand two\n"
    await served.sql("UPDATE projects SET visibility = 'private'")
    code, _, _ = await served.nix_run(
        machine, "nix", "log", "--store", served.cache_url, closure.drv, check=False
    )
    assert code != 0


async def test_nix_lists_the_files_of_a_path(served, nix):
    """By the listing that we made, which is what Nix makes itself."""
    expression = f"""derivation {{ name = "tree"; system = builtins.currentSystem;
      builder = "/bin/sh"; PATH = "/usr/bin:/bin"; salt = "{served.folder}";
      args = ["-c" "mkdir -p $out/a/b; echo 1 > $out/a/b/c; chmod +x $out/a/b/c; ln -s b $out/a/l"];
    }}"""
    drv = nix.run("nix-instantiate", "-E", expression).splitlines()[-1]
    out = nix.run("nix-store", "--realise", drv).splitlines()[-1]
    key = await served.key()
    url = f"{served.cache_url}?compression=zstd"
    await served.nix_run(nix, "nix", "copy", "--to", url, out, password=key)
    _, words, _ = await served.nix_run(
        nix, "nix", "store", "ls", "--store", served.cache_url, "--recursive", "--json", out,
        password=key,
    )  # fmt: skip
    part = out.rsplit("/", 1)[-1][:32]
    async with served.session.get(
        f"{served.cache_url}/{part}.ls", headers={"Authorization": f"Bearer {key}"}
    ) as answer:
        listing = await answer.json()
    expected = json.loads(words)
    assert listing == {"version": 1, "root": expected}
    async with served.session.get(
        f"{served.cache_url}/{part}.ls", headers={"Authorization": f"Bearer {key}"}
    ) as answer:
        assert await answer.json() == listing


async def test_nix_gives_up_at_once_where_we_can_not_store(served, nix, closure, monkeypatch):
    """With 5xx it would send the request again without its body, and wait for ever."""
    key = await served.key()

    async def full(*_):
        raise UnavailableError("the disk is full")

    monkeypatch.setattr(served.cache._objects, "put_stream", full)
    url = f"{served.cache_url}?compression=zstd"
    async with asyncio.timeout(20):
        code, _, words = await served.nix_run(
            nix, "nix", "copy", "--to", url, closure.out, password=key, check=False
        )
    assert code != 0
    assert "424" in words
    monkeypatch.undo()
    await served.nix_run(nix, "nix", "copy", "--to", url, closure.out, password=key)
    async with served.session.get(f"{served.url}/metrics") as answer:
        text = await answer.text()
    assert 'fc_cache_uploads_total{kind="nar",outcome="unavailable"} 1.0' in text
    assert 'fc_cache_uploads_total{kind="narinfo",outcome="accepted"} 2.0' in text
