import asyncio
import contextlib
import time

import orjson
import pytest
from aiohttp import web

from fc_operator.clients import kube
from fc_operator.clients.kube import Kube
from fc_operator.errors import (
    ConflictError,
    InvalidError,
    LimitReachedError,
    NotFoundError,
    PrerequisiteError,
    UnavailableError,
)

KUBECONFIG = """
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: u, user: {{token: t-0}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""


@pytest.fixture
async def serving(tmp_path):
    """``await serving(handler)`` gives a Kube that talks to an HTTP server of the test's own."""
    async with contextlib.AsyncExitStack() as stack:

        async def serve(handler, **options):
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", handler)
            runner = web.AppRunner(application)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
            file = tmp_path / "kubeconfig"
            await asyncio.to_thread(file.write_text, KUBECONFIG.format(port=port))
            options = {"threads": 2, "timeout_s": 5, **options}
            return await stack.enter_async_context(
                await Kube.connect(kubeconfig=str(file), **options)
            )

        yield serve


def status(code: int, reason: str, message: str, **details):
    body = {"kind": "Status", "code": code, "reason": reason, "message": message}
    return web.json_response({**body, "details": details}, status=code)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, InvalidError),
        (401, PrerequisiteError),
        (403, PrerequisiteError),
        (404, NotFoundError),
        (409, ConflictError),
        (410, UnavailableError),
        (422, InvalidError),
        (429, UnavailableError),
        (500, UnavailableError),
        (503, UnavailableError),
    ],
)
async def test_an_answer_becomes_one_of_our_errors_that_knows_what_was_said(serving, code, error):
    async def refuse(_):
        return status(code, "Because", "it is so", kind="pods", retryAfterSeconds=7)

    client = await serving(refuse)
    with pytest.raises(error, match="GET /api/v1/namespaces/a/pods/b: it is so") as raised:
        await client.get(kube.PODS, "a", "b")
    said = kube.refusal_of(raised.value)
    assert (code, "Because", 7.0) == (said.code, said.reason, said.retry_after_s)
    assert said.details["kind"] == "pods"
    if error is UnavailableError:
        assert raised.value.delay_s == 7.0


async def test_a_proxy_that_answers_html_is_unavailable(serving):
    async def proxy(_):
        return web.Response(text="<html>", content_type="text/html")

    with pytest.raises(UnavailableError, match="no JSON"):
        await (await serving(proxy)).get(kube.PODS, "a", "b")


async def test_lists_come_in_pages_and_carry_the_selectors(serving):
    asked = []

    async def page(request):
        asked.append(dict(request.query))
        first = "continue" not in request.query
        items = [{"n": 1}, {"n": 2}] if first else [{"n": 3}]
        return web.json_response({"items": items, "metadata": {"continue": "m" if first else ""}})

    client = await serving(page)
    found = [each async for each in client.list(kube.PODS, "a", labels="x=y", page=2)]
    assert found == [{"n": 1}, {"n": 2}, {"n": 3}]
    first = {"limit": "2", "labelSelector": "x=y"}
    assert [first, {**first, "continue": "m"}] == asked


async def test_each_kind_of_patch_is_named_on_the_wire(serving):
    """The client's own choices differ from API to API, and turn some patches into others."""
    seen = []

    async def note(request):
        sent = orjson.loads(await request.read())
        seen.append((request.headers["Content-Type"], sent, request.headers["Authorization"]))
        return web.json_response({})

    client = await serving(note)
    operations = [{"op": "add", "path": "/a", "value": 1}]
    await client.patch(kube.OWN["Jobset"], "a", "b", operations, sub="status")
    await client.patch(kube.OWN["Jobset"], "a", "b", {"a": 1})
    await client.apply(kube.CRDS, None, "b", {"a": 1}, manager="m")
    assert [
        ("application/json-patch+json", operations, "Bearer t-0"),
        ("application/merge-patch+json", {"a": 1}, "Bearer t-0"),
        ("application/apply-patch+yaml", {"a": 1}, "Bearer t-0"),
    ] == seen


async def test_a_server_that_does_not_answer_is_given_up(serving):
    gone = asyncio.Event()

    async def hang(_):
        await gone.wait()

    client = await serving(hang, timeout_s=0.2)
    with pytest.raises(UnavailableError):
        await client.get(kube.PODS, "a", "b")
    gone.set()


async def test_an_answer_that_drips_for_ever_is_given_up(serving):
    """A timeout between two bytes alone would never end it."""

    async def drip(request):
        answer = web.StreamResponse()
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await answer.write(b" " * 70_000)
                await asyncio.sleep(0.05)
        return answer

    client = await serving(drip, timeout_s=0.5)
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="did not end in time"):
        await client.get(kube.PODS, "a", "b")
    assert time.monotonic() - start < 3


async def test_an_answer_larger_than_allowed_ends(serving, monkeypatch):
    monkeypatch.setattr(kube, "ANSWER_BYTES_MAX", 100_000)

    async def flood(_):
        return web.Response(body=b" " * 300_000)

    with pytest.raises(LimitReachedError):
        await (await serving(flood)).get(kube.PODS, "a", "b")


async def test_no_more_calls_at_once_than_threads(serving):
    running, most = 0, 0

    async def count(_):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return web.json_response({})

    client = await serving(count)
    await asyncio.gather(*(client.get(kube.PODS, "a", str(n)) for n in range(10)))
    assert most == 2


async def test_a_post_is_not_repeated_when_the_answer_is_lost(serving):
    """It may have been heard."""
    asked = 0

    async def drop(request):
        nonlocal asked
        asked += 1
        request.transport.close()

    client = await serving(drop)
    with pytest.raises(UnavailableError):
        await client.create(kube.PODS, "a", {"kind": "Pod"})
    assert asked == 1


async def test_without_a_cluster_a_person_is_told_what_to_do(tmp_path):
    with pytest.raises(PrerequisiteError, match="name a kubeconfig file"):
        await Kube.connect(kubeconfig=str(tmp_path / "none"))


def test_paths_quote_what_they_carry():
    assert kube.PODS.path("a", "b", "log") == "/api/v1/namespaces/a/pods/b/log"
    assert kube.OWN["Jobset"].path() == "/apis/fc-operator.dev/v1alpha1/jobsets"
    assert kube.CRDS.path("ignored", "a/../b").endswith("customresourcedefinitions/a%2F..%2Fb")
