"""``fc get``: what is there and how it goes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from fc_operator.cli import connections, exits, nouns, outputs
from fc_operator.cli.nouns import Filters, Noun

if TYPE_CHECKING:
    from fc_operator.clients.api import ApiClient

_EXAMPLES = """\
\b
Examples:
  fc get                                an overview
  fc get jobsets                        every jobset and its newest evaluation
  fc get jobsets demo/main              one jobset with inputs and errors
  fc get builds demo/main --status failed,timeout
  fc get builds 12                      one build: steps, products, why it waits
  fc get builds --evaluation 7 -o json | jq -r '.[].job_name'
  fc get resources                      manifests: who declared them, what is wrong
  fc get queue --watch                  what waits, and for what

\b
Nouns: projects, jobsets, evaluations, builds, builders, channels, queue,
resources (what manifests declare), sources (config repositories). Short forms
such as `b`, `js` or `evals` work too.
"""
_OVERVIEW_S = 2.0


def _complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(each) for each in nouns.NOUNS if each.startswith(incomplete)]


@click.command(
    short_help="Show projects, jobsets, evaluations, builds, the queue and more.",
    epilog=_EXAMPLES,
)
@click.argument("noun", required=False, shell_complete=_complete)
@click.argument("name", required=False, default="")
@click.option("--status", metavar="STATUS[,…]", help="Only with these statuses.")
@click.option("--system", metavar="SYSTEM", help="Only builds for this system.")
@click.option("--evaluation", metavar="NUMBER", help="Only builds of this evaluation.")
@click.option("--condition", metavar="TYPE[=STATUS]", help="Only resources with it: Ready=False.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True,
              help="At most so many.")  # fmt: skip
@click.option("-w", "--watch", is_flag=True, help="Show it again every two seconds.")
@outputs.output_option
@connections.server_options
def command(
    *,
    noun: str | None,
    name: str,
    status: str | None,
    system: str | None,
    evaluation: str | None,
    condition: str | None,
    limit: int,
    watch: bool,
    output: str,
) -> int:
    """Show projects, jobsets, evaluations, builds, the queue and more.

    NOUN alone lists; NAME narrows the list (demo, demo/main, demo/main/hello) or, where it says
    one thing (demo/main of jobsets, the number of a build or evaluation), shows that whole.
    Without a noun: an overview.
    """
    filters = Filters(
        status=status, system=system, evaluation=evaluation, condition=condition, most=limit
    )
    found = nouns.find(noun) if noun else None
    if found is not None:
        _refuse_unknown(found, filters)

    async def work(client: ApiClient) -> int:
        while True:
            if watch and output == "table":
                click.clear()
            await _show(client, found, name, filters, output)
            if not watch:
                return exits.DONE
            await asyncio.sleep(_OVERVIEW_S)

    return connections.call(work)


def _refuse_unknown(noun: Noun, filters: Filters) -> None:
    for each in ("status", "system", "evaluation", "condition"):
        if getattr(filters, each) is not None and each not in noun.takes:
            raise click.UsageError(f"--{each} does not narrow {noun.name}")


async def _show(
    client: ApiClient, noun: Noun | None, name: str, filters: Filters, output: str
) -> None:
    if noun is None:
        await _overview(client, output)
    elif noun.one is not None and noun.is_one(name):
        item = await noun.one(client, name)
        if output == "table":
            outputs.print_description(item)
        else:
            outputs.print_data(output, item)
    else:
        items = await noun.list(client, name, filters)
        if output == "table":
            outputs.print_table(noun.columns, items, nothing=f"no {noun.name}")
            if len(items) == filters.most:
                click.echo(f"the first {len(items)}; --limit shows more", err=True)
        else:
            outputs.print_data(output, items)


async def _overview(client: ApiClient, output: str) -> None:
    """Sources, jobsets, and what is being built."""
    everything = Filters(most=1000)
    summary, sources, jobsets, troubled, running = await asyncio.gather(
        client.get("/queue/summary"),
        nouns.SOURCES.list(client, "", everything),
        nouns.JOBSETS.list(client, "", everything),
        nouns.RESOURCES.list(client, "", Filters(condition="Ready=False", most=20)),
        nouns.BUILDS.list(client, "", Filters(status="running", most=20)),
    )
    if output != "table":
        outputs.print_data(
            output,
            {
                "url": client.url,
                "queue": summary,
                "sources": sources,
                "jobsets": jobsets,
                "not_ready": troubled,
                "running": running,
            },
        )
        return
    parts: list[tuple[str, Noun, list[dict[str, Any]]]] = [
        ("Sources", nouns.SOURCES, sources),
        ("Jobsets", nouns.JOBSETS, jobsets),
        ("Not as declared", nouns.RESOURCES, troubled),
        ("Running builds", nouns.BUILDS, running),
    ]
    click.echo(f"FC Operator at {client.url}: {queue_words(summary)}")
    for title, noun, items in parts:
        if items:
            click.secho(f"\n{title}", bold=True)
            outputs.print_table(noun.columns, items)
    if not jobsets:
        click.echo("\nnothing is declared yet: `fc apply`, or `fc up --config`", err=True)


def queue_words(summary: dict[str, Any]) -> str:
    """What runs and waits, such as ``builds: 2 running, 14 pending; evaluations: 1 running``."""
    parts = []
    for noun in ("build", "evaluation"):
        counts = {word: summary[f"{word}_{noun}s"] for word in ("running", "pending")}
        said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        if said:
            parts.append(f"{noun}s: {said}")
    return "; ".join(parts) or "idle"
