"""Tokens of agents."""

from __future__ import annotations

import hashlib
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from fc_operator.access import tasks

TASK = uuid4()


def test_a_token_names_its_task_and_is_stored_as_a_hash():
    token = tasks.make(TASK)
    assert token.text.startswith(f"fct_{TASK.hex}_")
    assert tasks.parse(token.text) == token
    assert token.hash == hashlib.sha256(token.secret).hexdigest()
    assert token.matches(tasks.parse_hash(token.hash))
    assert token.secret.hex() not in repr(token)
    assert token.text.rpartition("_")[2] not in repr(token)


def test_only_its_own_hash_matches():
    token, other = tasks.make(TASK), tasks.make(TASK)
    assert token.secret != other.secret
    assert not token.matches(tasks.parse_hash(other.hash))
    assert not token.matches(None)
    assert not token.matches(b"")


def test_an_opening_token_is_the_same_each_time_and_of_one_task():
    one, again = tasks.opening(TASK, b"s" * 32), tasks.opening(TASK, b"s" * 32)
    assert tasks.is_same(one, again)
    assert not tasks.is_same(one, tasks.opening(uuid4(), b"s" * 32))
    assert not tasks.is_same(one, tasks.opening(TASK, b"t" * 32))
    assert tasks.opening_purpose(TASK) != tasks.opening_purpose(uuid4())


@given(st.text() | st.from_regex(r"fct_[0-9a-f]{32}_[0-9A-Za-z_-]{42,44}", fullmatch=True))
def test_any_text_is_judged_and_only_one_text_is_a_token(text):
    token = tasks.parse(text)
    assert token is None or token.text == text


@given(st.text())
def test_only_sixty_four_hex_digits_are_a_hash(text):
    found = tasks.parse_hash(text)
    assert found is None or found.hex() == text
