"""What outputs say about themselves in ``nix-support`` (Hydra's contracts), read with care.

Builds write these files, so nothing in them is believed: names match whole patterns, sizes are
capped, and no path leads out of the store. A bad line is left out with a warning; it never fails
the build.
"""

from __future__ import annotations

import hashlib
import math
import mimetypes
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from fc_operator.model.outcomes import Harvest, Metric, OutputInfo, Product

_FILE_BYTES_MAX = 1024 * 1024
_LINES_MAX = 10_000
_LINE_BYTES_MAX = 4096
_WARNINGS_MAX = 100

_PRODUCT = re.compile(
    r"""(?P<type>[A-Za-z0-9_-]+)\s+(?P<subtype>[A-Za-z0-9_-]+)\s+"""
    r"""(?:"(?P<quoted>[^"]+)"|(?P<bare>[^\s"<>]+))(?:\s+(?P<default>[^\s"<>]+))?"""
)
_METRIC = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\s+"
    r"(?P<value>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"(?:\s+(?P<unit>[A-Za-z0-9._%-]+))?"
)
_RELEASE_NAME = re.compile(r"[A-Za-z0-9.@:_-]+")
_STORE_NAME = re.compile(r"[0-9a-z]{32}-[0-9A-Za-z+._?=-]+")


class _RefusedError(Exception):
    """A path that may not be followed, in words for the warning."""


@dataclass(frozen=True, slots=True)
class _Found:
    is_directory: bool
    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(slots=True)
