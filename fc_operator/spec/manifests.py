"""Manifests in, declarations and problems out. Nothing here raises on what a user wrote.

A file is parsed by itself (:func:`parse_file`, to be kept by content hash), then all files of a
source are linked (:func:`link`), which finds duplicates and dangling references.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from fc_operator.kit import documents
from fc_operator.kit.documents import Document, Lines, Path
from fc_operator.model import desired as nouns
from fc_operator.model.desired import Declaration
from fc_operator.model.problems import Problem
from fc_operator.spec import defaults, rows, rules, schemas

_NO_LINES = Lines(0)
_PROBLEMS_PER_DOCUMENT = 50
_PROBLEMS_PER_FILE = 500
"""A person mends what is shown and looks again; a hostile file is not worth more."""
_SERVER_METADATA = frozenset(
    {
        "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink",
        "deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "ownerReferences",
    }
)  # fmt: skip
"""What ``kubectl get -o yaml`` adds; taken and ignored."""
_TYPE_WORDS = {
    "string": "text", "integer": "a whole number", "boolean": "true or false",
    "array": "a list", "object": "a mapping", "number": "a number",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedFile:
    """What one file says; depends on nothing but its path and bytes."""

    path: str
    declarations: tuple[Declaration, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a source says as a whole. Declarations stand in the order of KINDS, then by identity."""

    declarations: tuple[Declaration, ...] = ()
    problems: tuple[Problem, ...] = ()


def is_manifest(path: str) -> bool:
    """Whether a file is read at all; kustomization files and hidden ones are not."""
    pure = PurePosixPath(path)
    if pure.stem.lower() == "kustomization" or any(part.startswith(".") for part in pure.parts):
        return False
    return pure.suffix.lower() in {".yaml", ".yml", ".json"}


def parse(
    files: Mapping[str, bytes], *, cache: MutableMapping[str, ParsedFile] | None = None
) -> Parsed:
    """Parses and links all files of a source. ``cache`` keeps files by path and content."""
    parsed = []
    for path in sorted(files):
        if not is_manifest(path):
            continue
        key = f"{path}\0{sha256(files[path]).hexdigest()}" if cache is not None else ""
        if cache is not None and key in cache:
            parsed.append(cache[key])
            continue
        parsed.append(one := parse_file(path, files[path]))
        if cache is not None:
            cache[key] = one
    return link(parsed)


def parse_file(path: str, data: bytes, namespace: str | None = None) -> ParsedFile:
    """Reads one file by itself.

    ``namespace`` is the one that its source belongs to: all that it declares is there, and another
    one is a problem. None: any, and ``default`` where a manifest names none.
    """
    read, load_problems = documents.load(data)
    problems = [
        Problem(path=path, line=each.line, message=each.message, hint=each.hint)
        for each in load_problems
    ]
    declarations = []
    for document in read:
        declaration, found = _parse_document(path, document, namespace)
        problems.extend(found)
        if declaration is not None:
            declarations.append(declaration)
        if len(problems) > _PROBLEMS_PER_FILE:
            problems.append(
                Problem(
                    path=path,
                    line=document.line,
                    message="the file has too many problems; what follows was not looked at",
                )
            )
            break
    return ParsedFile(path=path, declarations=tuple(declarations), problems=tuple(problems))


def parse_object(body: Mapping[str, Any]) -> tuple[Declaration | None, tuple[Problem, ...]]:
    """Reads an object that an API server gave us; its status is not looked at."""
    declaration, problems = _parse_document("", Document(value=dict(body), lines=_NO_LINES))
    return declaration, tuple(problems)


def link(
    parsed_files: Iterable[ParsedFile], *, known: Iterable[tuple[str, str]] | None = None
) -> Parsed:
    """Joins files: a second declaration of a thing and a reference to nothing are problems.

    ``known`` holds (kind, identity) of objects that exist besides these files. Of duplicates the
    first by path and line stays. A dangling reference is a problem, but its declaration stays:
    what it names may come later, through another door.
    """
    found: dict[tuple[str, str], Declaration] = {}
    objects: dict[tuple[str, str, str], Declaration] = {}
    problems: list[Problem] = []
    for file in sorted(parsed_files, key=lambda each: each.path):
        problems.extend(file.problems)
        for each in file.declarations:
            first = found.get((each.kind, each.identity)) or objects.get(_object_key(each))
            if first is not None:
                problems.append(_duplicate(first, each))
                continue
            found[each.kind, each.identity] = each
            objects[_object_key(each)] = each
    there = _There.of({*found, *(known or ())})
    declarations = sorted(
        found.values(), key=lambda each: (nouns.KINDS.index(each.kind), each.identity)
    )
    for each in declarations:
        problems.extend(_dangling(each, there))
    return Parsed(declarations=tuple(declarations), problems=tuple(sorted(problems)))


