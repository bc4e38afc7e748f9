from datetime import UTC, datetime

import pytest

from fc_operator.queue.offers import Offer, fits
from fc_operator.queue.reasons import Blocker, BuilderOffer, Situation, why

LINUX = Offer(systems=("x86_64-linux",), features=("kvm",))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def at(**more):
    return Situation(**{"status": "pending", "system": "x86_64-linux", "is_ready": True} | more)


def builder(offer=LINUX, **more):
    return BuilderOffer(**{"name": "local", "offer": offer, "slots": 2, "free": 1} | more)


@pytest.mark.parametrize(
    ("situation", "builders", "code"),
    [
        (at(status="running", builder="local"), [], "Running"),
        (at(status="running", is_cancelling=True), [], "Cancelling"),
        (at(status="failed"), [], "Ended"),
        (at(blockers_count=2, blockers=(Blocker(name="a", status="running"),)), [], "Dependencies"),
        (at(jobset_is_gone=True), [builder()], "JobsetGone"),
        (at(jobset_is_suspended=True), [builder()], "Suspended"),
        (at(not_before=NOW, infra_failures=1, last_reason="DiskFull"), [builder()], "Backoff"),
        (at(), [], "NoScheduler"),
        (at(system="aarch64-linux"), [builder()], "NoBuilder"),
        (at(features=("zork",)), [builder()], "NoFeature"),
        (at(), [builder(slots=0, free=0)], "BuilderUnusable"),
        (at(), [builder(free=0)], "Busy"),
        (at(ahead=3), [builder()], "Queued"),
        (at(), [builder()], "Ready"),
    ],
)
def test_h01_twelve_causes_and_more_each_have_their_reason(situation, builders, code):
    reason = why(situation, builders)
    assert reason.code == code
    assert reason.message


@pytest.mark.parametrize(
    ("offer", "system", "required", "expected"),
    [
        (LINUX, "x86_64-linux", (), True),
        (LINUX, "x86_64-linux", ("kvm",), True),
        (LINUX, "x86_64-linux", ("zork",), False),
        (LINUX, "aarch64-linux", (), False),
        (LINUX, "builtin", (), True),
        (Offer(systems=("a",), mandatory=("big",)), "a", (), False),
        (Offer(systems=("a",), mandatory=("big",)), "a", ("big",), True),
    ],
)
def test_what_a_builder_may_take(offer, system, required, expected):
    assert fits(offer, system, required) is expected


def test_a_builder_that_can_not_build_says_why_in_its_own_words():
    reason = why(at(), [builder(slots=0, free=0, problem="Nix can't be run")])
    assert reason.message.endswith("can't build at the moment: Nix can't be run")
