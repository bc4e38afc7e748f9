"""The built-in walker over real Nix."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fc_operator.errors import EvaluationError, LimitReachedError, PrerequisiteError
from fc_operator.evaluator import roots
from fc_operator.evaluator.requests import Argument, Tree

pytestmark = pytest.mark.nix


def exists(row) -> bool:
    return Path(row.drv_path).exists()


async def test_trees_of_any_depth_become_jobs_and_nothing_else_does(bench):
    rows, errors = await bench.jobs(
        """{
          a = drv "a"; b.c.d.e.f.g.h.i.j.k = drv "deep"; "dot.ted" = drv "dotted";
          list = [ (drv "no") ]; text = "no"; number = 1; yes = true; nothing = null;
          lambda = x: drv "no"; withDefault = { name ? "called" }: drv name;
          nested = { ... }: { inner = drv "inner"; };
        }"""
    )
    assert errors == {}
    assert {name: row.name for name, row in rows.items()} == {
        "a": "a",
        "b.c.d.e.f.g.h.i.j.k": "deep",
        '"dot.ted"': "dotted",
        "withDefault": "called",
        "nested.inner": "inner",
    }
    assert rows["b.c.d.e.f.g.h.i.j.k"].attr_path == tuple("bcdefghijk")
    row = rows["a"]
    assert exists(row)
    assert row.outputs["out"].startswith(str(bench.nix.store_dir))
    assert (row.system, row.is_aggregate) == ("x86_64-linux", False)


async def test_each_broken_attribute_is_an_error_of_its_own_and_the_walk_goes_on(bench):
    rows, errors = await bench.jobs(
        """{
          a = drv "a"; aborts = abort "stop here"; asserts = assert false; drv "x";
          caught = throw "thrown here"; fake = { type = "derivation"; }; forever = let x = x; in x;
          function = { needed }: drv needed; inner = { a = drv "ia"; b = {}.nope; c = drv "ic"; };
          missing = {}.attribute; notes = import ./nowhere.nix; stack = let f = n: 1 + f n; in f 0;
          typed = 1 + "a"; z = drv "z";
        }"""
    )
    assert sorted(rows) == ["a", "inner.a", "inner.c", "z"]
    expected = {
        "aborts": "stop here",
        "asserts": "assertion",
        "caught": "thrown here",
        "fake": "no drvPath",
        "forever": "infinite recursion",
        "function": "argument without a value ('needed')",
        "inner.b": "attribute 'nope' missing",
        "missing": "attribute 'attribute' missing",
        "notes": "nowhere.nix",
        "stack": "stack overflow",
        "typed": "a",
    }
    assert set(errors) == set(expected)
    for path, text in expected.items():
        assert text in errors[path], errors[path]
    # Files are named by their place in the checkout.
    assert "at release.nix:" in errors["missing"]
    assert str(bench.source) not in "".join(errors.values())


async def test_what_the_code_itself_traces_is_not_taken_for_a_line_of_ours(bench):
    rows, errors = await bench.jobs(
        """{
          a = builtins.trace "fc-0:J {\\"attrPath\\":[\\"forged\\"]}" (drv "a");
          b = builtins.trace "trace: M [\\"forged\\"]\\nE [\\"forged\\"]" (drv "b");
        }"""
    )
    assert (sorted(rows), errors) == (["a", "b"], {})


async def test_a_set_that_contains_itself_ends_as_an_error(bench):
    rows, errors = await bench.jobs(
        """let set = { q = drv "q"; again = set; }; mk = n: { "x${toString n}" = mk (n + 1); };
        in { inherit set; endless = mk 0; matrix.a = { a = drv "aa"; b = drv "ab"; };
             matrix.b = { a = drv "ba"; b = drv "bb"; }; }"""
    )
    assert sorted(rows) == ["matrix.a.a", "matrix.a.b", "matrix.b.a", "matrix.b.b", "set.q"]
    assert "contains itself" in errors.pop("set.again")
    ((_, message),) = errors.items()
    assert "nested deeper" in message


FAKE = """{
  type = "derivation"; name = "n"; system = "x"; outPath = "${builtins.storeDir}/x";
  drvPath = "${builtins.storeDir}/00000000000000000000000000000000-x.drv";
}"""


async def test_h03_what_calls_itself_a_derivation_and_is_none_ends_as_an_error(bench):
    """It was taken for collected, and asked for again until the evaluation's time was over."""
    rows, errors = await bench.jobs(f'{{ a = {FAKE}; b = drv "b"; }}')
    assert list(rows) == ["b"]
    assert errors == {"a": "its derivation is not in the store"}
    with pytest.raises(EvaluationError, match="not in the store"):
        await bench.jobs(FAKE)


