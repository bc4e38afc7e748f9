"""One attempt: a ``nix-store --realise`` process on some machine, watched, and what it left."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fc_operator.errors import HumanNeededError, LimitReachedError, ProtocolError, UnavailableError
from fc_operator.executors import derivations, log_format
from fc_operator.executors.classification import Evidence, Fault, Verdict, classify
from fc_operator.executors.event_pipe import EventPipe, StepLog
from fc_operator.executors.process_tree import Usage
from fc_operator.kit import processes
from fc_operator.model.ids import DrvPath
from fc_operator.model.outcomes import Harvest, Outcome, OutputInfo
from fc_operator.model.statuses import OUTPUTS_VALID
from fc_operator.model.tasks import PhaseChanged, StepOrder, StepStarted

_SAMPLE_S_MIN = 0.02
_SAMPLE_S_MAX = 1.0
_NIX_FIRST_S = 1.0
"""Nix enforces the same limits and says it in its own words; we step in this much later."""
_STALL_S = 900
"""Longest preparation (waiting for locks, downloads without progress) of a step."""
_END_GRACE_S = 5.0

HarvestOutputs = Callable[[Sequence[OutputInfo]], Harvest]
"""Reads what outputs say about themselves; given by who composes the process."""


class Running(Protocol):
    """A Nix process, wherever it runs. A connection that breaks is an ``UnavailableError``."""

    def lines(self) -> AsyncIterator[bytes]:
        """What it writes to its standard error."""
        ...

    async def wait(self) -> int:
        """Its exit code, negative for a signal."""
        ...

    async def stop(self, why: str, grace_s: float) -> None:
        """End it and what runs below it; nothing happens where it has ended. Never raises."""
        ...

    def usage(self) -> Usage:
        """What runs below it uses, as far as is known."""
        ...


class Machine(Protocol):
    """Where a step is built."""

    async def start(self, argv: Sequence[str], root: Path) -> Running:
        """Start Nix, with ``root`` for what it registers as roots.

        Raises:
            OSError: the program can't be run.
            UnavailableError: the machine can't be reached.
            HumanNeededError: it can't be used.
        """
        ...

    async def sweep(self, outputs: Mapping[str, str]) -> None:
        """End what still builds these output paths, though its Nix has ended. Never raises."""
        ...

    async def describe(self, roots: Mapping[str, Path]) -> list[OutputInfo]:
        """The outputs of a success.

        Raises:
            OSError, ProtocolError, processes.ProcessLimitError: they can't be read.
            UnavailableError: the machine can't be reached any more.
        """
        ...

    async def bring(self, outputs: Sequence[OutputInfo], roots: Mapping[str, Path]) -> None:
        """Have the outputs in the store of this machine, protected by ``roots``.

        Raises: as ``describe``.
        """
        ...


@dataclass(slots=True)
class _Observed:
    """What the stream of events told so far."""

    builds: dict[int, str] = field(default_factory=dict)
    own_ids: set[int] = field(default_factory=set)
    build_began: bool = False
    builder_ended: bool = False
    transfers: int = 0
    errors: list[str] = field(default_factory=list)

    def other_drvs(self, own: DrvPath) -> tuple[DrvPath, ...]:
        return tuple(DrvPath(drv) for drv in dict.fromkeys(self.builds.values()) if drv != own)


class Realisation:
    """One attempt from its order to its outcome. ``stop`` may be called at any time."""

    def __init__(
        self,
        order: StepOrder,
        facts: derivations.DrvFacts,
        *,
        pipe: EventPipe,
        root: Path,
        machine: Machine,
    ) -> None:
        self.order = order
        self.facts = facts
        self.root = root
        self.log = StepLog(pipe, order.step_id, order.attempt, order.log_bytes_max)
        self.stopping = asyncio.Event()
        self.verdict: Verdict | None = None
        self.started_s: float | None = None
        self._pipe = pipe
        self.machine = machine
        self.detail = ""
        self._limit = 0
        self._process: Running | None = None
        self._ending: asyncio.Task[None] | None = None
        self._seen = _Observed()
        self._phase_s = 0.0
        self._last_word_s = 0.0
        self._build_s: float | None = None
        self._peak_bytes = 0
        self._cpu_ms = 0
        self._cpu_ms_before = 0

    def stop(self, verdict: Verdict, *, limit: int = 0, detail: str = "") -> None:
        """End it; the first verdict stays."""
        if self.verdict is None:
            self.verdict, self._limit, self.detail = verdict, limit, detail
        self.stopping.set()
        if self._process is not None and self._ending is None:
            self._ending = asyncio.create_task(self._end(self._process))

    async def _end(self, process: Running) -> None:
        # SIGTERM first: Nix then kills its builders itself, which run as other users.
        why = self.verdict.value if self.verdict else "stopped"
        await process.stop(why, grace_s=_END_GRACE_S)

    def begin(self) -> None:
        """Tell that it has begun; only the first time counts."""
        if self.started_s is None:
            self.started_s = time.monotonic()
            started = StepStarted(step_id=self.order.step_id, attempt=self.order.attempt)
            self._pipe.put(started)

    async def run(self, calls: Sequence[Sequence[str]], harvest: HarvestOutputs) -> Outcome:
        """Run ``calls`` one after the other while they succeed; the outcome of the whole.

        Yields through the pipe all events but the last one.
        """
        self.begin()
        code: int | None = None
        fault: Fault | None = None
        for call in calls:
            try:
                code = await self._call(call)
            except OSError as error:
                fault = Fault.SPAWN_FAILED
                self.detail = f"{call[0]} can't be started: {error}"
            except UnavailableError as error:
                fault, self.detail = Fault.LINK_LOST, str(error)
            except HumanNeededError as error:
                fault, self.detail = Fault.SPAWN_FAILED, str(error)
            if code != 0 or fault or self.verdict:
                break
        self.log.flush()
        evidence = Evidence(
            drv_path=self.order.drv_path,
            verdict=self.verdict,
            limit=self._limit,
            fault=fault,
            detail=self.detail,
            errors=tuple(self._seen.errors),
            exit_code=code,
            build_began=self._seen.build_began,
            builder_ended=self._seen.builder_ended,
            other_drvs=self._seen.other_drvs(self.order.drv_path),
            is_fixed_output=self.facts.is_fixed_output,
            was_valid=not self._seen.transfers,
        )
        outcome = classify(evidence)
        if outcome.status in OUTPUTS_VALID:
            outcome = await self._harvested(evidence, harvest)
        return replace(
            outcome,
            peak_memory_bytes=(self._peak_bytes or None) if self._seen.build_began else None,
            cpu_ms=self._cpu_ms_before + self._cpu_ms if self._seen.build_began else None,
        )

    async def _harvested(self, evidence: Evidence, harvest: HarvestOutputs) -> Outcome:
        try:
            infos = await self.machine.describe(self.roots())
            limit = self.order.nar_bytes_max
            size = sum(info.nar_size_bytes for info in infos)
            if limit and size > limit:
                self.forget_roots()
                detail = f"its outputs are {size} bytes, {limit} are allowed"
                return classify(
                    replace(evidence, verdict=Verdict.NAR_LIMIT, limit=limit, detail=detail)
                )
            await self.machine.bring(infos, self.roots())
            harvested = await asyncio.to_thread(harvest, infos)
        except UnavailableError as error:
            return classify(replace(evidence, fault=Fault.LINK_LOST, detail=str(error)))
        except (OSError, ProtocolError, processes.ProcessLimitError) as error:
            detail = f"the outputs can't be read back: {error}"
            return classify(replace(evidence, fault=Fault.STORE_UNREADABLE, detail=detail))
        outcome = classify(replace(evidence, has_failed_file=harvested.has_failed_file))
        return replace(outcome, harvest=harvested)

    def roots(self) -> dict[str, Path]:
        """The links that Nix registers, by output name."""
        names = self.facts.outputs or self.order.outputs or {"out": None}
        return {
            name: self.root if name == "out" else self.root.with_name(f"{self.root.name}-{name}")
            for name in names
        }

    def output_names(self) -> dict[str, str]:
        """As ``output_paths``, by the name of the output."""
        ordered = {name: path for name, path in self.order.outputs.items() if path}
        return {**self.facts.outputs, **ordered}

    def output_paths(self) -> list[str]:
        """Paths that its builder is told to make, where they are known before."""
        known = [path for path in self.order.outputs.values() if path]
        return [*known, *(path for path in self.facts.outputs.values() if path)]

    def forget_roots(self) -> None:
        """Let the garbage collector have the outputs."""
        for link in self.roots().values():
            link.unlink(missing_ok=True)

    async def _call(self, argv: Sequence[str]) -> int:
        self._cpu_ms_before, self._cpu_ms = self._cpu_ms_before + self._cpu_ms, 0
        self._build_s = None
        self._phase_s = time.monotonic()
        process = await self.machine.start(argv, self.root)
        self._process = process
        watch = asyncio.create_task(self._watch(process))
        try:
            if self.verdict is not None:  # stopped while it was being started
                self.stop(self.verdict)
            try:
                async for line in process.lines():
                    self._take(log_format.parse_line(line))
                    await self._pipe.room()
            except (processes.ProcessLimitError, LimitReachedError):
                self.stop(Verdict.LOG_LIMIT, limit=self.order.log_bytes_max)
            code = await process.wait()
        finally:
            watch.cancel()
            if self._ending is not None:
                await self._ending
            # Does nothing after a normal end. When our own task was cancelled, Nix still gets its
            # SIGTERM first and is waited for, or its builders would outlive it.
            await process.stop("its attempt is over", grace_s=_END_GRACE_S)
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            self._process = None
            if self._seen.build_began:
                # What Nix could not reach: it was killed itself, or builds run as its own user.
                await self.machine.sweep(self.output_names())
        return code

    def _take(self, event: log_format.Event | None) -> None:
        seen = self._seen
        match event:
            case None:
                return
            case log_format.LogLine(id=number, text=text):
                self._last_word_s = time.monotonic()
                other = seen.builds.get(number) if number not in seen.own_ids else None
                self._write(f"{_short_name(other)}> {text}" if other else text)
            case log_format.PhaseSet(id=number, phase=phase):
                self._last_word_s = time.monotonic()
                if number in seen.own_ids and self.started_s is not None:
                    self.log.flush()
                    self._pipe.put(
                        PhaseChanged(
                            step_id=self.order.step_id,
                            attempt=self.order.attempt,
                            phase=phase,
                            at_ms=int((time.monotonic() - self.started_s) * 1000),
                        )
                    )
            case log_format.BuildStarted(id=number, drv_path=drv_path):
                seen.builds[number] = drv_path
                if drv_path == self.order.drv_path:
                    seen.own_ids.add(number)
                    seen.build_began = True
                    self._build_s = self._last_word_s = time.monotonic()
            case log_format.Stopped(id=number):
                if number in seen.own_ids:
                    seen.builder_ended = True
                    self._build_s = None
                    if self._process is not None:
                        self._sample(self._process)
            case log_format.TransferStarted():
                seen.transfers += 1
                self._phase_s = time.monotonic()
            case log_format.Message(level=0, text=text, from_nix=True):
                if sum(map(len, seen.errors)) < 1024 * 1024:
                    seen.errors.append(text)
            case log_format.Message():
                return
            case log_format.Text(text=text):
                self._write(text)

    def _write(self, text: str) -> None:
        if not self.log.write(text):
            self.stop(Verdict.LOG_LIMIT, limit=self.order.log_bytes_max)

    def _sample(self, process: Running) -> None:
        usage = process.usage()
        self._peak_bytes = max(self._peak_bytes, usage.memory_bytes)
        self._cpu_ms = max(self._cpu_ms, usage.cpu_ms)

    async def _watch(self, process: Running) -> None:
        """Sample resources and enforce limits; often at first, so that short builds show up."""
        wait_s = _SAMPLE_S_MIN
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, _SAMPLE_S_MAX)
            self._sample(process)
            now_s = time.monotonic()
            order = self.order
            if self._build_s is None:
                if now_s - self._phase_s > _STALL_S + order.timeout_s * self._seen.builder_ended:
                    self.stop(Verdict.STALLED, limit=_STALL_S)
            elif order.timeout_s and now_s - self._build_s > order.timeout_s + _NIX_FIRST_S:
                self.stop(Verdict.TIMEOUT, limit=order.timeout_s)
            elif (
                order.max_silent_s and now_s - self._last_word_s > order.max_silent_s + _NIX_FIRST_S
            ):
                self.stop(Verdict.SILENCE, limit=order.max_silent_s)


def _short_name(drv_path: str) -> str:
    return drv_path.rsplit("/", 1)[-1][33:].removesuffix(".drv")
