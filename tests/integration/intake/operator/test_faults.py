"""However the API server misbehaves, the end is the same as if it had not."""

import pytest

SCRIPT_JOBSETS = 12
PROJECT = {"repositoryUrl": "https://git.example.org/team/demo.git"}

FAULTS = {
    "410 Gone in the stream": {"expire": 0.2},
    "dropped watches": {"dropped_watches": 0.3},
    "swallowed events": {"swallowed": 0.4},
    "doubled events": {"doubled": 0.7},
    "stale events": {"stale": 0.5},
    "409": {"answers": {409: 0.3}},
    "422": {"answers": {422: 0.3}},
    "429": {"answers": {429: 0.2}, "retry_after": "1"},
    "500": {"answers": {500: 0.2}},
    "lost answers": {"lost_answers": 0.2},
    "all at once": {
        "answers": {409: 0.05, 429: 0.05, 500: 0.05},
        "retry_after": "1",
        "lost_answers": 0.05,
        "dropped_watches": 0.1,
        "swallowed": 0.1,
        "doubled": 0.1,
        "stale": 0.1,
        "expire": 0.05,
    },
}


def spec_of(number, **more):
    return {"projectRef": {"name": "demo"}, "branch": f"b{number}", **more}


async def play(api, reached):
    """What users do: make, change, ask, suspend, delete, make again."""
    for number in range(SCRIPT_JOBSETS):
        await api.apply("Jobset", f"j{number}", spec_of(number))
    await api.apply("Project", "demo", PROJECT)
    await reached(lambda: all_held(api), "all to be seen")
    # Who is seen first has the name; an event that is lost may turn the order.
    await api.apply("Project", "demo", PROJECT, namespace="elsewhere")
    for number in range(0, SCRIPT_JOBSETS, 2):
        await api.apply("Jobset", f"j{number}", spec_of(number, suspend=True))
    for number in range(0, SCRIPT_JOBSETS, 3):
        await api.apply(
            "Jobset", f"j{number}", spec_of(number, nixExpression="ci.nix"),
            annotations={"fc-operator.dev/requestedAt": "now"},
        )  # fmt: skip
    await api.delete("Jobset", "j5")
    await api.delete("Jobset", "j7")


def all_held(api):
    return all(each["metadata"].get("finalizers") == HELD for each in api.objects.values())


async def finish(api):
    """And one of those that were deleted comes back, once it was gone."""
    await api.apply("Jobset", "j7", spec_of(7, flakeMode=True))


def told(api):
    """The statuses in the cluster, without what differs from run to run."""
    return {
        key: (
            each["metadata"].get("finalizers"),
            each["status"]["observedGeneration"] == each["metadata"]["generation"],
            each["status"].get("lastHandledRequest"),
            [
                (found["type"], found["status"], found["reason"], found["message"])
                for found in each["status"].get("conditions", [])
            ],
        )
        for key, each in sorted(api.objects.items())
    }


async def rows(database):
    async with database.session() as connection:
        found = await connection.fetch(
            "SELECT j.name, branch, nix_expression, flake_mode, suspended, j.deleting_at IS NULL,"
            " m.last_handled_request FROM jobsets j"
            " LEFT JOIN managed_resources m ON m.object_id = j.id ORDER BY j.name"
        )
    return [tuple(each) for each in found]


async def run_script(api, running, reached):
    """The operator, after everything that users did."""
    operator = await running(api)
    await reached(lambda: api.counts["watch"] >= 4, "the watches")
    await play(api, reached)
    gone = ("jobsets", "team", "j7")
    await reached(lambda: gone not in api.objects, "j7 to be gone")
    await finish(api)
    return operator


async def end_as_expected(api, operator, reached, database):
    """All is as it should be, and stays so when everything is compared once more."""

    async def found():
        return told(api), await rows(database)

    async def reached_end():
        jobsets = api.objects["projects", "team", "demo"]["status"].get("jobsets")
        return jobsets == SCRIPT_JOBSETS - 1 and await found() == EXPECTED

    try:
        await reached(reached_end, "the expected end", timeout_s=60)
    except AssertionError:
        assert await found() == EXPECTED
        raise
    compared = operator._desk.comparisons
    await reached(lambda: operator._desk.comparisons > compared + 1, "two comparisons")
    assert await found() == EXPECTED
    assert operator.ended == []


QUICK = {"410 Gone in the stream", "swallowed events", "stale events", "500"}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in FAULTS],
)
async def test_the_end_is_that_of_an_undisturbed_run(kube_api, running, reached, database, fault):
    api = kube_api.KubeApi(kube_api.Faults(seed=7, **FAULTS[fault]))
    operator = await run_script(api, running, reached)
    await end_as_expected(api, operator, reached, database)


async def test_an_undisturbed_run_ends_as_expected_and_rests(kube_api, running, reached, database):
    api = kube_api.KubeApi()
    operator = await run_script(api, running, reached)
    await end_as_expected(api, operator, reached, database)
    patches, compared = api.counts["PATCH"], operator._desk.comparisons
    await reached(lambda: operator._desk.comparisons > compared + 1, "two comparisons")
    assert api.counts["PATCH"] == patches


def _ready(number):
    if number % 3 and number % 2 == 0:
        return ("Ready", "True", "Suspended", "nothing is scheduled for it")
    return ("Ready", "True", "Reconciled", "")


PASSING = ("Passing", "Unknown", "NotEvaluated", "there is no evaluation yet")
HELD = ["fc-operator.dev/finalizer"]
OWNED = "it is owned by Kubernetes ci, team/demo"
EXPECTED_STATUSES = dict(
    sorted(
        {
            **{
                ("jobsets", "team", f"j{number}"): (
                    HELD, True, "now" if number % 3 == 0 else None, [_ready(number), PASSING]
                )
                for number in range(SCRIPT_JOBSETS)
                if number != 5
            },
            ("projects", "team", "demo"): (HELD, True, None, [("Ready", "True", "Reconciled", "")]),
            ("projects", "elsewhere", "demo"): (
                HELD, True, None,
                [("Ready", "False", "OwnedByOther", OWNED),
                 ("Stalled", "True", "OwnedByOther", OWNED)],
            ),
        }.items()
    )
)  # fmt: skip


def _row(number):
    asked = number % 3 == 0
    suspended = number % 2 == 0 and not asked
    expression = "ci.nix" if asked else "" if number == 7 else "release.nix"
    branch = f"b{number}"
    return (f"j{number}", branch, expression, number == 7, suspended, number != 5,
            "now" if asked else None)  # fmt: skip


EXPECTED_ROWS = sorted(_row(number) for number in range(SCRIPT_JOBSETS))
EXPECTED = (EXPECTED_STATUSES, EXPECTED_ROWS)
