"""The duty of an evaluation pod's first container: the checkout, the only place with credentials.

No Nix code runs here but `nix-store --add`; the container ends before the evaluator begins, and
nothing that it was given lies in the folders that both see: passwords are in the environment of
single git processes, keys in memory, and the mirrors are removed.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from fc_operator.agent import handover
from fc_operator.agent.duties import EvaluationDuty
from fc_operator.agent.handover import Handover
from fc_operator.clients.git import GitCredentials
from fc_operator.clients.nix_copies import Copies
from fc_operator.clients.task_protocol import TaskClient
from fc_operator.errors import FcError, LeaseLostError, PrerequisiteError
from fc_operator.evaluator import endings
from fc_operator.evaluator.checkouts import CheckoutOrder, Checkouts
from fc_operator.kit import logs
from fc_operator.model.evaluations import EvaluationEnd
from fc_operator.model.work import (
    CheckoutReport,
    Credentials,
    EvaluationReport,
    EvaluationWork,
)

_log = logs.get_logger()


class FetchDuty(EvaluationDuty):
    """See ``session.Duty``. ``mirrors_dir`` is where ``checkouts`` has its mirrors, ``folder`` what
    both containers see, ``roots_dir`` where roots of this evaluation go.
    """

    def __init__(
        self,
        client: TaskClient,
        work: EvaluationWork,
        *,
        checkouts: Checkouts,
        copies: Copies,
        mirrors_dir: Path,
        folder: Path,
        roots_dir: Path,
    ) -> None:
        self._client = client
        self._work = work
        self._checkouts = checkouts
        self._copies = copies
        self._mirrors_dir = mirrors_dir
        self._folder = folder
        self._roots_dir = roots_dir
        super().__init__()

    async def run(self) -> None:
        """See ``Duty.run``."""
        began_s = time.monotonic()
        self._doing = asyncio.create_task(self._fetch(began_s))
        try:
            await asyncio.wait({self._doing})
            if self._doing.cancelled():
                if self._leaving is not None:
                    await self._client.end(self._leaving)
                return
            self._doing.result()
        except (LeaseLostError, PrerequisiteError):
            raise
        except (FcError, TimeoutError) as error:
            end = endings.of_checkout(error, self._work.fetch_timeout_s)
            _log.info("agent.checkout_failed", reason=end.reason, error=end.message[:500])
            await self._client.end(report_of(end, checkout_ms=_ms_since(began_s)))
        finally:
            self._doing.cancel()
            await asyncio.gather(self._doing, return_exceptions=True)
            await asyncio.to_thread(shutil.rmtree, self._mirrors_dir, ignore_errors=True)

    async def _fetch(self, began_s: float) -> None:
        work = self._work
        credentials = await self._client.credentials()
        await self._copies.prepare()
        async with asyncio.timeout(work.fetch_timeout_s):
            stored = [each.store_path for each in work.inputs if each.type == "build"]
            if wanted := [path for path in stored if path is not None]:
                await self._copies.fetch(wanted)
            checkout = await self._checkouts.make(
                self._order(credentials),
                work_dir=self._folder / "evaluation",
                roots_dir=self._roots_dir,
            )
            try:
                commit = await checkout.commit
            finally:
                checkout.commit.cancel()
        request, ms = checkout.request, _ms_since(began_s)
        await asyncio.to_thread(
            handover.write, Handover(request=request, checkout_ms=ms), self._folder
        )
        paths = {
            each.name: each.store_path for each in request.arguments if each.store_path is not None
        }
        await self._client.fetched(
            CheckoutReport(
                tree=commit.tree,
                subject=commit.subject,
                author=commit.author,
                ms=ms,
                store_paths=paths,
            )
        )
        _log.info("agent.fetched", commit=work.commit, checkout_ms=ms)

    def _order(self, credentials: Credentials) -> CheckoutOrder:
        work = self._work

        async def credentials_for(url: str) -> GitCredentials | None:
            for each in credentials.credentials:
                if each.url == url:
                    return GitCredentials(
                        source="task",
                        url=each.url,
                        username=each.username,
                        password=each.password,
                        identity=each.identity,
                        known_hosts=each.known_hosts,
                    )
            return None

        return CheckoutOrder(
            repository_url=work.repository_url,
            credentials_for=credentials_for,
            commit=work.commit,
            expression=work.expression,
            is_flake=work.is_flake,
            inputs=work.inputs,
            input_urls=work.input_urls,
            builds={name: (each.drv_path, each.name) for name, each in work.builds.items()},
            systems=work.systems,
            allow_import_from_derivation=work.allow_import_from_derivation,
            timeout_s=work.timeout_s,
        )


def report_of(
    end: EvaluationEnd,
    *,
    checkout_ms: int,
    evaluation_ms: int = 0,
    evaluator: str = "",
    evaluator_version: str = "",
) -> EvaluationReport:
    """``end`` as it is told."""
    return EvaluationReport(
        status=end.status,
        reason=end.reason,
        error_kind=end.error_kind,
        message=end.message,
        checkout_ms=checkout_ms,
        evaluation_ms=evaluation_ms,
        evaluator=evaluator,
        evaluator_version=evaluator_version,
    )


def _ms_since(began_s: float) -> int:
    return round((time.monotonic() - began_s) * 1000)
