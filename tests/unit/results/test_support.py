import hashlib
import os
from pathlib import Path

import pytest

from fc_operator.model.ids import StorePath
from fc_operator.model.outcomes import OutputInfo
from fc_operator.results.support import harvest

HASH = "0123456789abcdfghijklmnpqrsvwxyz"


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def make(store):
    """An output with files; returns what Nix would tell of it."""

    def make(name="sample", output="out", **files) -> OutputInfo:
        path = store / f"{HASH}-{name}"
        (path / "nix-support").mkdir(parents=True)
        for file, text in files.items():
            data = text if isinstance(text, bytes) else text.replace("@", str(path)).encode()
            (path / "nix-support" / file.replace("_", "-")).write_bytes(data)
        return OutputInfo(name=output, path=StorePath(str(path)))

    return make


def test_products_are_numbered_over_all_outputs_with_size_and_hash(store, make):
    out = make(hydra_build_products='doc manual "@/the docs" index.html\nfile iso @/a.iso\n')
    Path(out.path, "the docs").mkdir()
    Path(out.path, "a.iso").write_bytes(b"iso")
    bin_ = make("sample-bin", "bin", hydra_build_products="nix-build bin @")
    found = harvest([out, bin_], store_dir=store)
    assert [
        (p.nr, p.type, p.subtype, p.name, p.default_path, p.output) for p in found.products
    ] == [
        (1, "doc", "manual", "the docs", "index.html", "out"),
        (2, "file", "iso", "a.iso", "", "out"),
        (3, "nix-build", "bin", "", "", "bin"),
    ]
    assert [(p.is_directory, p.size_bytes) for p in found.products] == [
        (True, None),
        (False, 3),
        (True, None),
    ]
    assert found.products[1].sha256 == hashlib.sha256(b"iso").hexdigest()
    assert found.warnings == ()


def test_products_may_be_links_into_other_store_paths(store, make):
    other = make("other")
    Path(other.path, "f").write_text("x")
    out = make(hydra_build_products="file txt @/link")
    Path(out.path, "link").symlink_to(f"{other.path}/f")
    assert harvest([out], store_dir=store).products[0].size_bytes == 1


BAD = [
    "file txt /etc/passwd",
    "file txt @/../../../../../etc/passwd",
    "file txt @/out-link",
    "file txt @/dir-link/passwd",
    "file txt @/missing",
    "file txt relative/path",
    "file txt @/fifo",
    "file txt /proc/self/environ",
    "file",
    "file txt",
    "fi!e txt @",
    "file <b> @",
    'file txt "@',
    "file txt @ a b",
    "file txt @/../.links/x",
    "file txt @/<script>",
    "file txt {store}",
    "file txt @/\x00x",
]


@pytest.mark.parametrize("line", BAD)
def test_s08_a_bad_product_line_is_left_out_with_a_warning(store, make, line):
    out = make(hydra_build_products=line.replace("{store}", str(store)) + "\ndoc ok @\n")
    Path(out.path, "out-link").symlink_to("/etc/passwd")
    Path(out.path, "dir-link").symlink_to("/etc")
    os.mkfifo(f"{out.path}/fifo")
    found = harvest([out], store_dir=store)
    assert [(p.nr, p.type) for p in found.products] == [(1, "doc")]
    assert len(found.warnings) == 1


def test_a_default_path_may_not_leave_its_folder(store, make):
    found = harvest([make(hydra_build_products="doc x @ ../../etc")], store_dir=store)
    assert found.products[0].default_path == ""
    assert found.warnings


def test_without_the_file_each_folder_is_a_product(store, make):
    out, bin_ = make(), make("sample-bin", "bin")
    plain = store / f"{HASH}-plain"
    plain.write_text("x")
    outputs = [out, bin_, OutputInfo(name="doc", path=StorePath(str(plain)))]
    found = harvest(outputs, store_dir=store)
    assert [(p.nr, p.type, p.subtype, p.name) for p in found.products] == [
        (1, "nix-build", "", "sample"),
        (2, "nix-build", "bin", "sample-bin"),
    ]
    assert all(p.size_bytes is None and p.sha256 is None for p in found.products)


