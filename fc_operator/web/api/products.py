"""Products: what a build offers, and its files.

A file goes out as an attachment of the declared or guessed type, never sniffed, in a sandbox: what
a build wrote never runs as us.
"""

from __future__ import annotations

import mimetypes
import re
from typing import Any
from urllib.parse import quote

from sanic import HTTPResponse

from fc_operator.clients import store_files
from fc_operator.errors import NotFoundError
from fc_operator.store.pages import builds
from fc_operator.web import answers, bodies
from fc_operator.web.routes import Answer, Call, get

_MEDIA = re.compile(r"[a-z0-9.+-]{1,50}/[a-z0-9.+-]{1,80}(; ?charset=[a-z0-9-]{1,20})?", re.ASCII)
_PATH = "/api/v1/builds/<build>/products"


async def handle_list(call: Call[Any, Any]) -> HTTPResponse:
    """What a build offers for download."""
    async with call.web.database.session() as connection:
        build = await builds.find(connection, call.reader, call.path["build"])
        rows = await builds.list_products(connection, build["id"])
    return answers.json(call, {"items": rows, "next": None})


async def handle_download(call: Call[Any, Any]) -> HTTPResponse | None:
    """A product, or a file below it."""
    word = call.path["nr"]
    nr = int(word) if word.isascii() and word.isdigit() and len(word) <= 6 else 0
    async with call.web.database.session() as connection:
        build = await builds.find(connection, call.reader, call.path["build"])
        product = await builds.fetch_product(connection, build["id"], nr)
    if product is None:
        raise NotFoundError(f"build {build['number']} has no product {word}")
    below = call.path.get("below", "")
    file = await store_files.open_file(
        call.web.settings.nix.store_dir, product["path"], below, product["default_path"]
    )
    declared = product["content_type"] if not below and not product["is_directory"] else None
    answer = None
    try:
        answer = await bodies.send(
            call,
            size=file.size_bytes,
            media=media_of(file.name, declared),
            read=file.read,
            etag=f'"{build["id"].hex}-{nr}-{file.size_bytes}"' if not below else None,
            headers={"Content-Disposition": attachment(file.name)},
        )
    finally:
        # Whoever answered at once did not read, so did not close.
        if answer is not None:
            file.close()
    return answer


def media_of(name: str, declared: str | None) -> str:
    """The declared type if it is one, else by the name, else bytes."""
    if declared and _MEDIA.fullmatch(declared):
        return declared
    return mimetypes.guess_type(name)[0] or "application/octet-stream"


def attachment(name: str) -> str:
    """A Content-Disposition that no name can break out of (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:200] or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name[:200], safe='')}"


_DOWNLOAD = Answer(media="application/octet-stream")
ROUTES = (
    get(
        _PATH,
        handle_list,
        "What a build offers for download.",
        answer=Answer(body=answers.Items[builds.ProductRow]),
    ),
    get(
        f"{_PATH}/<nr>/download",
        handle_download,
        "A product; of a folder its default file.",
        answer=_DOWNLOAD,
        streams=True,
    ),
    get(
        f"{_PATH}/<nr>/download/<below:path>",
        handle_download,
        "A file below a product.",
        answer=_DOWNLOAD,
        streams=True,
    ),
)
