"""``fc logs``: a build's log, whole or as it grows."""

from __future__ import annotations

import codecs
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click
import orjson

from fc_operator.cli import connections, exits, outputs, references
from fc_operator.errors import InvalidError, NotFoundError

if TYPE_CHECKING:
    from fc_operator.cli.references import Target
    from fc_operator.clients.api import ApiClient

_EXAMPLES = """\
\b
Examples:
  fc logs 12                       the newest attempt's log
  fc logs demo/main/hello -f       follow the newest build of a job to its end
  fc logs 12 --tail 20             its last lines
  fc logs 12 --attempt 1           an earlier attempt's

\b
Exit codes: 0, or with -f 3 when the build did not succeed.
"""


@click.command(short_help="Print a build's log; -f follows it.", epilog=_EXAMPLES)
@click.argument("build", metavar="BUILD")
@click.option("-f", "--follow", is_flag=True, help="Go on until the build has ended.")
@click.option("--tail", type=click.IntRange(1, 100_000), metavar="LINES",
              help="Only the last lines.")  # fmt: skip
@click.option("--attempt", type=click.IntRange(1), help="Which attempt; the newest by default.")
@connections.server_options
def command(build: str, *, follow: bool, tail: int | None, attempt: int | None) -> int:
    """Print a build's log; -f follows it.

    BUILD is a number, or project/jobset/job for the newest build of a job.
    """
    if follow and tail is not None:
        raise click.UsageError("--tail shows an end and --follow waits for one: take either")
    reference = references.parse(build)

    async def work(client: ApiClient) -> int:
        target = await references.resolve(client, reference)
        if target.noun != "build":
            raise InvalidError(
                f"{target.shown} has no log of its own", hint="name a build: project/jobset/job"
            )
        if follow:
            return await follow_log(client, target, attempt)
        await _print_log(client, target, {"attempt": attempt, "tail": tail})
        return exits.DONE

    return connections.call(work)


async def _print_log(client: ApiClient, target: Target, parameters: dict[str, Any]) -> None:
    """The build's log; where it was never run because something else failed, the log of that."""
    try:
        await _print_text(client, f"{target.path}/log", parameters)
    except NotFoundError as error:
        build = await client.get(target.path)
        cause = build["root_cause"]
        if cause is None:
            raise NotFoundError(
                f"{target.shown} has no log: it is {build['status']}",
                hint=f"fc get builds {build['number']}",
            ) from error
        click.secho(
            f"--- {target.shown} was not run, because {outputs.printable(cause['name'])} is "
            f"{cause['status']}; this is the log of that",
            fg="yellow",
            err=True,
        )
        tail = {"tail": parameters.get("tail")}
        await _print_text(client, f"/steps/{cause['step_id']}/log", tail)


async def _print_text(client: ApiClient, path: str, parameters: dict[str, Any]) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async with aclosing(client.text(path, parameters)) as parts:
        async for part in parts:
            _write(decoder.decode(part))
    _write(decoder.decode(b"", final=True))


async def follow_log(client: ApiClient, target: Target, attempt: int | None = None) -> int:
    """Print the log as it grows; the exit code says how the build ended."""
    build = await client.get(target.path)
    shown = f"{build['project']}/{build['jobset']}/{build['job_name']}"
    if build["status"] == "pending":
        await _say_why(client, target)
    status = str(build["status"])
    stream = client.events(f"{target.path}/log/stream", {"attempt": attempt})
    async with aclosing(stream) as events:
        async for event in events:
            data = orjson.loads(event.data)
            if event.event == "log":
                _write(data["text"])
            elif event.event == "attempt" and data["attempt"] > 1:
                click.secho(f"--- attempt {data['attempt']}", fg="yellow", err=True)
            elif event.event == "end":
                status = str(data["status"])
                reason = f" ({data['status_reason']})" if data.get("status_reason") else ""
                click.echo(f"--- {shown}: {status}{reason}", err=True)
                break
    return exits.DONE if status == "succeeded" else exits.ENDED_BADLY


async def _say_why(client: ApiClient, target: Target) -> None:
    why = await client.get(f"{target.path}/why")
    if why.get("message"):
        click.secho(f"--- waiting: {outputs.printable(why['message'])}", fg="yellow", err=True)


def _write(text: str) -> None:
    """Colours are a log's own; on a terminal it gets nothing else to steer it with."""
    sys.stdout.write(outputs.tame(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()
