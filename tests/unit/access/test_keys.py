from hypothesis import given
from hypothesis import strategies as st

from fc_operator.access import keys


def test_a_key_is_long_recognisable_and_stored_as_a_hash():
    made = keys.make()
    assert made.text.startswith("fc_")
    assert len(made.text) == 52
    assert keys.is_well_formed(made.text)
    assert made.hash == keys.hash_key(made.text)
    assert made.text not in repr(made)
    assert made.shown == made.text[:11]


def test_keys_differ():
    assert len({keys.make().text for _ in range(100)}) == 100


@given(st.integers(3, 51), st.characters(codec="ascii", categories=["L", "N"]))
def test_a_changed_letter_is_noticed(place, letter):
    text = keys.make().text
    changed = text[:place] + letter + text[place + 1 :]
    assert keys.is_well_formed(changed) == (changed == text)


@given(st.text())
def test_any_text_is_judged_without_an_error(text):
    assert not keys.is_well_formed(text)
