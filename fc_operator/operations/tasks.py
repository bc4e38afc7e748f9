"""What agents ask and tell, each under its token and its fence.

An agent is as little trusted as the code that it runs. It can speak of its own task only, what it
says of steps goes through the same fenced operations as local dispatch, and outputs count only
when the binary cache has them. Every change may be repeated: an agent without an answer asks again.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import orjson

from fc_operator.access import tasks as tokens
from fc_operator.access.tasks import TaskToken
from fc_operator.errors import (
    BusyError,
    ConflictError,
    GoneError,
    InvalidError,
    NotFoundError,
    ProtocolError,
    TooLargeError,
    UnauthenticatedError,
)
from fc_operator.kit import compression, logs
from fc_operator.kit.ciphers import Cipher, CipherError
from fc_operator.model import work
from fc_operator.model.ids import StepId, StorePath, TaskId
from fc_operator.model.outcomes import Harvest, Outcome, OutputInfo, Product, Retry
from fc_operator.model.statuses import OUTPUTS_VALID, TERMINAL, BuildStatus
from fc_operator.model.tasks import LogChunk, PhaseChanged, StepEnded, StepOrder, StepStarted
from fc_operator.model.work import (
    BODY_BYTES_MAX,
    PLAIN_BYTES_MAX,
    CheckoutReport,
    Credentials,
    EvaluationReport,
    Heartbeat,
    HeartbeatAnswer,
    NixWork,
    NumberedEvent,
    OpenRequest,
    Phase,
    Remaining,
    StepsEnd,
    StepsWork,
    Work,
)
from fc_operator.operations import steps
from fc_operator.operations.steps import StepResult
from fc_operator.settings import BuildSettings, NixSettings, QueueSettings
from fc_operator.store import attempts, listener
from fc_operator.store import logs as log_store
from fc_operator.store import tasks as store
from fc_operator.store.claims import ClaimedStep, Lease
from fc_operator.store.database import Connection, Database, notify
from fc_operator.store.tasks import AgentTask

_log = logs.get_logger()
_BUSY_S = 1.0
_ENDS_MAX = 200
_PHASES_MAX = 200
_PIECE_BYTES = 64 * 1024
_WORD_MAX = 200
_MESSAGE_MAX = 16_384
_MS_MAX = 2**53
_GONE = "the task is over"


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """Who speaks: one phase of one live task."""

    task: AgentTask
    phase: Phase

    @property
    def task_id(self) -> TaskId:
        """Of its task."""
        return self.task.id


def opening_token(cipher: Cipher, task_id: TaskId) -> TaskToken:
    """What the definition of a task's pod holds: it opens each phase of this task once."""
    return tokens.opening(task_id, cipher.derive(tokens.opening_purpose(task_id)))


async def identify(database: Database, text: str) -> Agent:
    """Who has the token ``text``.

    Raises:
        UnauthenticatedError: it is no token, or not that of a phase of its task.
        GoneError: it was good once; the task is over, or the next phase has begun.
    """
    token = tokens.parse(text)
    task = None
    if token is not None:
        async with database.session() as connection:
            task = await store.fetch(connection, token.task_id)
    if token is None or task is None:
        raise _unknown()
    if token.matches(task.work_token_hash):
        phase, is_past = Phase.WORK, False
    elif token.matches(task.fetch_token_hash):
        phase, is_past = Phase.FETCH, task.work_token_hash is not None
    else:
        raise _unknown()
    if is_past or not task.is_live:
        raise GoneError(_GONE)
    return Agent(task=task, phase=phase)


def _unknown() -> UnauthenticatedError:
    return UnauthenticatedError("the task token is unknown")


