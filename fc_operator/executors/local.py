"""The executor of this machine: one ``nix-store --realise`` process per step, in its own group."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fc_operator.clients.nix import environment
from fc_operator.errors import PrerequisiteError
from fc_operator.executors import derivations, log_format, nix_arguments, process_tree
from fc_operator.executors.classification import Evidence, Fault, Verdict, classify
from fc_operator.executors.event_pipe import EventPipe
from fc_operator.executors.nix_arguments import Sandbox
from fc_operator.executors.protocol import Capacity, StepRef, StopReason
from fc_operator.executors.realisation import HarvestOutputs, Realisation
from fc_operator.kit import logs, processes
from fc_operator.model.ids import DrvPath
from fc_operator.model.outcomes import Outcome, Retry
from fc_operator.model.statuses import OUTPUTS_VALID
from fc_operator.model.tasks import StepEnded, StepEvent, StepOrder
from fc_operator.settings import BuildSettings, NixSettings

_log = logs.get_logger()

_HOST_FOLDERS = ("/bin", "/usr", "/lib", "/lib32", "/lib64")
_ADOPT_GRACE_S = 5.0
_STOPS = {
    StopReason.CANCELLED: Verdict.CANCELLED,
    StopReason.LEASE_LOST: Verdict.LEASE_LOST,
    StopReason.SHUTDOWN: Verdict.SHUTDOWN,
}

_PROBE = """derivation {{
  name = "fc-sandbox-probe-{salt}";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-c" ''
    if [ -e "{marker}" ]; then echo it sees files of the host; exit 7; fi
    while read name rest; do
      case "$name" in Inter-*|face*|lo:*) ;; *) echo it sees the network; exit 8;; esac
    done < /proc/net/dev
    echo fine > $out
  '' ];
}}"""
_LOOKED_AROUND = re.compile(r"exit code [78]\b")
"""The probe ran, and saw something that it would not see in a sandbox."""


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
        self._slots = asyncio.Semaphore(self._slots_total)
        self._busy = 0
        self._runs: dict[StepRef, Realisation] = {}
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
            slots_free=max(0, total - self._busy),
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
        if self._nix.sandbox == "None":
            return Sandbox(in_force="None", why="by setting")
        folders = _host_folders()
        problems: list[str] = []
        for paths in ((), folders):
            # With its own shell if this Nix has one, else with the host's.
            candidate = Sandbox(in_force="Nix", paths=paths)
            problem = await self._try_sandbox(candidate)
            if not problem:
                return candidate
            problems.append(problem)
        why = problems[-1]
        if self._nix.sandbox == "Nix":
            raise PrerequisiteError(
                f"Nix's sandbox does not work here: {why}",
                hint="set nix.sandbox to None, or allow user and mount namespaces",
            )
        plainly = await self._try_sandbox(Sandbox(in_force="None"))
        if plainly and not _LOOKED_AROUND.search(plainly):
            # A full disk, say: that tells nothing about the sandbox, so it is asked again later.
            raise PrerequisiteError(f"Nix can't build here: {plainly}", hint="see nix.conf")
        return Sandbox(in_force="None", why=f"the sandbox does not work here: {why}")

    async def _try_sandbox(self, candidate: Sandbox) -> str:
        """Empty when a build inside ``candidate`` sees neither host nor network; else why not."""
        with tempfile.NamedTemporaryFile(prefix="fc-probe-") as marker:
            os.chmod(marker.name, 0o644)  # noqa: PTH101 - a name, not a path of ours
            text = _PROBE.format(salt=secrets.token_hex(8), marker=marker.name)
            code, drv = await self._nix_words("nix-instantiate", "-E", text)
            if code != 0:
                raise PrerequisiteError(f"Nix can't instantiate: {drv}", hint="see nix.conf")
            code, words = await self._nix_words(
                *("nix-store", "--realise", drv.splitlines()[-1]),
                *nix_arguments.sandbox_options(candidate),
                *("--option", "substituters", "", "--option", "builders", ""),
            )
        return "" if code == 0 else words

    async def _nix_words(self, *argv: str) -> tuple[int, str]:
        """Exit code, and what it printed: stdout of a success, else the end of stderr."""
        finished = await processes.run(
            argv, env=self._env, limits=processes.Limits(timeout_s=120, output_bytes=1 << 20)
        )
        out = finished.stdout if finished.code == 0 else finished.stderr[-2000:]
        return finished.code, log_format.strip_ansi(out.decode("utf-8", "replace")).strip()

    async def start(self, orders: Sequence[StepOrder]) -> AsyncGenerator[StepEvent, None]:
        """See ``Executor.start``."""
        pipe = EventPipe()
        # Nix would build a needed step of the batch itself, and twice: their order is ours.
        facts = {order.drv_path: derivations.read(order.drv_path) for order in orders}
        ends: dict[DrvPath, asyncio.Future[Outcome]] = {
            order.drv_path: asyncio.get_running_loop().create_future() for order in orders
        }
        runs = []
        tasks = []
        for order in orders:
            needs = {
                drv_path: end
                for drv_path, end in ends.items()
                if drv_path != order.drv_path and facts[order.drv_path].needs(drv_path)
            }
            run = Realisation(
                order,
                facts[order.drv_path],
                pipe=pipe,
                root=self.root_of(order.drv_path),
                env=self._env,
            )
            self._runs[StepRef(step_id=order.step_id, attempt=order.attempt)] = run
            runs.append(run)
            tasks.append(asyncio.create_task(self._run_step(run, pipe, needs, ends)))
        left = len(orders)
        try:
            while left:
                event = await pipe.get()
                left -= isinstance(event, StepEnded)
                yield event
        finally:
            pipe.open_wide()
            for run in runs:
                run.stop(Verdict.SHUTDOWN)
            await asyncio.gather(*tasks)

    async def _run_step(
        self,
        run: Realisation,
        pipe: EventPipe,
        needs: Mapping[DrvPath, asyncio.Future[Outcome]],
        ends: Mapping[DrvPath, asyncio.Future[Outcome]],
    ) -> None:
        order = run.order
        try:
            outcome = await self._outcome(run, needs)
        except Exception as error:  # noqa: BLE001 - the contract: every order ends, whatever happens
            _log.exception("executors.step_broke", drv_path=order.drv_path)
            outcome = classify(
                Evidence(
                    drv_path=order.drv_path,
                    fault=Fault.SPAWN_FAILED,
                    detail=f"our own error: {error!r}",
                )
            )
        self._runs.pop(StepRef(step_id=order.step_id, attempt=order.attempt), None)
        if not ends[order.drv_path].done():
            ends[order.drv_path].set_result(outcome)
        duration_s = time.monotonic() - run.started_s if run.started_s is not None else 0.0
        pipe.put(
            StepEnded(
                step_id=order.step_id,
                attempt=order.attempt,
                outcome=outcome,
                log_bytes=run.log.size_bytes,
                log_lines=run.log.lines,
                duration_ms=int(duration_s * 1000),
            )
        )

    async def _outcome(
        self, run: Realisation, needs: Mapping[DrvPath, asyncio.Future[Outcome]]
    ) -> Outcome:
        order = run.order
        for drv_path, end in needs.items():
            await _first(run.stopping, end)
            if run.verdict is None and end.result().status not in OUTPUTS_VALID:
                final = end.result().retry is Retry.NEVER
                run.stop(
                    Verdict.DEPENDENCY_FAILED if final else Verdict.DEPENDENCY_RETRIES,
                    detail=f"{drv_path}, which it needs, ended as {end.result().status.value}",
                )
        slot = asyncio.ensure_future(self._slots.acquire())
        await _first(run.stopping, slot)
        if run.verdict is not None:
            if slot.done():
                self._slots.release()
            slot.cancel()
            return classify(
                Evidence(drv_path=order.drv_path, verdict=run.verdict, detail=run.detail)
            )
        self._busy += 1
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
            self._busy -= 1
            self._slots.release()

    def _calls(self, run: Realisation, sandbox: Sandbox) -> list[list[str]]:
        # A check compares with valid outputs, so there have to be some first.
        return [
            nix_arguments.realise(
                run.order,
                root=run.root,
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
        run = self._runs.get(ref)
        if run is None:
            return False
        run.stop(_STOPS[reason])
        return True

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


async def _first(stopping: asyncio.Event, other: asyncio.Future[Any]) -> None:
    """Wait for either."""
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({stop, other}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
