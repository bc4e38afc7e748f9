"""The duty of an evaluation pod's second container: evaluate the checkout, and tell its jobs.

A batch is told only when the cache has all of its .drv closures and sources: from then on its steps
may be claimed, by pods that have nothing but the cache.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from fc_operator.agent import facts
from fc_operator.agent.duties import EvaluationDuty
from fc_operator.agent.fetch import report_of
from fc_operator.agent.handover import Handover
from fc_operator.clients.nix import Missing, Nix
from fc_operator.clients.nix_copies import Copies
from fc_operator.clients.task_protocol import TaskClient
from fc_operator.errors import (
    EvaluationError,
    ForbiddenError,
    LimitReachedError,
    ProtocolError,
    UnavailableError,
)
from fc_operator.evaluator import endings
from fc_operator.evaluator.protocol import EvaluationBatch, Evaluator
from fc_operator.kit import logs
from fc_operator.model.evaluations import EvaluationEnd
from fc_operator.model.ids import DrvPath
from fc_operator.model.jobs import Derivation, JobError, JobRow
from fc_operator.model.statuses import EvaluationStatus
from fc_operator.model.work import bodies, row_to_json

_log = logs.get_logger()


@dataclass(frozen=True, slots=True)
class _Known:
    """What a dry run said of some jobs, and the derivations that it is about."""

    missing: Missing
    derivations: Mapping[DrvPath, Derivation]


class EvaluateDuty(EvaluationDuty):
    """See ``session.Duty``."""

    def __init__(
        self,
        client: TaskClient,
        handover: Handover,
        *,
        evaluator: Evaluator,
        copies: Copies,
        nix: Nix,
    ) -> None:
        self._client = client
        self._handover = handover
        self._evaluator = evaluator
        self._copies = copies
        self._nix = nix
        self._seq = 0
        self._read: dict[DrvPath, Derivation] = {}
        """What is to be built and was read; shared by batches, since jobs need the same."""
        super().__init__()

    async def run(self) -> None:
        """See ``Duty.run``."""
        began_s = time.monotonic()
        self._doing = asyncio.create_task(self._evaluate(), name="agent-evaluation")
        try:
            await asyncio.wait({self._doing})
            if self._doing.cancelled():
                if self._leaving is not None:
                    await self._client.end(self._leaving)
                return
            end = self._doing.result()
        finally:
            self._doing.cancel()
            await asyncio.gather(self._doing, return_exceptions=True)
        versions = await self._evaluator.versions()
        evaluation_ms = round((time.monotonic() - began_s) * 1000)
        _log.info(
            "agent.evaluation_ended",
            status=end.status.value,
            reason=end.reason,
            error=end.message[:500],
            reports=self._seq,
            evaluation_ms=evaluation_ms,
        )
        await self._client.end(
            report_of(
                end,
                checkout_ms=self._handover.checkout_ms,
                evaluation_ms=evaluation_ms,
                evaluator=versions.evaluator,
                evaluator_version=versions.version,
            )
        )

    async def _evaluate(self) -> EvaluationEnd:
        try:
            await self._copies.prepare()
        except UnavailableError as error:
            return _not_uploaded(error)
        try:
            batches = self._evaluator.evaluate(self._handover.request)
            async with aclosing(batches):
                async for batch in batches:
                    await self._tell(batch, await self._known_to_all(batch.rows))
        except (EvaluationError, LimitReachedError) as error:
            return endings.of_evaluator(error)
        except ForbiddenError as error:
            return _not_uploaded(error)
        except UnavailableError as error:
            return endings.of_evaluator(error)
        return EvaluationEnd(status=EvaluationStatus.COMPLETED)

    async def _known_to_all(self, rows: Sequence[JobRow]) -> _Known:
        """Bring the derivations of ``rows`` into the cache; what is to be known of them."""
        drvs = list(dict.fromkeys(row.drv_path for row in rows))
        if not drvs:
            return _Known(Missing(), {})
        # Both wait for the cache most of the time, and neither for the other.
        asked = asyncio.create_task(self._copies.missing(drvs))
        try:
            await self._copies.upload_derivations(drvs)
            missing = await asked
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        if self._handover.request.allow_import_from_derivation:
            missing = await self._without_own(missing, drvs)
        wanted = {*drvs, *missing.will_build} - self._read.keys()
        found = await self._nix.derivations(wanted)
        self._read |= {drv: found[drv] for drv in missing.will_build if drv in found}
        return _Known(missing, {**self._read, **found})

    async def _without_own(self, missing: Missing, drvs: Sequence[DrvPath]) -> Missing:
        """As ``missing`` would be without what the evaluation has built itself on its way (import
        from derivation): that goes with this pod, and nobody else can have it.
        """
        closure = await self._copies.closure(drvs)
        found = await self._nix.derivations([DrvPath(p) for p in closure if p.endswith(".drv")])
        outputs = {
            path: drv for drv, each in found.items() for path in each.outputs.values() if path
        }
        here = await self._copies.valid(outputs)
        there = await self._copies.available(here)
        own = dict.fromkeys(outputs[path] for path in here - there)
        return replace(
            missing,
            will_build=tuple(dict.fromkeys((*missing.will_build, *own))),
            will_fetch=missing.will_fetch | there,
        )

    async def _tell(self, batch: EvaluationBatch, known: _Known) -> None:
        for body in await asyncio.to_thread(_reports, batch.rows, batch.errors, known):
            wanted = await self._client.rows(self._seq, body)
            self._seq += 1
            if wanted < self._seq:
                raise ProtocolError(f"the server has lost what it was told from {wanted} on")


def _reports(rows: Sequence[JobRow], errors: Sequence[JobError], known: _Known) -> list[bytes]:
    """Bodies of reports, each whole in itself: what a job needs is named in its own."""
    items: list[JobRow | JobError] = [
        *facts.with_facts(rows, known.missing, known.derivations),
        *errors,
    ]
    found = list(bodies(map(row_to_json, items)))
    if len(found) < 2 or len(rows) < 2:
        return found
    half = len(rows) // 2
    return [*_reports(rows[:half], (), known), *_reports(rows[half:], errors, known)]


def _not_uploaded(error: UnavailableError | ForbiddenError) -> EvaluationEnd:
    message = f"the derivations could not be uploaded: {error}"
    return endings.failed("internal", "UploadFailed", message[:4000])
