"""How answers are printed: tables for people, JSON and YAML for programs.

Colour and boxes only on a terminal; elsewhere a table is aligned columns of any width, so that
it can be cut and searched.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

FORMATS: Final = ("table", "json", "yaml")

output_option = click.option(
    "-o",
    "--output",
    "output",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="For people, or for programs.",
)

_STYLES: Final = {
    **dict.fromkeys(("succeeded", "completed", "Ready", "ready", "True", "true", "ok"), "green"),
    **dict.fromkeys(("running", "Reconciling", "pending"), "cyan"),
    **dict.fromkeys(("cancelled", "failed_with_output", "skipped", "Unknown"), "yellow"),
    **dict.fromkeys(
        ("failed", "dependency_failed", "aborted", "timeout", "cached_failure", "timed_out",
         "unsupported_system", "log_limit_exceeded", "nar_size_limit_exceeded",
         "non_deterministic", "False", "Stalled", "differs"),
        "red",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title and what it shows of an item."""

    title: str
    value: Callable[[dict[str, Any]], Any]
    right: bool = False


def field(path: str) -> Callable[[dict[str, Any]], Any]:
    """The value at a dotted path of an item, None where it leads nowhere."""

    def value(item: dict[str, Any]) -> Any:
        here: Any = item
        for part in path.split("."):
            if not isinstance(here, dict):
                return None
            here = here.get(part)
        return here

    return value


def console(*, err: bool = False) -> Console:
    """Where people read; wide enough for anything when nobody watches."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    return Console(
        file=stream,
        width=None if stream.isatty() else 10_000,
        highlight=False,
        soft_wrap=not stream.isatty(),
    )


def show(
    output: str, value: Any, columns: Sequence[Column], items: Iterable[dict[str, Any]]
) -> None:
    """Print ``items`` as a table, or ``value`` whole as JSON or YAML."""
    if output == "table":
        print_table(columns, items)
    else:
        print_data(output, value)


def print_data(output: str, value: Any) -> None:
    """``value`` as JSON or YAML."""
    if output == "json":
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    from fc_operator.kit import documents

    click.echo(documents.dump(value), nl=False)


def print_table(
    columns: Sequence[Column], items: Iterable[dict[str, Any]], *, nothing: str = "nothing"
) -> None:
    """Items as rows; says so on standard error where there are none."""
    rows = list(items)
    if not rows:
        click.echo(nothing, err=True)
        return
    out = console()
    made = table(columns, rows)
    if out.is_terminal:
        out.print(made)
        return
    with out.capture() as captured:
        out.print(made, crop=False, no_wrap=True)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def table(
    columns: Sequence[Column], items: Iterable[dict[str, Any]], *, title: str | None = None
) -> Table:
    """A borderless table."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for column in columns:
        made.add_column(column.title, justify="right" if column.right else "left")
    for item in items:
        made.add_row(*(cell(column.value(item)) for column in columns))
    return made


def print_description(item: dict[str, Any]) -> None:
    """One thing whole: its fields, then each list that belongs to it as a table of its own."""
    lists = dict(_lists(item))
    plain = {
        name: value
        for name, value in item.items()
        if name not in lists and value not in (None, "", [], {})
    }
    widest = max((len(name) for name in plain), default=0)
    for name, value in plain.items():
        for nr, line in enumerate(_described(value)):
            click.echo(f"{'' if nr else name:{widest}}  {printable(line)}")
    for name, items in lists.items():
        click.secho(f"\n{name.replace('_', ' ')}", bold=True)
        print_table(_columns_of(items), items)


def _lists(item: dict[str, Any], above: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Lists of things in an item, and in what it holds."""
    for name, value in item.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield above + name, value
        elif isinstance(value, dict):
            yield from _lists(value, f"{above}{name}: ")


def _described(value: Any) -> list[str]:
    if isinstance(value, dict):
        pairs = (
            f"{key}={said(each)}"
            for key, each in value.items()
            if each not in (None, "", [], {}) and not isinstance(each, dict | list)
        )
        return [", ".join(pairs) or "-"]
    return said(value).splitlines() or ["-"]


def _columns_of(items: Sequence[dict[str, Any]]) -> list[Column]:
    """A column for each field that anywhere says something in a word."""
    names = [
        name
        for name in items[0]
        if any(item.get(name) not in (None, "", [], {}) for item in items)
        and not any(isinstance(item.get(name), dict) for item in items)
        and not name.endswith("id")
    ]
    return [Column(name.upper(), field(name)) for name in names]


def cell(value: Any) -> Text:
    """A value as a cell; statuses coloured, control characters of foreign text taken out."""
    from rich.text import Text

    text = printable(said(value))
    return Text(text, style=_STYLES.get(text, ""))


def said(value: Any) -> str:
    """A value as a word."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ",".join(said(each) for each in value) or "-"
    return str(value)


def printable(text: str) -> str:
    """Text that can't move the cursor or fake a line: control characters become ``?``."""
    return "".join(each if each.isprintable() else "?" for each in text.replace("\n", " "))


_COLOUR = r"\x1b\[[0-9;]*m"
_STEERING = re.compile(
    rf"(?P<keep>{_COLOUR})"
    r"|\x1b\][^\x07\x1b]*(\x07|\x1b\\)?"  # titles, links, the clipboard
    r"|\x1b[PX^_][^\x1b]*(\x1b\\)?"
    r"|\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b.?"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]",
    re.DOTALL,
)


def tame(text: str) -> str:
    """Foreign text for a terminal: colours stay, whatever else would steer it goes."""
    return _STEERING.sub(lambda found: found["keep"] or "", text)


def ago(moment: str | None, now: datetime | None = None) -> str | None:
    """How long since an RFC 3339 moment, in one unit: ``42s``, ``7m``, ``3h``, ``12d``."""
    if not moment:
        return None
    then = datetime.fromisoformat(moment)
    return lasted(((now or datetime.now(UTC)) - then).total_seconds())


def lasted(seconds: float | None) -> str | None:
    """A duration in one or two units: ``0.4s``, ``42s``, ``7m12s``, ``3h5m``, ``12d``."""
    if seconds is None:
        return None
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60}m"
    return f"{whole // 86_400}d"