async def open_phase(
    database: Database, cipher: Cipher, task_id: TaskId, text: str, request: OpenRequest
) -> Work:
    """Begin a phase with the opening token ``text``; from now on ``request.token_hash`` counts.

    Raises:
        UnauthenticatedError: it is not the opening token of this task.
        GoneError: the task is over.
        ConflictError: somebody else has opened this phase, or it is not its turn.
        InvalidError: the hash is none.
    """
    token = tokens.parse(text)
    if token is None or not tokens.is_same(token, opening_token(cipher, task_id)):
        raise _unknown()
    token_hash = tokens.parse_hash(request.token_hash)
    if token_hash is None:
        raise InvalidError("token_hash is the SHA-256 of the phase's token in 64 hex digits")
    versions = request.versions
    agent = {
        "host": request.host[:_WORD_MAX].replace("\0", ""),
        "nix": versions.nix[:_WORD_MAX].replace("\0", ""),
        "evaluator": versions.evaluator[:_WORD_MAX].replace("\0", ""),
        "fc": versions.fc[:_WORD_MAX].replace("\0", ""),
    }
    begin = store.open_fetch if request.phase is Phase.FETCH else store.open_work

    async def change(connection: Connection) -> Work:
        data = await begin(connection, task_id, token_hash, agent)
        if data is None:
            raise _why_closed(await store.fetch(connection, task_id), request.phase)
        await notify(connection, listener.TASKS, str(task_id))
        return work.work_from_json(data)

    opened = await database.run(change)
    _log.info("operations.task_opened", task=str(task_id), phase=request.phase.value, **agent)
    return opened


def _why_closed(task: AgentTask | None, phase: Phase) -> GoneError | ConflictError | InvalidError:
    if task is None or not task.is_live:
        return GoneError(_GONE)
    if phase is Phase.FETCH and task.kind != "evaluation":
        return InvalidError("a batch of steps has nothing to fetch")
    if not task.has_work:
        return ConflictError("the task has no work yet")
    if phase is Phase.WORK and task.kind == "evaluation" and not task.is_fetched:
        return ConflictError("its source was not fetched yet")
    return ConflictError(f"the phase {phase.value} was opened by somebody else")


# Credentials and source ---------------------------------------------------------------------------


def seal_credentials(cipher: Cipher, task_id: TaskId, credentials: Credentials) -> bytes:
    """Credentials as a task's row holds them: they open there only."""
    return cipher.encrypt(orjson.dumps(credentials.to_json()), context=_context(task_id))


def _context(task_id: TaskId) -> str:
    return f"task/{task_id}"


async def fetch_credentials(database: Database, cipher: Cipher, agent: Agent) -> Credentials:
    """What opens the repositories of an evaluation, for the phase that fetches.

    Raises:
        NotFoundError: they were removed, or this is another phase.
    """
    if agent.phase is not Phase.FETCH or agent.task.is_fetched:
        raise NotFoundError("there are no credentials any more")
    async with database.session() as connection:
        sealed = await store.fetch_credentials(connection, agent.task_id)
    if sealed is None:
        return Credentials()
    try:
        plain = cipher.decrypt(bytes(sealed), context=_context(agent.task_id))
    except CipherError as error:
        _log.error("operations.credentials_unreadable", task=str(agent.task_id), error=str(error))
        raise NotFoundError("the credentials can't be read") from error
    return Credentials.from_json(orjson.loads(plain))


async def note_fetched(database: Database, agent: Agent, checkout: CheckoutReport) -> None:
    """The source is there: its description stays, and the credentials go. May be repeated.

    Raises:
        GoneError: the task is over.
        ConflictError: another phase than the one that fetches says so.
    """
    if agent.phase is not Phase.FETCH:
        raise ConflictError("only the phase that fetches can have fetched")
    described = replace(
        checkout,
        tree=checkout.tree[:_WORD_MAX],
        subject=checkout.subject[:_MESSAGE_MAX].replace("\0", ""),
        author=checkout.author[:_MESSAGE_MAX].replace("\0", ""),
        ms=_bounded(checkout.ms, 2**31 - 1),
    )
    report = work.Fetched(checkout=described).to_json()["checkout"]

    async def change(connection: Connection) -> None:
        if not await store.set_fetched(connection, agent.task_id, report):
            raise GoneError(_GONE)
        await notify(connection, listener.TASKS, str(agent.task_id))

    await database.run(change)


