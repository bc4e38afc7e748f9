"""Logs over HTTP: whole, by range, their end, and live without a gap or a double."""

import asyncio
import contextlib
import random

import orjson
import pytest

from fc_operator.kit.event_streams import EventParser
from fc_operator.results import archive


@pytest.fixture
async def live(world):
    """A running build with one attempt that has no end yet."""
    step = await world.step("live", status="running")
    build = await world.build(world.ids["new"], "live", "running", step=step)
    await world.attempt(step, status=None, build=build)
    return build, step


async def settle(world, build, step, status="succeeded", attempt=1):
    """The attempt ends and the build with it, as the engine writes it."""
    async with world.database.transaction() as connection:
        await connection.execute(
            "UPDATE attempts SET ended_at = now(), status = $3, log_bytes = coalesce((SELECT"
            " max(start_offset + octet_length(data)) FROM log_chunks WHERE step_id = $1 AND"
            " attempt = $2), 0) WHERE step_id = $1 AND attempt = $2",
            step["id"], attempt, status,
        )  # fmt: skip
        await connection.execute("UPDATE steps SET status = $2 WHERE id = $1", step["id"], status)
        await connection.execute(
            "UPDATE builds SET status = $2, completed_at = now() WHERE id = $1", build["id"], status
        )
        await connection.execute("SELECT pg_notify('fc_builds', $1)", str(build["evaluation_id"]))


async def put_away(world, web, step, attempt=1):
    """Archive a log as maintenance does: object first, then the key, chunks go with it."""
    rows = await world.sql(
        "SELECT data FROM log_chunks WHERE step_id = $1 AND attempt = $2 ORDER BY start_offset",
        step["id"], attempt,
    )  # fmt: skip

    async def chunks():
        for row in rows:
            yield row["data"]

    key = archive.key_of(step["id"], attempt)
    await archive.write(web.objects, key, chunks())
    async with world.database.transaction() as connection:
        await connection.execute(
            "UPDATE attempts SET log_key = $3 WHERE step_id = $1 AND attempt = $2",
            step["id"], attempt, key,
        )  # fmt: skip
        await connection.execute(
            "DELETE FROM log_chunks WHERE step_id = $1 AND attempt = $2", step["id"], attempt
        )


@pytest.mark.parametrize("archived", [False, True])
async def test_c20_a_log_by_range_is_the_same_fresh_and_archived(web, world, archived):
    text = "".join(f"line {n} äöü\n" for n in range(20_000)).encode()
    step = await world.step("long")
    build = await world.build(world.ids["new"], "long", step=step)
    await world.attempt(step, log=b"", build=build)
    await world.log(step, 1, 0, text, size=50_000)
    await world.sql("UPDATE attempts SET log_bytes = $2 WHERE step_id = $1", step["id"], len(text))
    if archived:
        await put_away(world, web, step)
    url = f"{web.url}/api/v1/builds/{build['number']}/log"

    async def fetch(header=None, query=""):
        headers = {"Range": header} if header else {}
        async with web.session.get(url + query, headers=headers) as answer:
            return answer.status, answer.headers, await answer.read()

    status, headers, body = await fetch()
    assert (status, body) == (200, text)
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in headers["Content-Security-Policy"]
    for first, last in ((0, 0), (5, 99_999), (149_990, 150_010), (len(text) - 1, len(text) + 9)):
        status, headers, body = await fetch(f"bytes={first}-{last}")
        assert (status, body) == (206, text[first : last + 1])
        end = min(last, len(text) - 1)
        assert headers["Content-Range"] == f"bytes {first}-{end}/{len(text)}"
    assert (await fetch("bytes=-7"))[2] == text[-7:]
    assert (await fetch(f"bytes={len(text) - 3}-"))[2] == text[-3:]
    assert (await fetch(f"bytes={len(text)}-"))[0] == 416
    for ignored in ("bytes=5-2", "bytes=1-2,4-5", "lines=1-2", "bytes=x-"):
        assert (await fetch(ignored))[0] == 200
    for lines in (1, 3, 9_000):
        expected = b"".join(text.splitlines(keepends=True)[-lines:])
        assert (await fetch(query=f"?tail={lines}"))[2] == expected
    assert (await fetch(query="?attempt=2"))[0] == 404
    assert (await fetch(query="?tail=0"))[0] == 400
    etag = headers["ETag"]
    async with web.session.get(url, headers={"If-None-Match": etag}) as answer:
        assert answer.status == 304


async def test_a_build_that_never_ran_has_no_log(web, world):
    needs = (await world.sql("SELECT number FROM builds WHERE job_name = 'needs-bad'"))[0][0]
    problem = await web.get(f"/api/v1/builds/{needs}/log", status=404)
    assert "nothing was run" in problem["detail"]
    cause = (await web.get(f"/api/v1/builds/{needs}"))["root_cause"]["step_id"]
    async with web.session.get(f"{web.url}/api/v1/steps/{cause}/log") as answer:
        assert await answer.read() == b"no\n"


class Viewer:
    """Reads a stream as a browser does, and may lose its connection anywhere."""

    def __init__(self, web, build):
        self.url = f"{web.url}/api/v1/builds/{build['number']}/log/stream"
        self.session = web.session
        self.last_id = ""
        self.text = {}
        self.events = []
        self.ended = None

    async def watch(self, events_max=None):
        """Until the end, or until so many events came and the connection breaks."""
        parser = EventParser()
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        async with self.session.get(self.url, headers=headers) as answer:
            if answer.status == 204:
                return 204
            assert answer.status == 200
            assert answer.content_type == "text/event-stream"
            async for line in answer.content:
                event = parser.feed(line.decode().rstrip("\n"))
                if event is None:
                    continue
                self.last_id = event.id
                data = orjson.loads(event.data)
                self.events.append(event.event)
                if event.event == "log":
                    self.text[data["attempt"]] = self.text.get(data["attempt"], "") + data["text"]
                if event.event == "end":
                    self.ended = data
                    return 200
                if events_max is not None:
                    events_max -= 1
                    if events_max <= 0:
                        answer.close()
                        return None
        return None


