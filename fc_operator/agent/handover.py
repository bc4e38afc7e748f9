"""What the fetch container leaves for the work container, in their shared folder: a request without
any credential.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson

from fc_operator.errors import ProtocolError
from fc_operator.evaluator.requests import EvaluationRequest

_NAME = "request.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A finished checkout."""

    request: EvaluationRequest
    checkout_ms: int


def write(handover: Handover, folder: Path) -> None:
    """Leave it in ``folder``; whole or not at all."""
    data = orjson.dumps(msgspec.to_builtins(handover, enc_hook=_to_text))
    part = folder / f"{_NAME}.part"
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / _NAME)


def read(folder: Path) -> Handover:
    """What was left in ``folder``.

    Raises:
        ProtocolError: nothing, or something else; the fetch container did not end well.
    """
    try:
        data = orjson.loads((folder / _NAME).read_bytes())
        return msgspec.convert(data, Handover, dec_hook=_from_text)
    except (OSError, orjson.JSONDecodeError, msgspec.ValidationError) as error:
        raise ProtocolError(f"the fetch container has left no checkout: {error}") from error


def _to_text(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _from_text(kind: type[Any], value: Any) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(kind)
