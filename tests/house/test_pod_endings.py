"""Each reason for which a pod ends stands in the page for administrators."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from fc_operator.executors import pods
from fc_operator.scheduler import pods as service

PAGE = Path(__file__).parents[2] / "docs" / "kubernetes.md"
NOT_SEEN = {
    # Nothing was left unfinished, it is asked again in a moment, or it needs two installations.
    "Completed", "Cancelled", "ApiUnavailable", "PodExists",
}  # fmt: skip


def test_each_ending_is_explained():
    text = inspect.getsource(pods) + inspect.getsource(service)
    told = set(re.findall(r'(?:_ending\(\s*|reason=)"([A-Z]\w+)"', text)) | set(pods._REFUSALS)
    assert len(told) > 20
    page = PAGE.read_text()
    table = page[page.index("### How pods end") :]
    explained = set(re.findall(r"`([A-Z]\w+)`", table.split("| --- |", 1)[1]))
    assert told - NOT_SEEN - explained == set(), "not explained"
    assert explained - told - {"AgentLeft"} == set(), "there is no such reason"
