"""Syncs config repositories and directories: each by one process at a time, again and again.

A sync reads the source, brings it into force, and says on the source how it went. Whatever goes
wrong, the last good state stays. Directories are watched, git sources are asked at their interval;
both at once when somebody asks (NOTIFY), and in any case by polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import watchfiles

from fc_operator.clients import git_urls
from fc_operator.clients.git import Git
from fc_operator.errors import FcError, LeaseLostError, NotFoundError, UnavailableError
from fc_operator.intake import directories, loads, outcomes
from fc_operator.intake.loads import Loaded, Memory
from fc_operator.kit import logs
from fc_operator.kit.backoff import Backoff
from fc_operator.kit.lives import Lives
from fc_operator.kit.services import LoopService, Supervisor
from fc_operator.model import sources
from fc_operator.model.sources import Source
from fc_operator.operations import manifests
from fc_operator.operations import sources as operations
from fc_operator.operations.manifests import Keyring
from fc_operator.reconciler.plans import Report
from fc_operator.settings import ConfigSettings
from fc_operator.spec.manifests import Parsed
from fc_operator.store import config_repositories, managed_resources
from fc_operator.store.config_repositories import DueSource
from fc_operator.store.database import Connection, Database, notify, owner_id
from fc_operator.store.listener import RESOURCES, SOURCES, Listener

BOOTSTRAP = "_bootstrap"
"""The name of the source of ``fc up --config``; no manifest can have it."""

_LEASE_S = 60.0
_RENEW_S = 20.0
_POLL_S = 5.0
_AT_ONCE = 4
_JITTER = 0.1
_MEMORIES_MAX = 256
"""Sources remembered; one that is forgotten is read and parsed whole at its next sync."""
_APPLIED_AGAIN_S = 60.0
_SETTLE_MS = 100
"""An editor writes a file in several steps; a change is looked at once this long nothing moved."""
_log = logs.get_logger()


async def ensure_bootstrap(database: Database, config: ConfigSettings) -> str | None:
    """Make the source that settings name a row like any other; its name.

    Without one (None), an earlier one rests and what it declared stays.

    Raises:
        InvalidError: it is a URL that is always refused.
    """
    kind, url = place_of(config.source)
    if config.source and kind == "git":
        git_urls.read(url)

    async def change(connection: Connection) -> None:
        if not config.source:
            await config_repositories.suspend_bootstrap(connection, BOOTSTRAP)
            return
        await config_repositories.upsert_bootstrap(
            connection,
            name=BOOTSTRAP,
            kind=kind,
            url=url,
            branch=config.branch or None,
            path="/".join(part for part in config.path.split("/") if part not in {"", "."}),
            interval_s=max(1, config.interval_s),
            credentials_secret=config.credentials_secret or None,
        )
        await notify(connection, SOURCES)

    await database.run(change)
    return BOOTSTRAP if config.source else None


def place_of(source: str) -> tuple[Literal["git", "directory"], str]:
    """Whether a text names a directory or a git URL, and the text as it is kept."""
    if "://" in source or "::" in source or source.startswith("-"):
        return "git", source
    if Path(source).exists() or ":" not in source:
        return "directory", str(Path(source).absolute())
    return "git", source


class RepositorySyncService:
    """A service (see ``kit.services``): syncs sources, watches directories, ends prunings."""

    name = "repository-sync"

    def __init__(
        self,
        database: Database,
        listener: Listener,
        git: Git,
        keyring: Keyring,
        config: ConfigSettings,
        *,
        owner: str | None = None,
        owner_file: Path | None = None,
        poll_s: float = _POLL_S,
    ) -> None:
        self._database = database
        self._listener = listener
        self._git = git
        self._keyring = keyring
        self._config = config
        self._owner = owner or owner_id("intake")
        self._lives = Lives(owner_file)
        self._poll_s = poll_s
        self._memories: dict[str, Memory] = {}
        self._syncing: set[asyncio.Task[None]] = set()
        self._watching: dict[tuple[str, Path], asyncio.Task[None]] = {}
        self._services = Supervisor(
            [
                LoopService("repository-sync", self._run),
                LoopService("repository-watch", self._watch),
                LoopService("pruning", self._prune),
            ]
        )

    async def start(self) -> None:
        """See ``Service.start``."""
        await self._services.start()

    async def stop(self) -> None:
        """End what runs and give up the leases, so that another process need not wait for them."""
        await self._services.stop()
        await self._cancel({*self._syncing, *self._watching.values()})
        self._watching.clear()
        with contextlib.suppress(UnavailableError):
            await self._release(self._owner)
            await self._lives.end()

    async def _release(self, owner: str) -> None:
        async with self._database.session() as connection:
            await config_repositories.release(connection, owner=owner)

    @staticmethod
    async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Syncing --------------------------------------------------------------------------------

    async def _run(self) -> None:
        for owner in await self._lives.earlier(self._owner):
            await self._release(owner)
        await self._lives.begin(self._owner)
        with self._listener.subscribe(SOURCES) as subscription:
            while True:
                free = _AT_ONCE - len(self._syncing)
                if free > 0:
                    await self._claim(free)
                async with self._database.session() as connection:
                    due_s = await config_repositories.next_due_s(connection)
                # With all hands full the end of a sync looks again, not the clock.
                wait_s = self._poll_s if due_s is None or free <= 0 else min(due_s, self._poll_s)
                await subscription.wait(max(wait_s, 0.05))

    async def _claim(self, size: int) -> None:
        async with self._database.session() as connection:
            due = await config_repositories.claim(
                connection, owner=self._owner, lease_s=_LEASE_S, size=size
            )
        for source in due:
            task = asyncio.create_task(self._sync(source), name=f"sync {source.name}")
            self._syncing.add(task)
            task.add_done_callback(self._syncing.discard)

    async def _sync(self, source: DueSource) -> None:
        with logs.bound(config_repository=source.name):
            try:
                await self._under_lease(source, self._sync_once)
            except LeaseLostError as error:
                _log.info("intake.sync_given_up", reason=error.message)
            except UnavailableError as error:  # the database's; the lease ends by itself
                _log.warning("intake.sync_failed", error=str(error))
            except Exception as error:  # noqa: BLE001 - said where the user looks, and tried again
                _log.exception("intake.sync_failed")
                with contextlib.suppress(UnavailableError):
                    await self._finish(source, outcomes.of_surprise(error), failed=True)

    async def _under_lease(
        self, source: DueSource, work: Callable[[DueSource], Awaitable[None]]
    ) -> None:
        """Do it while the lease is renewed; stop it when the lease went to somebody else."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(_RENEW_S)
                async with self._database.session() as connection:
                    if not await config_repositories.renew(
                        connection, source.id, owner=self._owner, lease_s=_LEASE_S
                    ):
                        raise LeaseLostError(f"{source.name} is synced by somebody else now")

        working, renewing = asyncio.ensure_future(work(source)), asyncio.ensure_future(renew())
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if renewing.done():
                renewing.result()
            await working
        finally:
            for task in (working, renewing):
                task.cancel()
            await asyncio.gather(working, renewing, return_exceptions=True)

    async def _sync_once(self, source: DueSource) -> None:
        memory = self._memories.pop(source.name, Memory()).of(source)
        self._memories[source.name] = memory
        while len(self._memories) > _MEMORIES_MAX:
            del self._memories[next(iter(self._memories))]
        loaded: Loaded | None = None
        try:
            loaded = await loads.load(source, memory, git=self._git, secrets=self._keyring.secrets)
            if self._holds(source, loaded):
                await self._finish(source, outcomes.of_rewriting(loaded.revision, told(loaded)))
                return
            report = await self._apply(source, loaded)
        except LeaseLostError:
            raise
        except FcError as error:
            await self._finish(source, outcomes.of_error(error), failed=True)
        else:
            await self._finish(source, outcomes.of_report(report), loaded=loaded)

    def _holds(self, source: DueSource, loaded: Loaded) -> bool:
        """Whether a rewritten history still waits for somebody's word."""
        return (
            self._config.force_push == "Hold"
            and loaded.rewritten_from is not None
            and loaded.revision not in {source.last_revision, source.confirmed_revision}
        )

    async def _apply(self, source: DueSource, loaded: Loaded) -> Report:
        if loaded.news:
            # What somebody just changed is in force before thousands of others are looked at.
            await self._bring_into_force(
                source, loaded, Parsed(declarations=loaded.news), whole=False
            )
        return await self._bring_into_force(source, loaded, loaded.parsed, whole=True)

    async def _bring_into_force(
        self, source: DueSource, loaded: Loaded, parsed: Parsed, *, whole: bool
    ) -> Report:
        async def still_held(connection: Connection) -> bool:
            return await config_repositories.is_held(connection, source, owner=self._owner)

        return await manifests.apply(
            self._database,
            Source(sources.CONFIG_REPOSITORY, source.name),
            parsed,
            keyring=self._keyring,
            config=self._config,
            revision=loaded.revision,
            complete=whole,
            prune=source.prune,
            confirm=source.confirmed_revision == loaded.revision,
            still_held=still_held,
        )

    async def _finish(
        self,
        source: DueSource,
        outcome: outcomes.Outcome,
        *,
        loaded: Loaded | None = None,
        failed: bool = False,
    ) -> None:
        failures = source.sync_failures + 1 if failed else 0
        if failed:
            _log.warning("intake.source_not_read", reason=outcome.reason, error=outcome.message)
        conditions = outcomes.conditions_of(
            outcome, source.conditions, datetime.now(UTC), rewritten=_rewritten(source, loaded)
        )

        async def change(connection: Connection) -> None:
            await config_repositories.finish(
                connection,
                source,
                owner=self._owner,
                delay_s=_delay_s(source.interval_s, failures),
                failures=failures,
                conditions=conditions,
                revision=loaded.revision if loaded else None,
                tree=loaded.tree if loaded else None,
            )
            # Others see it: the end of a sync, and that a hand is free again.
            await notify(connection, SOURCES)
            if conditions != source.conditions:
                await notify(connection, RESOURCES)

        await self._database.run(change)

    # Watching -------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """One watcher per directory source of this moment."""
        with self._listener.subscribe(SOURCES) as subscription:
            while True:
                async with self._database.session() as connection:
                    found = await config_repositories.list_directories(connection)
                wanted = {(name, Path(url) / path) for name, url, path in found}
                gone = {key for key in self._watching if key not in wanted}
                await self._cancel({self._watching.pop(key) for key in gone})
                for key in wanted:
                    if key not in self._watching or self._watching[key].done():
                        self._watching[key] = asyncio.create_task(self._watch_one(*key))
                await subscription.wait(self._poll_s)

    async def _watch_one(self, name: str, directory: Path) -> None:
        """Ask for a sync whenever a manifest moved; ends if the directory can't be watched."""
        home = await asyncio.to_thread(directory.resolve)

        def concerns(change: watchfiles.Change, path: str) -> bool:
            gone = change is watchfiles.Change.deleted
            return directories.concerns_manifests(home, path, gone=gone)

        try:
            async for _ in watchfiles.awatch(
                home, watch_filter=concerns, debounce=_SETTLE_MS, step=_SETTLE_MS // 2
            ):
                await operations.request_sync(self._database, name)
        except (OSError, RuntimeError, NotFoundError, UnavailableError) as error:
            # Polling goes on, and the next look at the sources tries again.
            _log.debug("intake.watch_ended", directory=str(directory), error=str(error))

    # Pruning --------------------------------------------------------------------------------

    async def _prune(self) -> None:
        """Second phase of pruning, and the sources that nobody syncs: what was applied by hand."""
        applied_at = -_APPLIED_AGAIN_S
        loop = asyncio.get_running_loop()
        with self._listener.subscribe(RESOURCES) as subscription:
            while True:
                grace_s = float(self._config.prune_grace_s)
                done = await operations.finish_pruning(self._database, grace_s=grace_s)
                if loop.time() - applied_at >= _APPLIED_AGAIN_S:
                    applied_at = loop.time()
                    await self._apply_again()
                async with self._database.session() as connection:
                    next_s = await managed_resources.next_overdue_s(connection, grace_s=grace_s)
                # What could not be finished (something still runs) is tried again soon.
                wait_s = _POLL_S if next_s is None else min(max(next_s, 0.0 if done else 1.0), 5.0)
                await subscription.wait(max(wait_s, 0.05))

    async def _apply_again(self) -> None:
        async with self._database.session() as connection:
            names = await managed_resources.list_sources(connection, sources.APPLY)
        for name in names:
            with contextlib.suppress(LeaseLostError):  # somebody applies to it at this moment
                await manifests.reapply(
                    self._database,
                    Source(sources.APPLY, name),
                    keyring=self._keyring,
                    config=self._config,
                )


def _rewritten(source: DueSource, loaded: Loaded | None) -> str | None:
    """What to say of a force-push: something, nothing new (None), or that it is past (empty)."""
    if loaded is None or loaded.revision == source.last_revision:
        return None
    return "" if loaded.rewritten_from is None else told(loaded)


def told(loaded: Loaded) -> str:
    """A force-push in words."""
    return (
        f"the branch was force-pushed: {loaded.revision[:12]} does not contain "
        f"{(loaded.rewritten_from or '')[:12]}, which was in force"
    )


def _delay_s(interval_s: int, failures: int) -> float:
    """Until the next sync: the interval, spread; after failures a growing wait instead."""
    if failures:
        first_s = float(min(interval_s, 10))
        return Backoff(base_s=first_s, cap_s=max(300.0, float(interval_s))).delay_s(failures)
    return interval_s * (1 + random.uniform(-_JITTER, _JITTER))  # noqa: S311 - only spreads load
