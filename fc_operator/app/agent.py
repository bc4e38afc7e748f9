"""`fc agent`: one phase of one task inside a pod, built from what the server says it is to do."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from uuid import UUID

from fc_operator.access import tasks
from fc_operator.agent import handover
from fc_operator.agent.evaluate import EvaluateDuty
from fc_operator.agent.fetch import FetchDuty
from fc_operator.agent.session import Duty, Ending, Session
from fc_operator.agent.steps import StepsDuty
from fc_operator.clients.git import Git
from fc_operator.clients.nix import Nix
from fc_operator.clients.nix_copies import CacheAccess, Copies
from fc_operator.clients.task_protocol import TaskClient
from fc_operator.errors import (
    FcError,
    LeaseLostError,
    PrerequisiteError,
    SettingsError,
    UnavailableError,
)
from fc_operator.evaluator import roots
from fc_operator.evaluator.checkouts import Checkouts
from fc_operator.evaluator.find import Evaluators
from fc_operator.executors import pods
from fc_operator.executors.cached import CachedExecutor
from fc_operator.executors.local import LocalExecutor
from fc_operator.kit import logs, processes
from fc_operator.model.ids import TaskId
from fc_operator.model.work import (
    AgentVersions,
    EvaluationWork,
    NixWork,
    Opened,
    OpenRequest,
    Phase,
    StepsWork,
)
from fc_operator.results import support
from fc_operator.settings import (
    AgentSettings,
    BuildSettings,
    EvaluationSettings,
    GitSettings,
    NixSettings,
)

_log = logs.get_logger()
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
_LAST_WORDS = Path("/dev/termination-log")
"""What a container writes here stands in its pod's status."""