async def test_s08_names_that_are_no_utf8_are_errors_and_cost_no_other(bench):
    request = bench.request('{ "a\xff" = drv "x"; "a\xff\xfe".b = throw "y"; z = drv "z"; }')
    path = bench.source / "release.nix"
    path.write_bytes(path.read_text().encode("latin-1"))
    rows, errors = await bench.jobs()
    assert request == bench.request()
    assert list(rows) == ["z"]
    assert errors == {
        "a\ufffd": "its name is not UTF-8, or has a null byte in it",
        "a\ufffd\ufffd.b": "y",
    }


async def test_the_root_itself_may_be_a_derivation_or_fail(bench):
    rows, _ = await bench.jobs('drv "only"')
    assert [(name, row.name) for name, row in rows.items()] == [("default", "only")]
    for text, message in (
        ("{}.nope", "attribute 'nope' missing"),
        ("1", "gives int and not a set of jobs"),
        ("{ a = ; }", "syntax error"),
    ):
        with pytest.raises(EvaluationError, match=message):
            await bench.jobs(text)
    bench.write("release.nix", "{ needed, ... }: { }")
    with pytest.raises(EvaluationError, match="without a value \\('needed'\\)"):
        await bench.jobs(None)


async def test_c17_meta_is_read_field_by_field_and_a_broken_one_costs_no_job(bench):
    rows, errors = await bench.jobs(
        """{
          good = drv "good" // { meta = {
            description = "hello"; homepage = "https://example.org"; timeout = 7; maxSilent = 3;
            schedulingPriority = 5; isHydraChannel = true;
            license = [ { shortName = "MIT"; } "BSD" { spdxId = "X"; } ];
            maintainers = [ { email = "a@example.org"; } "b" ]; }; };
          half = drv "half" // { meta = { description = throw "no"; timeout = "seven"; maxSilent = 3; }; };
          bad = drv "bad" // { meta = {}.nope; };
        }"""
    )
    assert errors == {}
    meta = rows["good"].meta
    assert (meta.description, meta.homepage) == ("hello", "https://example.org")
    assert (meta.timeout_s, meta.max_silent_s, meta.scheduling_priority) == (7, 3, 5)
    assert (meta.license, meta.maintainers) == ("MIT, BSD, X", "a@example.org, b")
    assert meta.is_channel
    assert (rows["half"].meta.description, rows["half"].meta.timeout_s) == ("", None)
    assert rows["half"].meta.max_silent_s == 3
    assert rows["bad"].meta == type(meta)()


async def test_c16_aggregates_tell_their_constituents_by_derivation_name_and_glob(bench):
    rows, _ = await bench.jobs(
        """let a = drv "a"; agg = more: drv "agg" // { _hydraAggregate = true; } // more; in {
          inherit a;
          both = agg { constituents = [ a "b" ]; };
          globs = agg { constituents = [ "a*" ]; _hydraGlobConstituents = true; };
          empty = agg { constituents = [ ]; };
        }"""
    )
    assert not rows["a"].is_aggregate
    both = rows["both"]
    assert both.is_aggregate
    assert both.constituents == (rows["a"].drv_path,)
    assert (both.named_constituents, both.glob_constituents) == (("b",), False)
    assert (rows["globs"].named_constituents, rows["globs"].glob_constituents) == (("a*",), True)
    assert rows["empty"].is_aggregate


