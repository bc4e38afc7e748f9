"""The CEL rules of the CRDs (``x-kubernetes-validations``), run as the API server runs them."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

from fc_operator.kit.documents import Path

_FIELD = re.compile(r"\b(self|oldSelf)((?:\.[A-Za-z_]\w*(?!\w*\())*)")
_QUOTED = re.compile(r"'[^']*'")
_REMEMBERED = 4096
"""Verdicts per clause: enough for the values of a few thousand manifests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A rule that does not hold."""

    path: Path
    message: str


def _matches(text: str, pattern: str) -> celtypes.BoolType:
    return celtypes.BoolType(re.search(anchored(pattern), text) is not None)


def anchored(pattern: str) -> str:
    r"""The pattern with RE2's meaning of a last ``$``: the very end, not before a newline."""
    return pattern[:-1] + r"\Z" if pattern.endswith("$") and pattern[-2:] != r"\$" else pattern


class _Clause:
    """A part of a rule, compiled. It sees only the fields that it names, so equal fields give an
    equal verdict: verdicts are remembered by them, which makes a thousand alike manifests cheap.
    """

    def __init__(self, text: str) -> None:
        environment = celpy.Environment()
        self._program = environment.program(
            environment.compile(text), functions={"matches": _matches}
        )
        named = {(who, tuple(rest.split(".")[1:])) for who, rest in _FIELD.findall(text)}
        self._fields = sorted(named)
        self._verdicts: OrderedDict[str, bool] = OrderedDict()

    def holds(self, value: Any, old: Any) -> bool:
        sides = {"self": value, "oldSelf": old}
        seen: dict[str, Any] = {}
        for who, path in self._fields:
            _project(sides[who], (who, *path), seen)
        key = json.dumps(seen, sort_keys=True)
        if len(key) > 128:  # a text of somebody's choice is not kept
            key = sha256(key.encode()).hexdigest()
        known = self._verdicts.get(key)
        if known is None:
            known = self._verdicts[key] = self._evaluate(seen)
            if len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)
        return known

    def _evaluate(self, seen: dict[str, Any]) -> bool:
        context = {who: json_to_cel(part) for who, part in seen.items()}
        try:
            return bool(self._program.evaluate(context))
        except CELEvalError:
            return False


class Rule:
    """One rule, compiled by the parts between its outer ``||`` and ``&&``: the cheap first part
    (which type? is it there?) is then nearly always remembered and saves the rest.

    A part that ends in an error is not true. So ``error || true`` holds and all other errors
    break the rule, as in the API server.
    """

    def __init__(self, declared: dict[str, Any]) -> None:
        self.text: str = declared["rule"]
        self.message: str = declared.get("message") or f"the rule does not hold: {self.text}"
        self.on_transition = "oldSelf" in self.text
        self.path: Path = tuple(filter(None, declared.get("fieldPath", "").split(".")))
        self._alternatives = [
            [_Clause(part) for part in split(alternative, "&&")]
            for alternative in split(self.text, "||")
        ]

    def holds(self, value: Any, old: Any = None) -> bool:
        """Whether it holds."""
        return any(
            all(clause.holds(value, old) for clause in clauses) for clauses in self._alternatives
        )


def split(text: str, operator: str) -> list[str]:
    """The parts of an expression between an operator outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    if "?" in _QUOTED.sub("", text):
        return [text]
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote and text[at - 1] != "\\" else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith(operator, at):
            parts.append(text[start:at])
            start = at + len(operator)
    return [*parts, text[start:]]


def _project(value: Any, path: tuple[str, ...], into: dict[str, Any]) -> None:
    """Copies what lies at a path, and nothing else, so that absent and null stay different."""
    for part, following in pairwise(path):
        into = into.setdefault(part, {})
        if not isinstance(value, dict) or following not in value:
            return
        value = value[following]
    into[path[-1]] = value


@dataclass(slots=True)
class RuleTree:
    """The rules of a schema, in its shape; parts without rules are left out."""

    rules: list[Rule] = field(default_factory=list)
    properties: dict[str, RuleTree] = field(default_factory=dict)
    items: RuleTree | None = None

    @classmethod
    def of(cls, schema: dict[str, Any]) -> RuleTree | None:
        """Compiles the rules below a schema; None where there are none."""
        tree = cls(rules=[Rule(each) for each in schema.get("x-kubernetes-validations", ())])
        for name, sub in schema.get("properties", {}).items():
            if (below := cls.of(sub)) is not None:
                tree.properties[name] = below
        if "items" in schema:
            tree.items = cls.of(schema["items"])
        return tree if tree.rules or tree.properties or tree.items else None

    def check(self, value: Any, old: Any = None, path: Path = ()) -> Iterator[Broken]:
        """The rules that do not hold. Transition rules run only where ``old`` has the part too;
        items of lists are never matched with older ones, none of our rules needs it.
        """
        for rule in self.rules:
            if rule.on_transition and old is None:
                continue
            if not rule.holds(value, old):
                yield Broken(path=(*path, *rule.path), message=rule.message)
        for name, below in self.properties.items():
            if isinstance(value, dict) and name in value:
                before = old.get(name) if isinstance(old, dict) else None
                yield from below.check(value[name], before, (*path, name))
        if self.items and isinstance(value, list):
            for index, item in enumerate(value):
                yield from self.items.check(item, None, (*path, index))
