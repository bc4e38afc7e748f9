"""Downloads of products from a store folder."""

from dataclasses import replace
from pathlib import Path

import pytest


@pytest.fixture
async def download(serve, world, tmp_path):
    """Build 2 offers a file, a page that would like to run, and a folder."""
    store = tmp_path / "store"
    root = store / ("c" * 32 + "-hello")
    (root / "doc").mkdir(parents=True)
    (root / "hello.txt").write_bytes(b"0123456789")
    (root / "doc" / "index.html").write_text("<script>alert(1)</script>")
    (root / "doc" / "a b.css").write_text("p {}")
    (tmp_path / "secret").write_text("canary")
    (root / "doc" / "out").symlink_to(tmp_path / "secret")
    await world.sql("DELETE FROM build_products")
    for nr, (name, path, is_directory) in enumerate(
        [("hello.txt", root / "hello.txt", False), ("doc", root / "doc", True),
         ("passwd", "/etc/passwd", False)], start=1,
    ):  # fmt: skip
        await world.add(
            "build_products", build_id=world.ids["hello"]["id"], nr=nr, name=name, path=str(path),
            is_directory=is_directory, type="file",
        )  # fmt: skip
    async with serve() as web:
        settings = web.service.context.settings
        web.service.context.settings = replace(
            settings, nix=replace(settings.nix, store_dir=str(store))
        )
        yield web


async def fetch(web, path, **headers):
    number = 2
    url = f"{web.url}/api/v1/builds/{number}/products/{path}"
    async with web.session.get(url, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


async def test_h05_a_product_is_an_attachment_in_a_sandbox(download):
    for path, kind in (("1/download", "text/plain"), ("2/download", "text/html")):
        status, headers, _ = await fetch(download, path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert headers["Content-Disposition"].startswith("attachment;")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("sandbox;")


async def test_ranges_and_tags_of_a_product(download):
    status, headers, body = await fetch(download, "1/download")
    assert (status, body) == (200, b"0123456789")
    assert (await fetch(download, "1/download", Range="bytes=2-4"))[::2] == (206, b"234")
    assert (await fetch(download, "1/download", **{"If-None-Match": headers["ETag"]}))[0] == 304
    assert (await fetch(download, "1/download", Range="bytes=10-"))[0] == 416
    stale = {"Range": "bytes=2-4", "If-Range": '"other"'}
    assert (await fetch(download, "1/download", **stale))[0] == 200


async def test_files_below_a_folder_product(download):
    assert (await fetch(download, "2/download/a%20b.css"))[2] == b"p {}"
    assert (await fetch(download, "2/download/index.html"))[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "3/download", "2/download/out", "2/download/../hello.txt", "2/download/%2e%2e/hello.txt",
        "2/download/..%2f..%2f..%2fsecret", "2/download//etc/passwd", "9/download", "0/download",
        "x/download", "1/download/x", "2/download/nothing", "99999999999/download",
    ],
)  # fmt: skip
async def test_cve_class_path_traversal(download, path):
    """S08 over HTTP."""
    import yarl

    url = yarl.URL(f"{download.url}/api/v1/builds/2/products/{path}", encoded=True)
    async with download.session.get(url) as answer:
        assert answer.status in {400, 404}
        assert b"canary" not in await answer.read()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_no_descriptor_is_left_open(download):
    await fetch(download, "1/download")
    before = descriptors()
    _, headers, _ = await fetch(download, "1/download")
    for more in ({}, {"If-None-Match": headers["ETag"]}, {"Range": "bytes=99-"}):
        await fetch(download, "1/download", **more)
    async with download.session.head(
        f"{download.url}/api/v1/builds/2/products/1/download"
    ) as answer:
        assert answer.headers["Content-Length"] == "10"
    assert descriptors() <= before + 1
