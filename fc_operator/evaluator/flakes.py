"""Makes a checkout what pure evaluation accepts: a folder that is named by its content."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fc_operator.errors import EvaluationError, LimitReachedError, PrerequisiteError
from fc_operator.evaluator import expressions, faults
from fc_operator.evaluator.requests import Argument, EvaluationRequest, Tree
from fc_operator.kit import processes

_LOCK_BYTES_MAX = 16 * 1024**2


async def hashed(tree: Tree, *, env: Mapping[str, str], timeout_s: float) -> Tree:
    """``tree`` with its NAR hash.

    Raises:
        PrerequisiteError: ``nix-hash`` can't be run.
        LimitReachedError: it took too long.
        EvaluationError: the folder can't be read.
        UnavailableError: the machine has troubles of its own.
    """
    if tree.nar_hash:
        return tree
    try:
        done = await processes.run(
            ["nix-hash", "--type", "sha256", tree.path],
            env=env,
            limits=processes.Limits(timeout_s=timeout_s, output_bytes=1 << 20),
        )
    except OSError as error:
        raise PrerequisiteError(f"nix-hash can't be run: {error}", hint="install Nix") from error
    except processes.ProcessLimitError as error:
        raise LimitReachedError(str(error), limit="time") from error
    if done.code != 0:
        told = done.stderr.decode("utf-8", "replace")[-2000:]
        await faults.require_sound("nix-hash", told, env)
        raise EvaluationError(f"the checkout can't be hashed: {told}")
    digest = base64.b64encode(bytes.fromhex(done.stdout.decode().strip())).decode()
    return replace(tree, nar_hash=f"sha256-{digest}")


async def root(request: EvaluationRequest, *, env: Mapping[str, str]) -> str:
    """The Nix text of the value that holds a flake's jobs, with the jobset's inputs put in.

    Raises:
        EvaluationError: the checkout is no flake, or has no input of a given name.
    """
    if not (request.source.path / "flake.nix").is_file():
        raise EvaluationError("the checkout has no flake.nix")
    source = await hashed(request.source, env=env, timeout_s=request.timeout_s)
    overrides = [each for each in request.arguments if each.type == "git" and each.tree]
    if not overrides:
        reference = expressions.flake_reference(source)
        return expressions.flake_root(reference, request.expression, inner=False)
    with_locks: list[tuple[Argument, object]] = []
    for each in overrides:
        assert each.tree is not None
        tree = await hashed(each.tree, env=env, timeout_s=request.timeout_s)
        with_locks.append((replace(each, tree=tree), await asyncio.to_thread(read_lock, tree.path)))
    text, lock = expressions.overriding_flake(
        source, await asyncio.to_thread(read_lock, source.path), with_locks
    )
    outer = request.work_dir / "overrides"
    await asyncio.to_thread(_write, outer, text, lock)
    tree = await hashed(Tree(path=outer), env=env, timeout_s=request.timeout_s)
    return expressions.flake_root(expressions.flake_reference(tree), request.expression, inner=True)


def read_lock(folder: Path) -> Any:
    """The content of the folder's flake.lock; None without one.

    Raises:
        EvaluationError: it is too large, or no JSON.
    """
    path = folder / "flake.lock"
    if path.is_symlink() or not path.is_file():
        return None
    if path.stat().st_size > _LOCK_BYTES_MAX:
        raise EvaluationError(f"flake.lock is larger than {_LOCK_BYTES_MAX} bytes")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"flake.lock is no JSON: {error}") from error


def _write(folder: Path, text: str, lock: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flake.nix").write_text(text)
    (folder / "flake.lock").write_text(lock)
