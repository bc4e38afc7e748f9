"""Images: pause and a Debian base made here, and the project's own from its Containerfile."""

from __future__ import annotations

import json
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.cluster import parts
from tests.cluster.places import REPOSITORY, Places
from tests.cluster.programs import MissingError, Say, system_program

SUITE = "trixie"
BASE = f"localhost/base:{SUITE}"
IMAGE = "localhost/fc-operator:test"
_BASE_PACKAGES = ("nix-bin", "git", "openssh-client", "python3", "python3-venv", "ca-certificates")
_PAUSE_C = """\
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int signal_number) { _exit(0); }
static void reap(int signal_number) { while (waitpid(-1, 0, WNOHANG) > 0) {} }
int main(void) {
    signal(SIGINT, leave); signal(SIGTERM, leave); signal(SIGCHLD, reap);
    for (;;) pause();
}
"""


def make_pause(places: Places) -> Path:
    """The OCI archive of the image that holds a pod's namespaces, compiled on this machine."""
    archive = places.cache / "pause.tar"
    if archive.is_file():
        return archive
    places.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=places.cache) as folder:
        source = Path(folder) / "pause.c"
        source.write_text(_PAUSE_C)
        _run(["gcc", "-Os", "-static", "-o", f"{folder}/pause", str(source)])
        layer = Path(folder) / "layer.tar"
        with tarfile.open(layer, "w") as tar:
            tar.add(f"{folder}/pause", "pause")
        _write_archive(archive, parts.PAUSE_IMAGE, layer.read_bytes(), ["/pause"])
    return archive


def _write_archive(archive: Path, name: str, layer: bytes, entrypoint: list[str]) -> None:
    """An OCI archive of one layer."""
    digest = hashlib.sha256(layer).hexdigest()
    config = json.dumps({
        "architecture": _architecture(), "os": "linux", "config": {"Entrypoint": entrypoint},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }).encode()  # fmt: skip
    kinds = "application/vnd.oci.image"
    manifest = json.dumps({
        "schemaVersion": 2, "mediaType": f"{kinds}.manifest.v1+json",
        "config": _described(f"{kinds}.config.v1+json", config),
        "layers": [_described(f"{kinds}.layer.v1.tar", layer)],
    }).encode()  # fmt: skip
    described = _described(f"{kinds}.manifest.v1+json", manifest)
    described["annotations"] = {"io.containerd.image.name": name,
                                "org.opencontainers.image.ref.name": name.rpartition(":")[2]}  # fmt: skip
    index = json.dumps({"schemaVersion": 2, "manifests": [described]}).encode()
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        blobs = Path(folder) / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        for each in (layer, config, manifest):
            (blobs / hashlib.sha256(each).hexdigest()).write_bytes(each)
        (Path(folder) / "index.json").write_bytes(index)
        (Path(folder) / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        new = archive.with_suffix(".new")
        with tarfile.open(new, "w") as tar:
            for name in ("oci-layout", "index.json", "blobs"):
                tar.add(f"{folder}/{name}", name)
        new.rename(archive)


def _described(kind: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)


def make_base(places: Places, say: Say = print) -> None:
    """Debian with Nix and Python in buildah's store, as the Containerfile's BASE.

    Raises:
        MissingError: Debian's archive can't be reached.
    """
    if _buildah(places, "images", "--quiet", BASE, check=False).strip():
        return
    rootfs = places.cache / f"rootfs-{SUITE}.tar"
    if not rootfs.is_file():
        say(f"making a Debian {SUITE} with {', '.join(_BASE_PACKAGES)}")
        places.cache.mkdir(parents=True, exist_ok=True)
        new = rootfs.with_name(f"new-{rootfs.name}")
        without = [
            f"--dpkgopt=path-exclude=/usr/share/{each}/*"
            for each in ("doc", "man", "locale", "info")
        ]  # noqa: E501
        _run([
            "mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(_BASE_PACKAGES)}",
            "--aptopt=APT::Install-Recommends false", *without, SUITE, str(new),
        ])  # fmt: skip
        new.rename(rootfs)
    container = _buildah(places, "from", "scratch").strip()
    try:
        _buildah(places, "add", container, str(rootfs), "/")
        _buildah(places, "config", "--cmd", "/bin/bash", container)
        _buildah(places, "commit", "--quiet", container, BASE)
    finally:
        _buildah(places, "rm", container, check=False)


def make_image(places: Places, say: Say = print) -> Path:
    """The OCI archive of the project's image, built unless its sources are as they were.

    Raises:
        MissingError: it can't be built.
    """
    archive = places.cache / "images" / f"fc-operator-{source_hash()}.tar"
    if archive.is_file():
        return archive
    make_base(places, say)
    shutil.rmtree(archive.parent, ignore_errors=True)
    archive.parent.mkdir(parents=True)
    say("building the image")
    mounts = [f"--volume={each}:{each}:ro" for each in _pip_files()]
    variables = [f"--env={name}" for name in os.environ if name.startswith("PIP_")]
    del variables  # what pip is told by the environment stays on this machine
    _buildah(
        places, "bud", "--isolation=chroot", "--layers", "--quiet", f"--build-arg=BASE={BASE}",
        *mounts, "--tag", IMAGE, "--file", str(REPOSITORY / "Containerfile"), str(REPOSITORY),
    )  # fmt: skip
    new = archive.with_suffix(".new")
    _buildah(
        places, "push", "--quiet", "--disable-compression", IMAGE, f"oci-archive:{new}:{IMAGE}"
    )
    new.rename(archive)
    return archive


def source_hash() -> str:
    """Changes with whatever the image is made from."""
    digest = hashlib.sha256()
    for name in ("Containerfile", ".containerignore", "requirements.lock", "pyproject.toml",
                 "README.md", "LICENSE", "fc_operator", "crds", "migrations", "config"):  # fmt: skip
        top = REPOSITORY / name
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(REPOSITORY)}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _pip_files() -> list[str]:
    """This machine's settings of pip and the authorities that it trusts, for RUN."""
    candidates = ("/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
    return [each for each in candidates if Path(each).is_file()]


def _buildah(places: Places, *words: str, check: bool = True) -> str:
    store = places.cache / "buildah"
    return _run(
        ["buildah", "--storage-driver=vfs", f"--root={store}",
         f"--runroot={places.cache / 'buildah-run'}", *words],
        check=check,
    )  # fmt: skip


def _run(words: list[str], *, check: bool = True) -> str:
    program = system_program(words[0])
    if program is None:
        raise MissingError(f"{words[0]} is not installed")
    done = subprocess.run([str(program), *words[1:]], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise MissingError(f"{words[0]} {words[1]}: {(done.stderr or done.stdout).strip()[-1500:]}")
    return done.stdout
