"""Nix text that we write: quoted strings, arguments, the root value of a jobset. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from urllib.parse import quote

from fc_operator.errors import EvaluationError, InvalidError
from fc_operator.evaluator.requests import Argument, EvaluationRequest, Tree

_PART = re.compile(r'"((?:[^"\\]|\\.)*)"|([^."]+)')
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_'-]*")
_CONFIGURATIONS = "nixosConfigurations"
_TOPLEVEL = ("config", "system", "build", "toplevel")


def string(text: str) -> str:
    """A Nix string literal of ``text``; nothing in it is interpolated.

    Raises:
        InvalidError: it holds a NUL, which no Nix string can.
    """
    if "\0" in text:
        raise InvalidError("a Nix string can't hold a NUL character")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return '"' + escaped.replace("\r", "\\r") + '"'


def selection(attr_path: Sequence[str]) -> str:
    """``("a", "b.c")`` gives ``"a"."b.c"``."""
    return ".".join(string(part) for part in attr_path)


def attribute(expression: str) -> tuple[str, ...]:
    """The path that a flake jobset names: ``.#hydraJobs`` and ``#hydraJobs`` are ``hydraJobs``.

    Raises:
        InvalidError: it is no attribute path.
    """
    text = expression.split("#", 1)[1] if "#" in expression else expression
    text = text.strip()
    if text in {"", "."}:
        return ()
    parts: list[str] = []
    at = 0
    while True:
        found = _PART.match(text, at)
        if found is None:
            raise InvalidError(f"{expression!r} is not an attribute path")
        quoted, plain = found.groups()
        parts.append(re.sub(r"\\(.)", r"\1", quoted) if plain is None else plain)
        at = found.end()
        if at == len(text):
            return tuple(parts)
        if text[at] != ".":
            raise InvalidError(f"{expression!r} is not an attribute path")
        at += 1


def flake_reference(tree: Tree) -> str:
    """A locked reference to a folder: it names the content, so pure evaluation accepts it."""
    words = [f"narHash={quote(tree.nar_hash, safe='')}"]
    if tree.revision:
        words.append(f"rev={tree.revision}")
    if tree.rev_count is not None:
        words.append(f"revCount={tree.rev_count}")
    if tree.last_modified is not None:
        # Nix tells it from the files, but only where the content is not in the store yet.
        words.append(f"lastModified={tree.last_modified}")
    return f"path:{quote(str(tree.path), safe='/')}?{'&'.join(words)}"


def flake_root(reference: str, expression: str, *, inner: bool) -> str:
    """The value of a flake's attribute that holds the jobs.

    Empty is ``hydraJobs``, else ``checks``, as in Hydra. Configurations stand for their toplevel.
    ``inner`` is true where the reference is our own flake that only passes the real one on.
    """
    flake = f"builtins.getFlake {string(reference)}"
    outputs = f"({flake}).inner.outputs" if inner else f"({flake}).outputs"
    path = attribute(expression)
    if not path:
        return (
            f"let outputs = {outputs}; in outputs.hydraJobs or outputs.checks or (builtins.throw "
            '"the flake has neither an output hydraJobs nor checks")'
        )
    if path == (_CONFIGURATIONS,):
        toplevel = f"configuration.{selection(_TOPLEVEL)}"
        return f"builtins.mapAttrs (name: configuration: {toplevel}) {outputs}.{path[0]}"
    if path[0] == _CONFIGURATIONS and len(path) == 2:
        path = (*path, *_TOPLEVEL)
    missing = string(f"the flake has no output {'.'.join(path)}")
    return f"({outputs}).{selection(path)} or (builtins.throw {missing})"


def file_root(request: EvaluationRequest) -> str:
    """The value of a legacy jobset's file.

    Raises:
        InvalidError: the file lies outside of the checkout, also by way of a link.
        EvaluationError: the checkout has no such file.
    """
    source = request.source.path.resolve()
    relative = request.expression.split("#", 1)[0] or "default.nix"
    path = (source / relative.lstrip("/")).resolve()
    if not path.is_relative_to(source):
        raise InvalidError(f"{request.expression} lies outside of the checkout")
    if not path.exists():
        raise EvaluationError(f"the checkout has no {request.expression}")
    return f"import (/. + {string(str(path))})"


def argument(given: Argument) -> str:
    """The value that a legacy expression gets for an input."""
    if given.type == "string":
        return string(given.value)
    if given.type == "boolean":
        return "true" if given.value == "true" else "false"
    if given.type == "path":
        assert given.tree is not None
        return _attrs(inputType="path", outPath=f"/. + {string(str(given.tree.path))}")
    stored = f"builtins.storePath {string(str(given.store_path))}"
    if given.type == "git":
        assert given.tree is not None
        revision = given.tree.revision or ""
        return _attrs(
            inputType="git",
            outPath=stored,
            rev=revision,
            shortRev=revision[:7],
            revCount=given.tree.rev_count or 0,
        )
    return _attrs(
        inputType="build",
        outPath=stored,
        drvPath=given.value,
        version=given.version,
        outputName="out",
    )


def _attrs(**values: str | int) -> str:
    code = {"outPath"}
    words = [
        f"{name} = {value if name in code or isinstance(value, int) else string(value)};"
        for name, value in values.items()
    ]
    return "{ " + " ".join(words) + " }"


def arguments(given: Sequence[Argument]) -> str:
    """All arguments as one attribute set."""
    return "{ " + "".join(f"{string(each.name)} = {argument(each)}; " for each in given) + "}"


def name_of_root(request: EvaluationRequest) -> str:
    """What a job is called when the root itself is the only derivation."""
    if request.is_flake:
        path = attribute(request.expression)
        return path[-1] if path else "default"
    return "default"


def overriding_flake(
    source: Tree, lock: object, overrides: Sequence[tuple[Argument, object]]
) -> tuple[str, str]:
    """Text and lock file of a flake whose input ``inner`` is ``source`` with inputs replaced.

    ``lock`` is the content of the source's flake.lock (None without one), each override comes with
    its own. ``builtins.getFlake`` knows no ``--override-input``; a lock file that says what each
    input is does the same, for every evaluator, and leaves the source as it was committed.

    Raises:
        EvaluationError: the flake has no input of that name.
    """
    nodes: dict[str, dict[str, object]] = {}
    inner = _graft(nodes, lock, prefix="inner", position=("inner",))
    nodes[inner] |= _locked(source)
    for given, own_lock in overrides:
        assert given.tree is not None
        path = tuple(given.name.split("/"))
        parent = _node_at(nodes, inner, path[:-1], given.name)
        inputs = _inputs(nodes[parent])
        if path[-1] not in inputs:
            raise EvaluationError(f"the flake has no input {given.name}")
        replaced = inputs[path[-1]]
        is_flake = not (isinstance(replaced, str) and nodes[replaced].get("flake") is False)
        prefix = f"override/{given.name}"
        new = _graft(nodes, own_lock if is_flake else None, prefix, ("inner", *path))
        nodes[new] |= _locked(given.tree) | ({} if is_flake else {"flake": False})
        inputs[path[-1]] = new
    nodes["root"] = {"inputs": {"inner": inner}}
    text = (
        f"{{ inputs.inner.url = {string(flake_reference(source))};\n"
        "  outputs = { self, inner }: { inherit inner; }; }\n"
    )
    return text, json.dumps({"nodes": nodes, "root": "root", "version": 7}, indent=2)


def _inputs(node: dict[str, object]) -> dict[str, object]:
    inputs = node.setdefault("inputs", {})
    assert isinstance(inputs, dict)
    return inputs


def _node_at(
    nodes: dict[str, dict[str, object]], start: str, path: Sequence[str], name: str
) -> str:
    at = start
    for part in path:
        found = _inputs(nodes[at]).get(part)
        if not isinstance(found, str):
            raise EvaluationError(f"the flake has no input {name}")
        at = found
    return at


def _locked(tree: Tree) -> dict[str, object]:
    locked: dict[str, object] = {
        "type": "path",
        "path": str(tree.path),
        "narHash": tree.nar_hash,
    }
    if tree.revision:
        locked["rev"] = tree.revision
    if tree.rev_count is not None:
        locked["revCount"] = tree.rev_count
    if tree.last_modified is not None:
        locked["lastModified"] = tree.last_modified
    return {"locked": locked, "original": locked}


def _graft(
    nodes: dict[str, dict[str, object]], lock: object, prefix: str, position: tuple[str, ...]
) -> str:
    """Copy the nodes of a lock file under names of their own; returns the name of its root.

    ``position`` is where its root now stands, seen from the top: references of ``follows`` are
    paths from the top.
    """
    if not isinstance(lock, dict) or not isinstance(lock.get("nodes"), dict):
        nodes[prefix] = {}
        return prefix
    root = str(lock.get("root", "root"))

    def renamed(name: str) -> str:
        return prefix if name == root else f"{prefix}/{name}"

    for name, node in lock["nodes"].items():
        inputs = {
            key: [*position, *target] if isinstance(target, list) else renamed(str(target))
            for key, target in node.get("inputs", {}).items()
        }
        nodes[renamed(name)] = {**node, **({"inputs": inputs} if inputs else {})}
    nodes.setdefault(prefix, {})
    return prefix
