"""How evaluators are called: one function builds each argument list, and one the environment. Pure.

What protects us stands here and nowhere else, and golden tests hold it (Hydra lost
``restrict-eval`` when it changed its evaluator, CVE-2025-32435).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fc_operator.evaluator import expressions
from fc_operator.evaluator.requests import EvaluationRequest
from fc_operator.settings import EvaluationSettings, NixSettings

_KEPT = frozenset(
    {
        *("PATH", "TMPDIR", "LANG", "LC_ALL", "LOCALE_ARCHIVE"),
        *("NIX_REMOTE", "NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_LOG_DIR", "NIX_CONF_DIR"),
        *("NIX_SSL_CERT_FILE", "SSL_CERT_FILE"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    }
)


def environment(env: Mapping[str, str], *, home: Path) -> dict[str, str]:
    """Of ``env`` only what Nix needs to find its store and the network.

    No credentials, no NIX_PATH, no NIX_CONFIG, and a home folder in which nothing of ours lies but
    the cache of what was fetched.
    """
    kept = {name: value for name, value in env.items() if name in _KEPT}
    kept.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
    return kept | {
        "HOME": str(home),
        "NIX_PATH": "",
        # Flakes that Nix fetches itself: no prompts, no keys of ours, no local repositories.
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:git",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
    }


def _options(request: EvaluationRequest, nix: NixSettings) -> list[str]:
    """Settings of Nix that hold for every evaluator, whatever its nix.conf says."""
    ifd = request.allow_import_from_derivation
    options = {
        "allow-import-from-derivation": "true" if ifd else "false",
        "allow-unsafe-native-code-during-evaluation": "false",
        # Pure evaluation alone fetches whatever is locked, also from this machine and its network.
        "restrict-eval": "true",
        "pure-eval": "true" if request.is_flake else "false",
        "allowed-uris": " ".join(_allowed_uris(request)),
        "experimental-features": "nix-command flakes" if request.is_flake else "",
        "accept-flake-config": "false",
        "eval-cache": "false",
        "builders": "",
        # What an evaluation builds on its way; where no sandbox was asked for, nix.conf decides.
        **({"sandbox": "true"} if nix.sandbox == "Nix" else {}),
        "sandbox-fallback": "false",
        "substituters": " ".join(nix.substituters),
        "trusted-public-keys": " ".join(nix.trusted_public_keys),
        "connect-timeout": "15",
    }
    return [word for name, value in options.items() for word in ("--option", name, value)]


def _allowed_uris(request: EvaluationRequest) -> tuple[str, ...]:
    # Its own folder holds the trees that we lock.
    return (*request.allowed_uris, f"path:{request.work_dir}/") if request.is_flake else ()


def _search_path(request: EvaluationRequest) -> list[str]:
    """What a legacy file may read: its checkout and its inputs, and nothing else."""
    if request.is_flake:
        return []
    words = ["-I", f"source={request.source.path}"]
    for given in request.arguments:
        place = given.store_path or (given.tree.path if given.tree else None)
        if place is not None:
            words += ["-I", f"{given.name}={place}"]
    return words


def walker(request: EvaluationRequest, *, nix: NixSettings) -> list[str]:
    """The call that reads an expression from its standard input and walks it."""
    return [
        *("nix-instantiate", "--eval", "--read-write-mode"),
        *_options(request, nix),
        *_search_path(request),
        "-",
    ]


def nix_eval_jobs(
    request: EvaluationRequest,
    *,
    root: str,
    nix: NixSettings,
    evaluation: EvaluationSettings,
) -> list[str]:
    """The call of nix-eval-jobs. ``root`` is the expression that gives the tree of jobs."""
    words = [
        "nix-eval-jobs",
        *("--workers", str(evaluation.workers)),
        *("--max-memory-size", str(evaluation.max_memory_size_mib)),
        *("--gc-roots-dir", str(request.roots_dir)),
        *("--force-recurse", "--constituents", "--meta"),
        *("--show-input-drvs", "--check-cache-status"),
        *_options(request, nix),
        *_search_path(request),
    ]
    if not request.is_flake:
        for given in request.arguments:
            words += (
                ["--argstr", given.name, given.value]
                if given.type == "string"
                else ["--arg", given.name, expressions.argument(given)]
            )
    return [*words, "--expr", root]
