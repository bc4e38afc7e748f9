"""Where a test cluster keeps its things, and what its parts are called on this machine. Pure."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def base_dir() -> Path:
    """``FC_CLUSTER_DIR``, else ``.state/cluster`` of this clone."""
    return Path(os.environ.get("FC_CLUSTER_DIR") or REPOSITORY / ".state" / "cluster").resolve()


@dataclass(frozen=True, slots=True)
class Places:
    """The folders of one cluster: several may run side by side, told apart by ``instance``."""

    instance: str = "dev"
    base: Path = field(default_factory=base_dir)

    @property
    def name(self) -> str:
        """Network namespace, control group and runtime folder are called so."""
        tag = hashlib.sha256(f"{self.base}\0{self.instance}".encode()).hexdigest()[:6]
        return f"fc-{self.instance}-{tag}"

    @property
    def programs(self) -> Path:
        """Built programs, by version; kept from run to run."""
        return self.base / "bin"

    @property
    def cache(self) -> Path:
        """What images are made from; kept from run to run."""
        return self.base / "cache"

    @property
    def dir(self) -> Path:
        """All else of this cluster; goes with it."""
        return self.base / self.instance

    @property
    def configuration(self) -> Path:
        """Generated files: keys, certificates and the configuration of each part."""
        return self.dir / "etc"

    @property
    def logs(self) -> Path:
        """One file for each part; they outlive the cluster until the next one starts."""
        return self.base / f"{self.instance}-logs"

    @property
    def sockets(self) -> Path:
        """Short, since the path of a socket may have no more than 107 characters."""
        return Path("/run") / self.name

    @property
    def network(self) -> Path:
        """The network namespace, for ``nsenter --net=``."""
        return Path("/run/netns") / self.name

    @property
    def control(self) -> Path:
        """The supervisor's socket."""
        return self.sockets / "control.sock"

    @property
    def containerd(self) -> Path:
        """The socket of containerd."""
        return self.sockets / "containerd.sock"

    @property
    def kubeconfig(self) -> Path:
        """An administrator's; its address is reached within the network namespace."""
        return self.dir / "kubeconfig"

    @property
    def status(self) -> Path:
        """JSON of what the supervisor last said about itself."""
        return self.dir / "status.json"

    @property
    def enter(self) -> Path:
        """A script that runs a command within the network namespace."""
        return self.dir / "enter"
