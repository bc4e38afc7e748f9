"""Pods: batches of steps become pods, and what became of every pod becomes rows.

A claim writes which pod it shall have in its own transaction; only then is the API server asked. So
at every moment the rows say what there should be, and a loop compares that with what there is: it
makes what is missing, tells how pods ended, and deletes what no live task claims. Names follow from
tasks, so a question that was asked twice makes one pod, and a scheduler that dies is followed by
one that knows all of it from the rows.

A batch's leases belong to its task, not to this process: its agent renews them. Until the agent has
spoken they are renewed here. One process at a time has the duty; two for a moment do no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from fc_operator.clients.kube import refusal_of
from fc_operator.clients.kube_pods import KubePods, Pod
from fc_operator.errors import FcError, UnavailableError
from fc_operator.executors import pods, targets
from fc_operator.executors.pods import Blame, Ending, Look, Next, PodOrder, Refused
from fc_operator.executors.targets import Choice, Target
from fc_operator.kit import logs
from fc_operator.kit.ciphers import Cipher
from fc_operator.kit.lives import Lives
from fc_operator.kit.services import LoopService
from fc_operator.model.ids import JobsetId, Owner, TaskId, new_uuid
from fc_operator.model.tasks import StepEnded
from fc_operator.model.work import NixWork
from fc_operator.operations import steps as step_operations
from fc_operator.operations import tasks as task_operations
from fc_operator.operations.steps import StepResult
from fc_operator.queue import claims
from fc_operator.queue.offers import Offer, fits
from fc_operator.scheduler import placing
from fc_operator.settings import BuildSettings, KubernetesSettings, QueueSettings
from fc_operator.store import claims as claim_store
from fc_operator.store import listener, maintenance, managed_resources
from fc_operator.store import pods as store
from fc_operator.store import tasks as task_store
from fc_operator.store.claims import ClaimedStep, Lease, Waiting
from fc_operator.store.database import Connection, Database, notify, owner_id
from fc_operator.store.listener import Listener
from fc_operator.store.pods import Placement, PodTask, WaitingLease

_log = logs.get_logger()
_DUTY = "pods"
_STEPS = "steps"
_SOON_S = 1.0
"""Wait after the API server could not make a pod but may at any time."""
_TELL_S_MIN, _TELL_S_MAX = 1.0, 60.0
"""Between looks at what projects say of their pods."""
_YOUNG_S = 1.0
"""The pod of a task this young is being asked for by whoever claimed it."""
_DELETIONS_MAX = 8
_OF_TARGETS = frozenset({"ImagePullFailed", "ContainerConfig", "PendingTimeout"})
"""Endings after which the next pod would likely fare alike."""
_OF_PROJECTS = frozenset({"PodAdmissionFailed", "PodCreationFailed", "PendingTimeout"})
"""Those for which a project's own template may be to blame."""
_LAST_WORDS_MAX = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where an installation's pods are, and how they call Nix."""

    installation: str
    """What tells its pods from those of others: the value of a label."""
    targets: Sequence[Target]
    nix: NixWork
    """How agents call Nix in targets without Nix's own sandbox."""


@dataclass(slots=True)
class _Hold:
    """Nothing more is asked of a target (for one project, or at all) until then."""

    until_s: float
    ending: Ending


@dataclass(slots=True)
class _Memory:
    """What was seen of pods in this life, by task; all of it can be seen again."""

    leaving: dict[TaskId, Ending] = field(default_factory=dict)
    leaving_since_s: dict[TaskId, float] = field(default_factory=dict)
    stuck_since_s: dict[TaskId, float] = field(default_factory=dict)
    silent_since_s: dict[TaskId, float] = field(default_factory=dict)
    again_s: dict[TaskId, float] = field(default_factory=dict)
    orphans_since_s: dict[str, float] = field(default_factory=dict)
    """By uid."""

    def keep(self, tasks: Iterable[TaskId], uids: Iterable[str]) -> None:
        """Forget all others."""
        live, there = set(tasks), set(uids)
        for task_id in self.leaving.keys() - live:
            del self.leaving[task_id]
        for times in (
            self.leaving_since_s,
            self.stuck_since_s,
            self.silent_since_s,
            self.again_s,
        ):
            for task_id in times.keys() - live:
                del times[task_id]
        for uid in self.orphans_since_s.keys() - there:
            del self.orphans_since_s[uid]


