"""The executor of this machine: one ``nix-store --realise`` process per step, in its own group."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

from fc_operator.clients.nix import environment
from fc_operator.errors import PrerequisiteError
from fc_operator.executors import (
    derivations,
    log_format,
    nix_arguments,
    process_tree,
    sandbox_probe,
)
from fc_operator.executors.batches import Batches
from fc_operator.executors.classification import Evidence, Fault, classify
from fc_operator.executors.event_pipe import EventPipe
from fc_operator.executors.local_machine import LocalMachine
from fc_operator.executors.nix_arguments import Sandbox
from fc_operator.executors.protocol import Capacity, StepRef, StopReason
from fc_operator.executors.realisation import HarvestOutputs, Realisation
from fc_operator.kit import logs, processes
from fc_operator.model.ids import DrvPath
from fc_operator.model.outcomes import Outcome, Retry
from fc_operator.model.tasks import StepEvent, StepOrder
from fc_operator.settings import BuildSettings, NixSettings

_log = logs.get_logger()

_HOST_FOLDERS = ("/bin", "/usr", "/lib", "/lib32", "/lib64")
_ADOPT_GRACE_S = 5.0


def _host_folders() -> tuple[str, ...]:
    return tuple(folder for folder in _HOST_FOLDERS if Path(folder).is_dir())


def own_system() -> str:
    """Nix's name for this machine."""
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(
        platform.machine().lower(), platform.machine().lower()
    )
    return f"{machine}-{platform.system().lower()}"


