"""The executor of one builder over SSH: declared, pinned, and never the fault of a build.

Inputs are sent from the store of this machine, outputs come back to it; what runs between is the
same ``nix-store --realise`` as on this machine. Whatever breaks on the way is told to ``on_fault``,
and the step is free to go elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fc_operator.clients import nix_exports
from fc_operator.clients.nix import Nix
from fc_operator.clients.ssh import HostKeyError, Link, LoginError, ReadKey, Target, parse_uri
from fc_operator.errors import FcError, HumanNeededError, PrerequisiteError, SecretError
from fc_operator.executors import (
    derivations,
    log_format,
    nix_arguments,
    sandbox_probe,
    ssh_scripts,
)
from fc_operator.executors.batches import Batches
from fc_operator.executors.classification import Evidence, Fault, classify
from fc_operator.executors.event_pipe import EventPipe
from fc_operator.executors.nix_arguments import Sandbox
from fc_operator.executors.protocol import Capacity, StepRef, StopReason
from fc_operator.executors.realisation import HarvestOutputs, Realisation
from fc_operator.executors.ssh_machine import CopyError, SshMachine
from fc_operator.executors.ssh_scripts import Load
from fc_operator.kit import logs, processes
from fc_operator.model.outcomes import Outcome, Retry
from fc_operator.model.tasks import StepEvent, StepOrder
from fc_operator.settings import NixSettings

_log = logs.get_logger()
_LOAD_S = 5.0
"""How long a look at a builder's load counts."""
_FREE_BYTES_MIN = 512 * 1024**2
_SHORT = processes.Limits(timeout_s=20, output_bytes=1024 * 1024)
_FREE_FAULTS = frozenset({Fault.LINK_LOST.value, Fault.SPAWN_FAILED.value})

