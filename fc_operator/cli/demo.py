"""``fc demo``: starts everything on ``config/demo``, shows how it goes, and judges the outcome."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from fc_operator.cli import exits, outputs
from fc_operator.cli.outputs import Column

if TYPE_CHECKING:
    from rich.console import Console, Group

    from fc_operator.app.demo import Surroundings
    from fc_operator.app.expectations import Expected, Outcome
    from fc_operator.app.observation import JobsetNow, Moment
    from fc_operator.settings import Settings

_EXAMPLES = """\
\b
Examples:
  fc demo                          run it, show the outcome, stop
  fc demo --stay                   stay up afterwards, to look around
  fc demo --state /tmp/fc-demo     with its state somewhere else

\b
Its git repositories are made below the state directory and served on
loopback. A second run on the same state finds everything built already.

\b
Exit codes: 0 every outcome is as config/demo/expected.yaml says, 1 something differs.
"""
_TICK_S = 0.2


@click.command(
    short_help="Run the demo: build config/demo and check every outcome.", epilog=_EXAMPLES
)
@click.option("--state", "state_dir", type=click.Path(path_type=Path), default=Path(".state/demo"),
              show_default=True, help="Where it keeps everything.")  # fmt: skip
@click.option("--stay", is_flag=True, help="Stay up afterwards, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=None,
              help="Port of the HTTP service; 8080, or a free one.")  # fmt: skip
@click.option("--git-port", type=click.IntRange(0, 65535), default=None,
              help="Port of the git repositories; 8418, or a free one.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.IntRange(min=1), default=170, show_default=True,
              metavar="SECONDS", help="How long to wait for the outcome.")  # fmt: skip
@click.option("--set", "changed", metavar="GROUP.NAME=VALUE", multiple=True,
              help="Any setting, as with `fc up`; may be repeated.")  # fmt: skip
@click.option("--source", type=click.Path(path_type=Path, file_okay=False), default=None,
              help="Another folder made like config/demo.")  # fmt: skip
def command(**options: Any) -> int:
    """Run the demo: build config/demo and check every outcome.

    Two projects with legacy and flake jobsets are declared, evaluated and built by real Nix, with
    neither a network nor nixpkgs. Some jobs fail on purpose; the table at the end says of each
    thing what it became, what was declared, and where to look at it.
    """
    with contextlib.suppress(asyncio.CancelledError):
        return asyncio.run(_run(**options))
    return exits.INTERRUPTED


async def _run(
    *,
    state_dir: Path,
    stay: bool,
    port: int | None,
    git_port: int | None,
    timeout_s: int,
    source: Path | None,
    changed: tuple[str, ...],
) -> int:
    from fc_operator.app import demo, expectations

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    view = _view()
    view.say(f"starting; state and log are in {state_dir}")
    folder = source or demo.default_folder()
    async with demo.surroundings(folder, state_dir, git_port=git_port) as here:
        expected = expectations.parse(here.expected)
        web_port = demo.free_port(8080) if port is None else port
        settings = _settings(here, state_dir, web_port, changed)
        with _log_file(settings, state_dir / "fc.log"):
            started_at = datetime.now(UTC)
            async with _everything(settings) as url:
                view.say(f"FC Operator is up: {url}")
                outcomes = await _watch(
                    url, here, expected, view, timeout_s=timeout_s, since=started_at
                )
                _show(outcomes)
                if stay:
                    click.echo(f"\nstaying up at {url}; Ctrl-C stops. Try: fc --url {url} get")
                    await asyncio.Event().wait()
    return exits.ERROR if any(each.differences for each in outcomes) else exits.DONE


def _settings(
    here: Surroundings, state_dir: Path, web_port: int, changed: tuple[str, ...]
) -> Settings:
    from fc_operator import settings
    from fc_operator.cli import process_options

    # The demo is the same everywhere: of our environment only the database may be another.
    env = {name: os.environ[name] for name in ("FC_DATABASE_URL",) if name in os.environ}
    flags = here.settings(state_dir, web_port=web_port) | process_options.parse_changed(changed)
    return settings.load(env=env, flags=flags)


@contextlib.contextmanager
def _log_file(settings: Settings, file: Path) -> Iterator[None]:
    """Our log lines go beside the state; the terminal is for the demo's own."""
    from fc_operator.kit import logs

    with file.open("a", encoding="utf-8") as stream:
        logs.configure(level=settings.log.level, stream=stream, json=True)
        yield
        logs.configure(level="error")


@contextlib.asynccontextmanager
async def _everything(settings: Settings) -> AsyncIterator[str]:
    """All that ``fc up`` starts; the address of its HTTP service."""
    from fc_operator.app.up import Up

    up = Up(settings)
    await up.start()
    try:
        yield up.url
    finally:
        await up.stop()


async def _watch(
    url: str,
    here: Surroundings,
    expected: Expected,
    view: View,
    *,
    timeout_s: int,
    since: datetime,
) -> Sequence[Outcome]:
    """Show how it goes until everything has ended or time is up; then what there is.

    ``since`` is when the repositories were as they are now.
    """
    from fc_operator.app import expectations, observation
    from fc_operator.clients.api import ApiClient

    waits = ["starting"]
    moment = observation.Moment()
    async with ApiClient(url) as client:
        with view:
            try:
                async with asyncio.timeout(timeout_s):
                    while waits:
                        before = moment
                        moment = await observation.observe(client, here.git_url, before)
                        waits = observation.waits_for(moment, expected, here.commits, since=since)
                        view.update(before, moment, waits)
                        await asyncio.sleep(_TICK_S if waits else 0)
            except TimeoutError:
                for each in waits:
                    click.secho(f"not within {timeout_s} s: {each}", fg="red", err=True)
        return expectations.compare(
            expected,
            await observation.find_jobsets(client, moment, expected),
            await observation.find_channels(client),
        )


