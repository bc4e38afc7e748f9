"""Webhooks in: proven over the raw bytes, counted once, waking exactly who follows the ref."""

import base64
import hashlib
import hmac
import io
import json
import time
import uuid

import pytest

SECRET = b"a-canary-secret"
FORGES = ("github", "gitea", "forgejo", "gitlab")
EVENT = {
    "github": {"X-GitHub-Event": "push"},
    "gitea": {"X-Gitea-Event": "push", "X-GitHub-Event": "push"},
    "forgejo": {"X-Forgejo-Event": "push", "X-Gitea-Event": "push", "X-GitHub-Event": "push"},
    "gitlab": {"X-Gitlab-Event": "Push Hook"},
}
DELIVERY = {
    "github": "X-GitHub-Delivery", "gitea": "X-Gitea-Delivery",
    "forgejo": "X-Forgejo-Delivery", "gitlab": "X-Gitlab-Event-UUID",
}  # fmt: skip


def push(forge, ref="refs/heads/main", default="main", **more):
    repository = "project" if forge == "gitlab" else "repository"
    return {"ref": ref, "after": "a" * 40, repository: {"default_branch": default}, **more}


def signed(forge, body, secret=SECRET):
    digest = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return {
        "github": {"X-Hub-Signature-256": f"sha256={digest}"},
        "gitea": {"X-Gitea-Signature": digest},
        "forgejo": {"X-Forgejo-Signature": digest, "X-Gitea-Signature": digest},
        "gitlab": {"X-Gitlab-Token": secret.decode()},
    }[forge]


class Forge:
    """A forge that calls one address."""

    def __init__(self, web, name, path="demo"):
        self.web, self.name = web, name
        self.url = f"{web.url}/api/v1/webhooks/{path}/{name}"

    async def send(self, payload, *, headers=None, secret=SECRET, delivery=None, event=None):
        body = payload if isinstance(payload, bytes | io.BytesIO) else json.dumps(payload).encode()
        all_headers = {
            "Content-Type": "application/json",
            **(EVENT[self.name] if event is None else event),
            DELIVERY[self.name]: delivery or str(uuid.uuid4()),
            **signed(self.name, body if isinstance(body, bytes) else b"", secret),
            **(headers or {}),
        }
        async with self.web.session.post(self.url, data=body, headers=all_headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text)


@pytest.fixture
async def hooked(web, world):
    """The project demo with a webhook of every forge, and jobsets on several refs."""
    for forge in FORGES:
        row = await world.add(
            "webhook_configs", project_id=world.ids["demo"]["id"], forge_type=forge
        )
        sealed = web.cipher.encrypt(SECRET, context=f"webhook_configs/{row['id']}")
        await world.sql(
            "UPDATE webhook_configs SET secret_ciphertext = $2 WHERE id = $1", row["id"], sealed
        )
    demo = world.ids["demo"]
    await world.jobset(demo, "default")
    await world.jobset(demo, "dev", branch="dev")
    await world.jobset(demo, "tag", branch="v1")
    await world.jobset(demo, "off", branch="main", state="disabled")
    await world.jobset(demo, "asleep", branch="main", suspended=True)
    await world.sql("UPDATE jobsets SET next_check_at = 'infinity', check_reason = 'interval'")
    return world


async def woken(world):
    rows = await world.sql(
        "SELECT name FROM jobsets WHERE check_reason = 'webhook' AND next_check_at <= now()"
        " ORDER BY name"
    )
    return [row["name"] for row in rows]