async def test_inputs_are_arguments_and_those_with_a_value_beat_defaults(bench, tmp_path):
    other = tmp_path / "other" / "source"
    other.mkdir(parents=True)
    (other / "file.nix").write_text('"from-git"')
    stored = bench.nix.run("nix-store", "--add", str(other))
    given = (
        Argument(name="text", type="string", value='a "quoted" ${x} \\ text\n'),
        Argument(name="flag", type="boolean", value="true"),
        Argument(
            name="dep",
            type="git",
            tree=Tree(path=other, revision="ab" * 20, rev_count=3),
            store_path=stored,
        ),
        Argument(name="folder", type="path", tree=Tree(path=bench.source / "sub")),
    )
    bench.write("sub/x.nix", '"from-path"')
    bench.write(
        "release.nix",
        f"""{{ text, flag ? false, dep, folder, other ? "default" }}: let drv = {_drv()}; in {{
          a = drv "a" // {{ meta.description = text + (if flag then "on" else "off"); }};
          b = drv "${{import (dep + "/file.nix")}}-${{dep.shortRev}}-${{toString dep.revCount}}";
          c = drv (import (folder + "/x.nix"));
          d = derivation {{ name = "d"; system = "x86_64-linux"; builder = "/bin/sh";
            src = "${{dep}}"; p = "${{folder}}"; }};
          e = drv other;
        }}""",
    )
    rows, errors = await bench.jobs(None, arguments=given)
    assert errors == {}
    assert rows["a"].meta.description == 'a "quoted" ${x} \\ text\non'
    assert rows["b"].name == "from-git-abababa-3"
    assert (rows["c"].name, rows["e"].name) == ("from-path", "default")
    assert stored in bench.read_drv(rows["d"])


def _drv():
    return 'name: derivation { inherit name; system = "x86_64-linux"; builder = "/bin/sh"; }'


async def test_only_the_wanted_systems_become_jobs(bench):
    text = """{ a = drv "a"; b = derivation { name = "b"; system = "aarch64-linux";
        builder = "/bin/sh"; }; c = derivation { name = "c"; system = "builtin";
        builder = "builtin:fetchurl"; }; }"""
    rows, _ = await bench.jobs(text, systems=("x86_64-linux",))
    assert sorted(rows) == ["a", "c"]
    rows, _ = await bench.jobs(text)
    assert sorted(rows) == ["a", "b", "c"]


SLOW = """builtins.foldl' (a: b: builtins.seq a (builtins.length (builtins.genList (x: x) 99999)))
    0 (builtins.genList (x: x) 100000)"""
"""Some hundred seconds of work."""

HOSTILE = {
    "exec": 'builtins.exec [ "/bin/sh" "-c" "echo 1" ]',
    "native": 'builtins.importNative ./x.so "f"',
    "environ": "builtins.readFile /proc/self/environ",
    "secrets": "builtins.readFile /var/run/secrets/token",
    "passwd": "builtins.readFile /etc/passwd",
    "folder": "builtins.readDir /root",
    "source": 'builtins.toString (builtins.path { path = /etc; name = "etc"; })',
    "copy": '"${/etc/hostname}"',
    "neighbour": "import ../neighbour/secret.nix",
    "absolute": "import NEIGHBOUR",
    "link": "builtins.readFile ./link",
    "fetchfile": 'builtins.fetchurl "file:///etc/passwd"',
    "fetchgit": 'builtins.fetchGit "file:///tmp"',
    "fetchtree": 'builtins.fetchTarball "http://127.0.0.1:1/x.tar.gz"',
    "path": "<nixpkgs>",
    "ifd": 'import (drv "ifd")',
    "readifd": 'builtins.readFile (drv "ifd")',
    "otherstore": 'builtins.storePath "STORED"',
    "recursion": "let f = x: f (x + 1); in f 0",
}


async def test_cve_class_lost_sandbox_flag(bench, monkeypatch, tmp_path):
    neighbour = bench.folder / "neighbour" / "secret.nix"
    neighbour.parent.mkdir()
    neighbour.write_text('"canary"')
    (bench.source / "link").symlink_to("/etc/passwd")
    stored = bench.nix.run("nix-store", "--add", str(neighbour))
    attributes = "".join(
        f"{name} = drv (builtins.substring 0 9 (builtins.toString ({code})));\n"
        for name, code in HOSTILE.items()
        if name != "recursion"
    )
    attributes = attributes.replace("NEIGHBOUR", str(neighbour)).replace("STORED", stored)
    bench.env["CANARY"] = bench.env["AWS_SECRET_ACCESS_KEY"] = "canary"
    bench.env["NIX_PATH"] = f"nixpkgs={neighbour.parent}"
    bench.env["NIX_CONFIG"] = (
        "restrict-eval = false\nallow-unsafe-native-code-during-evaluation = true"
    )
    rows, errors = await bench.jobs(
        '{ env = drv (\'\' + builtins.getEnv "CANARY" + builtins.getEnv "HOME" + "e"); '.replace(
            "''", '""'
        )
        + attributes
        + ' good = drv "good"; }'
    )
    assert sorted(rows) == ["env", "good"]
    assert rows["env"].name == "e"
    assert set(errors) == set(HOSTILE) - {"recursion"}
    assert "canary" not in "".join(errors.values())


