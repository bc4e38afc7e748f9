"""What a plan or an apply says, as lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import click

from fc_operator.cli import outputs

_MARKS: Final = {
    "create": ("+", "green"),
    "update": ("~", "yellow"),
    "prune": ("-", "red"),
    "release": ("-", "red"),
    "keep": ("=", "yellow"),
    "refuse": ("!", "red"),
    "wait": ("?", "yellow"),
    "unchanged": ("=", ""),
}
_PLANNED: Final = {
    "create": "to create", "update": "to update", "prune": "to delete", "release": "to release",
    "keep": "kept", "refuse": "refused", "wait": "waiting", "unchanged": "unchanged",
}  # fmt: skip
_DONE: Final = {
    **_PLANNED,
    "create": "created", "update": "updated", "prune": "being deleted", "release": "released",
}  # fmt: skip


def show(report: Mapping[str, Any], *, done: bool, output: str, everything: bool = False) -> None:
    """Print a report; ``done`` says that it tells what was done, not what would be."""
    if output != "table":
        outputs.print_data(output, report)
        return
    for problem in report["problems"]:
        click.secho(outputs.printable(problem_line(problem)), fg="red", err=True)
    for each in report["objects"]:
        if everything or each["action"] != "unchanged" or each["reason"]:
            mark, colour = _MARKS.get(each["action"], ("?", ""))
            click.secho(f"{mark} {outputs.printable(object_line(each))}", fg=colour or None)
    if report["prune_blocked"]:
        click.secho(f"! {outputs.printable(report['prune_blocked'])}", fg="yellow", err=True)
    click.echo(summary(report["counts"], done=done))


def problem_line(problem: Mapping[str, Any]) -> str:
    """A problem as `fc validate` writes it."""
    from fc_operator.model.problems import Problem

    return str(Problem(**{key: problem[key] for key in Problem.__dataclass_fields__}))


def object_line(each: Mapping[str, Any]) -> str:
    """One object: what it is, what changes of it, what is wrong with it, where it stands."""
    return "".join(_object_parts(each))


def _object_parts(each: Mapping[str, Any]) -> Iterator[str]:
    yield f"{each['kind']} {each['identity']}"
    if each["fields"]:
        yield f": {', '.join(each['fields'])}"
    if each["message"]:
        yield f": {each['message']}"
    elif each["reason"]:
        yield f": {each['reason']}"
    if each["path"]:
        yield f"  ({each['path']}:{each['line']})"


def summary(counts: Mapping[str, int], *, done: bool) -> str:
    """``2 to create, 1 unchanged``."""
    words = _DONE if done else _PLANNED
    parts = [f"{counts[action]} {word}" for action, word in words.items() if counts.get(action)]
    return ", ".join(parts) or "nothing is declared"
