"""One formatter for our events and for what libraries say."""

import asyncio
import io
import json
import logging

import pytest
import structlog

from fc_operator.kit import logs


@pytest.fixture
def stream():
    """Logs go here as JSON; afterwards everything is as before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(level="info", stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_line_of_json_with_its_fields(stream):
    logs.get_logger().info("queue.step_claimed", step_id=7, text="two\nlines")
    (line,) = lines(stream)
    assert line["event"] == "queue.step_claimed"
    assert (line["step_id"], line["text"], line["level"]) == (7, "two\nlines", "info")
    assert line["timestamp"].endswith("Z")


def test_context_is_bound_for_a_block_and_not_beyond(stream):
    log = logs.get_logger()
    with logs.bound(build_id="b"), logs.bound(step_id=1):
        log.info("a.b")
    log.info("a.c")
    first, second = lines(stream)
    assert (first["build_id"], first["step_id"]) == ("b", 1)
    assert "build_id" not in second


async def test_context_belongs_to_its_own_task(stream):
    async def work(number):
        with logs.bound(number=number):
            await asyncio.sleep(0)
            logs.get_logger().info("a.b")

    await asyncio.gather(*(work(number) for number in range(5)))
    assert sorted(line["number"] for line in lines(stream)) == list(range(5))


def test_what_is_below_the_level_is_not_written(stream):
    logs.get_logger().debug("a.b")
    assert lines(stream) == []


def test_libraries_speak_through_the_same_formatter_and_only_when_something_is_wrong(stream):
    logging.getLogger("asyncio").info("chatter")
    logging.getLogger("sanic.access").info("GET /")
    logging.getLogger("git.cmd").warning("odd %s", "thing")
    (line,) = lines(stream)
    assert (line["event"], line["level"]) == ("odd thing", "warning")


def test_an_exception_comes_with_its_trace_on_the_same_line(stream):
    try:
        1 / 0  # noqa: B018 - to raise
    except ZeroDivisionError:
        logs.get_logger().warning("a.failed", exc_info=True)
    (line,) = lines(stream)
    assert "ZeroDivisionError" in line["exception"]


def test_on_a_terminal_lines_are_for_people(stream):
    out = io.StringIO()
    logs.configure(stream=out, json=False)
    logs.get_logger().info("a.b", step_id=7)
    assert "a.b" in out.getvalue()
    assert "step_id" in out.getvalue()
    with pytest.raises(json.JSONDecodeError):
        json.loads(out.getvalue())


def test_configuring_again_does_not_write_twice(stream):
    logs.configure(level="info", stream=stream)
    logs.get_logger().info("a.b")
    assert len(lines(stream)) == 1
