"""Objects of a cluster come into force, and what came of them goes back.

They are one source, ``Kubernetes <installation>``, whose declarations belong to different people:
each namespace is on its own. What is deleted is named one by one; a comparison with all objects
finds what nobody was told of.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from uuid import UUID

from fc_operator.model.desired import Declaration
from fc_operator.model.resources import Place
from fc_operator.model.sources import KUBERNETES, Source
from fc_operator.model.states import ObjectState
from fc_operator.operations import manifests
from fc_operator.operations.manifests import Keyring
from fc_operator.reconciler import apply as reconciling
from fc_operator.reconciler.plans import Report
from fc_operator.settings import ConfigSettings
from fc_operator.spec.manifests import Parsed
from fc_operator.store import managed_resources, states
from fc_operator.store.database import Connection, Database


def source_of(installation: str) -> Source:
    """What the objects of a cluster are called as owners."""
    return Source(KUBERNETES, installation)


class Cluster:
    """The objects of one cluster as a source of declarations."""

    def __init__(
        self,
        database: Database,
        source: Source,
        *,
        keyring: Keyring,
        config: ConfigSettings,
        still_held: Callable[[Connection], Awaitable[bool]],
    ) -> None:
        """``still_held`` is asked inside each writing transaction: is it still ours to write?"""
        self._database = database
        self.source = source
        self._keyring = keyring
        self._config = config
        self._still_held = still_held

    async def bring(
        self, declarations: Sequence[Declaration], gone: Collection[Place] = ()
    ) -> list[Place]:
        """Bring some objects into force and let some go; the places whose state may be another.

        What of the same source waits for something is looked at again with them.

        Raises:
            LeaseLostError: another operator acts now; nothing is written.
            UnavailableError: the database does not answer.
        """
        named = {_place(each) for each in declarations} | set(gone)
        async with self._database.session() as connection:
            rows = await managed_resources.list_waiting_of_source(connection, self.source)
        waiting = [reconciling.declaration_of(row) for row in rows if row.place not in named]
        report = await self._apply([*declarations, *waiting], gone=gone, complete=False)
        return _places(report)

    async def compare(
        self,
        declarations: Sequence[Declaration],
        broken: Collection[Place],
        *,
        gone: Collection[Place] = (),
        confirm: bool,
    ) -> Report:
        """Bring all objects of the cluster into force and prune what it has no more.

        ``broken`` names objects that can't be understood: their last good state stays. ``gone``
        names those that are being deleted and wait for us; no guard keeps them. ``confirm`` lets
        the guard pass that keeps what a cluster lost all at once.

        Raises:
            LeaseLostError: another operator acts now; nothing is written.
            UnavailableError: the database does not answer.
        """
        if gone:
            await self.bring((), gone)
        kept: list[Declaration] = []
        if broken:
            async with self._database.session() as connection:
                rows = await managed_resources.list_of_source(connection, self.source)
            kept = [
                reconciling.declaration_of(row)
                for row in rows
                if row.place in broken and row.pruning_since is None
            ]
        return await self._apply([*declarations, *kept], complete=True, confirm=confirm)

    async def states(
        self,
        *,
        places: Collection[Place] | None = None,
        evaluations: Collection[UUID] | None = None,
    ) -> list[ObjectState]:
        """How objects stand: all, some by place, or the jobsets of some evaluations."""
        async with self._database.session() as connection:
            return await states.list_states(
                connection, self.source, places=places, evaluations=evaluations
            )

    async def _apply(
        self,
        declarations: Sequence[Declaration],
        *,
        gone: Collection[Place] = (),
        complete: bool,
        confirm: bool = False,
    ) -> Report:
        return await manifests.apply(
            self._database,
            self.source,
            Parsed(declarations=tuple(declarations)),
            keyring=self._keyring,
            config=self._config,
            revision="",
            complete=complete,
            confirm=confirm,
            gone=gone,
            by_namespace=True,
            still_held=self._still_held,
        )


def _place(declaration: Declaration) -> Place:
    return declaration.kind, declaration.namespace, declaration.name


def _places(report: Report) -> list[Place]:
    return [(each.kind, each.namespace, each.name) for each in report.objects]
