"""The real kube-proxy as one more column: its binary on the lab's nodes, each with an API server of its own."""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import yaml

from bpfproxy.errors import InputError
from bpfproxy.lab import netns
from bpfproxy.lab.cases import Agents
from bpfproxy.lab.lab import Lab
from bpfproxy.lab.layout import NODES, SERVICE_RANGES
from bpfproxy.lab.manifests import Object
from bpfproxy.lab.node import AgentError
from bpfproxy.lab.oracle import KubeProxyMode
from bpfproxy.lab.place import spawn
from bpfproxy.lab.wait import wait_until
from bpfproxy.parity.api_server import ApiServer, Objects

_VERSION: Final = re.compile(r"Kubernetes v(\d+)\.(\d+)\S*")
_METRICS: Final = ("127.0.0.1", 10249)
_SYNCED: Final = re.compile(r"^kubeproxy_sync_proxy_rules_last_timestamp_seconds(\{[^}]*\})? ([\d.e+]+)$", re.MULTILINE)
_GATED: Final = {(1, 33): {"PreferSameTrafficDistribution": True}}
"""Features of the rules that a version has, and has not turned on: hints for nodes."""
_STARTS_WITHIN: Final = 60.0


@dataclass(frozen=True)
class Binary:
    """A kube-proxy, and how it is to work."""

    path: Path
    version: str
    """As `v1.33.4`."""
    mode: Literal["iptables", "ipvs", "nftables"]

    @property
    def column(self) -> KubeProxyMode:
        """Its name as a mode of the oracle."""
        return f"kube-proxy-{self.mode}"  # type: ignore[return-value]

    def features(self) -> dict[str, bool]:
        """Feature gates to set."""
        major, minor = map(int, self.version.removeprefix("v").split(".")[:2])
        return _GATED.get((major, minor), {})


def find(given: Path | None, mode: Literal["iptables", "ipvs", "nftables"]) -> Binary | None:
    """The binary that was given, else the one on PATH, if there is any. Raises InputError if it says nothing of its
    version."""
    on_path = shutil.which("kube-proxy")
    path = given or (Path(on_path) if on_path else None)
    if path is None:
        return None
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"--kube-proxy {path}: {error}") from error
    found = _VERSION.fullmatch(said.strip())
    if not found:
        raise InputError(f"--kube-proxy {path}: expected a kube-proxy, whose --version says `Kubernetes v1...`")
    return Binary(path.absolute(), found[0].removeprefix("Kubernetes "), mode)


@contextlib.contextmanager
def on_all_nodes(lab: Lab, binary: Binary, agents: Agents, directory: Path) -> Iterator[None]:
    """kube-proxy on every node of a lab, ready, for the manifests in a directory. Raises AgentError if it ends."""
    with contextlib.ExitStack() as stack:
        objects = stack.enter_context(Objects(directory, more=(_service_cidr(),)))
        nodes = []
        for node in NODES:
            server = stack.enter_context(ApiServer(objects, lab.topology.netns(node)))
            nodes.append(_Node(lab, node, binary, server))
        for one in nodes:
            stack.callback(one.stop)
            one.start(agents)
        for one in nodes:
            one.wait_ready()
        yield


class _Node:
    """One of them."""

    def __init__(self, lab: Lab, node: str, binary: Binary, server: ApiServer) -> None:
        self._lab, self._node, self._binary, self._server = lab, node, binary, server
        self._directory = lab.directory / node / "kube-proxy"
        self._log = self._directory / "log"
        self._process: subprocess.Popen[str] | None = None

    def start(self, agents: Agents) -> None:
        self._directory.mkdir(parents=True)
        kubeconfig, config = self._directory / "kubeconfig", self._directory / "config.yaml"
        kubeconfig.write_text(yaml.safe_dump(_kubeconfig(self._server.url)))
        config.write_text(yaml.safe_dump(configuration(self._binary, agents, self._node, kubeconfig)))
        topology = self._lab.topology
        with self._log.open("w") as log:
            self._process = spawn(
                [str(self._binary.path), "--config", str(config)],
                namespace=topology.netns(self._node),
                cgroup=topology.spot_cgroup(self._node),
                lab_id=self._lab.lab_id,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> None:
        """Until its first sync is done, which waits for all objects."""

        def ready() -> bool:
            if self._process is None or self._process.poll() is not None:
                raise AgentError(f"{self._node}: kube-proxy ended: {self._said()}")
            return synced(self._metrics())

        try:
            wait_until(ready, _STARTS_WITHIN, "it is ready")
        except TimeoutError as error:
            raise AgentError(f"{self._node}: kube-proxy: {error}; it said: {self._said()}") from error

    def _said(self) -> str:
        return self._log.read_text(errors="replace").strip()

    def _metrics(self) -> str:
        connection = http.client.HTTPConnection(*_METRICS, timeout=5)
        try:
            with netns.inside(self._lab.topology.netns(self._node)):
                connection.connect()
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        except OSError:
            return ""
        finally:
            connection.close()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def synced(metrics: str) -> bool:
    """Whether metrics say that a first sync of all objects is done. Versions that tell the families apart sync them one
    after the other."""
    times = {labels: float(time) for labels, time in _SYNCED.findall(metrics)}
    families = 1 if "" in times else 2
    return len(times) >= families and all(times.values())


def configuration(binary: Binary, agents: Agents, node: str, kubeconfig: Path) -> Object:
    """A KubeProxyConfiguration as our agents' settings have it."""
    masquerade = {"masqueradeAll": agents.masquerade_all, "minSyncPeriod": "0s", "syncPeriod": "30s"}
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": binary.mode,
        "hostnameOverride": node,
        "featureGates": binary.features(),
        "clientConnection": {
            "kubeconfig": str(kubeconfig),
            "contentType": "application/json",
            "acceptContentTypes": "application/json",
        },
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDR": ",".join(agents.cluster_cidrs),
        "nodePortAddresses": list(agents.nodeport_addresses),
        "iptables": masquerade,
        "nftables": masquerade,
        "ipvs": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
        # Timeouts and sizes of conntrack stay as they are.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
            "udpTimeout": "0s",
            "udpStreamTimeout": "0s",
        },
        "metricsBindAddress": "{}:{}".format(*_METRICS),
        "healthzBindAddress": "127.0.0.1:10256",
    }


def _kubeconfig(url: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": {"server": url}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "users": [{"name": "lab", "user": {}}],
        "current-context": "lab",
    }


def _service_cidr() -> Object:
    ranges = [one for one in SERVICE_RANGES if one.startswith(("10.96.", "fd00:10:96:"))]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ranges},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
