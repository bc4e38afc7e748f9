"""nix-eval-jobs, where it is installed: its lines are streamed, its errors stay with their jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path

from fc_operator.errors import EvaluationError, InvalidError, LimitReachedError, PrerequisiteError
from fc_operator.evaluator import (
    arguments,
    confinement,
    expressions,
    faults,
    flakes,
    rows,
    versions,
)
from fc_operator.evaluator.batches import batched
from fc_operator.evaluator.limits import Watch
from fc_operator.evaluator.protocol import EvaluationBatch
from fc_operator.evaluator.requests import EvaluationRequest, Versions
from fc_operator.kit import processes
from fc_operator.model.jobs import JobError, JobRow
from fc_operator.settings import EvaluationSettings, NixSettings

_TAIL_BYTES = 64 * 1024
_MEMORY_WORDS = ("memory limit", "SIGKILL", "out of memory", "bad_alloc")


class NixEvalJobs:
    """See ``protocol.Evaluator``; the arguments are those of ``walker.Walker``."""

    name = "nix-eval-jobs"

    def __init__(
        self,
        *,
        nix: NixSettings,
        evaluation: EvaluationSettings,
        env: Mapping[str, str],
        home: Path,
    ) -> None:
        self._nix = nix
        self._evaluation = evaluation
        self._env = arguments.environment(env, home=home)

    async def versions(self) -> Versions:
        """See ``Evaluator.versions``."""
        return Versions(evaluator=self.name, version=await versions.of(self.name, self._env))

    def evaluate(self, request: EvaluationRequest) -> AsyncGenerator[EvaluationBatch, None]:
        """See ``Evaluator.evaluate``."""
        return batched(self._items(request))

    async def _items(self, request: EvaluationRequest) -> AsyncGenerator[JobRow | JobError, None]:
        watch = Watch(
            # Its own limit is for each worker; ours for all of them and the one that leads them.
            memory_bytes=self._evaluation.memory_bytes,
            deadline_s=time.monotonic() + request.timeout_s,
            output_bytes=self._evaluation.output_bytes,
        )
        argv = arguments.nix_eval_jobs(
            request,
            root=await self._root(request),
            nix=self._nix,
            evaluation=self._evaluation,
        )
        await asyncio.to_thread(request.roots_dir.mkdir, parents=True, exist_ok=True)
        try:
            process = await confinement.start(
                argv, request, env=self._env, store_dir=self._nix.store_dir
            )
        except OSError as error:
            raise PrerequisiteError(f"nix-eval-jobs can't be run: {error}") from error
        tail = bytearray()
        async with watch.over(process):
            listener = asyncio.create_task(_listen(process, watch, tail))
            try:
                async for line in process.lines():
                    watch.count(process, len(line))
                    if line.strip():
                        item = self._parse(request, line)
                        if item is not None:
                            yield item
                code = await process.wait()
                await listener
            finally:
                listener.cancel()
        if code > 0:
            await faults.require_sound(self.name, tail.decode("utf-8", "replace"), self._env)
        if code != 0:
            _fail(request, watch, code, tail.decode("utf-8", "replace"))

    async def _root(self, request: EvaluationRequest) -> str:
        try:
            if request.is_flake:
                return await flakes.root(request, env=self._env)
            return await asyncio.to_thread(expressions.file_root, request)
        except InvalidError as error:
            raise EvaluationError(error.message) from error

    def _parse(self, request: EvaluationRequest, line: bytes) -> JobRow | JobError | None:
        item = rows.parse_line(
            line,
            store_dir=self._nix.store_dir,
            name_of_root=expressions.name_of_root(request),
        )
        if isinstance(item, JobError):
            faults.refuse(item.message)
        return None if rows.is_unwanted(item, request.systems) else item


async def _listen(process: processes.Process, watch: Watch, tail: bytearray) -> None:
    async for line in process.lines("stderr"):
        watch.count(process, len(line))
        tail += line[:_TAIL_BYTES] + b"\n"
        del tail[:-_TAIL_BYTES]


def _fail(request: EvaluationRequest, watch: Watch, code: int, told: str) -> None:
    """Say why the whole run ended badly; it names the attribute itself, where there is one."""
    if watch.too_much_output:
        raise LimitReachedError("the evaluation printed too much", limit="output")
    if watch.left_s <= 0:
        raise LimitReachedError(
            f"the evaluation ran longer than {request.timeout_s:g} s", limit="time"
        )
    text = rows.summarize(told)
    if watch.out_of_memory or any(word in told for word in _MEMORY_WORDS):
        raise LimitReachedError(
            f"it needs more memory than an evaluation may have: {text}".removesuffix(": "),
            limit="memory",
        )
    raise EvaluationError(
        rows.without_places(text, request.source.path) or f"nix-eval-jobs ended with {code}"
    )