@pytest.mark.parametrize("forge", FORGES)
async def test_c13_a_push_wakes_exactly_who_follows_the_ref(web, hooked, forge):
    sender = Forge(web, forge)
    status, answer = await sender.send(push(forge, "refs/heads/dev"))
    assert (status, answer["woken"]) == (202, ["dev"])
    assert await woken(hooked) == ["dev"]
    # No branch means the default one, whatever it is called; flake has none either.
    _, answer = await sender.send(push(forge, "refs/heads/trunk", default="trunk"))
    assert sorted(answer["woken"]) == ["default", "flake"]
    _, answer = await sender.send(push(forge, "refs/heads/main", default="trunk"))
    assert answer["woken"] == ["main"]
    tag_event = {"X-Gitlab-Event": "Tag Push Hook"} if forge == "gitlab" else None
    _, answer = await sender.send(push(forge, "refs/tags/v1"), event=tag_event)
    assert answer["woken"] == ["tag"]
    _, answer = await sender.send(push(forge, "refs/heads/nobody"))
    assert (answer["woken"], answer["ignored"]) == ([], "nothing follows this ref")
    assert await woken(hooked) == ["default", "dev", "flake", "main", "tag"]


@pytest.mark.parametrize("forge", FORGES)
async def test_deletions_and_other_events_are_answered_and_ignored(web, hooked, forge):
    sender = Forge(web, forge)
    status, answer = await sender.send(push(forge, after="0" * 40))
    assert (status, answer["ignored"]) == (202, "the ref was deleted")
    status, answer = await sender.send(push(forge, deleted=True))
    assert (status, answer["ignored"]) == (202, "the ref was deleted")
    name = next(iter(EVENT[forge]))
    for event in ("ping", "pull_request", "Merge Request Hook", "x" * 500):
        status, answer = await sender.send({"zen": "…"}, event={name: event})
        assert status == 202
        assert answer["ignored"]
    for ref in ("refs/notes/x", "main", 7, None, "refs/heads/\0", "refs/heads/" + "x" * 2_000):
        status, answer = await sender.send(push(forge, ref))
        assert (status, answer["woken"]) == (202, [])
    assert await woken(hooked) == []


@pytest.mark.parametrize("forge", FORGES)
async def test_a_delivery_counts_once(web, hooked, forge):
    sender = Forge(web, forge)
    _, first = await sender.send(push(forge), delivery="same")
    assert first["woken"]
    await hooked.sql("UPDATE jobsets SET next_check_at = 'infinity', check_reason = 'interval'")
    status, second = await sender.send(push(forge), delivery="same")
    assert (status, second["ignored"]) == (202, "this delivery came before")
    assert await woken(hooked) == []
    await hooked.sql("UPDATE webhook_deliveries SET received_at = now() - interval '73 hours'")
    _, later = await sender.send(push(forge), delivery="same")
    assert later["woken"]


@pytest.mark.parametrize("forge", FORGES)
async def test_cve_class_existence_oracle(web, hooked, forge):
    """S05: what is refused is refused with the same words, whatever the reason."""
    body = push(forge)
    answers = [
        await Forge(web, forge).send(body, secret=b"wrong"),
        await Forge(web, forge, "nobody").send(body),
        await Forge(web, forge, "hidden").send(body),
        await Forge(web, forge, "config-repositories/nobody").send(body),
        await Forge(web, forge).send({}, secret=b"", event={}),
    ]
    await hooked.sql("UPDATE webhook_configs SET secret_ciphertext = NULL")
    answers.append(await Forge(web, forge).send(body, secret=b""))
    await hooked.sql("UPDATE webhook_configs SET enabled = false")
    answers.append(await Forge(web, forge).send(body))
    assert {status for status, _ in answers} == {401}
    assert len({json.dumps(answer) for _, answer in answers}) == 1
    assert await woken(hooked) == []


@pytest.mark.parametrize("forge", ["github", "gitea", "forgejo"])
async def test_a_signature_is_over_the_raw_bytes(web, hooked, forge):
    sender = Forge(web, forge)
    body = json.dumps(push(forge)).encode()
    (name, value), *_ = signed(forge, body).items()
    for changed in (
        value.upper(), value[:-1], value + "0", " " + value.replace("a", "b"), "",
        value.removeprefix("sha256=") + "x", "sha1=" + value, value[:-1] + "g",
        base64.b64encode(bytes.fromhex(value.removeprefix("sha256="))).decode(),
    ):  # fmt: skip
        if changed.strip() == value:
            continue
        headers = dict.fromkeys(signed(forge, body), changed)
        status, _ = await sender.send(body, headers=headers)
        assert status == 401, changed
    # The same content, written otherwise.
    other = json.dumps(push(forge), indent=1).encode()
    status, _ = await sender.send(other, headers=signed(forge, body))
    assert status == 401
    assert (await sender.send(body))[0] == 202
    assert name


