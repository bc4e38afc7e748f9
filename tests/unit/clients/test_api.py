"""Our API from the outside, against a real HTTP server that answers as told."""

import socket

import pytest
from aiohttp import web

from fc_operator import errors
from fc_operator.clients.api import ApiClient


@pytest.fixture
async def serve():
    """Starts a server of the given handlers (path to handler); returns its address."""
    runners = []

    async def start(handlers, *, port=0):
        app = web.Application()
        for path, handler in handlers.items():
            app.router.add_route("*", path, handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        runners.append(runner)
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_a_list_is_read_page_after_page(serve):
    pages = {None: ([1, 2], "two"), "two": ([3], None)}

    async def things(request):
        items, after = pages[request.query.get("cursor")]
        assert request.query["status"] == "failed"
        return web.json_response({"items": [{"n": n} for n in items], "next": after})

    url = await serve({"/api/v1/things": things})
    async with ApiClient(url) as client:
        assert [i["n"] for i in await client.all("/things", {"status": "failed"})] == [1, 2, 3]
        found = await client.all("/things", {"status": "failed", "none": None}, most=2)
        assert [item["n"] for item in found] == [1, 2]


async def test_the_key_goes_in_the_header_and_nowhere_else(serve):
    async def who(request):
        assert "secret" not in str(request.url)
        return web.json_response(request.headers.get("Authorization"))

    url = await serve({"/api/v1/who": who})
    async with ApiClient(url, "secret") as client:
        assert await client.get("/who") == "Bearer secret"
    async with ApiClient(url) as client:
        assert await client.get("/who") is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.InvalidError),
        (401, errors.UnauthenticatedError),
        (403, errors.ForbiddenError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (413, errors.InvalidError),
        (422, errors.InvalidError),
        (429, errors.UnavailableError),
        (500, errors.UnavailableError),
        (503, errors.UnavailableError),
    ],
)
async def test_problems_become_our_errors(serve, status, kind):
    async def problem(_):
        return web.json_response(
            {"title": "No", "detail": "it is so", "hint": "do this"},
            status=status,
            content_type="application/problem+json",
            headers={"Retry-After": "7"},
        )

    url = await serve({"/api/v1/x": problem})
    async with ApiClient(url) as client:
        with pytest.raises(kind) as caught:
            await client.get("/x")
    assert "it is so" in caught.value.message
    assert caught.value.hint == "do this"
    if kind is errors.UnavailableError:
        assert caught.value.delay_s == 7


async def test_what_is_not_ours_is_said_so(serve):
    async def page(_):
        return web.Response(text="<html>", content_type="text/html")

    async def gone(_):
        return web.Response(text="<html>", status=404, content_type="text/html")

    url = await serve({"/api/v1/page": page, "/api/v1/gone": gone})
    async with ApiClient(url) as client:
        with pytest.raises(errors.ProtocolError, match="JSON"):
            await client.get("/page")
        with pytest.raises(errors.NotFoundError):
            await client.get("/gone")


async def test_a_read_waits_for_a_server_that_is_just_starting(serve, monkeypatch):
    port = free_port()

    async def fine(_):
        return web.json_response("fine")

    started = []

    async def start_instead_of_sleeping(_):
        if not started:
            started.append(await serve({"/api/v1/x": fine}, port=port))

    monkeypatch.setattr("fc_operator.clients.api.asyncio.sleep", start_instead_of_sleeping)
    async with ApiClient(f"http://127.0.0.1:{port}") as client:
        assert await client.get("/x") == "fine"
    assert started


async def test_a_write_is_never_tried_again(monkeypatch):
    async def no_sleep(_):
        pytest.fail("it waited to try again")

    monkeypatch.setattr("fc_operator.clients.api.asyncio.sleep", no_sleep)
    async with ApiClient(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(errors.UnavailableError) as caught:
            await client.send("POST", "/x", {})
    assert "fc up" in caught.value.hint


@pytest.mark.parametrize("url", ["", "ftp://x", "file:///etc/passwd", "localhost:8080"])
async def test_only_http_addresses_are_taken(url):
    with pytest.raises(errors.InvalidError):
        ApiClient(url)


async def test_a_stream_goes_on_where_it_broke_off(serve):
    """No gap and no double over a lost connection; the end is an answer without content."""
    asked = []

    async def stream(request):
        last = request.headers.get("Last-Event-ID")
        asked.append(last)
        if last == "3":
            return web.Response(status=204)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"retry: 1\n\n")
        for number in (1, 2) if last is None else (3,):
            await response.write(f"id: {number}\ndata: line {number}\n\n".encode())
        if last is None:
            await response.write(b"id: 3\ndata: cut o")
            request.transport.abort()
        return response

    url = await serve({"/api/v1/log": stream})
    async with ApiClient(url) as client:
        lines = [event.data async for event in client.events("/log")]
    assert lines == ["line 1", "line 2", "line 3"]
    assert asked == [None, "2", "3"]


async def test_an_unfinished_event_does_not_count_as_seen():
    """Its id must not be sent, or its data would be lost."""
    from fc_operator.kit.event_streams import EventParser

    parser = EventParser("1")
    parser.feed("id: 2")
    parser.feed("data: half")
    assert parser.completed_id == "1"
    parser.feed("")
    assert parser.completed_id == "2"