class LocalExecutor:
    """Builds on this machine. See ``protocol`` for what callers may rely on.

    ``dir`` holds its garbage collector roots (``roots``) and a note per running attempt
    (``running``). ``harvest`` reads the outputs of successes. ``env`` is the environment of which
    Nix gets the few variables that it needs.
    """

    def __init__(
        self,
        *,
        nix: NixSettings,
        builds: BuildSettings,
        dir: Path,  # noqa: A002 - as in the settings
        harvest: HarvestOutputs,
        env: Mapping[str, str],
    ) -> None:
        self._nix = nix
        self._builds = builds
        self._roots = dir.absolute() / "roots"
        self._running_dir = dir.absolute() / "running"
        self._harvest = harvest
        self._env = environment(env)
        self._slots_total = builds.local_slots or os.cpu_count() or 1
        self._batches = Batches(self._slots_total, make=self._make, perform=self._perform)
        self._sandbox: Sandbox | None = None
        self._is_doubted = True
        """Whether Nix has to show that it runs before anything else is built."""
        self._problem = ""
        self._probing = asyncio.Lock()

    @property
    def name(self) -> str:
        """See ``Executor.name``."""
        return "local"

    @property
    def systems(self) -> tuple[str, ...]:
        """Systems that it builds."""
        return self._builds.local_systems or (own_system(),)

    def root_of(self, drv_path: DrvPath) -> Path:
        """The root link of a derivation's ``out``; others are named ``<link>-<output>``."""
        return self._roots / Path(drv_path).name.removesuffix(".drv")

    async def capacity(self) -> Capacity:
        """See ``Executor.capacity``; no slots while Nix or the wished sandbox is not to be had."""
        problem = ""
        try:
            sandbox = (await self.probe()).in_force
            total = self._slots_total
        except PrerequisiteError as error:
            sandbox, total, problem = "None", 0, str(error)
        if problem != self._problem:
            self._problem = problem
            if problem:
                _log.warning("executors.local_unusable", error=problem)
            else:
                _log.info("executors.local_usable_again")
        return Capacity(
            slots_total=total,
            slots_free=max(0, total - self._batches.busy),
            systems=self.systems,
            features=self._builds.local_features,
            sandbox=sandbox,
            problem=problem,
        )

    async def probe(self) -> Sandbox:
        """Which sandbox is in force, seen by building something that looks around; asked once.

        Whether Nix runs at all is asked again after each failure that was not the build's own.

        Raises:
            PrerequisiteError: Nix is missing or broken, or the sandbox is wished and can't be had.
        """
        async with self._probing:
            if self._is_doubted:
                await self._require_nix()
                self._is_doubted = False
            if self._sandbox is None:
                self._sandbox = await self._probe()
                _log.info(
                    "executors.sandbox_probed",
                    sandbox=self._sandbox.in_force,
                    why=self._sandbox.why,
                )
            return self._sandbox

    async def _require_nix(self) -> None:
        try:
            found = await self._nix_words("nix-store", "--version")
        except (OSError, processes.ProcessLimitError) as error:
            raise PrerequisiteError(f"Nix can't be run: {error}", hint="install Nix") from error
        if found[0] != 0:
            raise PrerequisiteError(f"Nix is broken: {found[1]}", hint="see nix.conf")

    async def _probe(self) -> Sandbox:
        with tempfile.NamedTemporaryFile(prefix="fc-probe-") as marker:
            os.chmod(marker.name, 0o644)  # noqa: PTH101 - a name, not a path of ours
            return await sandbox_probe.probe(
                self._nix_words,
                wish=self._nix.sandbox,
                folders=_host_folders(),
                marker=marker.name,
            )

    async def _nix_words(self, *argv: str) -> tuple[int, str]:
        """Exit code, and what it printed: stdout of a success, else the end of stderr."""
        finished = await processes.run(
            argv, env=self._env, limits=processes.Limits(timeout_s=120, output_bytes=1 << 20)
        )
        out = finished.stdout if finished.code == 0 else finished.stderr[-2000:]
        return finished.code, log_format.strip_ansi(out.decode("utf-8", "replace")).strip()

    def start(self, orders: Sequence[StepOrder]) -> AsyncGenerator[StepEvent, None]:
        """See ``Executor.start``."""
        return self._batches.start(orders)

    def _make(self, order: StepOrder, pipe: EventPipe) -> Realisation:
        return Realisation(
            order,
            derivations.read(order.drv_path),
            pipe=pipe,
            root=self.root_of(order.drv_path),
            machine=LocalMachine(self._env),
        )

    async def _perform(self, run: Realisation) -> Outcome:
        order = run.order
        note = self._running_dir / f"{order.step_id}-{order.attempt}.json"
        try:
            try:
                sandbox = await self.probe()
                self._roots.mkdir(parents=True, exist_ok=True)
                self._running_dir.mkdir(parents=True, exist_ok=True)
                note.write_text(json.dumps(run.output_paths()))
            except (PrerequisiteError, OSError) as error:
                return classify(
                    Evidence(drv_path=order.drv_path, fault=Fault.SPAWN_FAILED, detail=str(error))
                )
            outcome = await run.run(self._calls(run, sandbox), self._harvest)
            # Nix may be gone, or its configuration broken: what waits must not be tried on it.
            self._is_doubted |= outcome.retry is Retry.INFRASTRUCTURE
            return outcome
        finally:
            note.unlink(missing_ok=True)

    def _calls(self, run: Realisation, sandbox: Sandbox) -> list[list[str]]:
        # A check compares with valid outputs, so there have to be some first.
        return [
            nix_arguments.realise(
                run.order,
                nix=self._nix,
                sandbox=sandbox,
                features=self._builds.local_features,
                extra_platforms=[s for s in self._builds.local_systems if s != own_system()],
                check=check,
            )
            for check in ((False, True) if run.order.check else (False,))
        ]

    async def cancel(self, ref: StepRef, reason: StopReason) -> bool:
        """See ``Executor.cancel``."""
        return self._batches.cancel(ref, reason)

    async def adopt(self) -> tuple[StepRef, ...]:
        """See ``Executor.adopt``: Nix dies with us, its builders mostly too; end what is left."""
        notes = sorted(self._running_dir.glob("*.json")) if self._running_dir.is_dir() else []
        paths: set[str] = set()
        for note in notes:
            with contextlib.suppress(OSError, ValueError):
                paths.update(map(str, json.loads(note.read_text())))
        killed = await asyncio.to_thread(process_tree.end_builders, paths)
        deadline_s = time.monotonic() + _ADOPT_GRACE_S
        # A Nix that got SIGTERM when we died may still be ending its builders.
        while time.monotonic() < deadline_s and process_tree.builders(paths):
            await asyncio.sleep(0.05)
            killed += await asyncio.to_thread(process_tree.end_builders, paths)
        for note in notes:
            note.unlink(missing_ok=True)
        if notes:
            _log.info("executors.leftovers_ended", attempts=len(notes), processes=killed)
        return ()