def _object_key(declaration: Declaration) -> tuple[str, str, str]:
    return declaration.kind, declaration.namespace, declaration.name


def _duplicate(first: Declaration, second: Declaration) -> Problem:
    where = f"{first.path}:{first.line}" if first.path else f"{first.namespace}/{first.name}"
    field = "metadata.name"
    if first.identity == second.identity:
        message = f"{second.kind} {second.identity} is already declared in {where}"
        field = "spec.name" if "name" in second.spec else field
    else:
        message = f"{second.kind} with metadata.name {second.name} is already declared in {where}"
    return _at(second, field, message, "give it another name or remove one of the two")


def _at(declaration: Declaration, field: str, message: str, hint: str = "") -> Problem:
    return Problem(
        path=declaration.path,
        line=declaration.line,
        field=field,
        kind=declaration.kind,
        name=declaration.name,
        message=message,
        hint=hint,
    )


@dataclass(frozen=True, slots=True)
class _There:
    """What can be referred to: every project by name, with the names of its jobsets."""

    projects: frozenset[str]
    jobsets: Mapping[str, set[str]]

    @classmethod
    def of(cls, there: Iterable[tuple[str, str]]) -> _There:
        jobsets: dict[str, set[str]] = defaultdict(set)
        projects = set()
        for kind, identity in there:
            if kind == nouns.PROJECT:
                projects.add(identity)
            elif kind == nouns.JOBSET:
                project, _, name = identity.partition("/")
                jobsets[project].add(name)
        return cls(frozenset(projects), jobsets)


def _dangling(declaration: Declaration, there: _There) -> Iterator[Problem]:
    declared = declaration.desired
    if isinstance(declared, nouns.DesiredJobset):
        if declared.project not in there.projects:
            message = f"there is no Project {declared.project}"
            hint = _meant(declared.project, there.projects)
            yield _at(declaration, "spec.projectRef.name", message, hint)
    elif isinstance(declared, nouns.DesiredProject):
        names = there.jobsets.get(declared.name, set())
        for index, channel in enumerate(declared.channels):
            if channel.jobset not in names:
                field = f"spec.channels[{index}].jobset"
                message = f"the project has no Jobset {channel.jobset}"
                yield _at(declaration, field, message, _meant(channel.jobset, names))


def check_transition(old: Declaration, new: Declaration) -> tuple[Problem, ...]:
    """What may not change between two accepted versions of one object."""
    tree = _rules(new.kind)
    if tree is None:
        return ()
    value, before = _for_rules(new.name, new.spec), _for_rules(old.name, old.spec)
    was = {(broken.path, broken.message) for broken in tree.check(value)}
    return tuple(
        _at(new, _dotted(broken.path), broken.message)
        for broken in tree.check(value, before)
        if (broken.path, broken.message) not in was
    )


# One document -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scribe:
    """Writes problems of one document with its place and name."""

    path: str
    lines: Lines
    kind: str
    name: str

    def __call__(self, at: Path, message: str, hint: str = "") -> Problem:
        return Problem(
            path=self.path,
            line=self.lines.at(at),
            field=_dotted(at),
            kind=self.kind,
            name=self.name,
            message=message,
            hint=hint,
        )


def _dotted(path: Path) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part[:128]}" if text else part[:128]
    return text


def _meant(word: Any, known: Iterable[str]) -> str:
    """A hint that names the nearest known word, else all of them if they are few."""
    known = tuple(sorted(known))
    if len(known) > 500:
        return ""  # looking for likeness among so many costs more than the hint is worth
    return _hint(str(word)[:128], known)


@lru_cache(maxsize=512)
def _hint(word: str, known: tuple[str, ...]) -> str:
    # Kept, since who mistakes a word does so in every document.
    folded = {each.lower(): each for each in reversed(known)}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    if close:
        return f"did you mean {folded[close[0]]}?"
    return f"known: {', '.join(known)}" if 0 < len(known) <= 12 else ""


