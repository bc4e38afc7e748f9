"""Verbs that need no server: validate, schema, and where a key is found."""

import io
import json
import stat

import pytest

from fc_operator.cli import connections, exits, manifest_files
from fc_operator.cli import key as key_command
from fc_operator.cli.main import run
from fc_operator.errors import NotFoundError

PROJECT = """\
apiVersion: fc-operator.dev/v1alpha1
kind: Project
metadata: {name: demo}
spec: {repositoryUrl: https://git.example.org/demo.git}
"""


@pytest.fixture
def fc(capsys):
    def call(*words):
        code = run([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_valid_manifests_are_counted(fc, tmp_path):
    (tmp_path / "a.yaml").write_text(PROJECT)
    (tmp_path / "notes.txt").write_text("not a manifest")
    assert fc("validate", tmp_path) == (exits.DONE, "1 object in 1 file: valid\n", "")


def test_all_problems_are_said_at_once_with_file_and_line(fc, tmp_path):
    (tmp_path / "a.yaml").write_text(PROJECT.replace("repositoryUrl", "repositryUrl"))
    (tmp_path / "b.yaml").write_text("kind: [")
    code, out, err = fc("validate", tmp_path)
    assert code == exits.ERROR
    assert f"{tmp_path}/a.yaml:4: " in err
    assert "repositoryUrl" in err
    assert f"{tmp_path}/b.yaml:" in err
    assert "problems" in out


def test_problems_for_programs(fc, tmp_path):
    (tmp_path / "a.yaml").write_text(PROJECT.replace("https", "ftp"))
    code, out, _ = fc("validate", "-o", "json", tmp_path)
    told = json.loads(out)
    assert code == exits.ERROR
    assert told["problems"][0]["field"] == "spec.repositoryUrl"


def test_standard_input_is_a_file_too(fc, monkeypatch):
    class Input:
        buffer = io.BytesIO(PROJECT.encode())

    monkeypatch.setattr("sys.stdin", Input)
    assert fc("validate", "-")[0] == exits.DONE


def test_a_reference_across_files_is_followed(fc, tmp_path):
    jobset = (
        "apiVersion: fc-operator.dev/v1alpha1\nkind: Jobset\nmetadata: {name: main}\n"
        "spec: {projectRef: {name: demo}}\n"
    )
    (tmp_path / "b.yaml").write_text(jobset)
    assert fc("validate", tmp_path)[0] == exits.ERROR
    (tmp_path / "a.yaml").write_text(PROJECT)
    assert fc("validate", tmp_path)[0] == exits.DONE


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(NotFoundError, match="no manifests"):
        manifest_files.read([str(tmp_path)])
    with pytest.raises(NotFoundError, match="does not exist"):
        manifest_files.read([str(tmp_path / "gone")])


@pytest.mark.parametrize("kind", ["all", "Jobset", "jobsets", "remotebuilder"])
def test_schemas_of_every_kind(fc, kind):
    code, out, _ = fc("schema", kind)
    assert code == exits.DONE
    assert json.loads(out)["$schema"].startswith("https://json-schema.org/")


def test_crds_are_documents(fc):
    from fc_operator.kit import documents

    code, out, _ = fc("schema", "--crds")
    read, problems = documents.load(out.encode())
    assert code == exits.DONE
    assert not problems
    assert {each.value["spec"]["names"]["kind"] for each in read} >= {"Project", "Jobset"}


def test_an_unknown_kind_is_named(fc):
    code, _, err = fc("schema", "Pod")
    assert code == exits.ERROR
    assert "'Pod' is none of Project" in err


def test_the_key_comes_from_the_flag_then_the_environment_then_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("FC_API_KEY", raising=False)
    assert connections.api_key() == ""
    key_command._save("from-file")
    assert connections.api_key() == "from-file"
    assert stat.S_IMODE(connections.key_file().stat().st_mode) == 0o600
    monkeypatch.setenv("FC_API_KEY", "from-environment")
    assert connections.api_key() == "from-environment"


def test_a_key_is_replaced_and_never_written_through_a_link(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    other = tmp_path / "other"
    other.write_text("untouched")
    connections.key_file().parent.mkdir()
    connections.key_file().symlink_to(other)
    key_command._save("new")
    assert other.read_text() == "untouched"
    assert connections.key_file().read_text() == "new\n"


def test_a_whole_key_is_not_asked_to_be_typed(fc):
    code, _, err = fc("key", "revoke", "fc_" + "x" * 49)
    assert code == exits.ERROR
    assert "only its first characters" in err


def test_a_key_before_anything_has_run_says_what_to_do(fc, tmp_path, monkeypatch):
    monkeypatch.delenv("FC_DATABASE_URL", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    code, _, err = fc("key", "create", "me", "--state", tmp_path / "state")
    assert code == exits.ERROR
    assert "no FC Operator has run on" in err
    assert not (tmp_path / "state").exists()


def test_what_is_named_here_is_a_manifest_to_the_server():
    from fc_operator.spec import manifests

    paths = ["a.yaml", "../a.yaml", "./.ci/b.yml", "/etc/c", "..", "a/.x.yaml"]
    names = manifest_files.names_of(paths)
    assert names == {
        "a.yaml": "a.yaml",
        "../a.yaml": "a-2.yaml",
        "./.ci/b.yml": "ci/b.yml",
        "/etc/c": "etc/c.yaml",
        "..": "manifest.yaml",
        "a/.x.yaml": "a/x.yaml",
    }
    assert all(manifests.is_manifest(name) for name in names.values())
