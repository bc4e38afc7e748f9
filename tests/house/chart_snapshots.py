"""What the chart renders for the values in ``tests/house/charts``, kept beside them.

Run it with ``python -m tests.house.chart_snapshots`` after a change of the chart, and read the
difference; a test compares. The kinds are not among it: they are ``crds/``, letter by letter.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.places import Places
from tests.cluster.programs import HELM
from tests.house.chart_documents import CHART

CASES = Path(__file__).with_name("charts")
RELEASE, NAMESPACE = "fc", "ci"
KUBERNETES = "1.32.0"
"""The oldest that the chart is for."""


def helm() -> str | None:
    """The helm that the cluster suite builds, else that of PATH."""
    built = Places().programs / f"helm-{HELM}" / "helm"
    return str(built) if built.is_file() else shutil.which("helm")


def run_helm(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run it, away from the machine's own configuration of helm."""
    nowhere = {f"HELM_{name}_HOME": "/nonexistent" for name in ("CACHE", "CONFIG", "DATA")}
    return subprocess.run(
        [program, *words],
        env={"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", **nowhere},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def template(program: str, *flags: str) -> str:
    """What ``helm template`` prints.

    Raises:
        ValueError: it refuses; the text is what it said.
    """
    done = run_helm(
        program, "template", RELEASE, str(CHART), "--namespace", NAMESPACE,
        "--kube-version", KUBERNETES, *flags,
    )  # fmt: skip
    if done.returncode != 0:
        raise ValueError(done.stderr)
    return done.stdout


def cases() -> list[str]:
    """Names of the cases, by their files of values."""
    return sorted(file.name.split(".")[0] for file in CASES.glob("*.values.yaml"))


def values_of(case: str) -> Path:
    """The file of its values."""
    return CASES / f"{case}.values.yaml"


def snapshot_of(case: str) -> Path:
    """The file of what it rendered when somebody last looked."""
    return CASES / f"{case}.snapshot.yaml"


def render(program: str, case: str) -> str:
    """What a case renders now, in one order, and without hashes of what is shown besides."""
    text = template(program, "--values", str(values_of(case)))
    text = re.sub(r"checksum/settings: [0-9a-f]{64}", "checksum/settings: …", text)
    documents = [each for each in text.split("\n---\n") if each.strip()]
    documents = [each.removeprefix("---\n").strip("\n") for each in documents]
    return "---\n" + "\n---\n".join(sorted(documents, key=_order)) + "\n"


def _order(document: str) -> tuple[str, ...]:
    found = yaml.safe_load(document)
    metadata = found["metadata"]
    return found["kind"], metadata.get("namespace", ""), metadata["name"]


def objects(text: str) -> list[dict[str, Any]]:
    """The objects of a rendering."""
    return [each for each in yaml.safe_load_all(text) if each]


def pods(rendered: Sequence[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The specification of every pod in it, with the name of what makes it."""
    for each in rendered:
        template_ = each.get("spec", {}).get("template") if isinstance(each, dict) else None
        if isinstance(template_, dict) and "spec" in template_:
            yield each["metadata"]["name"], template_["spec"]


if __name__ == "__main__":
    found = helm()
    assert found, "there is no helm: `python -m tests.cluster build` makes one"
    for each in cases():
        snapshot_of(each).write_text(render(found, each))