# Heartbeats ---------------------------------------------------------------------------------------


async def heartbeat(
    database: Database, agent: Agent, beat: Heartbeat, queue: QueueSettings
) -> HeartbeatAnswer:
    """The agent lives: the leases of its steps are renewed. What it has to stop.

    Raises:
        GoneError: the task is over.
    """

    async def change(connection: Connection) -> HeartbeatAnswer:
        task = agent.task
        if not await store.beat(connection, task.id, lease_s=queue.agent_lease_s):
            raise GoneError(_GONE)
        if task.kind != "steps":
            return HeartbeatAnswer(
                lease_s=queue.agent_lease_s,
                cancel_task=task.cancel_requested,
                reason=(task.status_reason or "Cancelled") if task.cancel_requested else "",
            )
        held = await store.renew_leases(connection, task.id, lease_s=queue.agent_lease_s)
        mine = {(lease.step_id, lease.attempt) for lease in held}
        stop = {(lease.step_id, lease.attempt) for lease in held if lease.cancel_requested}
        return HeartbeatAnswer(
            lease_s=queue.agent_lease_s, cancel=tuple(sorted(stop | (set(beat.running) - mine)))
        )

    return await database.run(change)


# Steps --------------------------------------------------------------------------------------------


def order_of(step: ClaimedStep, builds: BuildSettings) -> StepOrder:
    """A claimed step as executors and agents need it."""
    return StepOrder(
        step_id=step.id,
        attempt=step.attempt,
        task_id=step.task_id,
        drv_path=step.drv_path,
        name=step.name,
        system=step.system,
        required_features=step.features,
        outputs=step.outputs,
        timeout_s=builds.timeout_s if step.timeout_s is None else step.timeout_s,
        max_silent_s=builds.max_silent_s if step.max_silent_s is None else step.max_silent_s,
        log_bytes_max=builds.log_bytes,
        nar_bytes_max=builds.nar_bytes,
        check=step.check_mode,
    )


def steps_work(
    task_id: TaskId,
    claimed: Sequence[ClaimedStep],
    *,
    builds: BuildSettings,
    nix: NixWork,
    systems: tuple[str, ...] = (),
    features: tuple[str, ...] = (),
    slots: int = 0,
    stop_grace_s: float = 60,
) -> StepsWork:
    """A claimed batch as the work of a pod; ``nix`` is ``nix_work``'s."""
    return StepsWork(
        task_id=task_id,
        orders=tuple(order_of(step, builds) for step in claimed),
        slots=slots,
        systems=systems or tuple(sorted({step.system for step in claimed})),
        features=features,
        nix=nix,
        stop_grace_s=stop_grace_s,
    )


def nix_work(
    nix: NixSettings,
    *,
    cache_url: str,
    cache_public_keys: Sequence[str],
    sandbox: str = "None",
) -> NixWork:
    """How agents call Nix. ``sandbox``: ``Nix`` where the pod's target says so, else ``None``."""
    return NixWork(
        store_dir=nix.store_dir,
        sandbox=sandbox,
        cache_url=cache_url,
        cache_public_keys=tuple(cache_public_keys),
        substituters=nix.substituters,
        trusted_public_keys=nix.trusted_public_keys,
    )


