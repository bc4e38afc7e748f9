"""The built-in evaluator: walks a tree of jobs with ``nix-instantiate`` alone (Nix 2.8 and later).

``walker.nix`` walks in one process and traces what it meets. What Nix can't catch kills the
process; the last marker names the attribute that did it, and a new process goes on behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fc_operator.errors import EvaluationError, InvalidError, LimitReachedError, PrerequisiteError
from fc_operator.evaluator import (
    arguments,
    confinement,
    expressions,
    faults,
    flakes,
    roots,
    rows,
    versions,
)
from fc_operator.evaluator.batches import batched
from fc_operator.evaluator.limits import Watch
from fc_operator.evaluator.protocol import EvaluationBatch
from fc_operator.evaluator.requests import EvaluationRequest, Versions
from fc_operator.kit import processes
from fc_operator.model.jobs import JobError, JobRow, dotted
from fc_operator.settings import EvaluationSettings, NixSettings

_WALK = (Path(__file__).parent / "walker.nix").read_text()
_EDITION = "1"
"""Grows when the walk gives other rows for the same source; part of the evaluation key."""
_TAIL_BYTES = 64 * 1024
_EXPLAINED_MAX = 100
"""Caught errors whose text is asked for, a process each: Nix does not tell what it caught."""
_LOSSES_MAX = 3
_NOT_ASKED = "it throws, or an assertion fails (too many errors to ask for each text)"
_NO_TEXT = "it throws, or an assertion fails"
_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "Out of Memory", "annot allocate memory")

AttrPath = tuple[str, ...]


@dataclass(slots=True)
class _Walk:
    """One evaluation: how far it has come, over all its processes."""

    request: EvaluationRequest
    root: str
    """Nix text of the value to walk."""
    watch: Watch
    resume: AttrPath | None = None
    inclusive: bool = False
    """Whether the attribute at ``resume`` itself is walked again."""
    marker: AttrPath = ()
    """The attribute that Nix is busy with; empty is the root."""
    losses: int = 0
    """How often in a row the derivation at ``resume`` was not there any more."""
    caught: list[AttrPath] = field(default_factory=list)
    """Attributes with a caught error that wait for its text."""


@dataclass(slots=True)
class _Run:
    """One process of the walk."""

    token: str
    tail: bytearray = field(default_factory=bytearray)
    """What it said since the last line of ours."""
    row: dict[str, Any] | None = None
    """A row that waits for its meta."""
    done: AttrPath | None = None
    """The last attribute that gave a row; what dies after it died of its meta."""
    collected: AttrPath | None = None
    """A row whose derivation a collector took before it was a root."""
    code: int = 0

    def note(self, line: bytes) -> None:
        self.tail += line[:_TAIL_BYTES] + b"\n"
        del self.tail[:-_TAIL_BYTES]

    @property
    def told(self) -> str:
        return self.tail.decode("utf-8", "replace")

    @property
    def wants_memory(self) -> bool:
        return self.code == -signal.SIGKILL or any(word in self.told for word in _OUT_OF_MEMORY)


class Walker:
    """See ``protocol.Evaluator``.

    ``env`` is the environment of which Nix gets the few variables that it needs; ``home`` becomes
    its home, where it caches what it fetches.
    """

    name = "walker"

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
        nix = await versions.of("nix-instantiate", self._env)
        return Versions(evaluator=self.name, version=f"{_EDITION} (Nix {nix})")

    def evaluate(self, request: EvaluationRequest) -> AsyncGenerator[EvaluationBatch, None]:
        """See ``Evaluator.evaluate``."""
        return batched(self._items(request))

    async def _items(self, request: EvaluationRequest) -> AsyncGenerator[JobRow | JobError, None]:
        watch = Watch(
            memory_bytes=self._evaluation.memory_bytes,
            deadline_s=time.monotonic() + request.timeout_s,
            output_bytes=self._evaluation.output_bytes,
        )
        walk = _Walk(request=request, root=await self._root(request), watch=watch)
        await asyncio.to_thread(request.roots_dir.mkdir, parents=True, exist_ok=True)
        while True:
            run = _Run(token=f"fc-{secrets.token_hex(16)}:")
            async with aclosing(self._rows_of(walk, run)) as found:
                async for item in found:
                    yield item
            if run.code == 0 and run.collected is None:
                break
            if run.code > 0:
                await faults.require_sound("nix-instantiate", run.told, self._env)
            blame = _judge(walk, run)
            if blame:
                yield JobError(
                    attr_path=rows.shown(walk.marker),
                    message=rows.without_places(blame, request.source.path),
                )
        for nr, path in enumerate(walk.caught):
            text = await self._text_of(walk, path) if nr < _EXPLAINED_MAX else _NOT_ASKED
            yield JobError(
                attr_path=rows.shown(path), message=rows.without_places(text, request.source.path)
            )

    async def _root(self, request: EvaluationRequest) -> str:
        try:
            if request.is_flake:
                return await flakes.root(request, env=self._env)
            return await asyncio.to_thread(expressions.file_root, request)
        except InvalidError as error:
            raise EvaluationError(error.message) from error

    async def _rows_of(self, walk: _Walk, run: _Run) -> AsyncGenerator[JobRow | JobError, None]:
        """What one process finds; afterwards ``run`` knows how it ended."""
        prefix = f"trace: {run.token}".encode()
        async with self._process(walk, run, only=None) as process:
            async for line in process.lines("stderr"):
                walk.watch.count(process, len(line))
                if not line.startswith(prefix):
                    run.note(line)
                    continue
                run.tail.clear()
                kind, _, value = line[len(prefix) :].partition(b" ")
                # Names are bytes to Nix; one that is no UTF-8 has to come back to it as it was.
                told = json.loads(value.decode("utf-8", "surrogateescape"))
                for item in self._take(walk, run, kind, told):
                    yield item
                if run.collected is not None:
                    return
            run.code = await process.wait()
        for item in self._take(walk, run, b"", None):
            yield item

    def _take(self, walk: _Walk, run: _Run, kind: bytes, value: Any) -> list[JobRow | JobError]:
        """One line of the walk: at most a row that is now whole, and an error."""
        items: list[JobRow | JobError] = []
        if run.row is not None:
            row = self._row(walk, run.row | ({"meta": value} if kind == b"X" else {}))
            run.row = None
            if isinstance(row, JobRow) and not roots.keep(row.drv_path, walk.request.roots_dir):
                run.collected = walk.marker
                return items
            if not rows.is_unwanted(row, walk.request.systems):
                items.append(row)
        if kind == b"M":
            walk.marker = tuple(value)
        elif kind == b"J":
            run.row, run.done = value, tuple(value["attrPath"])
        elif kind == b"E":
            if len(value) == 2 and isinstance(value[0], list):
                items.append(JobError(attr_path=rows.shown(tuple(value[0])), message=value[1]))
            else:
                walk.caught.append(tuple(value))
        return items

    def _row(self, walk: _Walk, data: dict[str, Any]) -> JobRow | JobError:
        return rows.parse_row(
            data,
            store_dir=self._nix.store_dir,
            name_of_root=expressions.name_of_root(walk.request),
        )

    async def _text_of(self, walk: _Walk, path: AttrPath) -> str:
        """Force one attribute again without a net; what Nix says then."""
        if walk.watch.left_s <= 0:
            return _NOT_ASKED
        run = _Run(token="")
        async with self._process(walk, run, only=path) as process:
            async for line in process.lines("stderr"):
                walk.watch.count(process, len(line))
                run.note(line)
            run.code = await process.wait()
        return (rows.summarize(run.told) if run.code else "") or _NO_TEXT

    @contextlib.asynccontextmanager
    async def _process(
        self, walk: _Walk, run: _Run, *, only: AttrPath | None
    ) -> AsyncGenerator[processes.Process, None]:
        try:
            process = await confinement.start(
                arguments.walker(walk.request, nix=self._nix),
                walk.request,
                env=self._env,
                store_dir=self._nix.store_dir,
                stdin=True,
            )
        except OSError as error:
            raise PrerequisiteError(
                f"nix-instantiate can't be run: {error}", hint="install Nix"
            ) from error
        async with walk.watch.over(process):
            stdin = process.inner.stdin
            assert stdin is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                stdin.write(_text(walk, run.token, only).encode("utf-8", "surrogateescape"))
                await stdin.drain()
            stdin.close()
            yield process


def _text(walk: _Walk, token: str, only: AttrPath | None) -> str:
    """The expression of one process."""

    def path(value: AttrPath | None) -> str:
        if value is None:
            return "null"
        return "[ " + " ".join(expressions.string(part) for part in value) + " ]"

    given = () if walk.request.is_flake else walk.request.arguments
    return (
        f"({_WALK})\n{{\n  token = {expressions.string(token)};\n"
        f"  root = {walk.root};\n  arguments = {expressions.arguments(given)};\n"
        f"  resume = {path(walk.resume)};\n"
        f"  inclusive = {'true' if walk.inclusive else 'false'};\n"
        f"  only = {path(only)};\n}}\n"
    )


def _judge(walk: _Walk, run: _Run) -> str:
    """Where the walk goes on after a process died, and the error of the attribute that did it.

    The text is empty where nobody is to blame yet: what a process ran out of memory over may be the
    sum of all before, so that attribute gets a process of its own first.

    Raises:
        LimitReachedError, EvaluationError: the whole evaluation is over.
    """
    watch, at = walk.watch, dotted(rows.shown(walk.marker)) or "the root"
    if watch.too_much_output:
        raise LimitReachedError(
            f"the evaluation printed too much; it was busy with {at}", limit="output"
        )
    if watch.left_s <= 0:
        raise LimitReachedError(
            f"the evaluation ran longer than {walk.request.timeout_s:g} s; it was busy with {at}",
            limit="time",
        )
    if run.collected is not None:
        is_again = walk.inclusive and walk.resume == run.collected
        walk.losses = walk.losses + 1 if is_again else 1
        walk.resume, walk.inclusive = run.collected, walk.losses < _LOSSES_MAX
        if walk.inclusive:
            return ""
        # No collector is that quick again and again: it only calls itself a derivation.
        text = "its derivation is not in the store"
        if not run.collected:
            raise EvaluationError(text)
        return text
    if watch.out_of_memory or run.wants_memory:
        said = "it needs more memory than an evaluation may have"
        if not walk.marker:
            raise LimitReachedError(said, limit="memory")
        if not (walk.inclusive and walk.resume == walk.marker):
            walk.resume, walk.inclusive = walk.marker, True
            return ""
        limit_mib = watch.memory_bytes >> 20
        text = f"{said} ({limit_mib} MiB)" if watch.out_of_memory else f"{said}: {run.told.strip()}"
    elif run.code < 0:
        name = signal.Signals(-run.code).name
        text = f"Nix was killed by {name}, probably by an endless recursion"
    else:
        text = rows.summarize(run.told) or f"Nix ended with {run.code} and said nothing"
    if not walk.marker:
        raise EvaluationError(rows.without_places(text, walk.request.source.path))
    walk.resume, walk.inclusive = walk.marker, False
    # The job is there; only its description could not be had.
    return "" if run.done == walk.marker else text
