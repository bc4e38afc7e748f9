"""What a pod knows of the jobs that it evaluated and the scheduler can't look up: which of
them, and of what they need, is to be built. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fc_operator.clients.nix import Missing
from fc_operator.model.ids import DrvPath
from fc_operator.model.jobs import Derivation, JobRow


def with_facts(
    rows: Sequence[JobRow], missing: Missing, derivations: Mapping[DrvPath, Derivation]
) -> list[JobRow]:
    """``rows`` with what their .drv files and a dry run say.

    ``derivations`` holds at least the rows' own and all of ``missing.will_build``; a row whose own
    is not there stays as it is.
    """
    to_build = set(missing.will_build)
    return [_with_facts(row, missing, to_build, derivations) for row in rows]


def _with_facts(
    row: JobRow,
    missing: Missing,
    to_build: set[DrvPath],
    derivations: Mapping[DrvPath, Derivation],
) -> JobRow:
    own = derivations.get(row.drv_path)
    if own is None:
        return row
    is_built = row.drv_path in to_build
    # What is here can be had elsewhere only if it came from there: this store goes with its pod.
    return replace(
        row,
        system=own.system,
        outputs=own.outputs,
        input_drvs=own.input_drvs,
        required_features=own.required_features,
        cache_status="notBuilt" if is_built else "cached" if _is_fetched(own, missing) else "local",
        needed_builds=tuple(needed(row.drv_path, to_build, derivations)) if is_built else (),
    )


def _is_fetched(own: Derivation, missing: Missing) -> bool:
    return any(path in missing.will_fetch for path in own.outputs.values())


def needed(
    drv_path: DrvPath, to_build: set[DrvPath], derivations: Mapping[DrvPath, Derivation]
) -> Iterable[DrvPath]:
    """All of ``to_build`` that must be built before ``drv_path`` is, each after what it needs."""
    order: dict[DrvPath, None] = {}
    entered: set[DrvPath] = set()
    stack = [(drv_path, False)]
    while stack:
        drv, is_left = stack.pop()
        if is_left:
            order[drv] = None
            continue
        if drv in entered:
            continue
        entered.add(drv)
        stack.append((drv, True))
        inputs = derivations[drv].input_drvs if drv in derivations else {}
        stack.extend((each, False) for each in inputs if each in to_build)
    order.pop(drv_path)
    return order
