"""What ``fc get`` can show: for each noun its columns, where the API lists it, and one of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from fc_operator.cli import outputs, references
from fc_operator.cli.outputs import Column, field
from fc_operator.errors import InvalidError
from fc_operator.model.desired import KINDS

if TYPE_CHECKING:
    from fc_operator.clients.api import ApiClient

Item: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What narrows a list; each noun takes some of them."""

    status: str | None = None
    system: str | None = None
    evaluation: str | None = None
    condition: str | None = None
    """Such as ``Ready=False``."""
    most: int = 50


List: TypeAlias = "Callable[[ApiClient, str, Filters], Awaitable[list[Item]]]"
One: TypeAlias = "Callable[[ApiClient, str], Awaitable[Item]]"


def _never(_: str) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Noun:
    """One kind of thing."""

    name: str
    aliases: tuple[str, ...]
    columns: Sequence[Column]
    list: List
    """Takes what stands after the noun; empty when nothing does."""
    one: One | None = None
    """What is shown where a name says one thing; None where there is only the list."""
    is_one: Callable[[str], bool] = _never
    """Whether the words after the noun say one thing."""
    takes: tuple[str, ...] = ()
    """Fields of Filters that narrow its list."""


def _quoted(word: str) -> str:
    return quote(word, safe="")


def _counts(name: str) -> Callable[[Item], str | None]:
    of = field(name)

    def words(item: Item) -> str | None:
        counts = of(item) or {}
        shown = [f"{number} {status}" for status, number in sorted(counts.items()) if number]
        return ", ".join(shown) or None

    return words


def _age(name: str) -> Callable[[Item], str | None]:
    of = field(name)
    return lambda item: outputs.ago(of(item))


def _short(name: str) -> Callable[[Item], str | None]:
    of = field(name)
    return lambda item: (of(item) or "").removeprefix("sha256:")[:12] or None


def _took(item: Item) -> str | None:
    from datetime import UTC, datetime

    if not item.get("started_at"):
        return None
    end = item.get("completed_at") or item.get("finished_at")
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return outputs.lasted((until - datetime.fromisoformat(item["started_at"])).total_seconds())


def _jobset_name(item: Item) -> str:
    return f"{item['project']}/{item.get('jobset') or item.get('name')}"


def ready(item: Item) -> tuple[str, str]:
    """Status and message of the condition Ready."""
    for condition in item.get("conditions") or ():
        if condition.get("type") == "Ready":
            return str(condition.get("status", "")), str(condition.get("message", ""))
    return "Unknown", ""


def evaluation_word(item: Item) -> str:
    """An evaluation's status, and how many attributes did not evaluate."""
    errors = item.get("errors") or 0
    noun = "error" if errors == 1 else "errors"
    return f"{item['status']}, {errors} {noun}" if errors else str(item["status"])


def no_such(words: str, noun: str) -> InvalidError:
    """A name that this noun does not take."""
    return InvalidError(f"{words!r} names no {noun}")


def _simple(path: str) -> List:
    """A list that nothing narrows."""

    async def read(client: ApiClient, words: str, filters: Filters) -> list[Item]:
        if words:
            raise no_such(words, path.strip("/"))
        return await client.all(path, most=filters.most)

    return read


# projects -----------------------------------------------------------------------------------


async def _project(client: ApiClient, words: str) -> Item:
    found: Item = await client.get(f"/projects/{_quoted(words)}")
    return found


PROJECTS = Noun(
    name="projects",
    aliases=("project", "p"),
    columns=(
        Column("NAME", field("name")),
        Column("JOBSETS", field("jobsets"), right=True),
        Column("VISIBILITY", field("visibility")),
        Column("REPOSITORY", field("repository_url")),
        Column("AGE", _age("created_at"), right=True),
    ),
    list=_simple("/projects"),
    one=_project,
    is_one=bool,
)


# jobsets ------------------------------------------------------------------------------------


async def _jobsets(client: ApiClient, words: str, filters: Filters) -> list[Item]:
    names = [words] if words else [row["name"] for row in await client.all("/projects")]
    found: list[Item] = []
    for name in names:
        if len(found) < filters.most:
            found += await client.all(
                f"/projects/{_quoted(name)}/jobsets", most=filters.most - len(found)
            )
    return found


async def _jobset(client: ApiClient, words: str) -> Item:
    path = references.jobset_path(references.parse_jobset(words))
    found: Item = await client.get(path)
    found["inputs"] = await client.all(f"{path}/inputs")
    found["errors"] = await client.get(f"{path}/errors")
    return found


