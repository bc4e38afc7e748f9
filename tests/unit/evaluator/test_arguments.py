"""The calls of evaluators, word by word: what protects us can't get lost unseen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fc_operator.evaluator import arguments
from fc_operator.evaluator.requests import Argument, EvaluationRequest, Tree
from fc_operator.settings import EvaluationSettings, NixSettings

NIX = NixSettings(substituters=("https://cache.example.org",), trusted_public_keys=("k:AAAA",))
LEGACY = EvaluationRequest(
    source=Tree(path=Path("/w/source")),
    expression="release.nix",
    is_flake=False,
    arguments=(
        Argument(
            name="dep",
            type="git",
            tree=Tree(path=Path("/w/inputs/dep/source"), revision="ab" * 20, rev_count=3),
            store_path="/nix/store/x-source",
        ),
        Argument(name="text", type="string", value='a "b" ${c}'),
        Argument(name="flag", type="boolean", value="true"),
    ),
    work_dir=Path("/w"),
    roots_dir=Path("/nix/var/nix/gcroots/fc/1"),
)
FLAKE = EvaluationRequest(
    source=Tree(path=Path("/w/source")),
    expression="hydraJobs",
    is_flake=True,
    allowed_uris=("https://e.org/x.git", "https://e.org/"),
    work_dir=Path("/w"),
    roots_dir=Path("/nix/var/nix/gcroots/fc/1"),
)


def options(*, flake: bool, ifd: bool = False) -> str:
    yes, no = "true", "false"
    return (
        f"--option allow-import-from-derivation {yes if ifd else no} "
        "--option allow-unsafe-native-code-during-evaluation false "
        f"--option restrict-eval true --option pure-eval {yes if flake else no} "
        f"--option allowed-uris <{'https://e.org/x.git https://e.org/ path:/w/' if flake else ''}> "
        f"--option experimental-features <{'nix-command flakes' if flake else ''}> "
        "--option accept-flake-config false --option eval-cache false --option builders <> "
        "--option sandbox-fallback false --option substituters https://cache.example.org "
        "--option trusted-public-keys k:AAAA --option connect-timeout 15"
    )


def shown(words: list[str]) -> str:
    return " ".join(word if word and " " not in word else f"<{word}>" for word in words)


def test_cve_class_lost_sandbox_flag_golden_walker():
    assert shown(arguments.walker(LEGACY, nix=NIX)) == (
        f"nix-instantiate --eval --read-write-mode {options(flake=False)} "
        "-I source=/w/source -I dep=/nix/store/x-source -"
    )
    assert shown(arguments.walker(FLAKE, nix=NIX)) == (
        f"nix-instantiate --eval --read-write-mode {options(flake=True)} -"
    )


def test_what_an_evaluation_builds_is_in_the_sandbox_that_was_asked_for():
    for sandbox, asked in (("Nix", True), ("Auto", False), ("None", False)):
        nix = replace(NIX, sandbox=sandbox)
        words = shown(arguments.walker(LEGACY, nix=nix))
        assert ("--option sandbox true" in words) == asked
        assert "--option sandbox-fallback false" in words


def test_cve_class_lost_sandbox_flag_golden_nix_eval_jobs():
    head = (
        "nix-eval-jobs --workers 1 --max-memory-size 4096 --gc-roots-dir /nix/var/nix/gcroots/fc/1 "
        "--force-recurse --constituents --meta --show-input-drvs --check-cache-status "
    )
    settings = EvaluationSettings()
    words = arguments.nix_eval_jobs(LEGACY, root="import x", nix=NIX, evaluation=settings)
    assert shown(words) == (
        f"{head}{options(flake=False)} -I source=/w/source -I dep=/nix/store/x-source "
        '--arg dep <{ inputType = "git"; outPath = builtins.storePath "/nix/store/x-source"; '
        f'rev = "{"ab" * 20}"; shortRev = "abababa"; revCount = 3; }}> '
        '--argstr text <a "b" ${c}> --arg flag true --expr <import x>'
    )
    words = arguments.nix_eval_jobs(FLAKE, root="r", nix=NIX, evaluation=settings)
    assert shown(words) == f"{head}{options(flake=True)} --expr r"


def test_import_from_derivation_is_the_only_option_that_a_jobset_moves():
    from dataclasses import replace

    allowed = replace(LEGACY, allow_import_from_derivation=True)
    assert options(flake=False, ifd=True) in shown(arguments.walker(allowed, nix=NIX))


def test_cve_class_env_exfiltration_of_our_environment_only_what_nix_needs():
    env = {
        "PATH": "/bin",
        "HOME": "/root",
        "NIX_PATH": "nixpkgs=/x",
        "NIX_CONFIG": "a = b",
        "AWS_SECRET_ACCESS_KEY": "s",
        "FC_DATABASE_URL": "s",
        "SSH_AUTH_SOCK": "s",
        "NIX_USER_CONF_FILES": "/root/nix.conf",
        "NIX_REMOTE": "daemon",
        "TMPDIR": "/t",
    }
    assert arguments.environment(env, home=Path("/h")) == {
        "PATH": "/bin",
        "NIX_REMOTE": "daemon",
        "TMPDIR": "/t",
        "HOME": "/h",
        "NIX_PATH": "",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "https:http:ssh:git",
        "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
    }