def _parse_document(
    path: str, document: Document, namespace: str | None = None
) -> tuple[Declaration | None, list[Problem]]:
    value = document.value
    scribe = _Scribe(path, document.lines, "", "")
    if not isinstance(value, dict):
        return None, [scribe((), "a manifest is a mapping", "start with apiVersion and kind")]
    metadata = value.get("metadata")
    kind, name = value.get("kind"), metadata.get("name") if isinstance(metadata, dict) else None
    scribe = _Scribe(
        path,
        document.lines,
        kind[:63] if isinstance(kind, str) else "",
        name[:253] if isinstance(name, str) else "",
    )
    if problems := list(_check_kind(value, scribe)):
        return None, problems
    assert isinstance(kind, str)
    whole = {
        "apiVersion": value["apiVersion"],
        "kind": kind,
        "metadata": _own_metadata(metadata) if isinstance(metadata, dict) else metadata,
        "spec": defaults.fill(schemas.schema_of(kind)["properties"]["spec"], value.get("spec")),
    }
    whole.update({key: item for key, item in value.items() if key not in whole and key != "status"})
    if whole["spec"] is None:
        del whole["spec"]
    if whole["metadata"] is None:
        del whole["metadata"]
    problems = list(islice(_check(kind, whole, scribe), _PROBLEMS_PER_DOCUMENT + 1))
    if len(problems) > _PROBLEMS_PER_DOCUMENT:
        problems[-1] = scribe((), "it has more problems; the rest is not shown")
    if namespace is not None and not problems:
        problems = list(_settle_namespace(whole["metadata"], namespace, scribe))
    if problems:
        return None, problems
    return _declare(whole, value["metadata"], path, document.line), []


def _settle_namespace(metadata: dict[str, Any], own: str, scribe: _Scribe) -> Iterator[Problem]:
    """Whoever may write to a source has a say in its own namespace only, secrets among it."""
    if metadata.setdefault("namespace", own) != own:
        message = f"the source may declare objects of the namespace {own} only"
        yield scribe(("metadata", "namespace"), message, "leave it out")


_BLOCKING = frozenset({"type", "required", "enum", "const", "maxLength", "maxItems"})
"""Broken keywords of the schema after which the API server does not run rules, nor do we: a rule
takes for granted that values have their type and their bounds.
"""


def _check(kind: str, whole: dict[str, Any], scribe: _Scribe) -> Iterator[Problem]:
    """What the API server would find, in the order in which it looks."""
    blocked = False
    found: set[str] = set()
    for error in _validator(kind).iter_errors(whole):
        blocked = blocked or error.validator in _BLOCKING
        for problem in _explain(error, scribe):
            found.add(problem.field)
            yield problem
    yield from _check_lists(schemas.schema_of(kind), whole, scribe)
    tree = None if blocked else _rules(kind)
    for broken in tree.check(whole) if tree is not None else ():
        # A rule about a value that is wrong already says nothing new.
        if _dotted(broken.path) not in found:
            yield scribe(broken.path, broken.message)


def _check_kind(value: dict[str, Any], scribe: _Scribe) -> Iterator[Problem]:
    kind, version = value.get("kind"), value.get("apiVersion")
    known = ", ".join(nouns.KINDS)
    if not isinstance(kind, str):
        yield scribe(("kind",), "a manifest needs a kind", f"one of {known}")
    elif kind not in nouns.KINDS:
        hint = _meant(kind, nouns.KINDS)
        if not hint.startswith("did"):
            hint = f"we know {known}; keep other manifests outside the folder that is synced"
        yield scribe(("kind",), f"the kind {kind[:128]} is not one of ours", hint)
    if version != nouns.API_VERSION and (kind in nouns.KINDS or not isinstance(kind, str)):
        shown = f" {version[:128]!r}" if isinstance(version, str) else ""
        message = f"the apiVersion{shown} is not known" if version else "apiVersion is missing"
        yield scribe(("apiVersion",), message, f"write {nouns.API_VERSION}")


def _own_metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        key: item
        for key, item in metadata.items()
        if key not in _SERVER_METADATA and (item is not None or key not in schemas.METADATA_FIELDS)
    }