class View(Protocol):
    """Where progress is shown."""

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def update(self, before: Moment, now: Moment, waits: Sequence[str]) -> None:
        """Show the present; ``before`` is what was shown last."""
        ...

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> object: ...


def _view() -> View:
    out = outputs.console()
    return Screen(out) if out.is_terminal else Lines()


class Lines:
    """Progress for logs: one plain line per change."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def say(self, line: str) -> None:
        """See ``View``."""
        click.echo(f"{time.monotonic() - self._started_s:6.1f}s  {line}")

    def update(self, before: Moment, now: Moment, waits: Sequence[str]) -> None:  # noqa: ARG002
        """See ``View``."""
        for line in changes(before, now):
            self.say(line)

    def __enter__(self) -> object:
        return self

    def __exit__(self, *_: object) -> object:
        return None


def changes(before: Moment, now: Moment) -> list[str]:
    """What has happened between two moments, a line each."""
    lines = []
    if now.config_error and now.config_error != before.config_error:
        lines.append(f"manifests: {now.config_error}")
    elif now.config_revision != before.config_revision:
        lines.append(f"manifests at {now.config_revision[:12]} are live")
    earlier = {each.name: each for each in before.jobsets}
    for each in now.jobsets:
        lines.extend(_jobset_changes(earlier.get(each.name), each))
    for name, status in now.builds.items():
        if before.builds.get(name, "pending") != status:
            lines.append(f"{name}: {status}")
    return lines


def _jobset_changes(before: JobsetNow | None, now: JobsetNow) -> Iterator[str]:
    if now.error and (before is None or now.error != before.error):
        yield f"{now.name}: {now.error}"
    seen = (before.evaluation, before.evaluation_status) if before else (None, "")
    if now.evaluation is not None and seen != (now.evaluation, now.evaluation_status):
        yield f"{now.name}: evaluation {now.evaluation} of {now.commit[:12]} {_word(now)}"
    if now.ended and now.counts and (before is None or not before.ended):
        yield f"{now.name}: all builds have ended: {_counted(now.counts)}"


def _word(jobset: JobsetNow) -> str:
    return {"pending": "is queued", "running": "has begun"}.get(
        jobset.evaluation_status, f"has {jobset.evaluation_status}".replace("_", " ")
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {status}" for status, number in sorted(counts.items()) if number)


class Screen:
    """Progress on a terminal: the same lines, and below them a table that lives."""

    def __init__(self, out: Console) -> None:
        from rich.live import Live

        self._started_s = time.monotonic()
        self._out = out
        self._live = Live(console=out, refresh_per_second=10, transient=True)

    def say(self, line: str) -> None:
        """See ``View``."""
        self._out.print(line)

    def update(self, before: Moment, now: Moment, waits: Sequence[str]) -> None:
        """See ``View``."""
        for line in changes(before, now):
            self._out.print(line, style="dim")
        self._live.update(picture(now, waits, time.monotonic() - self._started_s))

    def __enter__(self) -> object:
        return self._live.__enter__()

    def __exit__(self, *_: object) -> object:
        self._live.stop()
        return None


def picture(now: Moment, waits: Sequence[str], elapsed_s: float) -> Group:
    """The present as something that rich can draw: jobsets, then what is being built."""
    from rich.console import Group
    from rich.spinner import Spinner
    from rich.text import Text

    columns = (
        Column("JOBSET", lambda each: each["jobset"].name),
        Column("COMMIT", lambda each: each["jobset"].commit[:12]),
        Column("EVALUATION", lambda each: each["jobset"].evaluation_status or "waiting"),
        Column("BUILDS", lambda each: _counted(each["jobset"].counts) or None),
    )
    running = sorted(name for name, status in now.builds.items() if status == "running")
    rest = waits[0] if len(waits) == 1 else f"{len(waits)} jobsets are not done"
    return Group(
        outputs.table(columns, [{"jobset": each} for each in now.jobsets]),
        Text(),
        *(Spinner("dots", Text(f"building {name}", style="cyan")) for name in running),
        Text(f"{elapsed_s:.0f} s, {rest if waits else 'everything has ended'}", style="dim"),
    )


def _show(outcomes: Sequence[Outcome]) -> None:
    """The result table, then what differs."""
    columns = (
        Column("", lambda each: "differs" if each["outcome"].differences else "ok"),
        Column("THING", lambda each: each["outcome"].thing),
        Column("FOUND", lambda each: each["outcome"].found or "-"),
        Column("DECLARED", lambda each: each["outcome"].wanted or "-"),
        Column("URL", lambda each: each["outcome"].url or "-"),
    )
    click.echo()
    outputs.print_table(columns, [{"outcome": each} for each in outcomes])
    click.echo()
    wrong = [each for each in outcomes if each.differences]
    for each in wrong:
        for said in each.differences:
            click.secho(f"{each.thing}: {said}", fg="red")
    if wrong:
        click.secho(f"{len(wrong)} of {len(outcomes)} outcomes differ", fg="red")
    else:
        click.secho(f"all {len(outcomes)} outcomes are as declared", fg="green")
