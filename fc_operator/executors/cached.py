"""An executor whose inputs come from a binary cache and whose outputs go there.

For a store that lives no longer than its pod: before a batch, the .drv closures and all that its
steps need are fetched; an end with valid outputs is told only when the cache has them, for from
then on others count on them. Building itself is another executor's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from fc_operator.clients.nix import Missing, read_derivations
from fc_operator.clients.nix_copies import Copies
from fc_operator.errors import FcError, ForbiddenError
from fc_operator.executors.protocol import Capacity, Executor, StepRef, StopReason
from fc_operator.kit import logs
from fc_operator.model.ids import DrvPath
from fc_operator.model.outcomes import Harvest, Outcome, Retry
from fc_operator.model.statuses import OUTPUTS_VALID, BuildStatus
from fc_operator.model.tasks import StepEnded, StepEvent, StepOrder

_log = logs.get_logger()
_UPLOADS_MAX = 4
"""Uploads at once; each uses several connections."""
_STOPS = {
    StopReason.CANCELLED: Outcome(
        status=BuildStatus.CANCELLED, reason=StopReason.CANCELLED.value, message="cancelled"
    ),
    StopReason.LEASE_LOST: Outcome(
        status=BuildStatus.ABORTED, retry=Retry.FREE, reason=StopReason.LEASE_LOST.value
    ),
    StopReason.SHUTDOWN: Outcome(
        status=BuildStatus.ABORTED, retry=Retry.FREE, reason=StopReason.SHUTDOWN.value
    ),
}
"""Of steps that are stopped while their inputs come."""


def ref_of(step: StepOrder | StepEvent) -> StepRef:
    """Which attempt it is about."""
    return StepRef(step_id=step.step_id, attempt=step.attempt)


@dataclass(slots=True)
class _Coming:
    """A batch whose inputs are coming."""

    orders: dict[StepRef, StepOrder]
    stopped: dict[StepRef, StopReason] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class CachedExecutor:
    """``inner`` with the cache of ``copies`` around it. See ``protocol`` for the contract."""

    def __init__(self, inner: Executor, copies: Copies) -> None:
        self._inner = inner
        self._copies = copies
        self._coming: list[_Coming] = []
        self._uploading = asyncio.Semaphore(_UPLOADS_MAX)

    @property
    def name(self) -> str:
        """See ``Executor.name``."""
        return self._inner.name

    async def capacity(self) -> Capacity:
        """See ``Executor.capacity``."""
        return await self._inner.capacity()

    async def adopt(self) -> tuple[StepRef, ...]:
        """See ``Executor.adopt``."""
        return await self._inner.adopt()

    async def cancel(self, ref: StepRef, reason: StopReason) -> bool:
        """See ``Executor.cancel``; what is being uploaded has been built and is not stopped."""
        for coming in self._coming:
            if ref in coming.orders and ref not in coming.stopped:
                coming.stopped[ref] = reason
                coming.changed.set()
                return True
        return await self._inner.cancel(ref, reason)

    async def start(self, orders: Sequence[StepOrder]) -> AsyncGenerator[StepEvent, None]:
        """See ``Executor.start``."""
        coming = _Coming({ref_of(order): order for order in orders})
        self._coming.append(coming)
        try:
            async with aclosing(self._prepared(coming)) as ends:
                async for ended in ends:
                    yield ended
        finally:
            self._coming.remove(coming)
        if coming.orders:
            async with aclosing(self._built(list(coming.orders.values()))) as events:
                async for event in events:
                    yield event

    # Before -----------------------------------------------------------------------------------

    async def _prepared(self, coming: _Coming) -> AsyncGenerator[StepEnded, None]:
        """Fetch what the batch needs; ends of those that can't go on. ``coming`` keeps the rest."""
        fetching = asyncio.create_task(self._fetch(tuple(coming.orders.values())))
        try:
            while coming.orders:
                changed = asyncio.create_task(coming.changed.wait())
                await asyncio.wait({fetching, changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                coming.changed.clear()
                for ref in [ref for ref in coming.stopped if ref in coming.orders]:
                    yield _ended(coming.orders.pop(ref), _STOPS[coming.stopped[ref]])
                if fetching.done():
                    break
            else:
                return
            for ref, outcome in fetching.result().items():
                if ref in coming.orders:
                    yield _ended(coming.orders.pop(ref), outcome)
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)

    async def _fetch(self, orders: Sequence[StepOrder]) -> dict[StepRef, Outcome]:
        """Have here what the steps need; the ends of those for which that can't be."""
        drvs = [order.drv_path for order in orders]
        try:
            await self._copies.prepare()
            there = await asyncio.to_thread(_existing, drvs)
            await self._fetch_derivations([drv for drv in drvs if drv not in there])
            # Of what is not there the inner executor has the words.
            here = await asyncio.to_thread(_existing, drvs)
            missing = await self._copies.missing(here)
            lacking = await asyncio.to_thread(_lacking, orders, missing)
            if missing.will_fetch:
                await self._copies.fetch(missing.will_fetch)
        except FcError as error:
            _log.warning("executors.inputs_unavailable", error=str(error)[-500:])
            gone = Outcome(
                status=BuildStatus.ABORTED,
                retry=Retry.INFRASTRUCTURE,
                reason="InputsUnavailable",
                message=f"what it needs could not be fetched: {error}"[:4000],
            )
            return {ref_of(order): gone for order in orders}
        return lacking

    async def _fetch_derivations(self, drvs: Sequence[DrvPath]) -> None:
        """One that the cache does not have must not keep the others away."""
        try:
            await self._copies.fetch_derivations(drvs)
        except FcError:
            if len(drvs) == 1:
                _log.warning("executors.derivation_missing", drv_path=drvs[0])
                return
            for drv in drvs:
                await self._fetch_derivations([drv])

    # Building and after -----------------------------------------------------------------------

    async def _built(self, orders: Sequence[StepOrder]) -> AsyncGenerator[StepEvent, None]:
        uploads: set[asyncio.Task[StepEnded]] = set()
        async with aclosing(self._inner.start(orders)) as events:
            coming: asyncio.Task[StepEvent | None] | None = _next(events)
            try:
                while coming is not None or uploads:
                    waiting = {coming, *uploads} if coming is not None else set(uploads)
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for upload in [each for each in uploads if each.done()]:
                        uploads.discard(upload)
                        yield upload.result()
                    if coming is None or not coming.done():
                        continue
                    event, coming = coming.result(), None
                    if event is None:
                        continue
                    if isinstance(event, StepEnded) and event.outcome.status in OUTPUTS_VALID:
                        uploads.add(asyncio.create_task(self._uploaded(event)))
                    else:
                        # Only now the next one: who reads us sets the pace.
                        yield event
                    coming = _next(events)
            finally:
                left = {*uploads, *({coming} if coming is not None else ())}
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

    async def _uploaded(self, ended: StepEnded) -> StepEnded:
        """``ended`` once the cache has its outputs, or another end where it can't have them."""
        paths = [output.path for output in ended.outcome.harvest.outputs]
        try:
            async with self._uploading:
                await self._copies.upload(paths)
        except FcError as error:
            _log.warning("executors.upload_failed", step_id=ended.step_id, error=str(error)[-500:])
            refused = isinstance(error, ForbiddenError)
            outcome = replace(
                ended.outcome,
                status=BuildStatus.ABORTED,
                retry=Retry.INFRASTRUCTURE,
                reason="UploadRefused" if refused else "UploadFailed",
                message=f"built, but its outputs could not be uploaded: {error}"[:4000],
                harvest=Harvest(),
            )
            return replace(ended, outcome=outcome)
        return ended


def _next(events: AsyncGenerator[StepEvent, None]) -> asyncio.Task[StepEvent | None]:
    """The next event; None after the last."""

    async def take() -> StepEvent | None:
        return await anext(events, None)

    return asyncio.create_task(take())


def _ended(order: StepOrder, outcome: Outcome) -> StepEnded:
    return StepEnded(step_id=order.step_id, attempt=order.attempt, outcome=outcome)


def _existing(drvs: Collection[DrvPath]) -> list[DrvPath]:
    return [drv for drv in drvs if Path(drv).exists()]


def _lacking(orders: Sequence[StepOrder], missing: Missing) -> dict[StepRef, Outcome]:
    """Steps of which an input, that is no step of the batch, would have to be built first: it was
    built elsewhere and should have been in the cache. And steps of the batch that need those.
    """
    needs = {
        order.drv_path: facts.input_drvs.keys()
        for order in orders
        if order.drv_path in missing.will_build
        for facts in read_derivations([order.drv_path]).values()
    }
    absent = set(missing.will_build) - {order.drv_path for order in orders}
    lacking: dict[DrvPath, list[DrvPath]] = {}
    while more := {
        drv: sorted(absent & inputs)
        for drv, inputs in needs.items()
        if drv not in lacking and absent & inputs
    }:
        lacking |= more
        absent |= more.keys()
    return {
        ref_of(order): Outcome(
            status=BuildStatus.DEPENDENCY_FAILED,
            retry=Retry.INFRASTRUCTURE,
            reason="InputFailed",
            message="it needs what is not in the cache: outputs of "
            + ", ".join(lacking[order.drv_path]),
        )
        for order in orders
        if order.drv_path in lacking
    }