async def test_cve_class_env_exfiltration(bench):
    bench.env["CANARY"] = "canary-value"
    names = await bench.jobs(
        """builtins.listToAttrs (map (v: { name = "v${v}"; value = drv ("n" + builtins.getEnv v); })
           [ "CANARY" "PATH" "HOME" "NIX_STORE_DIR" ])"""
    )
    assert {row.name for row in names[0].values()} == {"n"}


async def test_import_from_derivation_only_where_it_is_allowed(bench):
    text = """{ a = drv (import (derivation { name = "ifd"; system = "x86_64-linux";
        builder = "/bin/sh"; args = [ "-c" "echo '\\"made\\"' > $out" ]; })); b = drv "b"; }"""
    rows, errors = await bench.jobs(text)
    assert (sorted(rows), sorted(errors)) == (["b"], ["a"])
    assert "allow-import-from-derivation" in errors["a"]
    rows, errors = await bench.jobs(text, allow_import_from_derivation=True)
    assert (rows["a"].name, errors) == ("made", {})


async def test_the_file_stays_inside_the_checkout(bench, tmp_path):
    (tmp_path / "outside.nix").write_text("{ }")
    (bench.source / "link.nix").symlink_to(tmp_path / "outside.nix")
    for expression in ("../../outside.nix", "link.nix", "/etc/passwd"):
        with pytest.raises(EvaluationError, match=r"outside|has no"):
            await bench.jobs("{ }", expression=expression)
    with pytest.raises(EvaluationError, match=r"has no other\.nix"):
        await bench.jobs("{ }", expression="other.nix")


async def test_h03_a_slow_evaluation_is_killed_on_time_with_all_that_it_started(bench):
    # A loop that never ends, in an evaluator whose grandchild holds the pipe and ignores SIGTERM.
    wrapper = bench.folder / "bin" / "nix-instantiate"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f"""#!/bin/sh
trap '' TERM
setsid sleep 6{os.getpid()} &
(trap '' TERM; sleep 7{os.getpid()}) &
exec {shutil.which("nix-instantiate")} "$@"
"""
    )
    wrapper.chmod(0o755)
    bench.env["PATH"] = f"{wrapper.parent}:{bench.env['PATH']}"
    text = f'{{ a = drv "a"; slow = drv (toString ({SLOW})); }}'
    began = time.monotonic()
    found = []

    async def consume():
        async for batch in bench.evaluator().evaluate(bench.request(text, timeout_s=1.5)):
            found.extend(batch.rows)

    with pytest.raises(
        LimitReachedError, match=r"longer than 1\.5 s; it was busy with slow"
    ) as error:
        await consume()
    assert error.value.limit == "time"
    assert time.monotonic() - began < 5
    assert [row.job_name for row in found] == ["a"]
    assert not _sleepers(f"7{os.getpid()}")
    for process in _sleepers(f"6{os.getpid()}"):
        process.kill()  # it left the group on its own account


