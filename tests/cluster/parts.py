"""What each part of the cluster is started with: configuration files and argument lists."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.cluster import pki
from tests.cluster.places import Places
from tests.cluster.programs import CNI, Programs

HOST = "10.99.0.1"
"""The node, seen from pods and from processes within the network namespace."""
PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
API = "10.96.0.1"
"""The API server's service."""
API_PORT = 6443
NODE = "fc-node"
DOMAIN = "cluster.local"
MACHINE = "machine.test"
"""The node's name for pods: what listens on ``HOST`` is reached by it."""

_USERS = (
    ("admin", "admin", "system:masters"),
    ("controller-manager", "system:kube-controller-manager", ""),
    ("scheduler", "system:kube-scheduler", ""),
    ("kubelet", f"system:node:{NODE}", "system:nodes"),
    ("kube-proxy", "system:kube-proxy", ""),
    # Its role would have to be made first; it only reads.
    ("coredns", "coredns", "system:masters"),
)


@dataclass(frozen=True, slots=True)
class Part:
    """One process."""

    name: str
    arguments: tuple[str, ...]


def write_configuration(places: Places, *, restrict_oom: bool, snapshotter: str) -> str:
    """Make all files anew; returns the administrator's token.

    ``restrict_oom``: this machine lets nobody lower an OOM score.
    """
    folder = places.configuration
    folder.mkdir(parents=True)
    folder.chmod(0o700)
    pki.make_service_account_key(folder)
    authority = pki.Authority(folder)
    authority.issue(
        "apiserver",
        "kube-apiserver",
        addresses=["127.0.0.1", HOST, API],
        names=["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
               f"kubernetes.default.svc.{DOMAIN}"],
    )  # fmt: skip
    authority.issue("kubelet-client", "kube-apiserver", organization="system:masters")
    text, tokens = pki.make_tokens(_USERS)
    pki.write_private(folder / "tokens.csv", text.encode())
    certificate = (folder / "ca.crt").read_bytes()
    for label, token in tokens.items():
        pki.write_private(folder / f"{label}.kubeconfig", _kubeconfig(certificate, token))
    pki.write_private(places.kubeconfig, _kubeconfig(certificate, tokens["admin"]))
    (folder / "resolv.conf").write_text(f"nameserver {HOST}\n")
    (folder / "kubelet.json").write_text(json.dumps(_kubelet(places), indent=1))
    (folder / "kube-proxy.json").write_text(json.dumps(_kube_proxy(places), indent=1))
    (folder / "containerd.toml").write_text(
        _containerd(places, restrict_oom=restrict_oom, snapshotter=snapshotter)
    )
    (folder / "cni").mkdir()
    (folder / "cni" / "10-fc.conflist").write_text(json.dumps(_network(places), indent=1))
    (folder / "Corefile").write_text(_corefile(places))
    return tokens["admin"]