class Bucket:
    """Lets so many through per second over time, and a burst after a pause."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._left, self._at_s = float(burst), time.monotonic()
        self._turn = asyncio.Lock()

    async def take(self) -> None:
        """Wait for one's turn."""
        async with self._turn:
            while True:
                now_s = time.monotonic()
                self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
                self._at_s = now_s
                if self._left >= 1:
                    self._left -= 1
                    return
                await asyncio.sleep((1 - self._left) / self._per_s)


class PodService:
    """See the module."""

    name = "pods"

    def __init__(
        self,
        database: Database,
        listener: Listener,
        kube: KubePods,
        cipher: Cipher,
        site: Site,
        *,
        kubernetes: KubernetesSettings,
        queue: QueueSettings,
        builds: BuildSettings,
        owner: Owner | None = None,
        owner_file: Path | None = None,
    ) -> None:
        """``owner_file`` remembers who had the duty here before, so that a restart after a crash
        needs not wait for it; it must belong to one process at a time.
        """
        self._database = database
        self._listener = listener
        self._lives = Lives(owner_file)
        self._has_succeeded = False
        self._kube = kube
        self._cipher = cipher
        self._site = site
        self._targets = {target.name: target for target in site.targets}
        self._settings = kubernetes
        self._queue = queue
        self._builds = builds
        self.owner = owner or Owner(owner_id("pods"))
        self._bucket = Bucket(kubernetes.creations_per_s, kubernetes.creations_burst)
        self._creating: dict[TaskId, asyncio.Task[None]] = {}
        self._deletions = asyncio.Semaphore(_DELETIONS_MAX)
        self._holds: dict[tuple[str, str | None], _Hold] = {}
        self._seen = _Memory()
        self._duty_until_s = 0.0
        self._compare_now = asyncio.Event()
        self._claim_now = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._loops = [
            LoopService("pods-leases", self._keep),
            LoopService("pods-compare", self._compare_often),
            LoopService("pods-targets", self._tell_often),
        ]
        if kubernetes.builds:
            self._loops.append(LoopService("pods-claims", self._fill))

    # Service --------------------------------------------------------------------------------

    async def start(self) -> None:
        """See ``Service.start``."""
        for loop in self._loops:
            await loop.start()

    async def stop(self) -> None:
        """See ``Service.stop``. Pods go on; the next life of a scheduler takes them up."""
        for loop in reversed(self._loops):
            await loop.stop()
        creating, self._creating = tuple(self._creating.values()), {}
        for task in creating:
            task.cancel()
        await asyncio.gather(*creating, return_exceptions=True)
        self._duty_until_s = 0.0
        self._has_succeeded = False
        with contextlib.suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(2), self._database.session() as connection:
                await maintenance.drop_duty(connection, _DUTY, self.owner)
                await claim_store.end_beat(connection, self.owner)
            await self._lives.end()

    @property
    def _has_duty(self) -> bool:
        return time.monotonic() < self._duty_until_s

    # Leases ---------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Every beat: the duty, the leases of batches whose agents have not spoken, what we offer.

        Also whenever something was cancelled: what no agent knows of yet ends at once.
        """
        with self._listener.subscribe(listener.CANCELS) as wakes:
            while True:
                try:
                    async with asyncio.timeout(self._queue.heartbeat_s):
                        await self._succeed()
                        await self._beat()
                except (UnavailableError, TimeoutError) as error:
                    _log.warning("scheduler.pods_not_renewed", error=str(error) or "no answer")
                await _first(wakes.wait(self._queue.heartbeat_s / 2), self._beat_now.wait())
                self._beat_now.clear()

    async def _succeed(self) -> None:
        """Once: an earlier life of this process is gone for certain, and so is its duty."""
        if self._has_succeeded:
            return
        earlier = [Owner(name) for name in await self._lives.earlier(self.owner)]
        if earlier:
            async with self._database.session() as connection:
                for owner in earlier:
                    await maintenance.drop_duty(connection, _DUTY, owner)
                    await claim_store.end_beat(connection, owner)
        await self._lives.begin(self.owner)
        self._has_succeeded = True

    async def _beat(self) -> None:
        asked_s = time.monotonic()
        async with self._database.session() as connection:
            epoch = await maintenance.take_duty(connection, _DUTY, self.owner, self._queue.lease_s)
            had = self._has_duty
            trusted_s = self._queue.lease_s - self._queue.margin_s
            self._duty_until_s = 0.0 if epoch is None else asked_s + trusted_s
            # Whoever has the duty: the one that had it may be gone, and its batches shall not be.
            live = await store.list_live(connection)
            silent = {each.id: each for each in live if not each.has_begun and each.kind == _STEPS}
            held = await store.renew_waiting(connection, silent, self._queue.agent_lease_s)
            if epoch is None:
                await claim_store.end_beat(connection, self.owner)
            else:
                await claim_store.beat(
                    connection,
                    self.owner,
                    kind="scheduler",
                    host=platform.node(),
                    info={"offers": self._offers(sum(each.kind == _STEPS for each in live))},
                )
        if self._has_duty and not had:
            self._compare_now.set()
            self._claim_now.set()
        await self._end_cancelled(held, silent)

    async def _end_cancelled(
        self, held: Sequence[WaitingLease], silent: Mapping[TaskId, PodTask]
    ) -> None:
        """What was cancelled before an agent knew of it ends, and pods without anything else go."""
        cancelled = [each.lease for each in held if each.cancel_requested]
        if not cancelled:
            return
        await self._end_leases(cancelled, _cancelled())
        going_on = {each.lease.task_id for each in held if not each.cancel_requested}
        for task_id in {lease.task_id for lease in cancelled} - going_on:
            task = silent[task_id]
            with contextlib.suppress(FcError):  # else it is found as an orphan
                await self._kube.delete(task.namespace, task.name, uid=task.uid)

    def _offers(self, used: int) -> list[dict[str, Any]]:
        """What our targets can build, as ``queue.reasons`` and maintenance read it."""
        if not self._settings.builds:
            return []
        most = self._settings.pods_max
        offers = []
        for target in self._site.targets:
            hold = self._hold(target.name, None)
            offers.append(
                {
                    "name": f"pods-{target.name}",
                    "slots": 0 if hold else most,
                    "free": 0 if hold else max(0, most - used),
                    "systems": list(target.systems),
                    "features": list(target.features),
                    "mandatory": [],
                    "sandbox": target.sandbox,
                    "problem": hold.ending.message if hold else "",
                }
            )
        return offers

    # Claims ---------------------------------------------------------------------------------

    async def _fill(self) -> None:
        """Claim while there is room for pods and something is ready."""
        with self._listener.subscribe(listener.STEPS) as wakes:
            while True:
                claimed = 0
                if self._has_duty:
                    try:
                        claimed = await self._claim()
                    except (UnavailableError, TimeoutError) as error:
                        _log.warning("scheduler.claim_waits", error=str(error))
                if not claimed:
                    await _first(wakes.wait(self._until_claim_s()), self._claim_now.wait())
                    self._claim_now.clear()

    def _until_claim_s(self) -> float:
        """Until the next poll, or until a hold is over."""
        now_s = time.monotonic()
        soon = [hold.until_s - now_s for hold in self._holds.values() if hold.until_s > now_s]
        return max(0.01, min([self._queue.poll_s, *soon]))

    async def _claim(self) -> int:
        """Claim batches for the pods that may be made now; how many."""
        async with self._database.session() as connection:
            used = await store.count_live(connection, _STEPS)
        free = min(self._settings.pods_max - used, self._settings.creations_burst)
        if free <= 0:
            return 0
        places: dict[JobsetId, tuple[Placement, Target]] = {}

        async def fitting(connection: Connection, waiting: list[Waiting]) -> list[Waiting]:
            found = await store.list_placements(connection, {each.jobset_id for each in waiting})
            for jobset_id, placement in found.items():
                # Whose steps are in a batch is not told apart: one that may be of code that nobody
                # reviewed makes all of them so.
                target = self.choose(placement, reviewed=not placement.has_unreviewed).target
                if target is not None and not self._is_held(target.name, placement.project):
                    places[jobset_id] = placement, target
            return [each for each in waiting if _is_for(places.get(each.jobset_id), each)]

        claimed = 0
        for turn in await claims.turns(self._database, fitting, free, self._queue):
            placement, target = places[turn[1]]
            if self._is_held(target.name, placement.project) or not self._has_duty:
                continue
            # Before the claim: what is claimed shall not wait.
            await self._bucket.take()
            claimed += await self._claim_batch(turn, placement, target)
        return claimed

    async def _claim_batch(
        self, turn: tuple[Any, JobsetId], placement: Placement, target: Target
    ) -> int:
        task_id = TaskId(new_uuid())

        async def intend(connection: Connection, steps: Sequence[ClaimedStep]) -> None:
            work = task_operations.steps_work(
                task_id,
                steps,
                builds=self._builds,
                nix=self._nix(target),
                systems=target.systems,
                features=target.features,
                stop_grace_s=self._settings.stop_grace_s,
            )
            order = PodOrder(
                kind=pods.BUILD,
                task_id=task_id,
                project=placement.project,
                jobset=placement.jobset,
                target=target,
                template=placement.pods.template,
                deadline_s=self._deadline_s([order.timeout_s for order in work.orders]),
            )
            await store.set_intent(
                connection,
                task_id,
                target=target.name,
                definition=self._definition(order),
                work=work.to_json(),
            )

        steps = await claims.claim_batch(
            self._database,
            turn,
            self._settings.steps_per_pod,
            task_id=task_id,
            owner=Owner(f"pod/{task_id}"),
            executor="pod",
            builder=pods.name_of(pods.BUILD, task_id),
            settings=self._queue,
            intent=intend,
        )
        if not steps:
            return 0
        _log.info(
            "scheduler.batch_claimed",
            task_id=task_id,
            target=target.name,
            steps=[step.id for step in steps],
        )
        self._create(task_id, limited=False)
        return 1

    def _nix(self, target: Target) -> NixWork:
        return replace_sandbox(self._site.nix, target)

    def _deadline_s(self, timeouts_s: Sequence[int]) -> int:
        """A backstop: later than all limits of the work one after the other; 0 is none."""
        if not timeouts_s or not all(timeouts_s):
            return 0
        return sum(timeouts_s) + self._settings.deadline_slack_s

    def _definition(self, order: PodOrder) -> dict[str, Any]:
        return pods.definition(order, self._settings, self._site.installation)

    # Targets --------------------------------------------------------------------------------

    def choose(self, placement: Placement, *, reviewed: bool = True) -> Choice:
        """Where pods of a project run, or why they may not."""
        said = placement.pods
        name = said.target if reviewed else said.unreviewed_target or said.target
        return targets.choose(
            self._site.targets,
            object_namespace=placement.namespace,
            name=name,
            template_fields=tuple(said.template),
        )

    def _hold(self, target: str, project: str | None) -> _Hold | None:
        hold = self._holds.get((target, project))
        return hold if hold is not None and hold.until_s > time.monotonic() else None

    def _is_held(self, target: str, project: str) -> bool:
        return bool(self._hold(target, None) or self._hold(target, project))

    def _hold_on(self, target: str, project: str, ending: Ending) -> None:
        """Ask nothing more of a target for a while: it would be refused again."""
        own = ending.reason in _OF_PROJECTS
        until_s = time.monotonic() + self._settings.retry_s
        self._holds[target, project if own else None] = _Hold(until_s, ending)
        self._beat_now.set()
        _log.warning(
            "scheduler.pods_held",
            target=target,
            project=project,
            reason=ending.reason,
            message=ending.message,
            retry_in_s=self._settings.retry_s,
        )

    def _room_again(self, target: str) -> None:
        """A pod of the target went: a quota may have room now."""
        hold = self._holds.get((target, None))
        if hold is not None and hold.ending.reason == "QuotaExceeded":
            del self._holds[target, None]
            self._claim_now.set()

    async def _tell_often(self) -> None:
        """Say of projects whether they may run where they want, soon after they are declared."""
        with self._listener.subscribe(listener.RESOURCES) as wakes:
            while True:
                if self._has_duty:
                    try:
                        await self.tell_projects()
                    except (UnavailableError, TimeoutError) as error:
                        _log.warning("scheduler.targets_not_told", error=str(error))
                await asyncio.sleep(_TELL_S_MIN)
                await wakes.wait(_TELL_S_MAX if self._has_duty else self._queue.poll_s)

    async def tell_projects(self) -> int:
        """Once; how many declarations are said something else of now."""
        async with self._database.session() as connection:
            projects = await store.list_projects(connection)
            now = await managed_resources.clock(connection)
        changed = []
        for project in projects:
            choice = self.choose(project.placement)
            if choice.target is not None:
                choice = self.choose(project.placement, reviewed=False)
            found = placing.conditions_of(
                project.conditions, choice, generation=project.generation, now=now
            )
            if found != project.conditions:
                changed.append((project, found))
        if not changed:
            return 0

        async def change(connection: Connection) -> int:
            told = [await store.set_conditions(connection, *each) for each in changed]
            if any(told):
                await notify(connection, listener.RESOURCES)
            return sum(told)

        return await self._database.run(change)

    # Evaluations ----------------------------------------------------------------------------

    async def launch(self, task_id: TaskId, *, deadline_s: int = 0) -> None:
        """Have a pod made for an evaluation whose work is written; its lease is the caller's.

        Returns once that is intended; what becomes of it is told by ``tasks.pod_phase`` and
        ``tasks.pod_ending`` (announced on ``listener.TASKS``), also that it may not run anywhere.
        ``deadline_s`` is when the kubelet shall end it, 0 never; better later than limits of ours.

        Raises:
            UnavailableError: nothing is known to be intended.
        """

        async def change(connection: Connection) -> tuple[Choice, bool]:
            found = await store.fetch_evaluation(connection, task_id)
            if found is None:
                return Choice(), False
            jobset_id, reviewed = found
            placement = (await store.list_placements(connection, [jobset_id]))[jobset_id]
            choice = self.choose(placement, reviewed=reviewed)
            if choice.target is None:
                return choice, False
            order = PodOrder(
                kind=pods.EVALUATION,
                task_id=task_id,
                project=placement.project,
                jobset=placement.jobset,
                target=choice.target,
                template=placement.pods.template,
                deadline_s=deadline_s + self._settings.deadline_slack_s if deadline_s else 0,
            )
            intended = await store.set_intent(
                connection,
                task_id,
                target=choice.target.name,
                definition=self._definition(order),
                work=None,
            )
            if intended:
                nix = self._nix(choice.target)
                await task_store.set_sandbox(connection, task_id, nix.sandbox)
            return choice, intended

        choice, intended = await self._database.run(change)
        if choice.target is None and choice.reason:
            ending = Ending(reason=choice.reason, message=choice.message, blame=Blame.CHARGED)
            await self._note(task_id, "Gone", ending)
        elif intended:
            self._create(task_id)

    async def dismiss(self, task_id: TaskId) -> None:
        """Delete the pod of a task that is over, without waiting for it to be found.

        Raises nothing: the comparison finds it else.
        """
        task = self._creating.get(task_id)
        if task is not None:
            await asyncio.wait([task])
        name = pods.name_of(pods.EVALUATION, task_id)
        for namespace in {target.namespace for target in self._site.targets}:
            try:
                pod = await self._kube.get(namespace, name)
                if pod is not None and pods.task_of(pod, self._site.installation) == str(task_id):
                    await self._delete(pod)
            except FcError as error:
                _log.warning("scheduler.pod_not_deleted", name=name, error=str(error))

    # Creation -------------------------------------------------------------------------------

    def _create(self, task_id: TaskId, *, limited: bool = True) -> None:
        """Ask for a pod in the background, unless that is being done."""
        if task_id in self._creating:
            return
        task = asyncio.create_task(self._ask_for(task_id, limited), name=f"pod-{task_id}")
        self._creating[task_id] = task
        task.add_done_callback(lambda _: self._creating.pop(task_id, None))

    async def _ask_for(self, task_id: TaskId, limited: bool) -> None:  # noqa: FBT001 - private
        try:
            if limited:
                await self._bucket.take()
            async with self._database.session() as connection:
                definition = await store.fetch_definition(connection, task_id)
            if definition is not None:
                await self._ask(task_id, definition)
        except (UnavailableError, TimeoutError) as error:
            # The intent stands; the comparison asks again.
            self._seen.again_s[task_id] = time.monotonic() + _SOON_S
            _log.warning("scheduler.pod_not_made", task_id=task_id, error=str(error))
        except Exception:  # noqa: BLE001 - one bad pod never stops the others
            self._seen.again_s[task_id] = time.monotonic() + self._settings.retry_s
            _log.exception("scheduler.pod_broke", task_id=task_id)

    async def _ask(self, task_id: TaskId, definition: dict[str, Any]) -> None:
        token = task_operations.opening_token(self._cipher, task_id).text
        namespace, name = definition["metadata"]["namespace"], definition["metadata"]["name"]
        try:
            uid = await self._kube.create(pods.with_token(definition, token))
        except FcError as error:
            said = refusal_of(error)
            if said is None:
                raise UnavailableError(str(error)) from error
            found = pods.refused(said.code, said.reason, said.message, said.details)
            if found.next is not Next.ADOPT:
                await self._refuse(task_id, definition, found, said.retry_after_s)
                return
            pod = await self._kube.get(namespace, name)
            if pod is None:
                raise UnavailableError(f"the pod {name} was there and is not") from error
            if pods.task_of(pod, self._site.installation) != str(task_id):
                await self._fail(task_id, found.ending)
                return
            uid = pod["metadata"]["uid"]
            _log.info("scheduler.pod_adopted", task_id=task_id, name=name)
        async with self._database.session() as connection:
            is_live = await store.note_created(connection, task_id, uid)
        if is_live:
            _log.info("scheduler.pod_made", task_id=task_id, namespace=namespace, name=name)
        else:
            # It ended while we asked.
            await self._kube.delete(namespace, name, uid=uid)

    async def _refuse(
        self,
        task_id: TaskId,
        definition: dict[str, Any],
        found: Refused,
        retry_after_s: float | None,
    ) -> None:
        """The API server took no pod."""
        if found.next is Next.AGAIN:
            self._seen.again_s[task_id] = time.monotonic() + (retry_after_s or _SOON_S)
            _log.warning("scheduler.pod_not_made", task_id=task_id, error=found.ending.message)
            return
        async with self._database.session() as connection:
            live = {each.id: each for each in await store.list_live(connection)}
        task = live.get(task_id)
        if task is None:
            return
        self._hold_on(task.target, _project_of(definition), found.ending)
        if found.next is Next.WAIT and task.kind != _STEPS:
            # Steps go to whoever has room; an evaluation waits for its own, within its time.
            self._seen.again_s[task_id] = time.monotonic() + self._settings.retry_s
            return
        await self._fail(task_id, found.ending)

    async def _fail(self, task_id: TaskId, ending: Ending) -> None:
        await self._end(task_id, "Gone", ending)

    # Comparison -----------------------------------------------------------------------------

    async def _compare_often(self) -> None:
        with self._listener.subscribe(listener.PODS) as wakes:
            while True:
                if self._has_duty:
                    try:
                        await self.compare()
                    except (UnavailableError, TimeoutError) as error:
                        _log.warning("scheduler.pods_not_compared", error=str(error))
                await _first(wakes.wait(self._settings.reconcile_s), self._compare_now.wait())
                self._compare_now.clear()

    async def compare(self) -> None:
        """Compare the pods that there are with the tasks that live, once, and act on it."""
        # Tasks first: a pod that was made before is then in the list, or gone.
        async with self._database.session() as connection:
            tasks = await store.list_live(connection)
        found: dict[str, Pod] = {}
        strays: list[Pod] = []
        live = {str(task.id): task for task in tasks}
        unknown: set[str] = set()
        namespaces = {target.namespace for target in self._site.targets}
        for namespace in sorted(namespaces | {task.namespace for task in tasks}):
            try:
                async for pod in self._kube.list(namespace, pods.selector(self._site.installation)):
                    id_ = pods.task_of(pod, self._site.installation)
                    task = live.get(id_ or "")
                    if id_ and task is not None and task.name == pod["metadata"]["name"]:
                        found[id_] = pod
                    else:
                        strays.append(pod)
            except FcError as error:
                unknown.add(namespace)
                _log.warning("scheduler.pods_not_listed", namespace=namespace, error=str(error))
        self._seen.keep((task.id for task in tasks), (pod["metadata"]["uid"] for pod in strays))
        phases: dict[TaskId, str] = {}
        for task in tasks:
            if task.namespace in unknown:
                continue
            pod_found = found.get(str(task.id))
            try:
                if pod_found is None:
                    await self._miss(task)
                else:
                    seen = pods.look(pod_found)
                    phases[task.id] = seen.phase
                    await self._judge(task, pod_found, seen)
            except FcError as error:
                # The next comparison comes to it again; the others have their turn now.
                _log.warning("scheduler.pod_not_judged", task_id=task.id, error=str(error))
        changed = {task.id: task.phase for task in tasks}
        phases = {id_: phase for id_, phase in phases.items() if changed[id_] != phase}
        if phases:
            async with self._database.session() as connection:
                await store.note_phases(connection, phases)
        if strays:
            await self._reap(strays)

    async def _miss(self, task: PodTask) -> None:
        """A live task has no pod: not yet, or not any more."""
        if task.ending is not None:
            await self._end_again(task)
            return
        if task.is_created:
            await self._end(task.id, "Gone", self._seen.leaving.get(task.id, pods.GONE))
            return
        if task.age_s > self._settings.pending_timeout_s:
            nothing = Look(phase="Pending", waits_for="it could not be made")
            ending = pods.pending_too_long(nothing, self._settings.pending_timeout_s)
            await self._end(task.id, "Gone", ending)
        elif task.age_s > _YOUNG_S and self._seen.again_s.get(task.id, 0.0) <= time.monotonic():
            self._create(task.id)

    async def _judge(self, task: PodTask, pod: Pod, seen: Look) -> None:
        """A live task has a pod."""
        if task.ending is not None:
            await self._end_again(task)
            await self._remove(task, pod, seen)
            return
        if not task.is_created:
            async with self._database.session() as connection:
                await store.note_created(connection, task.id, pod["metadata"]["uid"])
        if seen.leaving is not None:
            self._seen.leaving[task.id] = seen.leaving
        ending = seen.ending or self._overdue(task, seen)
        if ending is None:
            return
        if ending.is_crash:
            await self._tell_last_words(task, pod)
        elif ending.reason == "PendingTimeout" and ": " not in seen.waits_for:
            # Its status has but a word; the kubelet told the rest to whoever reads events.
            warning = await self._kube.last_warning(task.namespace, pod["metadata"]["uid"])
            ending = pods.pending_too_long(
                replace(seen, waits_for=warning or seen.waits_for), self._settings.pending_timeout_s
            )
        if ending.reason in _OF_TARGETS:
            self._hold_on(task.target, _project_of(pod), ending)
        await self._end(task.id, seen.phase if seen.ending else "Gone", ending, certain=True)
        await self._remove(task, pod, seen)

    async def _remove(self, task: PodTask, pod: Pod, seen: Look) -> None:
        """Delete a pod that is over or given up."""
        # What was told to go and has not gone is on a node that does not answer.
        await self._delete(pod, grace_s=None if seen.leaving is None else 0)
        self._room_again(task.target)

    def _overdue(self, task: PodTask, seen: Look) -> Ending | None:
        """Why a pod that has not ended is given up."""
        now_s, id_, settings = time.monotonic(), task.id, self._settings
        if seen.leaving is not None:
            since_s = self._seen.leaving_since_s.setdefault(id_, now_s)
            if now_s - since_s >= settings.stop_grace_s + settings.orphan_grace_s:
                return seen.leaving
        if seen.stuck is None:
            self._seen.stuck_since_s.pop(id_, None)
        elif now_s - self._seen.stuck_since_s.setdefault(id_, now_s) >= settings.stuck_timeout_s:
            return seen.stuck
        if seen.phase == "Pending":
            if (task.pod_age_s or 0) > settings.pending_timeout_s:
                return pods.pending_too_long(seen, settings.pending_timeout_s)
        elif not task.has_begun:
            since_s = self._seen.silent_since_s.setdefault(id_, now_s)
            if now_s - since_s > settings.pending_timeout_s:
                return Ending(
                    reason="AgentSilent",
                    message=f"its agent did not reach the server within "
                    f"{settings.pending_timeout_s:g} s",
                    blame=Blame.LOST,
                )
        return None

    async def _tell_last_words(self, task: PodTask, pod: Pod) -> None:
        """What a pod that broke printed last, into our own log, before it is deleted."""
        for container in (pods.FETCH, pods.AGENT):
            if container == pods.FETCH and task.kind == _STEPS:
                continue
            with contextlib.suppress(FcError):
                words = await self._kube.last_words(task.namespace, task.name, container)
                if words:
                    _log.warning(
                        "scheduler.pod_crashed",
                        task_id=task.id,
                        name=pod["metadata"]["name"],
                        container=container,
                        last_words=words[-_LAST_WORDS_MAX:],
                    )

    async def _reap(self, strays: Sequence[Pod]) -> None:
        """Delete pods that no live task claims: ended ones at once, others after a grace."""
        ids = {TaskId(id_): pod for pod in strays if (id_ := self._task_id(pod)) is not None}
        async with self._database.session() as connection:
            alive = await store.list_alive(connection, ids)
        now_s = time.monotonic()
        for pod in strays:
            id_ = self._task_id(pod)
            if id_ in alive and pod["metadata"]["name"] in _names(TaskId(id_)):
                continue  # it came to be live while we looked
            seen, uid = pods.look(pod), pod["metadata"]["uid"]
            since_s = self._seen.orphans_since_s.setdefault(uid, now_s)
            if seen.ending is not None:
                await self._delete(pod)
            elif now_s - since_s >= self._settings.orphan_grace_s:
                waits = self._settings.orphan_grace_s + self._settings.stop_grace_s
                # On a node that does not answer, nobody confirms a deletion.
                is_stuck = seen.leaving is not None and now_s - since_s >= waits
                if is_stuck or seen.leaving is None:
                    _log.info("scheduler.orphan_deleted", name=pod["metadata"]["name"])
                    await self._delete(pod, grace_s=0 if is_stuck else None)

    def _task_id(self, pod: Pod) -> UUID | None:
        try:
            return UUID(pods.task_of(pod, self._site.installation) or "")
        except ValueError:
            return None

    async def _delete(self, pod: Pod, *, grace_s: int | None = None) -> None:
        metadata = pod["metadata"]
        async with self._deletions:
            await self._kube.delete(
                metadata["namespace"], metadata["name"], uid=metadata["uid"], grace_s=grace_s
            )

    # Ends -----------------------------------------------------------------------------------

    async def _end(
        self, task_id: TaskId, phase: str, ending: Ending, *, certain: bool = False
    ) -> None:
        """Write why a pod is over, and give back or charge the steps that it left unfinished.

        ``certain`` is False for a pod that is not there: nothing more can come from it either way.
        """
        await self._note(task_id, phase, ending)
        async with self._database.session() as connection:
            held = await store.list_leases(connection, [task_id])
        if held:
            await self._end_leases([each.lease for each in held], ending)
        _log.info(
            "scheduler.pod_ended",
            task_id=task_id,
            reason=ending.reason,
            message=ending.message,
            unfinished=len(held),
            seen=certain,
        )
        self._claim_now.set()

    async def _end_again(self, task: PodTask) -> None:
        """Steps are given back after the ending was noted; a life that ended in between left them.

        As it was noted: whoever is doing so right now does the same, and the fence takes one.
        """
        if task.kind == _STEPS and task.ending is not None:
            async with self._database.session() as connection:
                held = await store.list_leases(connection, [task.id])
            if held:
                ending = Ending.from_dict(task.ending)
                await self._end_leases([each.lease for each in held], ending)

    async def _note(self, task_id: TaskId, phase: str, ending: Ending) -> None:
        async def change(connection: Connection) -> None:
            if await store.note_ending(connection, task_id, phase, ending.as_dict()):
                await notify(connection, listener.TASKS, str(task_id))

        await self._database.run(change)

    async def _end_leases(self, leases: Sequence[Lease], ending: Ending) -> None:
        outcome = ending.outcome()
        await step_operations.finish(
            self._database,
            [
                StepResult(
                    lease=lease,
                    ended=StepEnded(step_id=lease.step_id, attempt=lease.attempt, outcome=outcome),
                )
                for lease in leases
            ],
            self._builds,
        )


def _cancelled() -> Ending:
    return Ending(reason="Cancelled", message="cancelled before its pod began", blame=Blame.FREE)


def replace_sandbox(nix: NixWork, target: Target) -> NixWork:
    """How agents call Nix in a target."""
    return replace(nix, sandbox="Nix" if target.sandbox == "Nix" else "None")


def _is_for(place: tuple[Placement, Target] | None, waiting: Waiting) -> bool:
    if place is None:
        return False
    target = place[1]
    offer = Offer(systems=target.systems, features=target.features)
    return fits(offer, waiting.system, waiting.features)


def _names(task_id: TaskId) -> set[str]:
    return {pods.name_of(kind, task_id) for kind in (pods.BUILD, pods.EVALUATION)}


def _project_of(definition: dict[str, Any]) -> str:
    metadata = definition["metadata"]
    found = {**metadata.get("annotations", {}), **metadata.get("labels", {})}
    return str(found.get(pods.PROJECT, ""))


async def _first(*waits: Any) -> None:
    """Wait for one of several; the others are given up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