async def test_c20_a_live_log_over_reconnects_has_no_gap_and_no_double(web, world, live):
    build, step = live
    viewer = Viewer(web, build)
    whole = "".join(f"{n}: ä🙂\r progress \x1b[1m\n" for n in range(300)).encode()
    dice = random.Random(7)

    async def write():
        offset = 0
        while offset < len(whole):
            size = dice.randint(1, 200)
            await world.log(step, 1, offset, whole[offset : offset + size], size=37)
            offset += size
            await asyncio.sleep(0)
        await settle(world, build, step)
        # The log moves while it is read.
        await put_away(world, web, step)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        while viewer.ended is None:
            await viewer.watch(events_max=dice.randint(1, 8))
    assert viewer.text == {1: whole.decode()}
    assert viewer.ended == {"status": "succeeded", "status_reason": ""}
    # After the end a browser is told not to come again.
    assert await viewer.watch() == 204


async def test_a_stream_goes_on_with_the_next_attempt(web, world, live):
    build, step = live
    viewer = Viewer(web, build)
    await world.log(step, 1, 0, b"first\n")
    watching = asyncio.create_task(viewer.watch())
    while not viewer.text:
        await asyncio.sleep(0.01)
    async with world.database.transaction() as connection:
        await connection.execute(
            "UPDATE attempts SET ended_at = now(), status = 'lost', log_bytes = 6"
            " WHERE step_id = $1", step["id"],
        )  # fmt: skip
    await world.attempt(step, 2, status=None, build=build)
    await world.log(step, 2, 0, b"second\n")
    await settle(world, build, step, "failed", attempt=2)
    async with asyncio.timeout(5):
        await watching
    assert viewer.text == {1: "first\n", 2: "second\n"}
    assert viewer.events[0] == "attempt"
    assert viewer.ended["status"] == "failed"


async def test_bytes_that_are_no_text_are_shown_and_never_break_a_stream(web, world, live):
    build, step = live
    await world.log(step, 1, 0, b"\xff\xfe ok \xe2\x82", size=1)
    await settle(world, build, step)
    viewer = Viewer(web, build)
    await viewer.watch()
    assert viewer.text == {1: "\ufffd\ufffd ok \ufffd"}


async def test_a_build_that_ends_without_a_log_ends_its_stream(web, world):
    needs = (await world.sql("SELECT * FROM builds WHERE job_name = 'needs-bad'"))[0]
    viewer = Viewer(web, needs)
    await viewer.watch()
    assert viewer.events == ["end"]
    assert viewer.ended["status"] == "dependency_failed"


async def test_live_viewers_are_bounded_and_leave_nothing_behind(serve, world, live):
    build, _ = live
    async with serve(log_streams_max=2) as web:
        viewers = [asyncio.create_task(Viewer(web, build).watch()) for _ in range(2)]
        streams = web.service.context.streams
        async with asyncio.timeout(5):
            while len(streams) < 2:
                await asyncio.sleep(0.01)
        async with web.session.get(Viewer(web, build).url) as answer:
            assert answer.status == 503
            assert "Retry-After" in answer.headers
        for viewer in viewers:
            viewer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await viewer
        async with asyncio.timeout(5):
            while streams:
                await asyncio.sleep(0.01)
        subscriptions = web.service.context.listener._subscriptions
        assert not any(subscriptions.values())


async def test_a_stop_does_not_wait_for_viewers(serve, live):
    build, _ = live
    async with serve() as web:
        viewing = asyncio.create_task(Viewer(web, build).watch())
        async with asyncio.timeout(5):
            while not web.service.context.streams:
                await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await web.service.stop()
        assert loop.time() - started < 1
        with contextlib.suppress(Exception):
            await viewing


@pytest.mark.parametrize("last", ["x", "1", "1:", "1:2:3", "-1:0", "1:0:fin", "9" * 30 + ":0"])
async def test_a_foreign_event_id_is_refused(web, world, last):
    path = "/api/v1/builds/2/log/stream"
    await web.get(path, status=400, headers={"Last-Event-ID": last})


@pytest.mark.parametrize("archived", [False, True])
async def test_a_try_that_found_everything_built_shows_what_the_cut_off_one_before_said(
    web, world, archived
):
    """After a kill between Nix's end and ours; but the log of a try that failed is its own."""
    text = b"compiling\ndone\n"
    step = await world.step("cut")
    build = await world.build(world.ids["new"], "cut", step=step)
    await world.attempt(step, 1, "lost", log=text, build=build)
    if archived:
        await put_away(world, web, step)
    await world.attempt(step, 2, reason="AlreadyValid", build=build)
    url = f"{web.url}/api/v1/builds/{build['number']}/log"
    async with web.session.get(url) as answer:
        assert (answer.headers["X-Attempt"], await answer.read()) == ("1", text)
    async with web.session.get(url + "?attempt=2") as answer:
        assert await answer.read() == b""
    await world.sql("UPDATE attempts SET status = 'failed' WHERE step_id = $1 AND attempt = 1",
                    step["id"])  # fmt: skip
    async with web.session.get(url) as answer:
        assert answer.headers["X-Attempt"] == "2"