def test_an_empty_product_file_means_no_products(store, make):
    assert harvest([make(hydra_build_products="")], store_dir=store).products == ()


def test_metrics_match_whole_lines_and_the_last_wins(store, make):
    text = """size 10
    time.user-x 1.5e3 ms
    size 12 MiB
    bad nan
    bad2 inf
    bad3 1e999
    bad4 1_000
    <script> 1
    x 1 <b>
    y
    z 0x10
    """
    found = harvest([make(hydra_metrics=text)], store_dir=store)
    assert {(m.name, m.value, m.unit) for m in found.metrics} == {
        ("size", 12.0, "MiB"),
        ("time.user-x", 1500.0, "ms"),
    }
    assert len(found.warnings) == 8


def test_the_last_release_name_wins_and_bad_ones_are_left_out(store, make):
    one = make("one", hydra_release_name="  one-1.0 \n")
    two = make("two", "bin", hydra_release_name=b"two@2:0")
    assert harvest([one, two], store_dir=store).release_name == "two@2:0"
    bad = make("bad", hydra_release_name="a b")
    assert harvest([bad], store_dir=store).release_name is None


def test_failed_in_any_output_is_seen(store, make):
    assert not harvest([make("a")], store_dir=store).has_failed_file
    assert harvest([make("b"), make("c", failed="")], store_dir=store).has_failed_file


def test_a_nix_support_that_leads_out_of_the_store_is_not_read(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "hydra-release-name").write_text("secret")
    (outside / "failed").write_text("")
    path = store / f"{HASH}-sly"
    path.mkdir()
    (path / "nix-support").symlink_to(outside)
    found = harvest([OutputInfo(name="out", path=StorePath(str(path)))], store_dir=store)
    assert (found.release_name, found.has_failed_file) == (None, False)
    assert found.warnings


def test_sizes_are_capped(store, make):
    text = b"m 1\n" + b"x" * 5000 + b" 1\n" + b"\xff 1\n"
    found = harvest([make("a", hydra_metrics=text)], store_dir=store)
    assert [m.name for m in found.metrics] == ["m"]
    assert len(found.warnings) == 2
    many = "".join(f"m{n} 1\n" for n in range(10_500))
    assert len(harvest([make("b", hydra_metrics=many)], store_dir=store).metrics) == 10_000
    huge = b"m 1\n" * 300_000
    assert "larger than" in harvest([make("c", hydra_metrics=huge)], store_dir=store).warnings[0]


@pytest.mark.parametrize("kind", ["folder", "fifo", "device"])
def test_s08_what_is_no_regular_file_is_left_out_and_never_waited_for(store, make, kind):
    out = make()
    support = Path(out.path, "nix-support")
    for name in ("hydra-build-products", "hydra-metrics", "hydra-release-name"):
        match kind:
            case "folder":
                (support / name).mkdir()
            case "fifo":
                os.mkfifo(support / name)
            case "device":
                (support / name).symlink_to("/dev/zero")
    before = len(list(Path("/proc/self/fd").iterdir()))
    found = harvest([out], store_dir=store)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert len(found.warnings) == 3
    assert [product.type for product in found.products] == ["nix-build"]
    assert (found.metrics, found.release_name) == ((), None)


def test_a_file_that_many_lines_name_is_read_once(store, make, monkeypatch):
    out = make(hydra_build_products="file x @/big\n" * 1_000)
    Path(out.path, "big").write_bytes(b"x")
    reads = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: reads.append(args) or digest(*args))
    found = harvest([out], store_dir=store)
    assert (len(found.products), len(reads)) == (1_000, 1)
