"""Properties of the pure middle: what a diff promises, for any two states."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from fc_operator.model import desired as nouns
from fc_operator.reconciler.diff import diff, normal, order_of, patch
from fc_operator.spec.rows import identity_of

names = st.sampled_from(["a", "b", "c", "d"])
texts = st.sampled_from(["", "x", "y"])


def listed(strategy, key):
    return st.lists(strategy, max_size=3, unique_by=key).map(tuple)


webhooks = listed(
    st.builds(
        nouns.WebhookSpec,
        forge=st.sampled_from(["github", "gitea", "gitlab"]),
        secret=st.builds(nouns.SecretRef, name=names, key=names),
        enabled=st.booleans(),
    ),
    lambda each: each.forge,
)
projects = st.builds(
    nouns.DesiredProject,
    name=names,
    repository_url=texts,
    description=texts,
    suspended=st.booleans(),
    webhooks=webhooks,
    notifications=listed(
        st.builds(nouns.NotificationSpec, type=names, name=names, url=st.none() | texts),
        lambda each: (each.type, each.name),
    ),
    channels=listed(st.builds(nouns.ChannelSpec, name=names, jobset=names), lambda x: x.name),
    members=listed(
        st.builds(nouns.MemberSpec, user=names, role=st.sampled_from(["member", "admin"])),
        lambda each: each.user,
    ),
)
jobsets = st.builds(
    nouns.DesiredJobset,
    project=names,
    name=names,
    nix_expression=texts,
    branch=st.none() | texts,
    inputs=listed(
        st.builds(nouns.InputSpec, name=names, type=st.just("string"), value=texts),
        lambda each: each.name,
    ),
)
builders = st.builds(
    nouns.DesiredBuilder,
    name=names,
    ssh_uri=texts,
    systems=st.just(("x86_64-linux",)),
    public_host_key=texts,
    ssh_key=st.builds(nouns.SecretRef, name=names, key=names),
)
repositories = st.builds(nouns.DesiredConfigRepository, name=names, url=texts, webhooks=webhooks)
KINDS = {
    nouns.DesiredProject: nouns.PROJECT,
    nouns.DesiredJobset: nouns.JOBSET,
    nouns.DesiredBuilder: nouns.REMOTE_BUILDER,
    nouns.DesiredConfigRepository: nouns.CONFIG_REPOSITORY,
}
states = st.lists(projects | jobsets | builders | repositories, max_size=10).map(
    lambda objects: {(KINDS[type(each)], identity_of(each)): each for each in objects}
)


def plain(state):
    return {key: normal(each) for key, each in state.items()}


@given(states)
def test_a_state_differs_from_itself_in_nothing(state):
    assert diff(state, state) == ()


@given(states, states)
@settings(max_examples=300)
def test_applying_the_difference_gives_the_other_state(before, after):
    assert patch(before, diff(before, after)) == plain(after)


@given(states, states)
def test_a_second_application_changes_nothing(before, after):
    changes = diff(before, after)
    assert patch(patch(before, changes), changes) == plain(after)


@given(states, states, st.randoms(use_true_random=False))
def test_order_means_nothing(before, after, rng: random.Random):
    def shuffled(state):
        keys = list(state)
        rng.shuffle(keys)
        return {key: mixed(state[key]) for key in keys}

    def mixed(each):
        from dataclasses import replace

        parts = {}
        for name in ("webhooks", "notifications", "channels", "members", "inputs"):
            if hasattr(each, name):
                part = list(getattr(each, name))
                rng.shuffle(part)
                parts[name] = tuple(part)
        return replace(each, **parts)

    assert diff(shuffled(before), shuffled(after)) == diff(before, after)


@given(states, states)
def test_the_way_there_is_the_way_back(before, after):
    there, back = diff(before, after), diff(after, before)
    assert [each.key for each in there] == [each.key for each in back]
    opposite = {"create": "delete", "delete": "create", "update": "update"}
    assert [opposite[each.action] for each in there] == [each.action for each in back]
    assert [each.fields for each in there] == [each.fields for each in back]


@given(states, states)
def test_what_is_needed_comes_first(before, after):
    order = [order_of(each.key) for each in diff(before, after)]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
