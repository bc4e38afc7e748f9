"""What a flake.lock makes Nix fetch, judged before Nix sees it. Pure.

Pure evaluation takes whatever is locked: also folders of this machine (``path:/root``), its
repositories (``file:``), and hosts of its own network. So each locked input must be something that
a jobset might fetch too, and Nix may fetch these and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from fc_operator.errors import EvaluationError, InvalidError

_FORGES = {
    "github": ("github.com", "api.github.com", "codeload.github.com"),
    "gitlab": ("gitlab.com",),
    "sourcehut": ("git.sr.ht",),
}
"""Hosts of the shorthands, unless a node names another."""


def allowed_uris(lock: object, check_url: Callable[[str], object]) -> tuple[str, ...]:
    """What Nix may fetch for a lock file, as its setting ``allowed-uris`` wants it.

    ``lock`` is the content of a flake.lock, None without one. ``check_url`` raises InvalidError for
    what may not be fetched.

    Raises:
        EvaluationError: the lock file has another form, or an input may not be fetched.
    """
    found: dict[str, None] = {}
    for name, locked in _locked(lock):
        try:
            found |= dict.fromkeys(_uris(locked, check_url))
        except InvalidError as error:
            raise EvaluationError(f"flake.lock: the input {name}: {error.message}") from error
    return tuple(found)


def _locked(lock: object) -> Iterator[tuple[str, dict[str, object]]]:
    if lock is None:
        return
    nodes = lock.get("nodes") if isinstance(lock, dict) else None
    if not isinstance(nodes, dict):
        raise EvaluationError("flake.lock has no nodes")
    for name, node in nodes.items():
        locked = node.get("locked", {}) if isinstance(node, dict) else None
        if not isinstance(locked, dict):
            raise EvaluationError(f"flake.lock: the input {name[:100]} is no node")
        if locked:
            yield name[:100], locked


def _uris(locked: dict[str, object], check_url: Callable[[str], object]) -> Iterator[str]:
    kind = _text(locked, "type")
    match kind:
        case "path":
            if _text(locked, "path").startswith("/"):
                raise InvalidError("it is a folder of the machine that locked it")
        case "git":
            url = _text(locked, "url")
            check_url(url)
            yield from (url, f"git+{url}")
            # Newer versions ask with a query behind it, which only a whole folder allows.
            yield from (_above(url), f"git+{_above(url)}")
        case "github" | "gitlab" | "sourcehut":
            named = locked.get("host")
            hosts = _FORGES[kind] if named is None else (_text(locked, "host"),)
            yield f"{kind}:{_text(locked, 'owner')}/"
            for host in hosts:
                check_url(f"https://{host}/")
                yield f"https://{host}/"
        case "tarball" | "file":
            url = _text(locked, "url")
            try:
                parts = urlsplit(url)
            except ValueError as error:
                raise InvalidError(f"its url is none: {error}") from error
            check_url(f"{parts.scheme}://{parts.netloc}/")
            plain = f"{parts.scheme}://{parts.netloc}{parts.path}"
            yield from (url, _above(plain), f"{kind}+{url}", f"{kind}+{_above(plain)}")
        case _:
            raise InvalidError(f"the type {kind[:100]} is not offered")


def _above(url: str) -> str:
    return url[: url.rindex("/") + 1]


def _text(locked: dict[str, object], name: str) -> str:
    value = locked.get(name)
    if not isinstance(value, str) or not value or any(c.isspace() for c in value):
        # Blanks would make two settings of one.
        raise InvalidError(f"it has no proper {name}")
    return value
