from __future__ import annotations

import os

import pytest

from fc_operator.errors import InvalidError
from fc_operator.model.desired import InputSpec
from fc_operator.triggers import inputs, sources


def test_a_git_input_is_a_url_and_perhaps_a_ref():
    assert inputs.parse_git("https://a/b.git") == inputs.GitInput(url="https://a/b.git")
    assert inputs.parse_git("https://a/b.git  v1").ref == "v1"
    for bad in ("", "a b c"):
        with pytest.raises(InvalidError):
            inputs.parse_git(bad)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("job", ("demo", "main", "job")),
        ("other:job.x86_64-linux", ("demo", "other", "job.x86_64-linux")),
        ("p:j:job", ("p", "j", "job")),
    ],
)
def test_a_build_input_names_a_job_near_or_far(value, expected):
    ref = inputs.parse_build(value, project="demo", jobset="main")
    assert (ref.project, ref.jobset, ref.job) == expected


@pytest.mark.parametrize("value", ["", "a:b:c:d", ":job", "a:", "a b", "-x"])
def test_what_names_no_job_is_refused(value):
    with pytest.raises(InvalidError):
        inputs.parse_build(value, project="demo", jobset="main")


@pytest.mark.parametrize(
    ("other", "allowed"),
    [
        ("https://git.example.org/other.git", True),
        ("https://git.example.org:8443/other.git", False),
        ("http://git.example.org/other.git", False),
        ("https://evil.example.org/a.git", False),
        ("https://git.example.org.evil/a.git", False),
        ("https://user@git.example.org/a.git", False),
        ("git.example.org:a.git", False),
    ],
)
def test_cve_class_credential_to_user_host(other, allowed):
    assert sources.may_use("https://git.example.org/team/a.git", other) is allowed


def spec(value):
    return InputSpec(name="p", type="path", value=str(value))


def test_a_path_of_this_machine_has_to_be_below_an_allowed_folder(tmp_path):
    inside = tmp_path / "allowed" / "data"
    inside.mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(tmp_path / "secret")
    allowed = (str(tmp_path / "allowed"),)
    assert sources.allowed_path(spec(inside), allowed) == inside
    for bad in (tmp_path / "secret", tmp_path / "allowed/link", inside / "../../secret", "/etc"):
        with pytest.raises(InvalidError, match="outside of the allowed folders"):
            sources.allowed_path(spec(bad), allowed)
    with pytest.raises(InvalidError):
        sources.allowed_path(spec(inside), ())
    with pytest.raises(InvalidError, match="can't be read"):
        sources.allowed_path(spec(tmp_path / "nope"), allowed)


def test_a_change_below_a_path_changes_its_hash(tmp_path):
    (tmp_path / "a").write_text("1")
    first = sources.listing_hash(tmp_path)
    assert sources.listing_hash(tmp_path) == first
    (tmp_path / "a").write_text("22")
    second = sources.listing_hash(tmp_path)
    (tmp_path / "b").mkdir()
    third = sources.listing_hash(tmp_path)
    os.utime(tmp_path / "a", (1, 1))
    assert len({first, second, third, sources.listing_hash(tmp_path)}) == 4
    assert sources.listing_hash(tmp_path / "a") != sources.listing_hash(tmp_path)
