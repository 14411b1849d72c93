"""Where a proxier is known to do otherwise than the semantics say, and why. `docs/semantics.md` has this list."""

from __future__ import annotations

from typing import Final, Literal

Divergence = Literal[
    "address-kept",
    "ranges-bind-outside-clients",
    "told-at-connect",
    "no-masquerade-of-sockets",
    "masquerade-without-detector",
    "errors-about-backends",
    "no-loopback-node-ports",
    "primary-node-ports",
    "address-of-the-node",
    "accepts-first",
    "refused-by-reset",
    "path-of-the-proxy",
    "affinity-outlives-its-window",
    "always-short-cut",
    "leaves-the-node",
    "dropped-at-output",
]

REASONS: Final[dict[Divergence, str]] = {
    "address-kept": "ebpf: the client's address is kept where a backend on the same node answers, also under policy"
    " Cluster: the answer passes the node anyway",
    "ranges-bind-outside-clients": "ebpf: at connect the source of a socket is not known yet, so source ranges bind"
    " clients outside the cluster only",
    "told-at-connect": "ebpf: where a packet would be dropped, connect fails at once (EHOSTUNREACH) and nobody waits",
    "no-masquerade-of-sockets": "ebpf: a translated socket speaks to its backend directly, so nothing has to come back"
    " through the node",
    "masquerade-without-detector": "ebpf: where the node does not know pods by their addresses, clients of a ClusterIP"
    " are masqueraded towards other nodes, or the answers would go past the node",
    "errors-about-backends": "ebpf: a socket's ICMP errors are about what was sent, and that is to the backend; no hook"
    " sees what programs read of them (IP_RECVERR)",
    "no-loopback-node-ports": "127.0.0.1 and ::1 cannot be routed off the loopback device: ipvs and nftables have no"
    " NodePorts there, iptables those of IPv4",
    "primary-node-ports": "nftables: unless ranges are given, NodePorts answer on the node's primary addresses alone;"
    " ports of other devices are left to programs",
    "address-of-the-node": "userspace: the connection to the backend is the proxy's own",
    "accepts-first": "userspace: the proxy takes a connection before it has one to a backend, and does not hear of"
    " refused datagrams in time",
    "refused-by-reset": "userspace: a reset ends a connect at once, where an ICMP error may get lost to a socket that"
    " is about to send",
    "path-of-the-proxy": "userspace: beyond the node packets are the proxy's own, so a client is not told that its own"
    " are too big there",
    "affinity-outlives-its-window": "ipvs: the kernel keeps an affinity for as long as it remembers one of its"
    " connections, minutes after the end of it",
    "always-short-cut": "kube-proxy: under externalTrafficPolicy Local pods and the node use the cluster's endpoints,"
    " also where there are local ones",
    "leaves-the-node": "kube-proxy: what the node itself sends to an external address without endpoints meets no rule"
    " that refuses it, and leaves",
    "dropped-at-output": "kube-proxy: what the node itself sends to an external address is dropped as an outside"
    " client's is where policy Local finds nothing local",
}
"""Each with its reason."""
