"""What ``cancel``, ``restart``, ``bump`` and ``keep`` share: things by name, one request each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from fc_operator.cli import connections, exits, outputs, references
from fc_operator.errors import CallerError, InvalidError

if TYPE_CHECKING:
    from fc_operator.cli.references import Target
    from fc_operator.clients.api import ApiClient

Request = tuple[str, str]
"""Method, and what follows the thing's path."""


def change(
    words: tuple[str, ...], requests: Mapping[str, Request], done: str, *, output: str = "table"
) -> int:
    """Send for each named thing the request of its noun; goes on after a refusal, tells at the end.

    ``requests`` has a request for ``build`` and perhaps one for ``evaluation``; ``done`` is the
    word for what was done, such as ``cancelled``.
    """
    named = [references.parse(word) for word in words]

    async def work(client: ApiClient) -> int:
        answers: list[dict[str, Any]] = []
        refused = 0
        for each in named:
            try:
                target = await references.resolve(client, each)
                if target.noun not in requests:
                    raise InvalidError(f"{target.shown} is no build")
                method, verb = requests[target.noun]
                answer = await client.send(method, f"{target.path}/{verb}")
            except CallerError as error:
                refused += 1
                tell(error)
                continue
            answers.append({"target": target.shown, "answer": answer})
            if output == "table":
                click.echo(f"{done} {target.shown}{told(target, answer)}")
        if output != "table":
            outputs.print_data(output, answers)
        return exits.ERROR if refused else exits.DONE

    return connections.call(work)


def told(target: Target, answer: Any) -> str:
    """How many builds were changed, where it is more than the thing itself."""
    if not isinstance(answer, dict):
        return ""
    own, also = len(answer.get("builds") or ()), len(answer.get("also") or ())
    if target.noun == "build":
        return f", and {also} more that hang on it" if also else ""
    return f": {own + also} {'build' if own + also == 1 else 'builds'}"


def tell(error: CallerError) -> None:
    """An error as a line and its hint."""
    click.secho(f"error: {error.message}", fg="red", err=True)
    if error.hint:
        click.echo(f"hint:  {error.hint}", err=True)


def targets(command: Callable[..., Any]) -> Callable[..., Any]:
    """The argument and options of such a verb."""
    for option in (
        connections.server_options,
        outputs.output_option,
        click.argument("references", nargs=-1, required=True, metavar="REF..."),
    ):
        command = option(command)
    return command
