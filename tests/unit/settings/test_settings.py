"""The one reader of settings: rising order, and every mistake refused by its name."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest

from fc_operator import settings
from fc_operator.errors import SettingsError


def load(text: str = "", tmp_path: Path | None = None, **more):
    file = None
    if tmp_path is not None:
        file = tmp_path / "fc.yaml"
        file.write_text(text)
    return settings.load(file=file, **more)


def test_defaults_need_no_file():
    assert load() == settings.Settings()


def test_each_source_outranks_the_one_before(tmp_path):
    text = "web: {port: 1, host: 127.0.0.2}\nqueue: {batch: 3}\n"
    env = {"FC_WEB_PORT": "2", "FC_QUEUE_BATCH": "4", "HOME": "/root"}
    loaded = load(text, tmp_path, env=env, flags={"queue.batch": 5})
    assert (loaded.web.host, loaded.web.port, loaded.queue.batch) == ("127.0.0.2", 2, 5)


def test_lists_and_paths_and_switches_are_read_from_text():
    env = {"FC_GIT_ALLOWED_SCHEMES": "https, http", "FC_STATE_DIR": "/var/lib/fc"}
    loaded = load(env=env)
    assert loaded.git.allowed_schemes == ("https", "http")
    assert loaded.state.dir == Path("/var/lib/fc")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("web: {prot: 1}", ":1: there is no setting web.prot, did you mean web.port?"),
        ("\nwebb: {port: 1}", ":2: there is no setting webb.port, did you mean web.port?"),
        ("web: {port: abc}", "web.port is 'abc'; it must be a whole number"),
        ("web: {port: 1.5}", "web.port is 1.5; it must be a whole number"),
        ("web: {port: true}", "web.port is True; it must be a whole number"),
        ("web: {port: 70000}", "web.port is 70000; it must be at most 65535"),
        ("queue: {batch: 0}", "queue.batch is 0; it must be at least 1"),
        ("nix: {sandbox: Docker}", "nix.sandbox is 'Docker'; it must be one of Nix, None, Auto"),
        ("web: 1", "web is a group of settings, not a value"),
        ("[1]", "the settings are a mapping of groups"),
        ("web: {host: 1}", "web.host is 1; it must be text"),
        ("queue: {lease_s: 5}", "queue.lease_s (5) must be longer than"),
        ("web: {port: 1, port: 2}", "port"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(tmp_path, text, said):
    with pytest.raises(SettingsError) as caught:
        load(text, tmp_path)
    assert said in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path):
    with pytest.raises(SettingsError) as caught:
        load("web: {prot: 1}\nqueue: {batch: x}", tmp_path, env={"FC_DATABSE_URL": "x"})
    for part in ("web.prot", "queue.batch", "FC_DATABSE_URL", "did you mean FC_DATABASE_URL?"):
        assert part in str(caught.value)


def test_what_kubernetes_adds_for_services_is_no_setting():
    env = {
        "FC_SERVER_SERVICE_HOST": "10.0.0.1", "FC_SERVER_PORT": "tcp://10.0.0.1:80",
        "FC_SERVER_PORT_80_TCP_ADDR": "10.0.0.1", "FC_URL": "http://x", "FC_API_KEY": "x",
    }  # fmt: skip
    assert load(env=env) == settings.Settings()


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(SettingsError, match=r"can't be read: No such file"):
        settings.load(file=tmp_path / "none.yaml")


def test_the_encryption_key_has_its_own_name_and_is_never_shown():
    loaded = load(env={"FC_ENCRYPTION_KEY": "c2VjcmV0"})
    assert loaded.secrets.encryption_key == "c2VjcmV0"
    assert "c2VjcmV0" not in repr(loaded)


def test_every_setting_says_what_it_means():
    tree = ast.parse(Path(settings.__file__).read_text())
    groups = [
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name != "Settings"
    ]
    for group in groups:
        for node, following in pairwise([*group.body, ast.Pass()]):
            if isinstance(node, ast.AnnAssign):
                said = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert said, f"{group.name}.{ast.unparse(node.target)} has no docstring"


def test_pods_need_an_image_and_a_server():
    with pytest.raises(SettingsError) as caught:
        load(flags={"kubernetes.enabled": True})
    assert "kubernetes.image must be set" in str(caught.value)
    assert "kubernetes.server_url must be set" in str(caught.value)


def test_what_a_pod_tells_its_agent_is_no_setting():
    load(env={"FC_AGENT_TOKEN": "t", "FC_AGENT_SERVER": "http://x"})
    with pytest.raises(SettingsError):
        load(env={"FC_AGENTS_TOKEN": "t"})