async def record_events(
    database: Database, agent: Agent, events: Sequence[NumberedEvent], builds: BuildSettings
) -> int:
    """Record what an agent tells of its steps; the number that its next event has.

    What was recorded before is passed over. Events of attempts that the task does not hold (any
    more) are passed over too: somebody else has them.

    Raises:
        ConflictError: there is a gap, or this task has no steps; nothing was recorded.
        InvalidError: an event says what no executor says; nothing was recorded.
        UnavailableError: maybe a part was recorded; tell the same again.
    """
    _require_steps(agent)
    fresh, after = _fresh(agent.task.next_event, events)
    if not fresh:
        return after
    _require_plausible(fresh)
    async with database.session() as connection:
        leases = {
            (lease.step_id, lease.attempt): lease
            for lease in await store.list_leases(connection, agent.task_id)
        }
    held = [event for event in fresh if (event.step_id, event.attempt) in leases]
    await _record_progress(database, agent, held, leases)
    ended = [event for event in held if isinstance(event, StepEnded)]
    for start in range(0, len(ended), _ENDS_MAX):
        results = await _results(database, ended[start : start + _ENDS_MAX], leases)
        for step_id in await steps.finish_each(database, results, builds):
            _log.info("operations.late_result_refused", step_id=step_id, task=str(agent.task_id))
    async with database.session() as connection:
        await store.raise_next_event(connection, agent.task_id, after)
    return after


def _require_steps(agent: Agent) -> None:
    if agent.task.kind != "steps" or agent.phase is not Phase.WORK:
        raise ConflictError("this task has no steps")


def _fresh(expected: int, events: Iterable[NumberedEvent]) -> tuple[list[work.ReportedEvent], int]:
    """Events that were not recorded yet, and the number after them."""
    fresh = []
    for numbered in events:
        if numbered.seq > expected:
            raise ConflictError(
                f"event {numbered.seq} came before event {expected}", expected=expected
            )
        if numbered.seq == expected:
            fresh.append(numbered.event)
            expected += 1
    return fresh, expected


def _require_plausible(events: Iterable[work.ReportedEvent]) -> None:
    for event in events:
        if isinstance(event, StepEnded) and event.outcome.status not in TERMINAL:
            raise InvalidError(f"no step ends as {event.outcome.status.value}")


async def _record_progress(
    database: Database,
    agent: Agent,
    events: Sequence[work.ReportedEvent],
    leases: dict[tuple[StepId, int], Lease],
) -> None:
    begun = [leases[e.step_id, e.attempt] for e in events if isinstance(e, StepStarted)]
    phases = [
        replace(event, phase=event.phase[:_WORD_MAX], at_ms=_bounded(event.at_ms, _MS_MAX))
        for event in events
        if isinstance(event, PhaseChanged)
    ]
    if not begun and not phases:
        return

    async def change(connection: Connection) -> None:
        if phases:
            await store.add_phases(connection, agent.task_id, phases, most=_PHASES_MAX)
        if begun:
            await attempts.start(connection, begun)

    await database.run(change)


async def _results(
    database: Database, ended: Sequence[StepEnded], leases: dict[tuple[StepId, int], Lease]
) -> list[StepResult]:
    """Ends as they can be written: phases and log as they came, outputs as the cache has them."""
    ids = [event.step_id for event in ended]
    async with database.session() as connection:
        phases = await store.list_phases(connection, [(e.step_id, e.attempt) for e in ended])
        wanted = await store.list_outputs(connection, ids)
        told = {
            output.path
            for event in ended
            if event.outcome.status in OUTPUTS_VALID
            for output in event.outcome.harvest.outputs
        }
        known = {path for paths in wanted.values() for path in paths.values() if path}
        cached = await store.list_cached(connection, told | known)
        sizes = {
            event.step_id: await store.fetch_log_size(connection, event.step_id, event.attempt)
            for event in ended
        }
    return [
        StepResult(
            lease=leases[event.step_id, event.attempt],
            ended=replace(
                event,
                outcome=_verified(event.outcome, wanted.get(event.step_id, {}), cached),
                log_bytes=sizes[event.step_id],
                log_lines=_bounded(event.log_lines, 2**31 - 1),
            ),
            phases=phases.get(event.step_id, ()),
        )
        for event in ended
    ]