JOBSETS = Noun(
    name="jobsets",
    aliases=("jobset", "js"),
    columns=(
        Column("NAME", _jobset_name),
        Column("STATE", lambda item: "suspended" if item["suspended"] else item["state"]),
        Column("EVALUATION", field("latest_evaluation.number"), right=True),
        Column("COMMIT", _short("latest_evaluation.commit_hash")),
        Column("STATUS", field("latest_evaluation.status")),
        Column("BUILDS", _counts("latest_evaluation.builds")),
        Column("CHECKED", _age("last_checked_at"), right=True),
        Column("PROBLEM", field("last_error")),
    ),
    list=_jobsets,
    one=_jobset,
    is_one=lambda words: "/" in words,
)


# evaluations --------------------------------------------------------------------------------


async def _evaluations(client: ApiClient, words: str, filters: Filters) -> list[Item]:
    parameters: dict[str, str | int | bool | None] = {"status": filters.status}
    path = "/evaluations"
    if "/" in words:
        path = f"{references.jobset_path(references.parse_jobset(words))}/evaluations"
    elif words:
        parameters["project"] = words
    return await client.all(path, parameters, most=filters.most)


async def _evaluation(client: ApiClient, words: str) -> Item:
    path = f"/evaluations/{_quoted(words.rpartition('/')[2])}"
    found: Item = await client.get(path)
    found["job_errors"] = await client.all(f"{path}/errors", most=200)
    found["inputs"] = await client.all(f"{path}/inputs")
    return found


EVALUATIONS = Noun(
    name="evaluations",
    aliases=("evaluation", "eval", "evals", "e"),
    columns=(
        Column("NUMBER", field("number"), right=True),
        Column("JOBSET", _jobset_name),
        Column("COMMIT", _short("commit_hash")),
        Column("STATUS", evaluation_word),
        Column("BUILDS", _counts("builds")),
        Column("TRIGGER", field("trigger")),
        Column("AGE", _age("evaluation_time"), right=True),
        Column("TOOK", _took, right=True),
        Column("SUBJECT", field("subject")),
    ),
    list=_evaluations,
    one=_evaluation,
    is_one=lambda words: _names_one(words, "evaluation"),
    takes=("status",),
)


def _names_one(words: str, noun: str) -> bool:
    if not words:
        return False
    try:
        reference = references.parse(words, bare="evaluation" if noun == "evaluation" else "build")
    except InvalidError:
        return False
    return isinstance(reference, references.Numbered) and reference.noun == noun


# builds -------------------------------------------------------------------------------------


async def _builds(client: ApiClient, words: str, filters: Filters) -> list[Item]:
    parameters: dict[str, str | int | bool | None] = {
        "status": filters.status,
        "system": filters.system,
        "evaluation": filters.evaluation,
    }
    project, _, rest = words.partition("/")
    jobset, _, job = rest.partition("/")
    parameters |= {"project": project or None, "jobset": jobset or None, "job": job or None}
    return await client.all("/builds", parameters, most=filters.most)


async def _build(client: ApiClient, words: str) -> Item:
    path = f"/builds/{_quoted(words.rpartition('/')[2])}"
    found: Item = await client.get(path)
    for part in ("steps", "products", "constituents", "dependencies"):
        found[part] = await client.all(f"{path}/{part}", most=200)
    found["metrics"] = (await client.get(f"{path}/metrics"))["items"]
    if found["status"] == "pending":
        found["why"] = await client.get(f"{path}/why")
    return found


BUILDS = Noun(
    name="builds",
    aliases=("build", "b"),
    columns=(
        Column("NUMBER", field("number"), right=True),
        Column("JOBSET", _jobset_name),
        Column("JOB", field("job_name")),
        Column("SYSTEM", field("system")),
        Column("STATUS", field("status")),
        Column("REASON", lambda item: item["status_reason"] or None),
        Column("AGE", _age("created_at"), right=True),
        Column("TOOK", _took, right=True),
    ),
    list=_builds,
    one=_build,
    is_one=lambda words: _names_one(words, "build"),
    takes=("status", "system", "evaluation"),
)


# builders, channels, queue ------------------------------------------------------------------


async def _builders(client: ApiClient, words: str, filters: Filters) -> list[Item]:
    """Declared builders, then the machines that build by themselves."""
    if words:
        raise no_such(words, "list of builders")
    first = await client.get("/builders", {"limit": min(filters.most, 200)})
    return [*first["items"], *(machine_row(each) for each in first["machines"])]


def machine_row(machine: Item) -> Item:
    """A machine in the words of a builder."""
    # A machine has one executor of its own, which says what it offers.
    offers = machine["info"].get("offers") or ()
    info: Item = next((each for each in offers if not each.get("declared")), {})
    return {
        **machine,
        "name": f"{machine['kind']} on {machine['host']}",
        "systems": info.get("systems"),
        "max_jobs": info.get("slots"),
        "supported_features": info.get("features"),
        "sandbox": info.get("sandbox"),
        "last_error": info.get("problem") or None,
        "enabled": True,
    }