def _declare(whole: dict[str, Any], metadata: dict[str, Any], path: str, line: int) -> Declaration:
    kind, name, spec = whole["kind"], whole["metadata"]["name"], whole["spec"]
    namespace = whole["metadata"].get("namespace", nouns.DEFAULT_NAMESPACE)
    declared = rows.desired_of(kind, name, spec)
    generation, uid = metadata.get("generation"), metadata.get("uid")
    return Declaration(
        kind=kind,
        namespace=namespace,
        name=name,
        identity=rows.identity_of(declared),
        spec=spec,
        spec_hash=nouns.hash_spec(kind, namespace, name, spec),
        desired=declared,
        path=path,
        line=line,
        annotations=dict(whole["metadata"].get("annotations", {})),
        generation=generation if isinstance(generation, int) else None,
        uid=uid if isinstance(uid, str) else None,
    )


def _for_rules(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec}


@cache
def _rules(kind: str) -> rules.RuleTree | None:
    return rules.RuleTree.of(schemas.schema_of(kind))


def _check_pattern(_: Any, pattern: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not isinstance(instance, str) or len(instance) > schema.get("maxLength", 65_536):
        return  # what is too long is said already, and not worth a search
    if not _compiled(pattern).search(instance):
        yield ValidationError("does not match")


def _check_unique(_: Any, wanted: bool, instance: Any, __: Any) -> Iterator[ValidationError]:  # noqa: FBT001 - jsonschema's signature
    """In linear time; the library compares each with each when the types are mixed. The first
    repetition of an item is named, as the API server does.
    """
    if not wanted or not isinstance(instance, list):
        return
    seen: set[str] = set()
    said: set[str] = set()
    for index, item in enumerate(instance):
        text = json.dumps(item, sort_keys=True)
        if text in seen and text not in said:
            said.add(text)
            yield ValidationError("holds an item twice", path=(index,))
        seen.add(text)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rules.anchored(pattern))


@cache
def _validator(kind: str) -> Any:
    strict: Any = extend(  # type: ignore[no-untyped-call]
        jsonschema.Draft202012Validator,
        {"pattern": _check_pattern, "uniqueItems": _check_unique},
    )
    return strict(schemas.json_schema(kind))


def _check_lists(
    schema: dict[str, Any], value: Any, scribe: _Scribe, path: Path = ()
) -> Iterator[Problem]:
    """Lists with keys hold each key once, as server-side apply demands. The first repetition is
    named.
    """
    for name, sub in schema.get("properties", {}).items():
        if isinstance(value, dict) and name in value:
            yield from _check_lists(sub, value[name], scribe, (*path, name))
    if "items" not in schema or not isinstance(value, list):
        return
    keys = schema.get("x-kubernetes-list-map-keys")
    seen: dict[tuple[Any, ...], int] = {}
    said: set[tuple[Any, ...]] = set()
    for index, item in enumerate(value):
        if keys and isinstance(item, dict):
            key = tuple(item.get(each) for each in keys)
            if not all(isinstance(each, str) for each in key):
                continue  # said already: it is missing or of a wrong type
            if key in seen and key not in said:
                said.add(key)
                named = ", ".join(f"{each} {item.get(each)!r}" for each in keys)
                first = _dotted((*path, seen[key]))
                yield scribe((*path, index), f"{named} is already in {first}", "keep one of them")
            seen.setdefault(key, index)
        yield from _check_lists(schema["items"], item, scribe, (*path, index))


# Words for what the schema found ------------------------------------------------------------

_QUOTE = "put it in quotes: an unquoted yes, no, on, off, true, false or number is not text"
_HINTS = (
    ("repositoryUrl", "https://host/path, ssh://user@host/path or user@host:path, no password"),
    ("url", "https://host/path; for git also ssh://user@host/path or user@host:path"),
    ("sshUri", "ssh://user@host:port"),
    ("publicHostKey", "ssh-ed25519 AAAA..., as ssh-keyscan prints it"),
    ("branch", "a branch name such as main or release/1.0"),
    ("systems", "a system such as x86_64-linux"),
    ("path", "a folder inside the repository, such as ./fc"),
    ("nixExpression", "a file inside the checkout such as ci/release.nix, or an attribute"),
    ("homepage", "https://host/path"),
    ("to", "a mail address such as ann@example.org"),
    ("user", "a user name: letters, digits, '.', '_', '@', '+', '-'"),
    ("supportedFeatures", "a feature such as kvm or big-parallel"),
    ("mandatoryFeatures", "a feature such as kvm or big-parallel"),
    ("name", "letters, digits, '-', '_' (jobsets also '.'), beginning with a letter or '_'"),
)  # fmt: skip


