"""Run as a program of its own: give up the file system but for some folders, then become another.

    python -I -S confine.py [-r PATH]... [-w PATH]... -- /PROGRAM [ARGUMENT]...

Linux' Landlock, which needs no rights: from here on this process and all that it starts may read
below the ``-r`` paths, read and write below the ``-w`` paths, and nothing else. Paths that are not
there are passed over. It imports as little as it can, for it runs before every evaluation.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from _ctypes import FUNCFLAG_CDECL, CFuncPtr, _SimpleCData, dlopen, dlsym

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
CHANGE_DIR = sum(1 << bit for bit in range(4, 14))
"""Removing and making all kinds of entries, and moving them between folders (from version 2 on)."""
HANDLED = WRITE_FILE | READ_FILE | READ_DIR | CHANGE_DIR
READING = READ_FILE | READ_DIR
_ON_FILES = WRITE_FILE | READ_FILE
VERSION_MIN = 2
"""Version 1 forbids every link from folder to folder, which Nix needs."""
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38
FAILED = 126
"""Exit code when the confinement itself can't be had."""


class _Long(_SimpleCData):  # type: ignore[type-arg] # it is not generic when it runs
    _type_ = "l"


class _Bytes(_SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL
    _restype_ = _Long


def _function(name: str) -> _Function:
    return _Function(dlsym(dlopen(None, 0), name))  # type: ignore[arg-type] # None: this program


def version() -> int:
    """The version of Landlock that the kernel has; 0 is none."""
    try:
        found = _function("syscall")(
            _Long(_CREATE_RULESET), _Bytes(), _Long(0), _Long(_ASK_VERSION)
        )
    except OSError:
        return 0
    return max(0, int(found))


def confine(readable: list[str], writable: list[str]) -> None:
    """Confine this thread, and all that it becomes and starts.

    Raises:
        OSError: the kernel refuses.
    """
    syscall = _function("syscall")
    attributes = struct.pack("=Q", HANDLED)
    rules = int(syscall(_Long(_CREATE_RULESET), _Bytes(attributes), _Long(8), _Long(0)))
    if rules < 0:
        raise OSError("landlock_create_ruleset failed")
    for paths, rights in ((readable, READING), (writable, HANDLED)):
        for path in paths:
            _allow(syscall, rules, path, rights)
    if _function("prctl")(_Long(_PR_SET_NO_NEW_PRIVS), *(_Long(n) for n in (1, 0, 0, 0))) != 0:
        raise OSError("PR_SET_NO_NEW_PRIVS failed")
    if syscall(_Long(_RESTRICT_SELF), _Long(rules), _Long(0)) != 0:
        raise OSError("landlock_restrict_self failed")
    os.close(rules)


def _allow(syscall: _Function, rules: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        rights &= _ON_FILES
    rule = struct.pack("=Qi", rights, fd)
    added = syscall(_Long(_ADD_RULE), _Long(rules), _Long(_PATH_BENEATH), _Bytes(rule), _Long(0))
    os.close(fd)
    if added != 0:
        raise OSError(f"landlock_add_rule failed for {path}")


def main(words: list[str]) -> None:
    """See the module."""
    paths: dict[str, list[str]] = {"-r": [], "-w": []}
    while words[0] != "--":
        kind, path, *words = words
        paths[kind].append(path)
    try:
        confine(paths["-r"], paths["-w"])
        os.execv(words[1], words[1:])  # noqa: S606 - it becomes what our caller would have started
    except OSError as error:
        sys.stderr.write(f"{words[1]} can't be run confined: {error}\n")
        sys.exit(FAILED)


if __name__ == "__main__":
    main(sys.argv[1:])