def parts(places: Places, programs: Programs) -> tuple[Part, ...]:
    """In the order of their start."""
    folder = places.configuration

    def config(name: str) -> str:
        return str(folder / name)

    return (
        Part("etcd", (
            programs["etcd"], f"--data-dir={places.dir / 'etcd'}", "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380", "--logger=zap", "--log-level=warn",
        )),
        Part("containerd", (programs["containerd"], f"--config={config('containerd.toml')}")),
        Part("kube-apiserver", (
            programs["kube-apiserver"], "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0", f"--advertise-address={HOST}", f"--secure-port={API_PORT}",
            f"--cert-dir={folder}", f"--tls-cert-file={config('apiserver.crt')}",
            f"--tls-private-key-file={config('apiserver.key')}",
            f"--token-auth-file={config('tokens.csv')}",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={config('service-accounts.pub')}",
            f"--service-account-signing-key-file={config('service-accounts.key')}",
            f"--service-cluster-ip-range={SERVICES}", "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={config('kubelet-client.crt')}",
            f"--kubelet-client-key={config('kubelet-client.key')}",
        )),
        Part("kube-controller-manager", (
            programs["kube-controller-manager"],
            f"--kubeconfig={config('controller-manager.kubeconfig')}",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={config('service-accounts.key')}",
            f"--root-ca-file={config('ca.crt')}", "--leader-elect=false",
            f"--cert-dir={folder}", "--bind-address=127.0.0.1",
        )),
        Part("kube-scheduler", (
            programs["kube-scheduler"], f"--kubeconfig={config('scheduler.kubeconfig')}",
            "--leader-elect=false", f"--cert-dir={folder}", "--bind-address=127.0.0.1",
        )),
        Part("kubelet", (
            programs["kubelet"], f"--kubeconfig={config('kubelet.kubeconfig')}",
            f"--config={config('kubelet.json')}", f"--root-dir={places.dir / 'kubelet'}",
            f"--hostname-override={NODE}", f"--node-ip={HOST}",
            f"--cert-dir={places.dir / 'kubelet-pki'}",
        )),
        Part("kube-proxy", (programs["kube-proxy"], f"--config={config('kube-proxy.json')}")),
        Part("coredns", (programs["coredns"], f"-conf={config('Corefile')}")),
    )  # fmt: skip


def _kubeconfig(certificate: bytes, token: str) -> bytes:
    """For the address that both the node and its pods reach."""
    cluster = {
        "server": f"https://{HOST}:{API_PORT}",
        "certificate-authority-data": base64.b64encode(certificate).decode(),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fc", "cluster": cluster}],
        "users": [{"name": "fc", "user": {"token": token}}],
        "contexts": [{"name": "fc", "context": {"cluster": "fc", "user": "fc"}}],
        "current-context": "fc",
    }
    return json.dumps(document, indent=1).encode()


def _kubelet(places: Places) -> Mapping[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{places.containerd}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(places.configuration / "ca.crt")},
        },
        # Whoever has a certificate is the API server.
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{places.name}",
        "clusterDNS": [HOST],
        "clusterDomain": DOMAIN,
        "resolvConf": str(places.configuration / "resolv.conf"),
        "podLogsDir": str(places.dir / "pod-logs"),
        "volumePluginDir": str(places.dir / "volume-plugins"),
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "makeIPTablesUtilChains": False,
        "maxPods": 250,
        # The machine is not ours alone: its disk may be full of other things.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
        "registerNode": True,
    }


def _kube_proxy(places: Places) -> Mapping[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": str(places.configuration / "kube-proxy.kubeconfig")},
        "hostnameOverride": NODE,
        "clusterCIDR": PODS,
        "conntrack": {"maxPerCore": 0},
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
    }


def _network(places: Places) -> Mapping[str, Any]:
    """Each pod has a cable of its own to the node, which routes: nothing of a pod's traffic, not
    even to its neighbour, passes a bridge that the services' rules would not see.
    """
    return {
        "cniVersion": "1.0.0",
        "name": "fc",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": PODS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": str(places.dir / "cni-addresses"),
                },
            }
        ],
    }


def _containerd(places: Places, *, restrict_oom: bool, snapshotter: str) -> str:
    return f"""\
version = 2
root = "{places.dir / "containerd"}"
state = "{places.sockets / "containerd"}"
oom_score = 0

[grpc]
  address = "{places.containerd}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{places.dir / "containerd-opt"}"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = {str(restrict_oom).lower()}
  stream_server_address = "127.0.0.1"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI}"
    conf_dir = "{places.configuration / "cni"}"
"""


PAUSE_IMAGE = "localhost/pause:1"


def _corefile(places: Places) -> str:
    return f"""\
{DOMAIN}:53 {{
    bind {HOST}
    errors
    kubernetes {DOMAIN} {{
        kubeconfig {places.configuration / "coredns.kubeconfig"}
        pods insecure
    }}
}}
{MACHINE}:53 {{
    bind {HOST}
    hosts {{
        {HOST} {MACHINE}
    }}
}}
.:53 {{
    bind {HOST}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
