"""Paths out of and into the Nix store of this machine, as ``nix-store --export`` writes them."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from fc_operator.clients.nix import Nix, read_derivations
from fc_operator.errors import PrerequisiteError, UnavailableError
from fc_operator.kit import processes
from fc_operator.model.ids import DrvPath, StorePath

_PIECE_BYTES = 256 * 1024
_STALL_S = 300
_PATHS_MAX = 4000
"""Paths in one argument list; a store path is short."""

Write = Callable[[bytes], Awaitable[None]]


def portions(paths: Sequence[str]) -> list[Sequence[str]]:
    """``paths`` in order, in lists that fit on a command line."""
    return [paths[start : start + _PATHS_MAX] for start in range(0, len(paths), _PATHS_MAX)]


async def needed(nix: Nix, drv_path: DrvPath) -> list[str]:
    """What a machine needs to build ``drv_path`` and nothing before it, each path after what it
    refers to: the derivation's closure, and the closures of the inputs that are valid here.

    Raises:
        UnavailableError: Nix does not answer, or the derivation is not valid.
    """
    wanted = await asyncio.to_thread(_input_outputs, drv_path)
    valid = await nix.valid(wanted) if wanted else set()
    return [info.path for info in await nix.closure([StorePath(drv_path), *valid])]


def _input_outputs(drv_path: DrvPath) -> list[StorePath]:
    facts = read_derivations([drv_path]).get(drv_path)
    if facts is None:
        return []
    inputs = read_derivations(facts.input_drvs)
    return [
        path
        for drv, names in facts.input_drvs.items()
        if drv in inputs
        for name in names
        if (path := inputs[drv].outputs.get(name)) is not None
    ]


async def send_export(nix: Nix, paths: Sequence[str], write: Write) -> int:
    """Give ``write`` the export of ``paths``, which must be ordered; how many bytes it was.

    Raises:
        PrerequisiteError: Nix is not there.
        UnavailableError: it failed or stood still, or whatever ``write`` raises.
    """
    try:
        process = await processes.start(["nix-store", "--export", *paths], env=nix.env)
    except OSError as error:
        raise PrerequisiteError(f"Nix can't be run: {error}", hint="install Nix") from error
    complaints = asyncio.create_task(_read_all(process.inner.stderr))
    size = 0
    try:
        assert process.inner.stdout is not None
        while True:
            async with asyncio.timeout(_STALL_S):
                piece = await process.inner.stdout.read(_PIECE_BYTES)
                if not piece:
                    break
                await write(piece)
            size += len(piece)
        if await process.wait() != 0:
            words = (await complaints).decode("utf-8", "replace").strip()[-2000:]
            raise UnavailableError(f"nix-store --export failed: {words}")
    except TimeoutError as error:
        raise UnavailableError("nix-store --export stood still") from error
    finally:
        await process.stop("nobody reads it")
        complaints.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await complaints
    return size


async def take_export(nix: Nix, pieces: AsyncIterator[bytes]) -> int:
    """Register what an export holds; how many bytes it was.

    Raises:
        PrerequisiteError: Nix is not there.
        UnavailableError: it refused the paths or stood still, or whatever ``pieces`` raises.
    """
    try:
        process = await processes.start(["nix-store", "--import"], env=nix.env, stdin=True)
    except OSError as error:
        raise PrerequisiteError(f"Nix can't be run: {error}", hint="install Nix") from error
    printed = asyncio.create_task(_read_all(process.inner.stdout))
    complaints = asyncio.create_task(_read_all(process.inner.stderr))
    size = 0
    stream = process.inner.stdin
    assert stream is not None
    try:
        # It ends before its input does when it does not like it, and says why.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            async for piece in pieces:
                async with asyncio.timeout(_STALL_S):
                    stream.write(piece)
                    await stream.drain()
                size += len(piece)
        stream.close()
        async with asyncio.timeout(_STALL_S):
            code = await process.wait()
        if code != 0:
            words = (await complaints).decode("utf-8", "replace").strip()[-2000:]
            raise UnavailableError(f"nix-store --import failed: {words}")
    except TimeoutError as error:
        raise UnavailableError("nix-store --import stood still") from error
    finally:
        await process.stop("nobody feeds it")
        for task in (printed, complaints):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
    return size


async def add_root(nix: Nix, path: str, link: Path) -> None:
    """Keep one valid path while ``link`` is there.

    Raises:
        UnavailableError: it is not valid.
    """
    finished = await processes.run(
        ["nix-store", "--realise", path, "--add-root", str(link), "--option", "substituters", ""],
        env=nix.env,
        limits=processes.Limits(timeout_s=120, output_bytes=1 << 20),
    )
    if finished.code != 0:
        words = finished.stderr.decode("utf-8", "replace").strip()[-2000:]
        raise UnavailableError(f"{path} can't be kept: {words}")


async def add_text(nix: Nix, name: str, text: str) -> str:
    """A new path that holds ``text``.

    Raises:
        PrerequisiteError: Nix is not there.
        UnavailableError: it does not take it.
    """
    with tempfile.TemporaryDirectory(prefix="fc-text-") as folder:
        file = Path(folder) / name
        await asyncio.to_thread(file.write_text, text)
        try:
            finished = await processes.run(["nix-store", "--add", file], env=nix.env)
        except OSError as error:
            raise PrerequisiteError(f"Nix can't be run: {error}", hint="install Nix") from error
    if finished.code != 0:
        words = finished.stderr.decode("utf-8", "replace").strip()[-2000:]
        raise UnavailableError(f"nix-store --add failed: {words}")
    return finished.stdout.decode().strip()


async def _read_all(stream: asyncio.StreamReader | None) -> bytes:
    kept = b""
    while stream is not None and (piece := await stream.read(65536)):
        kept = (kept + piece)[-65536:]
    return kept


def lines_of(paths: Iterable[str]) -> bytes:
    """Paths as another machine's xargs reads them: store paths have no spaces or quotes."""
    return "".join(f"{path}\n" for path in paths).encode()