class _Gleaner:
    """Collects over all outputs."""

    store: Path
    """Without links."""
    written_store: Path
    """As builds know it."""
    examined: dict[tuple[int, int], _Found] = field(default_factory=dict)
    """By device and inode."""
    warnings: list[str] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    metrics: dict[str, Metric] = field(default_factory=dict)
    release_name: str | None = None
    has_failed_file: bool = False
    has_product_file: bool = False

    def warn(self, message: str) -> None:
        if len(self.warnings) < _WARNINGS_MAX:
            self.warnings.append(message)

    def open(self, path: str) -> int:
        """A descriptor of ``path``, links inside the store followed.

        Raises:
            _RefusedError: it leads out of the store.
            OSError: it is not there.
        """
        real = Path(os.path.realpath(path, strict=True))
        parts = _inside(self.store, real)
        # The real path holds no links any more; should one appear meanwhile, it is not followed.
        fd = os.open(self.store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for place, part in enumerate(parts):
                kind = os.O_PATH if place < len(parts) - 1 else os.O_RDONLY | os.O_NONBLOCK
                following = os.open(part, kind | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = following
        except BaseException:
            os.close(fd)
            raise
        return fd

    def lines(self, output: OutputInfo, name: str) -> Iterator[str] | None:
        """Lines of a file in ``nix-support``, within the caps; None when there is no such file."""
        path = f"{output.path}/nix-support/{name}"
        try:
            fd = self.open(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, _RefusedError) as error:
            self.warn(f"{path}: {error}")
            return None
        try:
            # A folder can't even be wrapped as a file.
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                self.warn(f"{path}: not a regular file")
                return None
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(_FILE_BYTES_MAX + 1)
        finally:
            os.close(fd)
        return self._lines_within_caps(path, data)

    def _lines_within_caps(self, path: str, data: bytes) -> Iterator[str]:
        whole = data
        if len(data) > _FILE_BYTES_MAX:
            self.warn(f"{path}: larger than {_FILE_BYTES_MAX} bytes, the rest is ignored")
            whole = data[:_FILE_BYTES_MAX].rpartition(b"\n")[0]
        rows = whole.split(b"\n")
        if len(rows) > _LINES_MAX + 1:
            self.warn(f"{path}: more than {_LINES_MAX} lines, the rest is ignored")
        for row in rows[:_LINES_MAX]:
            if len(row) > _LINE_BYTES_MAX:
                self.warn(f"{path}: a line is longer than {_LINE_BYTES_MAX} bytes")
                continue
            try:
                text = row.decode("utf-8").strip()
            except UnicodeDecodeError:
                self.warn(f"{path}: a line is not UTF-8")
                continue
            if text:
                yield text

    def glean(self, output: OutputInfo) -> None:
        """Read everything of one output."""
        products = self.lines(output, "hydra-build-products")
        if products is not None:
            self.has_product_file = True
            for line in products:
                self._glean_product(output, line)
        for line in self.lines(output, "hydra-metrics") or ():
            self._glean_metric(line)
        names = self.lines(output, "hydra-release-name")
        if names is not None:
            self._glean_release_name(" ".join(names))
        self.has_failed_file |= self._exists(f"{output.path}/nix-support/failed")

    def _exists(self, path: str) -> bool:
        try:
            os.close(self.open(path))
        except (OSError, _RefusedError):
            return False
        return True

    def _glean_product(self, output: OutputInfo, line: str) -> None:
        match = _PRODUCT.fullmatch(line)
        if match is None:
            self.warn(f"product line not understood: {line[:200]!r}")
            return
        written = match["quoted"] or match["bare"]
        path = os.path.normpath(written)
        default = match["default"] or ""
        try:
            self._check_written(written)
            found = self._examine(self.open(path))
        except (OSError, _RefusedError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.warn(f"product {path[:200]!r} left out: {reason}")
            return
        if default and (default.startswith("/") or ".." in PurePosixPath(default).parts):
            self.warn(f"default path {default[:200]!r} of product {path[:200]!r} left out")
            default = ""
        name = "" if path == output.path else path.rsplit("/", 1)[-1]
        self.products.append(
            Product(
                nr=len(self.products) + 1,
                type=match["type"],
                subtype=match["subtype"],
                name=name,
                path=path,
                default_path=default,
                output=output.name,
                is_directory=found.is_directory,
                sha256=found.sha256,
                size_bytes=found.size_bytes,
                content_type=None if found.is_directory else mimetypes.guess_type(path)[0],
            )
        )

    def _examine(self, fd: int) -> _Found:
        """What ``fd`` is; closes it. A file that many lines name is read once.

        Raises:
            _RefusedError: neither a regular file nor a folder.
        """
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                return _Found(is_directory=True)
            if not stat.S_ISREG(status.st_mode):
                raise _RefusedError("is neither file nor folder")
            inode = status.st_dev, status.st_ino
            if inode not in self.examined:
                with os.fdopen(fd, "rb", closefd=False) as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                self.examined[inode] = _Found(
                    is_directory=False, size_bytes=status.st_size, sha256=digest
                )
            return self.examined[inode]
        finally:
            os.close(fd)

    def _check_written(self, path: str) -> None:
        """Judge a path by its text alone, so that nothing outside the store is even looked for.

        Raises:
            _RefusedError: it is not absolute, has ``..`` or does not name something in the store.
        """
        if "\0" in path:
            raise _RefusedError("has a null byte in it")
        if not path.startswith("/"):
            raise _RefusedError("is not absolute")
        if ".." in PurePosixPath(path).parts:
            raise _RefusedError("has .. in it")
        _inside(self.written_store, Path(os.path.normpath(path)))

    def _glean_metric(self, line: str) -> None:
        match = _METRIC.fullmatch(line)
        value = float(match["value"]) if match else math.nan
        if match is None or not math.isfinite(value):
            self.warn(f"metric line not understood: {line[:200]!r}")
            return
        self.metrics[match["name"]] = Metric(
            name=match["name"], value=value, unit=match["unit"] or ""
        )

    def _glean_release_name(self, text: str) -> None:
        if _RELEASE_NAME.fullmatch(text) is None:
            self.warn(f"release name not understood: {text[:200]!r}")
            return
        self.release_name = text

    def add_implicit(self, output: OutputInfo) -> None:
        """The product that an output is when no file names any."""
        try:
            fd = self.open(output.path)
        except (OSError, _RefusedError):
            return
        is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
        os.close(fd)
        if not is_directory:
            return
        self.products.append(
            Product(
                nr=len(self.products) + 1,
                type="nix-build",
                subtype="" if output.name == "out" else output.name,
                name=output.path.rsplit("/", 1)[-1][33:],
                path=output.path,
                output=output.name,
                is_directory=True,
            )
        )


def harvest(outputs: Sequence[OutputInfo], *, store_dir: str | Path = "/nix/store") -> Harvest:
    """Read all ``outputs``, which are valid; whatever they hold, this gives an answer.

    Raises:
        OSError: the store itself can't be read.
    """
    gleaner = _Gleaner(
        store=Path(os.path.realpath(store_dir, strict=True)), written_store=Path(store_dir)
    )
    for output in outputs:
        gleaner.glean(output)
    if not gleaner.has_product_file:
        for output in outputs:
            gleaner.add_implicit(output)
    return Harvest(
        outputs=tuple(outputs),
        products=tuple(gleaner.products),
        metrics=tuple(gleaner.metrics.values()),
        release_name=gleaner.release_name,
        has_failed_file=gleaner.has_failed_file,
        warnings=tuple(gleaner.warnings),
    )


def _inside(store: Path, path: Path) -> tuple[str, ...]:
    """Parts of ``path`` below ``store``.

    Raises:
        _RefusedError: it is not inside a store path.
    """
    if not path.is_relative_to(store):
        raise _RefusedError("leads out of the store")
    parts = path.relative_to(store).parts
    if not parts or _STORE_NAME.fullmatch(parts[0]) is None:
        raise _RefusedError("is not inside a store path")
    return parts
