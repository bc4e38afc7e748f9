"""What the cache knows is what Nix's own dry run would say of the same paths."""

from __future__ import annotations

import pytest

from fc_operator.cache.knowledge import CacheKnowledge
from fc_operator.clients.nix import Nix
from fc_operator.model.ids import DrvPath
from fc_operator.settings import NixSettings

pytestmark = pytest.mark.nix

EXPRESSION = """
let
  make = name: needs: derivation {{ inherit name; system = builtins.currentSystem;
    builder = "/bin/sh"; args = ["-c" "echo ${{name}} > $out"]; inherit needs; salt = "{salt}"; }};
  two = derivation {{ name = "two"; system = builtins.currentSystem; builder = "/bin/sh";
    outputs = ["out" "dev"]; args = ["-c" "echo 1 > $out; echo 2 > $dev"]; salt = "{salt}"; }};
in rec {{
  base = make "base" [];
  left = make "left" [ base two.dev ];
  right = make "right" [ base two ];
  top = make "top" [ left right ];
}}"""


@pytest.fixture
async def graph(served, nix):
    """Derivations by name, in the store of the machine."""
    text = EXPRESSION.format(salt=served.folder)
    found = {}
    for name in ("base", "left", "right", "top"):
        drv = nix.run("nix-instantiate", "-E", text, "-A", name).splitlines()[-1]
        found[name] = DrvPath(drv)
    return found


def knowledge_of(served):
    return CacheKnowledge(served.database, served.objects, store_dir=str(served.nix.store_dir))


async def put(served, *paths, derivation=False):
    more = ["--derivation"] if derivation else []
    url = f"{served.cache_url}?compression=zstd"
    await served.nix_run(
        served.nix, "nix", "copy", *more, "--to", url, *paths, password=await served.key()
    )


async def test_it_reads_derivations_as_nix_does(served, nix, graph):
    await put(served, graph["top"], derivation=True)
    knowledge = knowledge_of(served)
    machine = Nix(NixSettings(store_dir=str(nix.store_dir)), nix.env)
    asked = [*graph.values(), DrvPath(f"{nix.store_dir}/{'a' * 32}-none.drv")]
    expected = await machine.derivations(asked)
    assert len(expected) == 4
    assert await knowledge.derivations(asked) == expected
    assert await knowledge.derivations(asked) == expected, "a second time, from memory"
    assert await knowledge.present(list(graph.values()))
    assert not await knowledge.present(asked)
    assert knowledge.store_dir == str(nix.store_dir)


async def test_it_finds_missing_what_nix_finds_missing(served, nix, graph):
    await put(served, graph["top"], derivation=True)
    knowledge = knowledge_of(served)
    machine = Nix(NixSettings(store_dir=str(nix.store_dir)), nix.env)

    async def compare(*drvs):
        found, expected = await knowledge.missing(drvs), await machine.missing(drvs)
        assert set(found.will_build) == set(expected.will_build)
        assert found.unknown == expected.unknown
        place = {drv: number for number, drv in enumerate(found.will_build)}
        facts = await knowledge.derivations(found.will_build)
        for drv in found.will_build:
            for need in facts[drv].input_drvs:
                assert place.get(need, -1) < place[drv], "what is needed stands before"
        return len(found.will_build)

    assert await compare(graph["top"]) == 5
    two = next(d for d in (await knowledge.derivations([graph["left"]]))[graph["left"]].input_drvs
               if d.endswith("-two.drv"))  # fmt: skip
    for drv, left in ((graph["base"], 4), (two, 3), (graph["left"], 2), (graph["right"], 1)):
        outputs = nix.run("nix-store", "--realise", drv).split()
        await put(served, *outputs)
        assert await compare(graph["top"]) == left
        assert await compare(*graph.values()) == left
    nowhere = DrvPath(f"{nix.store_dir}/{'a' * 32}-none.drv")
    assert (await knowledge.missing([nowhere])).unknown == {nowhere}


async def test_one_output_of_two_is_enough_for_who_needs_only_that(served, nix, graph):
    await put(served, graph["top"], derivation=True)
    knowledge = knowledge_of(served)
    facts = await knowledge.derivations([graph["left"]])
    two = next(d for d in facts[graph["left"]].input_drvs if d.endswith("-two.drv"))
    nix.run("nix-store", "--realise", two)
    dev = (await knowledge.derivations([two]))[two].outputs["dev"]
    await put(served, dev)
    assert two not in (await knowledge.missing([graph["left"]])).will_build
    assert two in (await knowledge.missing([graph["right"]])).will_build
    assert two in (await knowledge.missing([graph["left"], graph["right"]])).will_build
