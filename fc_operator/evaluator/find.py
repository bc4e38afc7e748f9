"""Which evaluator this machine has: nix-eval-jobs where it is on PATH, else the built-in walker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fc_operator.evaluator import versions
from fc_operator.evaluator.nix_eval_jobs import NixEvalJobs
from fc_operator.evaluator.protocol import Evaluator
from fc_operator.evaluator.walker import Walker
from fc_operator.settings import EvaluationSettings, NixSettings


class Evaluators:
    """Chooses anew for each evaluation, so that what is installed later is used.

    ``home`` is a folder that becomes the evaluators' home; ``env`` our own environment.
    """

    def __init__(
        self,
        *,
        nix: NixSettings,
        evaluation: EvaluationSettings,
        env: Mapping[str, str],
        home: Path,
    ) -> None:
        self._env = dict(env)
        home.mkdir(parents=True, exist_ok=True)
        self._walker = Walker(nix=nix, evaluation=evaluation, env=env, home=home)
        self._jobs = NixEvalJobs(nix=nix, evaluation=evaluation, env=env, home=home)

    def current(self) -> Evaluator:
        """The evaluator to use now; never a silent change after one failed."""
        return self._jobs if versions.find(self._jobs.name, self._env) else self._walker