class Agent:
    """One phase. ``env`` is our environment, of which each part takes only what it names."""

    def __init__(self, settings: AgentSettings, env: Mapping[str, str]) -> None:
        self._settings = settings
        self._env = dict(env)
        self._own: Path | None = None

    async def run(self, stopping: asyncio.Event) -> Ending:
        """Do what the server says, until it is done, taken away, or ``stopping`` is set.

        Raises:
            FcError: it can't be done here; the pod ends with an error, and others judge that.
        """
        settings = self._settings
        task_id = _task_id(settings.task)
        token = tasks.make(task_id)
        self._own = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="fc-agent-"))
        try:
            async with TaskClient(settings.server, task_id, token.text) as client:
                asked_s = time.monotonic()
                opened = await self._open(client, token, stopping)
                if opened is None:
                    return Ending.STOPPED
                duty = await self._duty(client, opened, token)
                session = Session(client, opened, asked_s=asked_s)
                return await session.run(duty, stopping)
        except LeaseLostError as error:
            _log.info("agent.task_is_over", said=error.message)
            return Ending.GONE
        finally:
            await asyncio.to_thread(shutil.rmtree, self._own, ignore_errors=True)

    async def _open(
        self, client: TaskClient, token: tasks.TaskToken, stopping: asyncio.Event
    ) -> Opened | None:
        """Begin the phase; None when we are to stop before."""
        settings = self._settings
        request = OpenRequest(
            phase=Phase(settings.phase),
            token_hash=token.hash,
            host=platform.node(),
            versions=await self._versions(),
        )
        opening = asyncio.create_task(client.open(settings.token, request))
        asked = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait(
                {opening, asked},
                timeout=settings.open_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if opening.done():
                return opening.result()
            if asked.done():
                return None
            raise UnavailableError(
                f"{settings.server} did not answer within {settings.open_timeout_s} s",
                hint="see kubernetes.server_url, and whether network policies let pods reach it",
            )
        finally:
            for task in (opening, asked):
                task.cancel()
            await asyncio.gather(opening, asked, return_exceptions=True)

    async def _versions(self) -> AgentVersions:
        try:
            nix = await Nix(NixSettings(), self._env).version()
        except (PrerequisiteError, UnavailableError):
            nix = ""  # whoever needs it says so
        return AgentVersions(nix=nix, fc=metadata.version("fc-operator"))

    async def _duty(self, client: TaskClient, opened: Opened, token: tasks.TaskToken) -> Duty:
        work = opened.work
        copies = self._copies(work.nix, token)
        if isinstance(work, StepsWork):
            local = self._local(work)
            if work.nix.sandbox == "Nix":
                # Said before anything is built, since it is the pod's fault and nobody else's.
                await copies.prepare()
                await local.probe()
            return StepsDuty(client, work, CachedExecutor(local, copies))
        if self._settings.phase == "fetch":
            return self._fetching(client, work, copies)
        return await self._evaluating(client, work, copies)

    def _copies(self, work: NixWork, token: tasks.TaskToken) -> Copies:
        if not work.cache_url:
            raise PrerequisiteError(
                "the task names no binary cache", hint="pods need one: see the settings of cache"
            )
        return Copies(
            CacheAccess(
                url=work.cache_url, password=token.text, public_keys=work.cache_public_keys
            ),
            nix=_nix_settings(work),
            env=self._env,
            folder=self._private("copies"),
        )

    def _local(self, work: StepsWork) -> LocalExecutor:
        return LocalExecutor(
            # All that a step needs is fetched before it begins.
            nix=replace(_nix_settings(work.nix), substituters=()),
            builds=BuildSettings(
                local_slots=work.slots or cores(),
                local_systems=work.systems,
                local_features=work.features,
            ),
            dir=self._private("local"),
            harvest=partial(support.harvest, store_dir=work.nix.store_dir),
            env=self._env,
        )

    def _fetching(self, client: TaskClient, work: EvaluationWork, copies: Copies) -> FetchDuty:
        mirrors = self._settings.folder / "mirrors"
        git = Git(
            GitSettings(
                allowed_schemes=work.git.allowed_schemes,
                allowed_hosts=work.git.allowed_hosts,
                timeout_s=work.git.timeout_s,
                max_bytes=work.git.max_bytes,
            ),
            mirrors,
        )
        return FetchDuty(
            client,
            work,
            checkouts=Checkouts(git, env=self._env, home=self._private("home")),
            copies=copies,
            mirrors_dir=mirrors,
            folder=self._settings.folder,
            roots_dir=roots.default_dir(self._env) / str(work.evaluation_id),
        )

    async def _evaluating(
        self, client: TaskClient, work: EvaluationWork, copies: Copies
    ) -> EvaluateDuty:
        nix = _nix_settings(work.nix)
        evaluators = Evaluators(
            nix=nix,
            evaluation=EvaluationSettings(
                memory_bytes=work.memory_bytes,
                output_bytes=work.output_bytes,
                workers=work.workers,
                max_memory_size_mib=work.max_memory_size_mib,
            ),
            env=self._env,
            home=self._private("home"),
        )
        return EvaluateDuty(
            client,
            await asyncio.to_thread(handover.read, self._settings.folder),
            evaluator=evaluators.current(),
            copies=copies,
            nix=Nix(nix, self._env),
        )

    def _private(self, name: str) -> Path:
        assert self._own is not None
        folder = self._own / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder


def _task_id(text: str) -> TaskId:
    try:
        return TaskId(UUID(text))
    except ValueError as error:
        raise SettingsError(f"FC_AGENT_TASK is no task's id: {text!r}") from error


def _nix_settings(work: NixWork) -> NixSettings:
    return NixSettings(
        substituters=work.substituters,
        trusted_public_keys=work.trusted_public_keys,
        sandbox=work.sandbox,
        store_dir=work.store_dir,
    )


def cores() -> int:
    """How many cores the container may use, by its cgroup: at least one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = _CPU_LIMIT.read_text().split()
        if quota != "max":
            return max(1, int(quota) // int(period))
    return os.cpu_count() or 1


async def run(settings: AgentSettings, env: Mapping[str, str]) -> int:
    """Run the agent of this pod to its end; SIGTERM and SIGINT stop it. Its exit code, which says
    what the pod's end means for what was not told.

    Raises:
        FcError: see ``Agent.run``; its words stand in the pod's status too.
    """
    # Builds of the pod run as the same user as we: without this they could read our memory.
    processes.hide_memory()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        ending = await Agent(settings, env).run(stopping)
    except FcError as error:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_LAST_WORDS.write_text, str(error)[:4000])
        _log.error("agent.failed", error=str(error), kind=type(error).__name__)
        if isinstance(error, UnavailableError):
            return pods.EXIT_UNAVAILABLE
        if isinstance(error, PrerequisiteError):
            return pods.EXIT_UNUSABLE
        raise
    _log.info("agent.left", why=ending.value)
    return pods.EXIT_UNAVAILABLE if ending is Ending.LOST else 0
