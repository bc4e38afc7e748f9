"""Properties of plans: one owner per name, nothing foreign touched, an applied plan is at rest."""

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from fc_operator.model import desired as nouns
from fc_operator.model.ids import new_uuid
from fc_operator.model.resources import Recorded
from fc_operator.model.sources import Source
from fc_operator.reconciler import plans
from fc_operator.reconciler.plans import Load, PruneRules, World
from fc_operator.spec import manifests, rows

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 1, 2, tzinfo=UTC)
HEAD = "apiVersion: fc-operator.dev/v1alpha1\n"


def declare(kind, name, spec):
    text = f"{HEAD}kind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    parsed = manifests.parse_file(f"{name}.yaml", text.encode())
    assert not parsed.problems, parsed.problems
    return parsed.declarations[0]


PROJECTS = [
    declare("Project", name, f"{{repositoryUrl: 'https://git.example.org/{path}'}}")
    for name in ("p", "q")
    for path in ("x", "y")
]
JOBSETS = [
    declare("Jobset", f"{of}-{name}", f"{{name: {name}, projectRef: {{name: {of}}}, branch: {b}}}")
    for of in ("p", "q", "none")
    for name in ("a", "b")
    for b in ("main", "dev")
]
SOURCES = [
    Source("ConfigRepository", "one"),
    Source("ConfigRepository", "two"),
    Source("Apply", "k"),
]
loads = st.builds(
    lambda source, declarations, complete, confirmed, revision: Load(
        source=source,
        declarations=tuple(declarations),
        revision=str(revision),
        complete=complete,
        rules=PruneRules(confirmed=confirmed),
    ),
    st.sampled_from(SOURCES),
    st.lists(st.sampled_from(PROJECTS + JOBSETS), unique_by=lambda each: each.identity, max_size=6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)


def enact(world, made):
    """What ``apply`` does to the tables, in memory."""
    objects = dict(world.objects)
    for change in made.changes:
        old = objects.get(change.key)
        objects[change.key] = Recorded(
            id=old.id if old else new_uuid(),
            declared=change.after,
            namespace=None if change.key[0] == nouns.JOBSET else made.namespaces[change.key],
        )
    for key in made.deleting:
        objects[key] = replace(objects[key], deleting=True)
    resources = {each.id: each for each in world.resources if each.id not in made.dropped}
    for row in made.resources:
        if (
            row.owns
            and row.key in objects
            and row.object_id is None
            and row.key in {change.key for change in made.changes}
        ):
            row = replace(row, object_id=objects[row.key].id)  # noqa: PLW2901
        if row.spec is None:
            row = replace(row, spec=resources[row.id].spec)  # noqa: PLW2901
        resources[row.id] = row
    jobsets = frozenset(identity for kind, identity in objects if kind == nouns.JOBSET)
    return World(resources=tuple(resources.values()), objects=objects, jobsets=jobsets)


def seen_by(world, source):
    """With the declarations of others that wait, as a read finds them."""
    from fc_operator.reconciler.apply import declaration_of

    reasons = {"ReferenceNotFound", "OwnedByOther"}
    waiting = [
        (row, declaration_of(row))
        for row in world.resources
        if row.source != source
        and row.pruning_since is None
        and any(each.type == "Ready" and each.reason in reasons for each in row.conditions)
    ]
    return replace(world, waiting=waiting)


@given(st.lists(loads, max_size=6))
@settings(max_examples=300, deadline=None)
def test_after_any_history_each_name_has_at_most_one_owner_and_the_last_load_is_at_rest(history):
    world = World()
    for load in history:
        before = seen_by(world, load.source)
        made = plans.make(before, load, NOW)
        world = enact(before, made)
        owners = [row.key for row in world.resources if row.owns]
        assert len(owners) == len(set(owners))
        places = [(row.source, row.place) for row in world.resources]
        assert len(places) == len(set(places))
        again = plans.make(seen_by(world, load.source), load, LATER)
        assert again.empty, again
        assert not again.report.changes


@given(st.lists(loads, max_size=5), loads)
@settings(max_examples=200, deadline=None)
def test_a_load_prunes_only_what_its_own_source_owned(history, last):
    world = World()
    for load in [*history, last]:
        before = seen_by(world, load.source)
        made = plans.make(before, load, NOW)
        mine = {row.key for row in before.resources if row.source == load.source and row.owns}
        assert set(made.deleting) <= mine
        if not load.complete:
            assert not made.deleting
        world = enact(before, made)


def test_the_report_of_rows_speaks_of_this_source_only():
    world = enact(
        World(),
        plans.make(
            World(),
            Load(source=SOURCES[0], declarations=(JOBSETS[0],), revision="1", complete=True),
            NOW,
        ),
    )
    made = plans.make(
        seen_by(world, SOURCES[1]),
        Load(source=SOURCES[1], declarations=(PROJECTS[0],), revision="1", complete=True),
        NOW,
    )
    assert [line.identity for line in made.report.objects] == ["p"]
    assert {change.key[1] for change in made.changes} == {"p", "p/a"}
    assert rows.identity_of(made.changes[0].after) == "p"
