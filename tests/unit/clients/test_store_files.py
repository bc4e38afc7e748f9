"""Files of a store: nothing outside, whatever a build named."""

import os

import pytest

from fc_operator.clients import store_files
from fc_operator.errors import NotFoundError

NAME = "0" * 32 + "-thing"


@pytest.fixture
def store(tmp_path):
    """A store folder with a product, and a secret beside it."""
    folder = tmp_path / "store"
    (folder / NAME / "doc").mkdir(parents=True)
    (folder / NAME / "a.txt").write_text("text")
    (folder / NAME / "doc" / "index.html").write_text("index")
    (folder / NAME / "doc" / "other.html").write_text("other")
    (folder / NAME / "in").symlink_to(folder / NAME / "a.txt")
    (folder / NAME / "loop").symlink_to(folder / NAME / "loop")
    (tmp_path / "secret").write_text("canary")
    (folder / NAME / "out").symlink_to(tmp_path / "secret")
    (folder / NAME / "up").symlink_to(tmp_path)
    (folder / NAME / "proc").symlink_to("/proc/self/environ")
    (folder / NAME / "links").symlink_to(folder / ".links")
    (folder / ".links").mkdir()
    (folder / ".links" / "x").write_text("canary")
    os.mkfifo(folder / NAME / "pipe")
    return folder


async def content(store, path, below="", default=""):
    file = await store_files.open_file(str(store), path, below, default)
    return b"".join([piece async for piece in file.read(0, file.size_bytes)]).decode()


async def test_a_file_a_link_inside_and_a_folders_default(store):
    root = f"{store}/{NAME}"
    assert await content(store, f"{root}/a.txt") == "text"
    assert await content(store, root, "a.txt") == "text"
    assert await content(store, root, "in") == "text"
    assert await content(store, f"{root}/doc") == "index"
    assert await content(store, f"{root}/doc", "", "other.html") == "other"
    assert await content(store, root, "doc/other.html") == "other"


@pytest.mark.parametrize(
    "below",
    [
        "out", "up/secret", "../secret", "doc/../../secret", "proc", "links/x", "pipe", "loop",
        "nothing", "a.txt/x", "doc/%2e%2e", "..", "\0", "x" * 5000, "../../../etc/passwd",
    ],
)  # fmt: skip
async def test_cve_class_path_traversal_below_a_product(store, below):
    """S08."""
    with pytest.raises(NotFoundError):
        await content(store, f"{store}/{NAME}", below)


@pytest.mark.parametrize(
    "path",
    [
        "{dir}/../secret", "{dir}/{name}/../../secret", "{dir}/{name}/out", "{dir}", "{dir}/",
        "{dir}/.links/x", "/etc/passwd", "", "relative", "{dir}x/{name}", "{dir}/short-name",
    ],
)  # fmt: skip
async def test_cve_class_path_traversal_in_a_products_path(store, path):
    """S08: what a build wrote into its own manifest of products."""
    with pytest.raises(NotFoundError):
        await content(store, path.format(dir=store, name=NAME))


async def test_a_default_never_leads_out(store):
    for default in ("../../secret", "/etc/passwd", "../out"):
        with pytest.raises(NotFoundError):
            await content(store, f"{store}/{NAME}/doc", "", default)
