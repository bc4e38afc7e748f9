"""Addresses of repositories and names of refs, as users write them: read strictly, never repaired.

What passes here may stand in git's argument list. ``ext::``, ``file:`` and every other helper of
git, options, passwords, and hosts that are not public are refused whatever the settings say.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from fc_operator.clients import addresses
from fc_operator.errors import InvalidError

URL_CHARACTERS_MAX = 2048
_PORTS = {"https": 443, "http": 80, "ssh": 22, "git": 9418}
"""The schemes that can ever be allowed, and where they go by default."""

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:(?P<user>[^@/]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/.*)?"
)
_SCP = re.compile(
    r"(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*)"
    r":(?P<path>[A-Za-z0-9_~/.].*)"
)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PATH = re.compile(r"[!-~]*")
_HEX = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REF = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_+@#=-]|[./][A-Za-z0-9_+@#=-])*")


@dataclass(frozen=True, slots=True, kw_only=True)
class GitUrl:
    """A checked URL. ``text`` is what git gets."""

    text: str
    scheme: str
    user: str
    host: str
    """Canonical, see ``addresses.canonical_host``."""
    port: int
    path: str
    """With its leading slash."""

    @property
    def origin(self) -> str:
        """Scheme, host and port: what a password is bound to."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        standard = self.port == _PORTS[self.scheme]
        return f"{self.scheme}://{host}{'' if standard else f':{self.port}'}"


def parse(text: str, *, schemes: Collection[str], hosts: Collection[str]) -> GitUrl:
    """Reads and judges a repository URL; ``schemes`` and ``hosts`` are what settings allow.

    Raises:
        InvalidError: it is refused; the message says why.
    """
    url = read(text)
    if url.scheme not in schemes:
        raise InvalidError(
            f"the scheme {url.scheme}: is not allowed here",
            hint=f"allowed (setting git.allowed_schemes): {', '.join(schemes)}",
        )
    addresses.check_host(url.host, url.port, hosts)
    return url


def read(text: str) -> GitUrl:
    """Reads a repository URL; refuses what is refused whatever the settings say.

    Raises:
        InvalidError: it is no such URL; the message says why.
    """
    if not text:
        raise InvalidError("a repository needs a URL")
    if len(text) > URL_CHARACTERS_MAX:
        raise InvalidError(f"the URL is longer than {URL_CHARACTERS_MAX} characters")
    if text.startswith("-"):
        raise InvalidError(f"{text[:128]!r} would be an option, not a URL")
    if re.match(r"[A-Za-z0-9+.-]*::", text):
        raise InvalidError(
            f"{text.split('::', 1)[0]}:: runs a program instead of fetching; it is always refused"
        )
    if not _PATH.fullmatch(text) or "\\" in text:
        raise InvalidError("the URL holds blanks, backslashes, control or non-ASCII characters")
    if match := _URL.fullmatch(text):
        scheme, user = match["scheme"].lower(), match["user"]
        port = int(match["port"]) if match["port"] else _PORTS.get(scheme, 0)
        path = match["path"] or "/"
        given = text
    elif match := _SCP.fullmatch(text):
        scheme, user, port = "ssh", match["user"], _PORTS["ssh"]
        path = "/" + match["path"].lstrip("/")
        given = text
    else:
        raise InvalidError(
            f"{text[:128]!r} is not the URL of a repository",
            hint="https://host/path, ssh://user@host/path or user@host:path",
        )
    if scheme not in _PORTS:
        raise InvalidError(f"the scheme {scheme}: is always refused", hint="use https or ssh")
    _check_user(scheme, user)
    if not 1 <= port <= 65535:
        raise InvalidError(f"{port} is not a port")
    if "?" in path or "#" in path:
        raise InvalidError("the URL of a repository has no ? or #", hint="set the branch instead")
    if path.startswith("/-") or "/../" in f"{path}/":
        raise InvalidError(f"the path {path[:128]} could be read as something else")
    host = addresses.canonical_host(match["host"])
    return GitUrl(text=given, scheme=scheme, user=user or "", host=host, port=port, path=path)


def _check_user(scheme: str, user: str | None) -> None:
    if user is None:
        return
    if scheme != "ssh":
        raise InvalidError(
            "the URL names a user or holds a password", hint="use credentialsSecretRef"
        )
    if not _USER.fullmatch(user):
        raise InvalidError(
            "the URL holds a password or a strange user name", hint="use credentialsSecretRef"
        )


def covers(prefix: GitUrl, url: GitUrl) -> bool:
    """Whether ``url`` lies at or below ``prefix``: same origin, path by whole segments."""
    below = prefix.path.rstrip("/") + "/"
    return prefix.origin == url.origin and f"{url.path.rstrip('/')}/".startswith(below)


def is_commit(text: str) -> bool:
    """Whether it is a full commit id, SHA-1 or SHA-256."""
    return _HEX.fullmatch(text) is not None


def check_ref(name: str) -> str:
    """The name of a branch, a tag or a full ref, unchanged.

    Stricter than ``git check-ref-format``: what could be an option, a range or a reflog is refused.

    Raises:
        InvalidError: it is none.
    """
    if len(name) > 255 or not _REF.fullmatch(name) or "@{" in name or name.endswith(".lock"):
        raise InvalidError(f"{name[:128]!r} is not the name of a branch or tag")
    if ".lock/" in name:
        raise InvalidError(f"{name[:128]!r} is not the name of a branch or tag")
    return name


def check_folder(path: str) -> str:
    """A folder inside a repository, without slashes at its ends; empty is the root.

    Raises:
        InvalidError: it is absolute, leaves the repository or holds control characters.
    """
    parts = [part for part in path.split("/") if part not in {"", "."}]
    if path.startswith("/") or ".." in parts or any(ord(c) < 32 or ord(c) == 127 for c in path):
        raise InvalidError(f"{path[:128]!r} is not a folder inside a repository")
    return "/".join(parts)
