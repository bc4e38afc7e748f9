"""The text of a .drv file (Nix's ATerm) and what scheduling needs of it. Pure.

``Derive([(output,path,algo,hash),…],[(inputDrv,[output,…]),…],[inputSrc,…],"system","builder",
[arg,…],[(key,value),…])``; dynamic derivations begin ``DrvWithVersion("xp-dyn-drv",`` and nest the
outputs of their inputs once more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fc_operator.errors import ProtocolError
from fc_operator.model.ids import DrvPath, StorePath
from fc_operator.model.jobs import Derivation

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t"}
_DEPTH_MAX = 64
_SYSTEM_CHARS_MAX = 128
_FEATURES_CHARS_MAX = 1024
_HASH_CHARS = 33
"""A store path's base name is 32 digits of its hash, a dash, and its name."""


def parse(drv_path: DrvPath, text: str) -> Derivation:
    """The derivation that ``text``, the content of ``drv_path``, describes.

    Raises:
        ProtocolError: the text is no derivation.
    """
    head, _, _ = text.partition("(")
    if head not in {"Derive", "DrvWithVersion"}:
        raise ProtocolError(f"{drv_path} is no derivation")
    try:
        fields, end = _list(text, len(head), 0)
        if text[end:].strip():
            raise ValueError("text after the end")  # noqa: TRY301 - all flaws end the same way
        if head == "DrvWithVersion":
            fields = fields[1:]
        return _derivation(drv_path, fields)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise ProtocolError(f"{drv_path} is no derivation: {error}") from error


def without_env(derivation: Derivation) -> Derivation:
    """The same without environment and arguments, which are most of it."""
    return replace(derivation, env={}, args=(), input_srcs=())


def name_of(path: str) -> str:
    """``/nix/store/<hash>-hello-2.12.drv`` gives ``hello-2.12``."""
    return path.rsplit("/", 1)[-1][_HASH_CHARS:].removesuffix(".drv")


def system_of(text: str) -> str:
    """``text`` as the name of a system; one that is too long stays one that no builder has."""
    return text if len(text) <= _SYSTEM_CHARS_MAX else f"{text[:_SYSTEM_CHARS_MAX]}…"


def features_of(words: Iterable[str]) -> tuple[str, ...]:
    """System features: single words, sorted. Too many of them stay some that no builder has."""
    # A list may hold texts with spaces in them.
    found = sorted({part for word in words for part in word.split()})
    if sum(map(len, found)) > _FEATURES_CHARS_MAX:
        return (*(word[:_SYSTEM_CHARS_MAX] for word in found[:4]), "…")
    return tuple(found)


def _derivation(drv_path: DrvPath, fields: list[Any]) -> Derivation:
    outputs, inputs, sources, system, builder, args, env = fields
    attrs: dict[str, Any] = dict(env)
    structured = attrs.pop("__json", None)
    if structured is not None:
        attrs |= json.loads(structured)
    return Derivation(
        drv_path=drv_path,
        name=name_of(drv_path),
        system=system_of(system),
        outputs={name: StorePath(path) if path else None for name, path, _, _ in outputs},
        input_drvs={DrvPath(drv): _outputs_used(used) for drv, used in inputs},
        input_srcs=tuple(map(StorePath, sources)),
        required_features=_features(attrs.get("requiredSystemFeatures")),
        is_fixed_output=any(algo and digest for _, _, algo, digest in outputs),
        prefer_local=attrs.get("preferLocalBuild") in {"1", True},
        builder=builder,
        args=tuple(args),
        env=attrs,
    )


def _outputs_used(used: list[Any]) -> tuple[str, ...]:
    # Of a dynamic derivation: the outputs, then those of what it makes.
    return tuple(used[0] if used and isinstance(used[0], list) else used)


def _features(value: Any) -> tuple[str, ...]:
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    return features_of(word for word in words if isinstance(word, str))


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if text[at] == '"':
        match = _STRING.match(text, at)
        if match is None:
            raise ValueError(f"a string without an end at {at}")
        word = match[1]
        if "\\" in word:
            word = _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), word)
        return word, match.end()
    return _list(text, at, depth + 1)


def _list(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    """A list or tuple that begins at ``at``, and where it ends."""
    close = {"[": "]", "(": ")"}.get(text[at])
    if close is None or depth > _DEPTH_MAX:
        raise ValueError(f"something else than a list at {at}")
    values: list[Any] = []
    at += 1
    while text[at] != close:
        if values:
            if text[at] != ",":
                raise ValueError(f"no comma at {at}")
            at += 1
        value, at = _value(text, at, depth)
        values.append(value)
    return values, at + 1
