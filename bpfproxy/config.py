"""The agent's settings: one typed dataclass; flags, environment and (later) a file set it.

The docstring under each field is its help text, with its unit: the command line reads it from here.
"""

from __future__ import annotations

import ast
import math
import re
import socket
from dataclasses import dataclass, fields
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path
from typing import Literal

from bpfproxy.errors import InputError
from bpfproxy.model.address import Network

LoaderName = Literal["auto", "bcc", "prebuilt"]
SchedulerName = Literal["random", "round-robin", "maglev"]
ProxyMode = Literal["ebpf", "iptables", "ipvs", "nftables", "userspace"]
Acceleration = Literal["none", "auto", "xdp", "tc"]
IptablesVariant = Literal["auto", "nft", "legacy"]
IpvsScheduler = Literal["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set. Immutable; the defaults run a node agent as root."""

    manifests: tuple[Path, ...] = ()
    """Files or directories of Kubernetes manifests (YAML or JSON) to watch."""

    node_name: str = ""
    """Name of this node as in EndpointSlices' nodeName; default: the host name."""

    cluster_cidr: tuple[str, ...] = ()
    """Pod network ranges, at most one per family. They tell pods from outside clients (the local detector)."""

    service_cidr: tuple[str, ...] = ()
    """Ranges of ClusterIPs. The nftables proxier drops what goes to one that no Service has."""

    nodeport_addresses: tuple[str, ...] = ()
    """CIDR ranges of node addresses on which NodePorts answer, or `primary`; default: all of the node's."""

    proxy_mode: ProxyMode = "ebpf"
    """Proxier that serves Services without the annotation bpfproxy.io/proxy-mode."""

    scheduler: SchedulerName = "random"
    """Choice of a backend for Services without the annotation bpfproxy.io/scheduler."""

    masquerade_all: bool = False
    """Masquerade all traffic to ClusterIPs at packet level."""

    masquerade_bit: int = 14
    """Bit of the packet mark, 0 to 31, that says `masquerade` in the proxiers that write netfilter rules."""

    localhost_nodeports: bool = True
    """NodePorts answer on IPv4 loopback addresses as well in the proxiers that write netfilter rules; it needs
    net.ipv4.conf.all.route_localnet, which they set and cleanup puts back."""

    iptables_variant: IptablesVariant = "auto"
    """Which iptables writes the rules of the proxiers that use it; auto takes the one that the kubelet of this node
    uses, else nft where installed."""

    ipvs_scheduler: IpvsScheduler = "rr"
    """How the ipvs proxier chooses real servers, by the kernel's names."""

    ipvs_exclude_cidrs: tuple[str, ...] = ()
    """CIDR ranges in which the ipvs proxier removes no virtual server, not even of a Service that went."""

    ipvs_strict_arp: bool = False
    """The ipvs proxier sets arp_ignore and arp_announce, so that only the interface that has an address answers for
    it; cleanup puts them back."""

    device: tuple[str, ...] = ()
    """Devices by which clients outside the node come, names or patterns (`eth*`), followed as they come and go;
    default: those with a default route."""

    pod_device: tuple[str, ...] = ()
    """Devices that lead to pods of this node, names or patterns: host ends of veths, or bridges that join them;
    default: the names that well-known network plugins give. Tunnels to other nodes' pods are found without."""

    acceleration: Acceleration = "auto"
    """Packet level, for clients outside the cluster and pods without hooks: by XDP or by tc; auto takes XDP where a
    network card does it natively, and tc wherever XDP cannot be had; none leaves packets alone."""

    host_routing: bool = False
    """Send packets straight to the pods of this node, past the stack: NetworkPolicy in FORWARD, conntrack rules and
    the CNI's masquerading are bypassed."""

    cgroup: Path | None = None
    """cgroup v2 directory whose processes the socket-level programs serve; default: the root of the cgroup v2 mount."""

    state_dir: Path = Path("/run/bpfproxy")
    """Directory of the lock, the bpffs with pinned maps and links, and status files."""

    loader: LoaderName = "auto"
    """How programs reach the kernel: compiled here by bcc, or the prebuilt object; auto prefers bcc where installed."""

    snat_ports: str = "61001-65535"
    """Range FIRST-LAST of node ports reserved for source NAT; local processes cannot bind to them."""

    max_frontends: int = 65536
    """Size of each frontend map (one per family), rows."""

    max_sets: int = 65536
    """Size of the backend-set map, rows."""

    max_backends: int = 131072
    """Size of the backend map, rows."""

    max_slots: int = 1048576
    """Size of the array that holds the sets' members and Maglev tables, slots of 4 bytes."""

    max_affinities: int = 65536
    """Size of the session-affinity map, rows; the least recently used one makes room."""

    max_tcp_peers: int = 262144
    """Size of the map of connected TCP sockets, rows; beyond it, getpeername shows the backend."""

    max_udp_sessions: int = 65536
    """Size of the map of unconnected UDP sockets' sessions, rows; the least recently used one makes room."""

    max_flows: int = 131072
    """Size of each map of flows (four: two per family), rows; the least recently used one makes room."""

    max_connections: int = 16384
    """Connections and UDP sessions that the userspace proxier carries at once; more are turned away."""

    conntrack_tcp_syn: float = 120.0
    """Idle time after which a TCP flow without an answer is forgotten, seconds."""

    conntrack_tcp_established: float = 86400.0
    """Idle time after which an established TCP flow is forgotten, seconds."""

    conntrack_tcp_close_wait: float = 3600.0
    """Idle time after which a TCP flow that one side has closed is forgotten, seconds."""

    conntrack_tcp_time_wait: float = 120.0
    """Idle time after which a TCP flow that both sides have closed is forgotten, seconds."""

    conntrack_tcp_reset: float = 10.0
    """Idle time after which a TCP flow that was reset is forgotten, seconds."""

    conntrack_udp: float = 30.0
    """Idle time after which a UDP flow without an answer is forgotten, seconds."""

    conntrack_udp_stream: float = 120.0
    """Idle time after which a UDP flow that was answered is forgotten, seconds."""

    conntrack_sctp: float = 210.0
    """Idle time after which an SCTP flow is forgotten, seconds."""

    grace_period: float = 1.0
    """Seconds before a freed id or extent is used again."""

    min_sync_period: float = 0.0
    """Least time between two syncs, seconds."""

    sync_period: float = 30.0
    """Time after which everything is read back and compared with what is wanted, seconds."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity of events that are logged."""

    def __post_init__(self) -> None:
        """Raises InputError that names the first bad value."""
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name.startswith("max_") and not 1 <= value <= _ROWS_MAX:
                raise InputError(f"{flag(name)} {value}: expected 1 to {_ROWS_MAX}")
            if name.startswith("conntrack_") and not 0.1 <= value <= _IDLE_MAX:
                raise InputError(f"{flag(name)} {value:g}: expected 0.1 to {_IDLE_MAX:g} seconds")
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{flag(name)} {value:g}: expected seconds, 0 or more")
        if self.sync_period < max(self.min_sync_period, _SYNC_PERIOD_MIN):
            raise InputError(
                f"--sync-period {self.sync_period:g}: expected at least {_SYNC_PERIOD_MIN:g} seconds"
                " and no less than --min-sync-period"
            )
        for name in ("device", "pod_device"):
            for pattern in getattr(self, name):
                if not _DEVICE_PATTERN.fullmatch(pattern):
                    raise InputError(f"{flag(name)} {pattern}: expected a device's name, or a pattern such as eth*")
        if not 0 <= self.masquerade_bit <= 31:
            raise InputError(f"--masquerade-bit {self.masquerade_bit}: expected 0 to 31")
        self.masquerade_ports()
        self.ipvs_exclude_networks()

    @property
    def node(self) -> str:
        """`node_name`, or the host name as a node's name is made from it."""
        return self.node_name or socket.gethostname().lower()

    def ipvs_exclude_networks(self) -> tuple[Network, ...]:
        """`ipvs_exclude_cidrs`, each text of which may hold several with commas between. Raises InputError."""
        texts = [one.strip() for text in self.ipvs_exclude_cidrs for one in text.split(",")]
        try:
            return tuple(ip_network(text, strict=False) for text in texts)
        except ValueError as error:
            raise InputError(f"--ipvs-exclude-cidrs: expected ranges such as 10.0.0.0/8: {error}") from error

    def snat_range(self) -> tuple[int, int]:
        """`snat_ports` as (first, last). Raises InputError."""
        first, _, last = self.snat_ports.partition("-")
        if not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) <= int(last) <= 65535):
            raise InputError(f"--snat-ports {self.snat_ports}: expected FIRST-LAST, both from 1024 to 65535")
        return int(first), int(last)

    def masquerade_ports(self) -> tuple[int, int]:
        """(first, last) of the ports that netfilter may masquerade with: the larger part of those from 1024 on that
        `snat_ports` leaves. Raises InputError if that is none."""
        first, last = self.snat_range()
        low, high = max((1024, first - 1), (last + 1, 65535), key=lambda ports: ports[1] - ports[0])
        if low > high:
            raise InputError(f"--snat-ports {self.snat_ports}: expected some ports to be left for masquerading")
        return low, high


_ROWS_MAX = 1 << 28
_IDLE_MAX = 365 * 86400.0
"""The datapath's clock wraps: it can tell idle times of somewhat more than a year."""
_SYNC_PERIOD_MIN = 0.1
_DEVICE_PATTERN = re.compile(r"[^/:\s]+")


def flag(field: str) -> str:
    """The command line's spelling of a field: `--state-dir`."""
    return "--" + field.replace("_", "-")


def environment_variable(field: str) -> str:
    """The environment's spelling of a field: `BPFPROXY_STATE_DIR`."""
    return f"BPFPROXY_{field.upper()}"


def documentation() -> dict[str, str]:
    """field → the docstring under it, read from this file."""
    module = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    body = next(node.body for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Settings")
    texts: dict[str, str] = {}
    for before, node in pairwise(body):
        match before, node:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts
