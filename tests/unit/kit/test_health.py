import asyncio

import pytest

from fc_operator.kit.health import HealthService


@pytest.fixture
async def ask():
    """``await ask(words)`` gives what the service answers; ``ask.trouble`` is what it finds."""
    service = HealthService("127.0.0.1", 0, {"/healthz": lambda: ask.trouble})

    async def ask(words: bytes) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(words)
        answer = (await reader.read()).decode()
        writer.close()
        await writer.wait_closed()
        return answer

    ask.trouble = ""
    await service.start()
    yield ask
    await service.stop()
    await service.stop()


async def test_all_is_well(ask):
    answer = await ask(b"GET /healthz?verbose HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert answer.endswith("\r\n\r\nok\n")


async def test_trouble_is_said_with_503(ask):
    ask.trouble = "it stands still"
    answer = await ask(b"GET /healthz HTTP/1.1\r\n\r\n")
    assert answer.startswith("HTTP/1.1 503 ")
    assert answer.endswith("it stands still\n")


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", 404),
        (b"POST /healthz HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 405),
        (b"\r\n\r\n", 405),
    ],
)
async def test_nothing_else_is_served(ask, words, status):
    assert f"HTTP/1.1 {status} " in await ask(words)


async def test_a_head_without_end_is_cut(ask):
    assert await ask(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 20_000) == ""