def _verified(
    outcome: Outcome,
    wanted: dict[str, StorePath | None],
    cached: dict[str, store.CachedPath],
) -> Outcome:
    """A success with its outputs as the cache verified them; without them it is none.

    An agent says which path an output has only where nobody else knows; everything that its
    builds could have made it say besides lies inside of these paths.
    """
    outcome = replace(
        outcome, message=outcome.message[:_MESSAGE_MAX], reason=outcome.reason[:_WORD_MAX]
    )
    if outcome.status not in OUTPUTS_VALID:
        return replace(outcome, harvest=Harvest())
    told = {output.name: output.path for output in outcome.harvest.outputs}
    outputs = []
    for name, path in wanted.items():
        said = told.get(name)
        if path is not None and said not in {None, path}:
            return _unproven("OutputsWrong", f"the output {name} should be {path}, not {said}")
        found = cached.get(path or said or "")
        if found is None:
            what = path or said or f"the output {name}"
            return _unproven("OutputsMissing", f"{what} is not in the binary cache")
        outputs.append(
            OutputInfo(
                name=name,
                path=StorePath(path or said or ""),
                nar_hash=found.nar_hash,
                nar_size_bytes=found.nar_size,
            )
        )
    own = tuple(output.path for output in outputs)
    harvest = outcome.harvest
    return replace(
        outcome,
        harvest=replace(
            harvest,
            outputs=tuple(outputs),
            products=tuple(product for product in harvest.products if _is_inside(product, own)),
        ),
    )


def _unproven(reason: str, message: str) -> Outcome:
    return Outcome(
        status=BuildStatus.ABORTED, retry=Retry.INFRASTRUCTURE, reason=reason, message=message
    )


def _is_inside(product: Product, outputs: Iterable[str]) -> bool:
    path = PurePosixPath(product.path)
    parts = {*path.parts, *PurePosixPath(product.default_path).parts}
    return ".." not in parts and any(path.is_relative_to(output) for output in outputs)


async def append_log(
    database: Database,
    agent: Agent,
    *,
    step_id: StepId,
    attempt: int,
    offset: int,
    data: bytes,
    builds: BuildSettings,
) -> int:
    """Write a piece of an attempt's log that begins at ``offset``; where the log goes on then.

    What is there already is cut off.

    Raises:
        ConflictError: there is a gap, or the task has no steps; nothing was written.
        GoneError: the task does not hold this attempt (any more).
        TooLargeError: the log would be longer than allowed.
    """
    _require_steps(agent)
    if not (0 < step_id < 2**63 and 0 < attempt < 2**31 and 0 <= offset < 2**62):
        raise InvalidError("step, attempt and offset are positive numbers")
    lease = Lease(step_id=step_id, attempt=attempt, task_id=agent.task_id)

    async def change(connection: Connection) -> int:
        if not await store.lock_log(connection, lease):
            raise GoneError("the task does not hold this attempt")
        size = await store.fetch_log_size(connection, step_id, attempt)
        if offset > size:
            raise ConflictError(f"the log ends at {size}, not at {offset}", expected=size)
        rest = data[size - offset :]
        if builds.log_bytes and size + len(rest) > builds.log_bytes:
            raise TooLargeError(f"a log has at most {builds.log_bytes} bytes")
        pieces = [
            LogChunk(
                step_id=step_id,
                attempt=attempt,
                offset=size + start,
                data=rest[start : start + _PIECE_BYTES],
            )
            for start in range(0, len(rest), _PIECE_BYTES)
        ]
        if pieces:
            await log_store.append_chunks(connection, [(lease.task_id, each) for each in pieces])
            await notify(connection, listener.LOGS, str(step_id))
        return size + len(rest)

    return await database.run(change)


