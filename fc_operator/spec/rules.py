"""The CEL rules of the CRDs (``x-kubernetes-validations``), run as the API server runs them."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel

from fc_operator.kit.documents import Path

_FIELD = re.compile(r"\b(self|oldSelf)((?:\.[A-Za-z_]\w*(?!\w*\())*)")
_REMEMBERED = 8192


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


class Rule:
    """One compiled rule. A rule sees only the fields that it names, so equal fields give an equal
    verdict: verdicts are remembered by them, which makes a thousand alike manifests cheap.
    """

    def __init__(self, declared: dict[str, Any]) -> None:
        self.text: str = declared["rule"]
        self.message: str = declared.get("message") or f"the rule does not hold: {self.text}"
        self.on_transition = "oldSelf" in self.text
        self.path: Path = tuple(filter(None, declared.get("fieldPath", "").split(".")))
        environment = celpy.Environment()
        self._program = environment.program(
            environment.compile(self.text), functions={"matches": _matches}
        )
        self._fields = sorted(
            {(who, tuple(rest.split(".")[1:])) for who, rest in _FIELD.findall(self.text)}
        )
        self._verdicts: OrderedDict[str, bool] = OrderedDict()

    def holds(self, value: Any, old: Any = None) -> bool:
        """Whether it holds; an error of the expression counts as no, as in the API server."""
        sides = {"self": value, "oldSelf": old}
        seen = json.dumps([_reach(sides[who], path) for who, path in self._fields], sort_keys=True)
        known = self._verdicts.get(seen)
        if known is None:
            known = self._verdicts[seen] = self._evaluate(value, old)
            if len(self._verdicts) > _REMEMBERED:
                self._verdicts.popitem(last=False)
        return known

    def _evaluate(self, value: Any, old: Any) -> bool:
        context = {"self": json_to_cel(value)}
        if self.on_transition:
            context["oldSelf"] = json_to_cel(old)
        try:
            return bool(self._program.evaluate(context))
        except celpy.CELEvalError:
            return False


def _reach(value: Any, path: tuple[str, ...]) -> Any:
    """The value at a path in a list, so that absent and null differ."""
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return []
        value = value[part]
    return [value]


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
