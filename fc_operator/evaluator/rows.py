"""From what an evaluator printed to our rows; tolerant, since versions differ. Pure.

The form is that of nix-eval-jobs, one JSON object per attribute; the walker prints the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import orjson

from fc_operator.errors import ProtocolError
from fc_operator.model import derivations
from fc_operator.model.ids import DrvPath, StorePath
from fc_operator.model.jobs import JobError, JobMeta, JobRow, dotted

_ANSI = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
"""What no text for people holds; the last are bytes that were no UTF-8."""
_UNNAMEABLE = re.compile(r"[\x00\ud800-\udfff]")
_NAME_BYTES_MAX = 1024
_STORE_NAME = re.compile(r"[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+._?=-]{1,211}")
_OUTPUT = re.compile(r"[0-9A-Za-z+._?=-]{1,211}")
_TEXT_MAX = 4096
_MESSAGE_MAX = 16_384


def parse_line(line: bytes, *, store_dir: str, name_of_root: str) -> JobRow | JobError:
    """One line of an evaluator.

    Raises:
        ProtocolError: the line is no JSON object.
    """
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"the evaluator printed {line[:200]!r}, which is no JSON") from error
    if not isinstance(data, dict):
        raise ProtocolError(f"the evaluator printed {line[:200]!r}, which is no JSON object")
    return parse_row(data, store_dir=store_dir, name_of_root=name_of_root)


def parse_row(data: dict[str, Any], *, store_dir: str, name_of_root: str) -> JobRow | JobError:
    """One attribute; only ``attrPath`` is sure to be there, and not even that for the root."""
    attr_path = _texts(data.get("attrPath"))
    if unfit := _unfit(attr_path):
        return JobError(attr_path=shown(attr_path), message=unfit)
    drv_path = data.get("drvPath")
    error = data.get("error")
    if error is not None and not drv_path:
        return JobError(attr_path=attr_path, message=clean_message(str(error)))
    if not _is_drv(drv_path, store_dir):
        what = f"{drv_path!r}"[:200]
        return JobError(attr_path=attr_path, message=f"no derivation in the store: {what}")
    globs = data.get("globConstituents")
    constituents = _drvs(data.get("constituents"), store_dir)
    named = _names_of_jobs(data.get("namedConstituents"))
    return JobRow(
        attr_path=attr_path or (name_of_root,),
        name=_text(data.get("name")),
        system=derivations.system_of(_text(data.get("system"))) or "builtin",
        drv_path=DrvPath(str(drv_path)),
        outputs=_outputs(data.get("outputs"), store_dir),
        meta=parse_meta(data.get("meta")),
        is_aggregate=bool(data.get("constituents") is not None or named),
        constituents=constituents,
        named_constituents=(*named, *_names_of_jobs(globs)),
        glob_constituents=bool(globs),
        input_drvs=_input_drvs(data.get("inputDrvs"), store_dir),
        required_features=_maybe(_features, data.get("requiredSystemFeatures")),
        cache_status=_cache_status(data),
        needed_builds=_maybe(lambda drvs: _drvs(drvs, store_dir), data.get("neededBuilds")),
    )


def shown(attr_path: tuple[str, ...]) -> tuple[str, ...]:
    """An attribute's place as it can be stored and read, whatever its parts are called."""
    parts = [_UNNAMEABLE.sub("\N{REPLACEMENT CHARACTER}", part) for part in attr_path]
    return tuple(part if len(part) <= 200 else f"{part[:200]}…" for part in parts)


def _unfit(attr_path: tuple[str, ...]) -> str:
    """Why no job can be called so; empty if one can."""
    if any(map(_UNNAMEABLE.search, attr_path)):
        return "its name is not UTF-8, or has a null byte in it"
    if len(dotted(attr_path).encode()) > _NAME_BYTES_MAX:
        return f"its name is longer than {_NAME_BYTES_MAX} bytes"
    return ""


def parse_meta(meta: Any) -> JobMeta:
    """The wanted fields of a job's ``meta``; what has another type than it should is left out."""
    if not isinstance(meta, dict):
        return JobMeta()
    homepage = meta.get("homepage")
    if isinstance(homepage, list):
        homepage = homepage[0] if homepage else None
    return JobMeta(
        description=_text(meta.get("description")),
        homepage=_text(homepage),
        license=", ".join(_names(meta.get("license"), ("shortName", "spdxId", "fullName"))),
        maintainers=", ".join(_names(meta.get("maintainers"), ("email", "github", "name"))),
        timeout_s=_whole(meta.get("timeout")),
        max_silent_s=_whole(meta.get("maxSilent")),
        scheduling_priority=_whole(meta.get("schedulingPriority"), lowest=-(2**31)),
        # Hydra documents the first and reads the second.
        is_channel=meta.get("isHydraChannel") is True or meta.get("isChannel") is True,
    )


