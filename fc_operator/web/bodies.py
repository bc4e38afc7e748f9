"""Bodies sent in pieces: whole, by range, and only their headers for HEAD."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

from sanic import HTTPResponse

from fc_operator.web import answers, problems, ranges
from fc_operator.web.routes import Call, secured

SANDBOX = {"Content-Security-Policy": "sandbox; default-src 'none'"}
"""What builds made never runs as us, whatever a browser takes it for."""


async def send(
    call: Call[Any, Any],
    *,
    size: int,
    media: str,
    read: Callable[[int, int], AsyncIterator[bytes]],
    etag: str | None = None,
    headers: dict[str, str] | None = None,
) -> HTTPResponse | None:
    """Answer with bytes of ``read(start, end)``, whole or the range that was asked for.

    ``etag`` only for what never changes: it makes 304 and If-Range work.
    """
    request = call.request
    common = {"Accept-Ranges": "bytes", **SANDBOX, **(headers or {})}
    common["Cache-Control"] = "no-cache" if etag else "no-store"
    if etag:
        common["ETag"] = etag
        if answers.matches(request.headers.get("if-none-match"), etag):
            return HTTPResponse(status=304, headers=common)
    wanted = request.headers.get("range")
    condition = request.headers.get("if-range")
    if condition is not None and condition != etag:
        wanted = None
    try:
        part = ranges.parse(wanted, size)
    except ranges.UnsatisfiableError:
        status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        return problems.answer(
            problems.problem(status, f"there are {size} bytes"),
            headers={"Content-Range": f"bytes */{size}"},
        )
    start, end = part or (0, size)
    if part is not None:
        common["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    common["Content-Length"] = str(end - start)
    status = HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT
    if request.method == "HEAD" or end == start:
        return HTTPResponse(status=status, content_type=media, headers=common)
    response = await request.respond(
        secured(HTTPResponse(status=status, content_type=media, headers=common))
    )
    async for piece in read(start, end):
        await response.send(piece)
    await response.eof()
    return None
