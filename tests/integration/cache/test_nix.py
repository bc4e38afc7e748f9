"""The real Nix against the real server: copy to and from, realise with signatures required, log."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.nix


async def closure(served, nix):
    """A small closure: a source, two derivations, the second needs the first."""
    expression = f"""
    let
      base = derivation {{ name = "base"; system = builtins.currentSystem; builder = "/bin/sh";
        args = ["-c" "echo base > $out"]; salt = "{served.folder}"; }};
    in derivation {{ name = "top"; system = builtins.currentSystem; builder = "/bin/sh";
      args = ["-c" "read x < ${{base}}; echo ${{base}} $x > $out"]; }}"""
    drv = nix.run("nix-instantiate", "-E", expression).splitlines()[-1]
    out = nix.run("nix-store", "--realise", drv).splitlines()[-1]
    return drv, out


async def test_nix_copies_a_closure_to_the_cache_and_another_machine_gets_it(served, nix, machine):
    drv, out = await closure(served, nix)
    key = await served.key()
    url = f"{served.cache_url}?compression=zstd"
    await served.nix_run(nix, "nix", "copy", "--to", url, out, password=key)
    assert await served.one("SELECT count(*) FROM cache_paths") == 2
    await served.nix_run(
        machine, "nix", "copy", "--from", served.cache_url, "--to", machine.store, out,
        password=key, **{"trusted-public-keys": served.cache.public_keys[0]},
    )  # fmt: skip
    assert machine.real(out).read_text() == Path(out).read_text()