def clean_message(text: str) -> str:
    """For people: no colours, no control characters, not endless."""
    clean = _CONTROL.sub("", _ANSI.sub("", text)).strip()
    if len(clean) > _MESSAGE_MAX:
        clean = f"{clean[: _MESSAGE_MAX // 2]}\n…\n{clean[-_MESSAGE_MAX // 2 :]}"
    return clean


def summarize(stderr: str) -> str:
    """What Nix said at last: from the last ``error:`` on, without its advice about traces.

    Newer versions print the cause last, older ones print nothing but it.
    """
    lines = [
        line
        for line in clean_message(stderr).splitlines()
        if "--show-trace" not in line and not line.lstrip().startswith("warning:")
    ]
    starts = [n for n, line in enumerate(lines) if line.lstrip().startswith("error:")]
    # `error:` alone heads a trace; the cause below it has a text of its own.
    told = [n for n in starts if lines[n].strip() != "error:"] or starts
    text = "\n".join(lines[told[-1] :] if told else lines[-20:])
    return text.strip().removeprefix("error:").strip()


def without_places(text: str, source: Path) -> str:
    """For people, who know files by their place in the checkout."""
    for place in {source, source.resolve()}:
        text = text.replace(f"{place}/", "")
    return clean_message(text)


def is_unwanted(item: JobRow | JobError, systems: Collection[str]) -> bool:
    """Whether it is a job for a system that the jobset does not want; none given means all."""
    return (
        isinstance(item, JobRow)
        and bool(systems)
        and item.system != "builtin"
        and item.system not in systems
    )


def _text(value: Any) -> str:
    return _CONTROL.sub("", value)[:_TEXT_MAX] if isinstance(value, str) else ""


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(each) for each in value) if isinstance(value, list) else ()


def _names_of_jobs(value: Any) -> tuple[str, ...]:
    return tuple(_UNNAMEABLE.sub("\N{REPLACEMENT CHARACTER}", each) for each in _texts(value))


def _features(value: Any) -> tuple[str, ...]:
    return derivations.features_of(_CONTROL.sub("", each) for each in _texts(value))


def _maybe(read: Callable[[Any], Any], value: Any) -> Any:
    return None if value is None else read(value)


def _whole(value: Any, *, lowest: int = 0) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and lowest <= value < 2**31
    return value if fits else None


def _names(value: Any, keys: Iterable[str]) -> list[str]:
    if isinstance(value, str):
        return [_text(value)] if value else []
    if isinstance(value, list):
        return [name for each in value for name in _names(each, keys)]
    if isinstance(value, dict):
        return next(([_text(value[key])] for key in keys if isinstance(value.get(key), str)), [])
    return []


def _is_store_path(value: Any, store_dir: str) -> bool:
    """Whether Nix takes it for one: code can call anything a path, and one bad path among many
    makes Nix refuse to answer for all.
    """
    return (
        isinstance(value, str)
        and value.startswith(f"{store_dir}/")
        and _STORE_NAME.fullmatch(value, len(store_dir) + 1) is not None
    )


def _is_drv(value: Any, store_dir: str) -> bool:
    return _is_store_path(value, store_dir) and value.endswith(".drv")


def _drvs(value: Any, store_dir: str) -> tuple[DrvPath, ...]:
    return tuple(DrvPath(each) for each in _texts(value) if _is_drv(each, store_dir))


def _outputs(value: Any, store_dir: str) -> dict[str, StorePath | None]:
    if not isinstance(value, dict):
        return {}
    return {
        # The path of a content-addressed output is a placeholder until it is built.
        str(name): StorePath(path) if _is_store_path(path, store_dir) else None
        for name, path in value.items()
        if _OUTPUT.fullmatch(name)
    }


def _input_drvs(value: Any, store_dir: str) -> dict[DrvPath, tuple[str, ...]] | None:
    if not isinstance(value, dict):
        return None
    return {
        DrvPath(drv): _texts(outputs.get("outputs") if isinstance(outputs, dict) else outputs)
        for drv, outputs in value.items()
        if _is_drv(drv, store_dir)
    }


def _cache_status(data: dict[str, Any]) -> str | None:
    status = data.get("cacheStatus")
    if status in ("local", "cached", "notBuilt"):
        return str(status)
    if isinstance(data.get("isCached"), bool) and status is None and "cacheStatus" not in data:
        return "cached" if data["isCached"] else "notBuilt"
    return None