async def _builder(client: ApiClient, words: str) -> Item:
    found: Item = await client.get(f"/builders/{_quoted(words)}")
    return found


BUILDERS = Noun(
    name="builders",
    aliases=("builder", "rb", "remotebuilders"),
    columns=(
        Column("NAME", field("name")),
        Column("SYSTEMS", field("systems")),
        Column("RUNNING", field("running"), right=True),
        Column("SLOTS", field("max_jobs"), right=True),
        Column("FEATURES", field("supported_features")),
        Column("SANDBOX", field("sandbox")),
        Column("ENABLED", field("enabled")),
        Column("DISABLED UNTIL", field("disabled_until")),
        Column("PROBLEM", field("last_error")),
    ),
    list=_builders,
    one=_builder,
    is_one=bool,
)


async def _channels(client: ApiClient, words: str, filters: Filters) -> list[Item]:
    path = f"/projects/{_quoted(words)}/channels" if words else "/channels"
    return await client.all(path, most=filters.most)


def _waits(item: Item) -> str:
    blockers = item.get("blockers")
    if item["waits_for"] == "Dependencies" and blockers:
        return f"{blockers} {'dependency' if blockers == 1 else 'dependencies'}"
    return str(item["waits_for"])


CHANNELS = Noun(
    name="channels",
    aliases=("channel", "ch"),
    columns=(
        Column("PROJECT", field("project")),
        Column("NAME", field("name")),
        Column("JOBSET", field("jobset")),
        Column("EVALUATION", field("current_evaluation"), right=True),
        Column("COMMIT", _short("commit_hash")),
        Column("UPDATED", _age("updated_at"), right=True),
    ),
    list=_channels,
)

QUEUE = Noun(
    name="queue",
    aliases=("q",),
    columns=(
        Column("BUILD", field("number"), right=True),
        Column("JOBSET", _jobset_name),
        Column("JOB", field("job_name")),
        Column("SYSTEM", field("system")),
        Column("STATUS", field("status")),
        Column("WAITS FOR", lambda item: None if item["status"] == "running" else _waits(item)),
        Column("PRIORITY", field("priority"), right=True),
        Column("AGE", _age("created_at"), right=True),
    ),
    list=_simple("/queue"),
)


# resources and sources ----------------------------------------------------------------------


async def _resources(client: ApiClient, words: str, filters: Filters) -> list[Item]:
    kind = next((each for each in KINDS if each.lower() == words.lower().removesuffix("s")), words)
    parameters = {"kind": kind or None, "condition": filters.condition}
    return await client.all("/managed-resources", parameters, most=filters.most)


def _file(item: Item) -> str | None:
    return f"{item['path']}:{item['line']}" if item.get("path") else None


async def _source(client: ApiClient, words: str) -> Item:
    found: Item = await client.get(f"/config-repositories/{_quoted(words)}")
    return found


SOURCES = Noun(
    name="sources",
    aliases=("source", "config-repositories", "configrepositories", "cr"),
    columns=(
        Column("NAME", field("name")),
        Column("READY", lambda item: ready(item)[0]),
        Column("REVISION", _short("last_revision")),
        Column("SYNCED", _age("last_synced_at"), right=True),
        Column("OBJECTS", field("resources"), right=True),
        Column("PROBLEMS", field("problems"), right=True),
        Column("URL", field("url")),
        Column("MESSAGE", lambda item: ready(item)[1] or None),
    ),
    list=_simple("/config-repositories"),
    one=_source,
    is_one=bool,
)

RESOURCES = Noun(
    name="resources",
    aliases=("resource", "managed-resources", "mr"),
    columns=(
        Column("KIND", field("kind")),
        Column("NAME", field("identity")),
        Column("READY", lambda item: ready(item)[0]),
        Column("SOURCE", lambda item: f"{item['source_kind']}/{item['source_name']}"),
        Column("REVISION", _short("revision")),
        Column("FILE", _file),
        Column("MESSAGE", lambda item: ready(item)[1] or None),
    ),
    list=_resources,
    takes=("condition",),
)


NOUNS: Mapping[str, Noun] = {
    noun.name: noun
    for noun in (
        PROJECTS, JOBSETS, EVALUATIONS, BUILDS, BUILDERS, CHANNELS, QUEUE, RESOURCES, SOURCES,
    )
}  # fmt: skip


def find(word: str) -> Noun:
    """The noun that ``word`` is a name of.

    Raises:
        InvalidError: there is none.
    """
    for noun in NOUNS.values():
        if word.lower() in {noun.name, *noun.aliases}:
            return noun
    import difflib

    close = difflib.get_close_matches(word.lower(), NOUNS, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    raise InvalidError(
        f"there is nothing called {word!r} to get", hint=f"{meant}one of {', '.join(NOUNS)}"
    )