def _sleepers(mark: str) -> list:
    return [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", mark]]


async def test_h08_an_attribute_that_wants_too_much_memory_is_named_and_costs_no_other(bench):
    bench.settings = replace(bench.settings, memory_bytes=300 * 1024**2)
    hungry = """drv (toString (builtins.foldl' (a: x: a + builtins.length x) 0
        (let l = builtins.genList (x: builtins.genList (y: x * y) 2000) 100000;
         in builtins.seq (builtins.foldl' (a: x: a + builtins.foldl' (p: q: p + q) 0 x) 0 l) l)))"""
    rows, errors = await bench.jobs(f'{{ a = drv "a"; hungry = {hungry}; z = drv "z"; }}')
    assert sorted(rows) == ["a", "z"]
    assert list(errors) == ["hungry"]
    assert "more memory" in errors["hungry"]
    assert "300 MiB" in errors["hungry"]


@pytest.mark.parametrize(("sig", "cause"), [("SIGSEGV", "SIGSEGV"), ("SIGKILL", "more memory")])
async def test_h08_a_killed_evaluator_names_the_attribute_and_the_cause(bench, sig, cause):
    request = bench.request(f'{{ a = drv "a"; killed = drv (toString ({SLOW})); z = drv "z"; }}')
    found, errors = [], []
    async with aclosing(bench.evaluator().evaluate(request)) as batches:
        killer = asyncio.create_task(_kill_at(bench, getattr(signal, sig)))
        async for batch in batches:
            found += [row.job_name for row in batch.rows]
            errors += batch.errors
    await killer
    assert found == ["a", "z"]
    ((path, message),) = [(e.attr_path, e.message) for e in errors]
    assert path == ("killed",)
    assert cause in message


async def _kill_at(bench, sig):
    """Kill Nix whenever it is busy with the slow attribute, until it goes past it."""
    while True:
        await asyncio.sleep(0.05)
        names = [p.name for p in bench.roots.iterdir()] if bench.roots.is_dir() else []
        if any(name.endswith("-z.drv") for name in names):
            return
        if any(name.endswith("-a.drv") for name in names):
            for process in _nix_below_us():
                with contextlib.suppress(psutil.NoSuchProcess):
                    # Nothing but the slow attribute costs so much, however slow the machine is.
                    if process.cpu_times().user > 0.4:
                        process.send_signal(sig)


async def test_endless_output_is_cut_off(bench):
    bench.settings = replace(bench.settings, output_bytes=100_000)
    text = """let big = builtins.concatStringsSep "" (builtins.genList (x: "xxxxxxxxxx") 2000); in
        { a = builtins.foldl' (a: n: builtins.seq a (builtins.trace big n)) 0
          (builtins.genList (x: x) 100000); }"""
    with pytest.raises(LimitReachedError) as error:
        await bench.jobs(text)
    assert error.value.limit == "output"


async def test_every_yielded_derivation_is_a_root_already(bench):
    rows, _ = await bench.jobs('{ a = drv "kept-a"; b = drv "kept-b"; }')
    bench.nix.run("nix-store", "--gc")
    assert all(exists(row) for row in rows.values())
    roots.drop(bench.roots)
    bench.nix.run("nix-store", "--gc")
    assert not any(exists(row) for row in rows.values())


async def test_the_process_count_does_not_grow_with_the_jobs(bench):
    log = bench.work / "calls"
    wrapper = bench.folder / "bin" / "nix-instantiate"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\necho x >> {log}\nexec {shutil.which("nix-instantiate")} "$@"\n')
    wrapper.chmod(0o755)
    bench.env["PATH"] = f"{wrapper.parent}:{bench.env['PATH']}"
    rows, _ = await bench.jobs(
        """builtins.listToAttrs (builtins.genList (n: { name = "j${toString n}";
           value = drv "j${toString n}"; }) 1200)"""
    )
    assert len(rows) == 1200
    assert log.read_text().count("x") == 1


async def test_rows_stream_while_nix_still_works(bench):
    request = bench.request(f'{{ a = drv "a"; z = drv (toString ({SLOW})); }}', timeout_s=600)
    async with aclosing(bench.evaluator().evaluate(request)) as batches:
        first = await anext(batches)
        assert [row.job_name for row in first.rows] == ["a"]
    assert not _nix_below_us()


async def test_a_cancelled_consumer_kills_the_group(bench):
    request = bench.request(f'{{ a = drv "a"; z = drv (toString ({SLOW})); }}', timeout_s=600)
    began = asyncio.Event()

    async def consume():
        async with aclosing(bench.evaluator().evaluate(request)) as batches:
            async for _ in batches:
                began.set()

    consumer = asyncio.create_task(consume())
    await began.wait()
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert not _nix_below_us()


def _nix_below_us() -> list:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "nix" in process.name():
                found.append(process)
    return found


async def test_without_nix_it_says_what_is_missing(bench):
    bench.env["PATH"] = "/nonexistent"
    with pytest.raises(PrerequisiteError, match="nix-instantiate"):
        await bench.evaluator().versions()
    with pytest.raises(PrerequisiteError, match="nix-instantiate"):
        await bench.jobs("{ }")


async def test_many_caught_errors_are_all_told(bench):
    rows, errors = await bench.jobs(
        """builtins.listToAttrs (builtins.genList (n: { name = "j${toString n}";
           value = throw "text ${toString n}"; }) 120)"""
    )
    assert rows == {}
    assert len(errors) == 120
    assert sum(message.startswith("text ") for message in errors.values()) == 100
    assert sum("too many errors" in message for message in errors.values()) == 20