def _found(error: Any) -> tuple[str, Any, Any]:
    """The keyword that is broken, what broke it, and what the schema says there.

    The library types each as perhaps not set; on an error that it yielded they all are.
    """
    return str(error.validator), error.instance, error.validator_value


def _explain(error: ValidationError, scribe: _Scribe) -> Iterator[Problem]:
    at: Path = tuple(error.absolute_path)
    rule, value, wanted = _found(error)
    schema: Any = error.schema
    if rule == "additionalProperties":
        known = set(schema.get("properties", {}))
        for key in value:
            if key not in known:
                left = known - set(value)
                yield scribe((*at, key), f"the field {key[:128]} is not known", _meant(key, left))
    elif rule == "required":
        for key in wanted:
            if key not in value:
                about = schema.get("properties", {}).get(key, {}).get("description", "")
                if f"'{key}'" == error.message.split(" is a required")[0]:
                    yield scribe((*at, key), f"the field {key} is missing", about)
    else:
        message, hint = _words(rule, wanted, value, schema)
        if rule == "pattern" and not hint:
            hint = _pattern_hint(at, str(wanted))
        yield scribe(at, message, hint)


def _pattern_hint(at: Path, pattern: str) -> str:
    if "(ms|s|m|h)" in pattern:
        return "a number with its unit, such as 30s, 5m or 1h30m"
    if "ecretRef" in _dotted(at) and at[-1] == "key":
        return "letters, digits, '-', '_' and '.'"
    if at[:1] == ("metadata",) or "ecretRef" in _dotted(at):
        return (
            "lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit"
        )
    field = next((part for part in reversed(at) if isinstance(part, str)), "")
    return next((hint for name, hint in _HINTS if name == field), f"it must match {pattern}")


def _words(rule: str, wanted: Any, value: Any, schema: dict[str, Any]) -> tuple[str, str]:
    """The sentence for one broken keyword, and what would be right."""
    shown = _shown(value)
    match rule:
        case "type":
            needed = _TYPE_WORDS.get(str(wanted), str(wanted))
            plain = isinstance(value, bool | int | float) and wanted == "string"
            return f"must be {needed}, not {shown}", _QUOTE if plain else ""
        case "enum":
            hint = _meant(value, wanted) if isinstance(value, str) else ""
            choice = ", ".join(wanted)
            return f"{shown} is not one of {choice}", hint if hint.startswith("did") else ""
        case "pattern":
            return f"{shown} is not in the right form", ""
        case "minimum":
            return f"{shown} is too small", f"at least {wanted}"
        case "maximum":
            return f"{shown} is too large", f"at most {wanted}"
        case "minLength":
            return "must not be empty" if value == "" else f"{shown} is too short", ""
        case "maxLength":
            return f"is {len(value)} characters long", f"at most {wanted}"
        case "minItems":
            return "the list is too short", f"at least {wanted}"
        case "maxItems":
            return f"the list has {len(value)} items", f"at most {wanted}"
        case "uniqueItems":
            return "the list holds an item twice", "keep one of them"
        case _:
            return f"does not fit {rule} {wanted}", schema.get("description", "")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Back to text -------------------------------------------------------------------------------


def render(declarations: Iterable[Declaration]) -> str:
    """Manifests as YAML text, defaults written out; parsing it gives the same again."""
    return documents.dump(*(_manifest_of(each) for each in declarations))


def _manifest_of(declaration: Declaration) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": declaration.name, "namespace": declaration.namespace}
    if declaration.annotations:
        metadata["annotations"] = dict(declaration.annotations)
    return {
        "apiVersion": nouns.API_VERSION,
        "kind": declaration.kind,
        "metadata": metadata,
        "spec": declaration.spec,
    }


def relocate(parsed: ParsedFile, path: str) -> ParsedFile:
    """The same content at another path, so that a moved file need not be parsed again."""
    return ParsedFile(
        path=path,
        declarations=tuple(replace(each, path=path) for each in parsed.declarations),
        problems=tuple(replace(each, path=path) for each in parsed.problems),
    )
