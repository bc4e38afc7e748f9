"""What a pod knows of the jobs that it evaluated and the scheduler can't look up: which of
them, and of what they need, is to be built. Pure.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

from fc_operator.clients.nix import Missing
from fc_operator.model.ids import DrvPath
from fc_operator.model.jobs import Derivation, JobRow


def with_facts(
    rows: Sequence[JobRow], missing: Missing, derivations: Mapping[DrvPath, Derivation]
) -> list[JobRow]:
    """``rows`` with what their .drv files and a dry run say.

    They are one report: what a row needs and one before it has named already is not named again,
    since jobs share most of what they need. ``derivations`` holds at least the rows' own and all of
    ``missing.will_build``; a row whose own is not there stays as it is.
    """
    to_build = set(missing.will_build)
    named: set[DrvPath] = set()
    found = []
    for row in rows:
        own = derivations.get(row.drv_path)
        if own is None:
            found.append(row)
            continue
        is_built = row.drv_path in to_build
        is_fetched = any(path in missing.will_fetch for path in own.outputs.values())
        needs = needed(row.drv_path, to_build, derivations, named) if is_built else ()
        found.append(
            replace(
                row,
                system=own.system,
                outputs=own.outputs,
                input_drvs=own.input_drvs,
                required_features=own.required_features,
                cache_status="notBuilt" if is_built else "cached" if is_fetched else "local",
                needed_builds=tuple(needs),
            )
        )
    return found


def needed(
    drv_path: DrvPath,
    to_build: Container[DrvPath],
    derivations: Mapping[DrvPath, Derivation],
    named: set[DrvPath],
) -> Iterable[DrvPath]:
    """All of ``to_build`` that must be built before ``drv_path`` is, each after what it needs, but
    for those in ``named``, to which they are added.
    """
    order: dict[DrvPath, None] = {}
    stack = [(drv_path, False)]
    while stack:
        drv, is_left = stack.pop()
        if is_left:
            order[drv] = None
            continue
        if drv in named and drv != drv_path:
            continue
        named.add(drv)
        stack.append((drv, True))
        inputs = derivations[drv].input_drvs if drv in derivations else {}
        stack.extend((each, False) for each in inputs if each in to_build and each not in named)
    order.pop(drv_path)
    return order