_CHECKS: tuple[tuple[type[FcError], str], ...] = (
    (HostKeyError, "HostKey"),
    (LoginError, "Login"),
    (SecretError, "Key"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """A builder as its row says."""

    name: str
    ssh_uri: str
    host_key: str
    systems: tuple[str, ...]
    max_jobs: int
    speed_factor: int = 1
    features: tuple[str, ...] = ()
    mandatory_features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was tried at a builder."""

    check: str
    """``Connection``, ``HostKey``, ``Key`` (ours), ``Login``, ``Nix``, ``Disk``, ``Store`` (whether
    it takes what we send: trusted-users), ``Build``."""
    ok: bool
    message: str
    hint: str = ""


class SshExecutor:
    """Builds on one builder. See ``protocol`` for what callers may rely on.

    ``on_fault`` hears each fault of the way or of the builder; ``nix`` is that of this machine,
    ``settings`` how Nix is called. ``dir`` holds roots of what was brought back.
    """

    def __init__(
        self,
        declared: Declared,
        *,
        read_key: ReadKey,
        nix: Nix,
        settings: NixSettings,
        dir: Path,  # noqa: A002 - as in the settings
        harvest: HarvestOutputs,
        on_fault: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.declared = declared
        self._link = Link(
            Target(address=parse_uri(declared.ssh_uri), host_key=declared.host_key), read_key
        )
        self._nix = nix
        self._settings = settings
        self._roots = dir.absolute() / "roots"
        self._harvest = harvest
        self._on_fault = on_fault
        self._batches = Batches(declared.max_jobs, make=self._make, perform=self._perform)
        self._sending = asyncio.Lock()
        self._sandbox: Sandbox | None = None
        self._probing = asyncio.Lock()
        self._load = Load()
        self._load_s = -_LOAD_S
        self.problem = ""
        """Why nothing is sent there now, for people; set by who looks after builders."""

    @property
    def name(self) -> str:
        """See ``Executor.name``."""
        return self.declared.name

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it is left to end."""
        return not self._batches.running

    async def capacity(self) -> Capacity:
        """See ``Executor.capacity``; other schedulers may have taken what is free by our count."""
        total = 0 if self.problem else self.declared.max_jobs
        return Capacity(
            slots_total=total,
            slots_free=max(0, total - self._batches.busy),
            systems=self.declared.systems,
            features=self.declared.features,
            mandatory_features=self.declared.mandatory_features,
            sandbox=self._sandbox.in_force if self._sandbox else "Unknown",
            problem=self.problem,
        )

    async def load(self) -> Load:
        """How busy it is, from some seconds ago at most; not known where it does not say."""
        if time.monotonic() - self._load_s > _LOAD_S:
            self._load_s = time.monotonic()
            try:
                finished = await self._link.run(ssh_scripts.load(), limits=_SHORT)
                self._load = ssh_scripts.parse_load(finished.stdout.decode("utf-8", "replace"))
            except FcError:
                self._load = Load()
        return self._load

    def start(self, orders: Sequence[StepOrder]) -> AsyncGenerator[StepEvent, None]:
        """See ``Executor.start``."""
        return self._batches.start(orders)

    async def cancel(self, ref: StepRef, reason: StopReason) -> bool:
        """See ``Executor.cancel``."""
        return self._batches.cancel(ref, reason)

    async def adopt(self) -> tuple[StepRef, ...]:
        """See ``Executor.adopt``: builds there end when they hear nothing of us."""
        return ()

    async def close(self) -> None:
        """Break the connection."""
        await self._link.close()

    def _make(self, order: StepOrder, pipe: EventPipe) -> Realisation:
        return Realisation(
            order,
            derivations.read(order.drv_path),
            pipe=pipe,
            root=self._roots / Path(order.drv_path).name.removesuffix(".drv"),
            machine=SshMachine(self._link, self._nix, self._sending),
        )

    async def _perform(self, run: Realisation) -> Outcome:
        machine = run.machine
        assert isinstance(machine, SshMachine)
        try:
            run.begin()
            outcome = await self._sent(run, machine)
            if outcome is None:
                outcome = await run.run(self._calls(run), self._harvest)
        finally:
            await machine.close()
        if outcome.blame_builder and outcome.reason in _FREE_FAULTS:
            # The way there or the machine, not the build: it is free to go elsewhere.
            self._on_fault(outcome.message)
            return replace(outcome, retry=Retry.FREE)
        if outcome.blame_builder:
            self._on_fault(outcome.message)
        return outcome

    async def _sent(self, run: Realisation, machine: SshMachine) -> Outcome | None:
        """Send what it needs; an outcome where that is the end of it."""
        sending = asyncio.create_task(self._prepare(run, machine))
        stopping = asyncio.create_task(run.stopping.wait())
        try:
            await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not sending.done():
                sending.cancel()
            await asyncio.gather(sending, stopping, return_exceptions=True)
        drv_path = run.order.drv_path
        if run.verdict is not None:
            return classify(Evidence(drv_path=drv_path, verdict=run.verdict, detail=run.detail))
        error = sending.exception()
        if error is None:
            return None
        if not isinstance(error, FcError | OSError | processes.ProcessLimitError):
            raise error
        human = isinstance(error, HumanNeededError)
        fault = Fault.SPAWN_FAILED if human else Fault.LINK_LOST
        return classify(Evidence(drv_path=drv_path, fault=fault, detail=str(error)))

    async def _prepare(self, run: Realisation, machine: SshMachine) -> None:
        await self.sandbox()
        sent = await machine.send(run.order.drv_path)
        _log.debug(
            "executors.inputs_sent", builder=self.name, step_id=run.order.step_id, paths=sent
        )

    def _calls(self, run: Realisation) -> list[list[str]]:
        assert self._sandbox is not None
        features = (*self.declared.features, *self.declared.mandatory_features)
        # A check compares with valid outputs, so there have to be some first.
        return [
            nix_arguments.realise(
                run.order,
                nix=self._settings,
                sandbox=self._sandbox,
                features=features,
                check=check,
            )
            for check in ((False, True) if run.order.check else (False,))
        ]

    async def sandbox(self) -> Sandbox:
        """Which sandbox is in force there, seen by building something; asked once.

        Raises:
            PrerequisiteError: Nix does not build there, or the sandbox is wished and not to be had.
            UnavailableError: it can't be reached.
        """
        async with self._probing:
            if self._sandbox is None:
                look = await self._look()
                if not look.nix_version:
                    raise PrerequisiteError(
                        f"Nix is not found on {self.name}", hint="install Nix on the builder"
                    )
                marker = (await self._words(ssh_scripts.marker()))[1]
                try:
                    self._sandbox = await sandbox_probe.probe(
                        self._nix_words,
                        wish=self._settings.sandbox,
                        folders=look.folders,
                        marker=marker,
                    )
                finally:
                    with contextlib.suppress(FcError):
                        await self._words(ssh_scripts.run(["rm", "-f", marker]))
            return self._sandbox

    async def _look(self) -> ssh_scripts.Look:
        text = (await self._words(ssh_scripts.look(self._settings.store_dir)))[1]
        return ssh_scripts.parse_look(text)

    async def _nix_words(self, *argv: str) -> tuple[int, str]:
        return await self._words(ssh_scripts.run(argv))

    async def _words(self, command: str) -> tuple[int, str]:
        limits = processes.Limits(timeout_s=120, output_bytes=1024 * 1024)
        finished = await self._link.run(command, limits=limits)
        out = finished.stdout if finished.code == 0 else finished.stderr[-2000:]
        return finished.code, log_format.strip_ansi(out.decode("utf-8", "replace")).strip()

    async def test(self, salt: str) -> list[Finding]:
        """Try all that a build needs, in order; what can't be tried after a failure is left out.

        ``salt`` makes the path that is sent a new one. Never raises for what it finds.
        """
        findings: list[Finding] = []
        try:
            look = await self._look()
        except FcError as error:
            check = next((word for kind, word in _CHECKS if isinstance(error, kind)), "Connection")
            return [Finding(check=check, ok=False, message=error.message, hint=error.hint)]
        words = f"logged in to {look.host} as {look.user}, which showed the pinned host key"
        findings.append(Finding(check="Login", ok=True, message=words))
        if not look.nix_version:
            return [
                *findings,
                Finding(
                    check="Nix", ok=False, message="Nix is not found", hint="install Nix there"
                ),
            ]
        findings.append(Finding(check="Nix", ok=True, message=f"Nix {look.nix_version}"))
        if look.free_bytes is not None:
            free = f"{look.free_bytes / 1024**3:.1f} GiB are free for the store"
            enough = look.free_bytes >= _FREE_BYTES_MIN
            hint = "" if enough else "free space on the builder"
            findings.append(Finding(check="Disk", ok=enough, message=free, hint=hint))
        try:
            await self._send_new(salt)
        except FcError as error:
            is_copy = isinstance(error, CopyError)
            findings.append(
                Finding(
                    check="Store" if is_copy else "Connection",
                    ok=False,
                    message=error.message,
                    hint=error.hint,
                )
            )
            return findings
        findings.append(Finding(check="Store", ok=True, message="it takes what we send"))
        try:
            self._sandbox = None
            sandbox = await self.sandbox()
            text = f"it builds, sandbox {sandbox.in_force}"
            why = f" ({sandbox.why})" if sandbox.why else ""
            findings.append(Finding(check="Build", ok=True, message=text + why))
        except FcError as error:
            findings.append(
                Finding(check="Build", ok=False, message=error.message, hint=error.hint)
            )
        return findings

    async def _send_new(self, salt: str) -> None:
        """Send a path that it can't have yet."""
        text = f"sent to {self.name}\n{salt}\n"
        path = await nix_exports.add_text(self._nix, f"fc-builder-test-{salt}", text)
        await SshMachine(self._link, self._nix, self._sending).send_paths([path])


def verdict_of(findings: Sequence[Finding]) -> str:
    """What is wrong, in one line; empty when nothing is."""
    return "; ".join(f"{each.check}: {each.message}" for each in findings if not each.ok)
