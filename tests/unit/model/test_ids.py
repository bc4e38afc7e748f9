import time

from fc_operator.model import ids


def test_uuids_are_version_7_and_grow_with_time():
    before = time.time_ns() // 1_000_000
    made = [ids.new_uuid() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(value.version == 7 and value.variant == "specified in RFC 4122" for value in made)
    assert before <= made[0].int >> 80 <= time.time_ns() // 1_000_000
    assert [value.int >> 80 for value in made] == sorted(value.int >> 80 for value in made)
