"""Images: pause and a Debian base made here, and the project's own from its Containerfile."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.cluster import parts, snapshots
from tests.cluster.machine import Machine
from tests.cluster.places import REPOSITORY, Places
from tests.cluster.programs import MissingError, Say, quiet, system_program

SUITE = "trixie"
BASE = f"localhost/base:{SUITE}"
IMAGE = "localhost/fc-operator"
"""Its tags are hashes of the sources; ``test`` is the newest that was imported."""
_BASE_PACKAGES = ("nix-bin", "git", "openssh-client", "python3", "python3-venv", "ca-certificates")
_IMAGES_MAX = 200
"""How many steps of builds are kept for the next ones, before all start from nothing."""
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
            for each in ("oci-layout", "index.json", "blobs"):
                tar.add(f"{folder}/{each}", each)
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
        ]
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


def provide_image(machine: Machine, say: Say = quiet) -> str:
    """The name of the project's image as the sources are now: built and imported if need be.

    Raises:
        MissingError: it can't be built.
    """
    with _one_at_a_time(machine.places):
        name = f"{IMAGE}:{source_hash()}"
        if not machine.has_image(name):
            machine.import_image(_make_image(machine.places, name, say))
        machine.name_image(name, f"{IMAGE}:test")
    return name


def _make_image(places: Places, name: str, say: Say) -> Path:
    """The OCI archive of the project's image."""
    archive = places.cache / f"fc-operator-{name.rpartition(':')[2]}.tar"
    if archive.is_file():
        return archive
    if len(_buildah(places, "images", "--all", "--quiet").split()) > _IMAGES_MAX:
        shutil.rmtree(_store(places))
    make_base(places, say)
    for old in places.cache.glob("fc-operator-*"):
        old.unlink()
    say("building the image")
    mounts = [f"--volume={each}:{each}:ro" for each in _pip_files()]
    _buildah(
        places, "bud", "--isolation=chroot", "--layers", "--quiet", f"--build-arg=BASE={BASE}",
        *mounts, "--tag", name, "--file", str(REPOSITORY / "Containerfile"), str(REPOSITORY),
    )  # fmt: skip
    new = archive.with_suffix(".new")
    _buildah(places, "push", "--quiet", "--disable-compression", name, f"oci-archive:{new}:{name}")
    new.rename(archive)
    return archive


@contextlib.contextmanager
def _one_at_a_time(places: Places) -> Iterator[None]:
    """Builds share a store and an archive."""
    places.cache.mkdir(parents=True, exist_ok=True)
    with (places.cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
    """Run it in a mount and a process namespace of its own: killed, it leaves nothing mounted."""
    driver = snapshots.driver(places.cache)
    own = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    return _run(
        [*own, str(_found("buildah")), f"--storage-driver={driver}",
         f"--root={_store(places)}", f"--runroot=/run/{places.name}-images", *words],
        check=check,
    )  # fmt: skip


def _store(places: Places) -> Path:
    return places.cache / "buildah"


def _found(name: str) -> Path:
    program = system_program(name)
    if program is None:
        raise MissingError(f"{name} is not installed")
    return program


def _run(words: list[str], *, check: bool = True) -> str:
    # RUN sees our environment; a folder of this machine is not there for it.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_FIND_LINKS"}
    done = subprocess.run(
        [str(_found(words[0])), *words[1:]],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-1500:]
        raise MissingError(f"{' '.join(words)[:300]}: {said}")
    return done.stdout
