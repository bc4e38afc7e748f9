"""Builders over HTTP: a look is asked for; a host key is shown, then trusted."""

import asyncssh

from fc_operator.model.statuses import Role


async def test_a_look_is_asked_for_and_told(web, world):
    key = await web.key()
    path = "/api/v1/builders/big-1"
    assert (await web.post(f"{path}/test", key=key, status=202))["name"] == "big-1"
    assert (await web.get(path))["test_requested_at"]
    await world.sql(
        "UPDATE remote_builders SET test_requested_at = NULL, tested_at = now(), findings ="
        ' \'[{"check": "Login", "ok": true, "message": "in", "hint": ""}]\'::jsonb'
    )
    now = await web.get(path)
    assert now["tested_at"]
    assert [finding["check"] for finding in now["findings"]] == ["Login"]
    await web.post("/api/v1/builders/nobody/test", key=key, status=404)
    reader = await web.key(Role.EVAL_JOBSET)
    for verb in ("test", "pin"):
        await web.post(f"{path}/{verb}", {}, key=reader, status=403)


async def test_a_host_key_is_trusted_only_as_it_was_shown(web, world):
    key = await web.key()
    path = "/api/v1/builders/big-1/pin"
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    line = " ".join(host_key.export_public_key().decode().split()[:2])
    server = await asyncssh.listen("127.0.0.1", 0, server_host_keys=[host_key])
    async with server:
        await world.sql(
            "UPDATE remote_builders SET ssh_uri = $1, public_host_key = '',"
            " consecutive_failures = 3, disabled_until = now() + interval '1 hour'",
            f"ssh://nix@127.0.0.1:{server.get_port()}",
        )
        shown = await web.post(path, {}, key=key)
        assert (shown["host_key"], shown["trusted"], shown["is_trusted"]) == (line, "", False)
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
        await web.post(path, {"host_key": other}, key=key, status=409)
        (row,) = await world.sql("SELECT pinned_host_key FROM remote_builders")
        assert row[0] is None
        assert (await web.post(path, {"host_key": line}, key=key))["is_trusted"]
        (row,) = await world.sql(
            "SELECT pinned_host_key, consecutive_failures, disabled_until FROM remote_builders"
        )
        assert tuple(row) == (line, 0, None)
        await world.sql("UPDATE remote_builders SET public_host_key = $1", other)
        await web.post(path, {"host_key": line}, key=key, status=409)
    await web.post(path, {}, key=key, status=503)