async def test_gitlabs_own_signature_is_judged_where_it_is_sent(web, hooked):
    sender = Forge(web, "gitlab")
    body = json.dumps(push("gitlab")).encode()

    def standard(secret, stamp):
        content = f"id1.{stamp}.".encode() + body
        mac = base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
        return {
            "webhook-id": "id1", "webhook-timestamp": str(stamp), "webhook-signature": f"v1,{mac}",
            # A right token does not heal a wrong signature.
            "X-Gitlab-Token": SECRET.decode(),
        }  # fmt: skip

    now = int(time.time())
    assert (await sender.send(body, headers=standard(SECRET, now)))[0] == 202
    assert (await sender.send(body, headers=standard(b"wrong", now)))[0] == 401
    assert (await sender.send(body, headers=standard(SECRET, now - 3_600)))[0] == 401


async def test_secrets_are_changed_without_a_gap(web, hooked):
    row = (await hooked.sql("SELECT id FROM webhook_configs WHERE forge_type = 'github'"))[0]
    sealed = web.cipher.encrypt(b"new\n" + SECRET + b"\n\n", context=f"webhook_configs/{row['id']}")
    await hooked.sql(
        "UPDATE webhook_configs SET secret_ciphertext = $2 WHERE id = $1", row["id"], sealed
    )
    sender = Forge(web, "github")
    assert (await sender.send(push("github")))[0] == 202
    assert (await sender.send(push("github"), secret=b"new"))[0] == 202
    assert (await sender.send(push("github"), secret=b""))[0] == 401
    # A ciphertext of another row does not open, and that is our trouble, not the caller's.
    await hooked.sql(
        "UPDATE webhook_configs SET secret_ciphertext = $2 WHERE id = $1",
        row["id"], web.cipher.encrypt(SECRET, context="webhook_configs/other"),
    )  # fmt: skip
    assert (await sender.send(push("github")))[0] == 401


@pytest.mark.parametrize("forge", FORGES)
async def test_cve_class_webhook_crash(web, hooked, forge):
    """S04: no body, however made, is our error; a giant is refused before it is kept."""
    sender = Forge(web, forge)
    for body in (
        b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"a":' * 50_000,
        b'{"ref": {"a": []}}', b'{"ref": "refs/heads/main", "repository": 7, "project": []}',
        b'{"ref": "refs/heads/main", "after": {"x": 1}}', b"1" * 5_000, b'{"ref": "\\ud800"}',
    ):  # fmt: skip
        status, _ = await sender.send(body)
        assert status in {202, 400}, body[:40]
    status, problem = await sender.send(io.BytesIO(b" " * (5 * 1024 * 1024 + 1)))
    assert (status, problem["status"]) == (413, 413)
    form = b"payload=" + json.dumps(push(forge)).encode()
    status, _ = await sender.send(
        form, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert status == 202


async def test_a_push_wakes_the_config_repository_that_follows_it(web, world):
    (repository,) = await world.sql("SELECT id FROM config_repositories")
    row = await world.add(
        "webhook_configs", config_repository_id=repository["id"], forge_type="forgejo"
    )
    sealed = web.cipher.encrypt(SECRET, context=f"webhook_configs/{row['id']}")
    await world.sql("UPDATE webhook_configs SET secret_ciphertext = $1", sealed)
    await world.sql("UPDATE config_repositories SET next_sync_at = 'infinity'")
    sender = Forge(web, "forgejo", "config-repositories/team")
    status, answer = await sender.send(push("forgejo", "refs/heads/other"))
    assert (status, answer["woken"]) == (202, [])
    status, answer = await sender.send(push("forgejo"))
    assert (status, answer["woken"]) == (202, ["team"])
    assert await world.sql("SELECT 1 FROM config_repositories WHERE next_sync_at <= now()")
