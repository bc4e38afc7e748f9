"""``fc evaluate``: a jobset is looked at and evaluated now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from fc_operator.cli import connections, exits, outputs, references
from fc_operator.cli.nouns import evaluation_word
from fc_operator.errors import UnavailableError

if TYPE_CHECKING:
    from fc_operator.clients.api import ApiClient

_EXAMPLES = """\
\b
Examples:
  fc evaluate demo/main                look at the source now
  fc evaluate demo/main --force        although nothing has changed
  fc evaluate demo/main --wait         and wait until everything is built, also where nothing is new
  fc evaluate demo/main --commit 91e796c3e26cc905c76913c4d1f3300d68c2e865

\b
Exit codes: 0, or with --wait 3 when the evaluation or a build did not succeed.
"""
_TICK_S = 0.3


@click.command(short_help="Evaluate a jobset now.", epilog=_EXAMPLES)
@click.argument("jobset", metavar="PROJECT/JOBSET")
@click.option("--commit", metavar="ID", help="This commit; by default the newest of its branch.")
@click.option("--force", is_flag=True, help="Although nothing has changed.")
@click.option("--wait", is_flag=True, help="Wait until it and its builds have ended.")
@click.option("--timeout", "timeout_s", type=click.IntRange(min=1), default=3600,
              show_default=True, metavar="SECONDS", help="How long to wait.")  # fmt: skip
@connections.server_options
def command(jobset: str, *, commit: str | None, force: bool, wait: bool, timeout_s: int) -> int:
    """Evaluate a jobset now.

    A jobset in the state OneShot is armed again, and one in OneAtATime is not waited for.
    """
    of = references.parse_jobset(jobset)
    body = {"commit": commit, "force": force}

    async def work(client: ApiClient) -> int:
        path = references.jobset_path(of)
        before = await client.get(path)
        await client.send(
            "POST", f"{path}/evaluate", {key: each for key, each in body.items() if each}
        )
        if not wait:
            click.echo(f"{jobset} will be evaluated")
            return exits.DONE
        try:
            async with asyncio.timeout(timeout_s):
                return await _wait(client, path, before)
        except TimeoutError as error:
            raise UnavailableError(f"{jobset} has not ended within {timeout_s} s") from error

    return connections.call(work)


async def _wait(client: ApiClient, path: str, before: dict[str, Any]) -> int:
    """Tell how it goes until all has ended; the exit code says whether it ended well."""
    number = await _new_evaluation(client, path, before)
    if number is None:
        number = (before["latest_evaluation"] or {}).get("number")
        click.echo(f"nothing has changed since evaluation {number}; --force evaluates again")
        if number is None:
            return exits.DONE
    said = ""
    while True:
        evaluation = await client.get(f"/evaluations/{number}")
        counts = evaluation["builds"] or {}
        words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()) if count)
        now = f"evaluation {number}: {evaluation_word(evaluation)}{'; ' if words else ''}{words}"
        if now != said:
            click.echo(now)
            said = now
        if is_over(evaluation):
            await _tell_errors(client, evaluation)
            return exits.DONE if is_good(evaluation) else exits.ENDED_BADLY
        await asyncio.sleep(_TICK_S)


async def _new_evaluation(client: ApiClient, path: str, before: dict[str, Any]) -> int | None:
    """The number of the evaluation that the request led to; None where nothing had changed."""
    newest = (before["latest_evaluation"] or {}).get("number") or 0
    while True:
        now = await client.get(path)
        latest = now["latest_evaluation"] or {}
        if (latest.get("number") or 0) > newest:
            return int(latest["number"])
        if now["check_reason"] != "request":
            return None
        if now["last_error"] and now["last_checked_at"] != before["last_checked_at"]:
            raise UnavailableError(f"the source can't be read: {now['last_error']}")
        await asyncio.sleep(_TICK_S)


async def _tell_errors(client: ApiClient, evaluation: dict[str, Any]) -> None:
    if evaluation["error_message"]:
        click.secho(outputs.tame(evaluation["error_message"]), fg="red", err=True)
    if evaluation["errors"]:
        for row in await client.all(f"/evaluations/{evaluation['number']}/errors", most=20):
            last = (row["message"].strip().splitlines() or [""])[-1]
            click.secho(f"{row['job']}: {outputs.printable(last)}", fg="red", err=True)


def is_over(evaluation: dict[str, Any]) -> bool:
    """Whether the evaluation and all of its builds have ended."""
    if evaluation["status"] == "completed":
        return evaluation["builds_ended_at"] is not None
    return evaluation["status"] not in {"pending", "running"}


def is_good(evaluation: dict[str, Any]) -> bool:
    """Whether every attribute gave a job and every job succeeded."""
    counts = evaluation["builds"] or {}
    return (
        evaluation["status"] == "completed"
        and not evaluation["errors"]
        and all(status == "succeeded" for status, count in counts.items() if count)
    )