async def end_steps(database: Database, agent: Agent, end: StepsEnd) -> None:
    """The agent leaves; what it has not ended goes back to the queue.

    Where it was told to go, that is free of charge; else it is a loss like any other.
    """
    _require_steps(agent)
    async with database.session() as connection:
        leases = await store.list_leases(connection, agent.task_id)
    if end.remaining is Remaining.REQUEUE:
        await steps.give_back(database, leases)
    elif leases:
        _log.warning("operations.steps_forgotten", task=str(agent.task_id), steps=len(leases))
        await steps.requeue(database, leases, certain=True)


# Evaluations --------------------------------------------------------------------------------------


async def add_report(database: Database, agent: Agent, seq: int, payload: bytes) -> int:
    """Take report ``seq`` of an evaluation (zstd of JSON lines); the number of the next one.

    Raises:
        ConflictError: there is a gap, or the task is no evaluation.
        BusyError: too many wait for the scheduler.
        GoneError: the task is over.
        TooLargeError, InvalidError: it is no zstd of a size that is allowed.
    """
    if agent.task.kind != "evaluation" or agent.phase is not Phase.WORK:
        raise ConflictError("this task evaluates nothing")
    await asyncio.to_thread(decompressed, payload)
    return await _report(database, agent, seq, payload)


async def end_evaluation(database: Database, agent: Agent, report: EvaluationReport) -> None:
    """The last report of an evaluation; ``read_report`` tells it from the others.

    Raises:
        GoneError: the task is over.
    """
    if agent.task.kind != "evaluation":
        raise ConflictError("this task evaluates nothing")
    payload = compression.compress_frame(orjson.dumps({_END: report.to_json()}))
    await _report(database, agent, None, payload)


async def _report(database: Database, agent: Agent, seq: int | None, payload: bytes) -> int:
    """Write a report; without a number it is the last one."""

    async def change(connection: Connection) -> int:
        reports = await store.lock_reports(connection, agent.task_id)
        if reports is None or reports.is_over or reports.is_told:
            raise GoneError(_GONE)
        if seq is not None and seq < reports.next:
            return reports.next
        if seq is not None and seq > reports.next:
            raise ConflictError(
                f"report {seq} came before report {reports.next}", expected=reports.next
            )
        if (
            seq is not None
            and await store.count_reports(connection, agent.task_id) >= work.UNREAD_REPORTS_MAX
        ):
            raise BusyError("the scheduler has not read what came before", delay_s=_BUSY_S)
        await store.insert_report(
            connection, agent.task_id, reports.next, payload, is_end=seq is None
        )
        await notify(connection, listener.TASKS, str(agent.task_id))
        return reports.next + 1

    return await database.run(change)


_END = "end"


def read_report(payload: bytes) -> EvaluationReport | list[object]:
    """What a report says: rows as JSON objects, or the end.

    Raises:
        ProtocolError: it says neither.
    """
    try:
        lines = list(work.lines_of(decompressed(payload)))
    except InvalidError as error:
        raise ProtocolError(str(error)) from error
    if len(lines) == 1 and isinstance(lines[0], dict) and _END in lines[0]:
        return work.read(EvaluationReport, lines[0][_END])
    return lines


def decompressed(body: bytes, *, bytes_max: int = PLAIN_BYTES_MAX) -> bytes:
    """The plain bytes of a compressed body.

    Raises:
        TooLargeError: it, or what it stands for, is larger than the protocol allows.
        InvalidError: it is no zstd.
    """
    if len(body) > BODY_BYTES_MAX:
        raise TooLargeError(f"a body has at most {BODY_BYTES_MAX} bytes")
    if not body:
        return b""
    plain = bytearray()
    try:
        stream = compression.Decompressor("zstd", io.BytesIO(body))
        while piece := stream.read(_PIECE_BYTES):
            plain += piece
            if len(plain) > bytes_max:
                raise TooLargeError(f"a body stands for at most {bytes_max} bytes")
    except compression.CompressionError as error:
        raise InvalidError("the body is no zstd") from error
    return bytes(plain)


def _bounded(number: int, most: int) -> int:
    return max(0, min(number, most))
